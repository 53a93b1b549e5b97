"""bench/data.py: a row per pipeline, ratios by round, no time if cache and files differ."""

import numpy as np
import pytest

from bench import data
from bench.core.results import read_results
from hyperseg.data.pipeline.cache import CachedDataset


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command on small images; return its exit code and the results of its one network."""
    monkeypatch.setattr(data, "BATCH", 2)

    def go(*extra):
        path = tmp_path / "data.json"
        sizes = ["--resolution", "64x128", "--quick", "--iterations", "2", "--json", str(path)]
        code = data.main([*sizes, *extra])
        return code, read_results(path).models[0]

    return go


@pytest.mark.parametrize("name", ["hyperseg-m-cityscapes", "hyperseg-l-voc"])
def test_rows_are_pipelines(run, capsys, name):
    code, entry = run("--model", name)
    assert code == 0
    assert entry.resolution == [64, 128]
    assert [row.peer for row in entry.rows] == ["official", "torchvision", "files", "cache", "cache, all"]
    base = entry.rows[0].throughput.by_window
    for row in entry.rows:
        assert len(row.samples.window_ms) == 2
        assert row.over_official.median == pytest.approx(
            np.median(np.array(row.throughput.by_window) / np.array(base)), rel=1e-5
        )
        assert row.latency_ms.p50 == pytest.approx(np.median(row.samples.latency_ms) / 2, rel=1e-5)
    assert "times official" in capsys.readouterr().out


def test_a_cache_that_differs_gets_no_time(run, monkeypatch, capsys):
    image = CachedDataset.image
    monkeypatch.setattr(CachedDataset, "image", lambda self, index: image(self, index) // 2)
    code, entry = run("--model", "hyperseg-m")
    assert code == 2
    assert entry.rows == []
    assert "samples from the cache differ from those of the files" in capsys.readouterr().out

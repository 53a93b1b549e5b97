"""bench/timeline.py without a GPU: the rows that it makes of a trace, and its messages."""

import pytest

from bench import timeline
from bench.core.errors import Refused

# (name, start, duration) of a replay's kernels: the second starts early and waits for the first.
REPLAY = (("stem", 0.0, 4.0), ("expand", 2.0, 5.0), ("Memcpy DtoD", 8.0, 1.0))


def events(replays, drop=0):
    found = []
    for i in range(replays):
        for name, start, duration in REPLAY:
            kind = "gpu_memcpy" if name.startswith("Mem") else "kernel"
            args = {"grid": [8, 1, 1], "stream": 7}
            found.append({"name": name, "cat": kind, "ts": 100 * i + start, "dur": duration, "args": args})
    found.append({"name": "cudaGraphLaunch", "cat": "cuda_runtime", "ts": 0.0, "dur": 9.0})
    return found[::-1][: len(found) - drop]


def test_costs_add_up_to_the_frame():
    rows = timeline.kernels(events(5), 5)
    assert [row["name"] for row in rows] == ["stem", "expand", "Memcpy DtoD"]
    assert [row["us"] for row in rows] == [4.0, 5.0, 1.0]
    assert [row["cost"] for row in rows] == [4.0, 3.0, 2.0]
    assert (rows[0]["grid"], rows[0]["block"]) == ([8, 1, 1], None)


def test_replays_that_differ_are_refused():
    with pytest.raises(Refused, match="14 kernels in 5 replays"):
        timeline.kernels(events(5, drop=1), 5)
    changed = events(5)
    changed[1]["name"] = "another"
    with pytest.raises(Refused, match="Kernel 2 is not the same"):
        timeline.kernels(changed, 5)


def test_a_missing_gpu_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert timeline.main(["hyperseg-m", "float16", str(tmp_path / "found.json")]) == 1
    assert "sees no CUDA device here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

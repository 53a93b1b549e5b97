"""bench/figures.py: the documentation is up to date with the results, and every kind of figure can be made."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench import figures
from bench.core.results import NetworkResults, Results, Row, Work, write_results
from bench.core.roofline import Bound, Ceilings
from bench.core.timing import Ratio, Samples, Summary, throughput

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "device": {"type": "cuda", "name": "A GPU"},
    "cpu": {"threads": 4},
    "software": {"torch": "2.15", "triton": "3.9", "cuda": "13.0"},
    "git": {"commit": "0123456789abcdef"},
    "time": "2026-01-02T03:04:05+00:00",
}


def block(kind: str, file: str) -> str:
    return f"Before.\n\n<!-- figures: {kind} {file} -->\nold\n<!-- end of figures -->\n\nAfter.\n"


def timed(ms: float, **more) -> Row:
    samples = Samples([], [], [1], [ms])
    latency = Summary(n=5, min=0.9 * ms, max=1.2 * ms, mean=ms, std=0.0, p50=ms, p90=ms, p99=ms)
    return Row(latency_ms=latency, throughput=throughput(samples), samples=samples, **more)


def over(rate: float) -> Ratio:
    return Ratio(rate, rate, rate)


def write(root: Path, kind: str, rows: list[Row], name: str = "x.json") -> None:
    entry = NetworkResults(name="hyperseg-m-cityscapes", resolution=[512, 1024], dtype="float16", rows=rows)
    write_results(root / figures.RESULTS / name, Results(kind=kind, environment=ENVIRONMENT, models=[entry]))


def cells(root: Path) -> list[list[str]]:
    """Return the cells of the table's rows, without its header."""
    lines = [line for line in (root / "README.md").read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_documentation_is_up_to_date():
    assert figures.update(ROOT, check=True) == [], "run `python bench/figures.py`"


@pytest.fixture
def peers(tmp_path):
    times = {"eager": 40, "a": 10}
    rows = [timed(ms, peer=name, about="1.0", over_eager=over(40 / ms)) for name, ms in times.items()]
    write(tmp_path, "hyperseg-peers", rows)
    (tmp_path / "README.md").write_text(block("peers", "x.json"))
    return tmp_path


def test_a_block_is_filled_and_nothing_else_changes(peers, capsys):
    assert figures.main(["--root", str(peers), "--check"]) == 2
    assert "old" in (peers / "README.md").read_text(), "--check wrote"
    assert figures.main(["--root", str(peers)]) == 0
    text = (peers / "README.md").read_text()
    assert "old" not in text
    assert text.startswith("Before.")
    assert text.endswith("After.\n")
    network = "`hyperseg-m-cityscapes` 512x1024"
    assert cells(peers) == [
        [network, "a: 1.0", "10.0 (9.00 to 12.0)", "100", "4.00x"],
        [network, "eager: 1.0", "40.0 (36.0 to 48.0)", "25.0", "1.00x"],
    ]
    assert figures.main(["--root", str(peers), "--check"]) == 0


def test_a_camera_and_a_stream(tmp_path):
    """Results that have both show both."""
    rows = [
        timed(ms, peer=name, about="1.0", over_eager=over(40 / ms), over_eager_camera=over(36 / ms),
              camera_over_stream=over(1.1), percent_of_matmul=400 / ms)
        for name, ms in {"eager": 40, "a": 10}.items()
    ]  # fmt: skip
    write(tmp_path, "hyperseg-peers", rows)
    (tmp_path / "README.md").write_text(block("peers", "x.json"))
    figures.update(tmp_path, check=False)
    assert [row[1:] for row in cells(tmp_path)] == [
        ["a: 1.0", "10.0 (9.00 to 12.0)", "3.60x", "100", "4.00x", "40.0 %"],
        ["eager: 1.0", "40.0 (36.0 to 48.0)", "0.900x", "25.0", "1.00x", "10.0 %"],
    ]
    text = " ".join((tmp_path / "README.md").read_text().split())
    assert "| camera, ms: median (least to most) | of eager's speed | stream, images/s | of eager's speed |" in text
    assert "Camera: single frames, all threads asleep before each; stream: frames back to back" in text


def test_a_new_result_makes_table_and_plot_stale(peers):
    figures.update(peers, check=False)
    rows = [timed(5, peer="a", about="1.0", over_eager=None)]
    write(peers, "hyperseg-peers", rows)
    assert figures.update(peers, check=True) == ["docs/figures/x.svg", "README.md"]
    plot = (peers / "docs/figures/x.svg").read_bytes()
    figures.update(peers, check=False)
    assert (peers / "docs/figures/x.svg").read_bytes() != plot
    assert figures.update(peers, check=True) == []


def test_a_plot_is_the_same_every_time(peers):
    figures.update(peers, check=False)
    path = peers / "docs/figures/x.svg"
    once = path.read_bytes()
    path.unlink()
    figures.update(peers, check=False)
    assert path.read_bytes() == once
    assert ElementTree.fromstring(once).tag.endswith("svg")


def test_modes_and_scopes(tmp_path):
    rows = [
        timed(ms, mode=mode, backend="cuda", scope=scope)
        for mode, faster in (("eager", 1), ("cudagraph", 4))
        for scope, ms in (("network", 2 / faster), ("host", 4 / faster))
    ]
    write(tmp_path, "hyperseg-fps", rows)
    (tmp_path / "bench/results/README.md").write_text(block("fps", "x.json"))
    assert figures.update(tmp_path, check=False) == ["docs/figures/x.svg", "bench/results/README.md"]
    text = (tmp_path / "bench/results/README.md").read_text()
    assert "| eager | cuda | 2.00 | - | - | 4.00 | 250 |" in text
    assert "| cudagraph | cuda | 0.500 | - | - | 1.00 | 1000 |" in text
    assert "](../../docs/figures/x.svg)" in text
    assert "A GPU; hyperseg 0123456789ab, torch 2.15, triton 3.9, CUDA 13.0; 2026-01-02" in " ".join(text.split())


def test_networks_beside_each_other(tmp_path):
    """The fastest first; ours by what it is, others by name and with what their authors publish."""
    rows = [
        timed(30, kind="without-norms", mode="eager", layout="contiguous"),
        timed(10, kind="engine", mode="compile", over_reference=over(4)),
        timed(20, kind="other", peer="pidnet_s", mode="eager", layout="channels-last", work=Work(5_000_000_000, 0)),
    ]
    write(tmp_path, "hyperseg-fps", rows)
    (tmp_path / "README.md").write_text(block("networks", "x.json"))
    figures.update(tmp_path, check=False)
    size = "512x1024"
    assert cells(tmp_path) == [
        [
            "hyperseg-m-cityscapes, engine",
            size,
            "compile",
            "10.0 (9.00 to 12.0)",
            "100",
            "4.00x",
            "-",
            "76.2 % (Cityscapes val)",
        ],
        [
            "pidnet_s",
            size,
            "eager, channels-last",
            "20.0 (18.0 to 24.0)",
            "50.0",
            "-",
            "5.00",
            "78.8 % (Cityscapes val)",
        ],
        [
            "hyperseg-m-cityscapes, norms removed: another network",
            size,
            "eager, contiguous",
            "30.0 (27.0 to 36.0)",
            "33.3",
            "-",
            "-",
            "-",
        ],
    ]


def test_operators_of_a_frame(tmp_path):
    def row(operator: str, backend: str, ms: float, times: int, of: str = "frame") -> Row:
        roofline = Bound(1e-3, "memory", 100 / ms)
        return timed(ms, operator=operator, backend=backend, times=times, of=of, roofline=roofline)

    rows = [
        row("mbconv", "reference", 8, 2),
        row("mbconv", "reference", 4, 1),
        row("stem", "reference", 4, 1),
        row("mbconv", "cuda", 2, 2),
        row("mbconv", "cuda", 1, 1),
        row("decoder", "cuda", 1, 1, of="apart"),
        row("patch_conv2d", "cuda", 1, 1, of="training"),
    ]
    write(tmp_path, "hyperseg-ops", rows)
    (tmp_path / "README.md").write_text(block("ops", "x.json"))
    assert set(figures.update(tmp_path, check=False)) == {
        "docs/figures/x-parts.svg",
        "docs/figures/x-roofline.svg",
        "README.md",
    }
    assert [row[1:] for row in cells(tmp_path)] == [
        ["mbconv", "reference", "3", "20.0", "3.00", "15 %"],
        ["stem", "reference", "1", "4.00", "1.00", "25 %"],
        ["mbconv", "cuda", "3", "5.00", "3.00", "60 %"],
    ]
    parts = (tmp_path / "docs/figures/x-parts.svg").read_text()
    assert "reference" in parts
    assert "cuda" not in parts, "a frame without one of its operators looks faster than it is"


def test_what_bounds_an_operator(tmp_path):
    """Results with a rate of SiLU say what the limits are."""
    limits = {"stem": [("SiLU", 1.0)], "mbconv": [("SiLU", 3.0), ("arithmetic", 1.0)]}
    rows = [
        timed(4, operator=operator, backend="cpp", of="frame", roofline=Bound(ms / 1e3, by, 25 * ms))
        for operator, calls in limits.items()
        for by, ms in calls
    ]
    entry = NetworkResults(name="hyperseg-m-cityscapes", resolution=[512, 1024], dtype="float32", rows=rows)
    ceilings = Ceilings(1e10, 1e11, 1, 1, "float32", 1e9)
    found = Results(kind="hyperseg-ops", environment=ENVIRONMENT, models=[entry], ceilings=ceilings)
    write_results(tmp_path / figures.RESULTS / "x.json", found)
    (tmp_path / "README.md").write_text(block("ops", "x.json"))
    figures.update(tmp_path, check=False)
    assert [row[1:] for row in cells(tmp_path)] == [
        ["stem", "cpp", "1", "4.00", "1.00", "25 %", "SiLU"],
        ["mbconv", "cpp", "2", "8.00", "4.00", "50 %", "SiLU 75 %, arithmetic 25 %"],
    ]
    assert "bytes, FLOPs or SiLU, whichever is slowest" in " ".join((tmp_path / "README.md").read_text().split())


def test_whole_decoders(tmp_path):
    training = "all levels, frozen norms, forward and backward"
    rows = [
        timed(
            ms,
            operator=operator,
            call=call,
            backend=backend,
            over_reference=over(40 / ms),
            calls_in_graph=None if (operator, backend) == ("stem", "cuda") else 20,
        )
        for operator, call in (("decoder", "all levels"), ("decoder_backward", training), ("stem", "x"))
        for backend, ms in (("reference", 40), ("cuda", 2))
    ]
    write(tmp_path, "hyperseg-ops", rows)
    (tmp_path / "README.md").write_text(block("decoders", "x.json"))
    assert figures.update(tmp_path, check=False) == ["README.md"]
    assert [row[1:] for row in cells(tmp_path)] == [
        ["forward", "reference", "40.0", "1.00x"],
        ["forward", "cuda", "2.00", "20.0x"],
        ["frozen norms, forward and backward", "reference", "40.0", "1.00x"],
        ["frozen norms, forward and backward", "cuda", "2.00", "20.0x"],
    ]
    text = " ".join((tmp_path / "README.md").read_text().split())
    assert "float16, batch 1, medians of calls in CUDA graphs (but stem of cuda, launched one by one)" in text


@pytest.mark.parametrize(
    ("kind", "file", "message"),
    [
        ("peer", "x.json", "there are no figures 'peer'; there are peers, fps, networks, ops"),
        ("fps", "x.json", "of kind 'hyperseg-peers', not 'hyperseg-fps'"),
        ("peers", "y.json", "cannot be used"),
    ],
)
def test_unusable_blocks_are_reported(peers, capsys, kind, file, message):
    (peers / "README.md").write_text(block(kind, file))
    assert figures.main(["--root", str(peers)]) == 1
    assert message in capsys.readouterr().err
    assert "old" in (peers / "README.md").read_text()

"""bench/startup.py: the time to a process's labels, and its messages."""

import sys

import pytest

from bench import startup
from bench.core.errors import Refused


def test_the_labels_are_read_and_timed(tmp_path):
    given = tmp_path / "frame"
    given.write_bytes(b"abc")
    code = "import sys, time; time.sleep(0.1); sys.stdout.buffer.write(sys.stdin.buffer.read()); sys.stdout.flush()"
    elapsed, labels = startup.seconds_to_labels([sys.executable, "-c", code], given, 3)
    assert labels == b"abc"
    assert 0.1 < elapsed < 60


def test_a_process_that_fails_is_refused_with_its_last_line(tmp_path):
    given = tmp_path / "frame"
    given.write_bytes(b"")
    with pytest.raises(Refused, match="gave no labels: it is broken"):
        startup.seconds_to_labels([sys.executable, "-c", "import sys; sys.exit('first\\nit is broken')"], given, 3)


def test_every_kind_gets_the_same_frame(tmp_path):
    names = [tmp_path / name for name in ("model", "frame.npy", "frame.rgb", "package.pt2")]
    kinds = startup.commands(*names, program=tmp_path / "segment")
    assert list(kinds) == [
        "Python: load, build_engine",
        "Python: the same, check=False",
        "Python: hyperseg.runtime_cpp",
        "C++",
    ]
    assert kinds["C++"][0] == [tmp_path / "segment", names[3], "-"]
    assert all(given == names[2] for _, given in kinds.values())

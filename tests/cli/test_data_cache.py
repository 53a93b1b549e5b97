"""hyperseg data cache from the command line."""

import pytest

from hyperseg.cli import main
from hyperseg.data.pipeline.cache import CachedDataset
from hyperseg.data.registry import open_dataset


@pytest.fixture
def root(tmp_path, capsys):
    """A folder data set of four computed scenes."""
    options = ["--option", "images=4", "--option", "size=32x48", "--split", "val", "--output", str(tmp_path / "data")]
    assert main(["data", "export", "--data", "synthetic", *options]) == 0
    capsys.readouterr()
    return tmp_path / "data"


def cache(root, *extra):
    return main(["data", "cache", "--data", "folder", "--root", str(root), "--output", str(root.parent / "c"), *extra])


def test_a_cache_of_a_folder(root, capsys):
    assert cache(root, "--workers", "2") == 0
    out, err = capsys.readouterr()
    assert out == f"4 images, 0.0 MB -> {root.parent / 'c'}\n"
    assert "hyperseg data: folder val: 4 images" in err
    dataset = open_dataset("folder", root, "val")
    cached = CachedDataset(root.parent / "c", dataset)
    for index in range(4):
        assert (cached.image(index) == dataset.image(index)).all()
        assert (cached.labels(index) == dataset.labels(index)).all()
    assert cache(root) == 0
    assert "4 images (4 of them by earlier runs)" in capsys.readouterr().out


def test_errors_are_one_line_and_leave_no_cache(root, capsys):
    (file,) = (root / "images" / "val").glob("*02.*")
    kept = file.read_bytes()
    file.write_bytes(kept[:100])
    assert cache(root) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (message,) = [line for line in err.splitlines() if ": error: " in line]
    assert str(file) in message
    assert not (root.parent / "c").exists()
    file.write_bytes(kept)
    assert cache(root) == 0
    assert "(3 of them by earlier runs)" in capsys.readouterr().out


def test_a_changed_source_needs_overwrite(root, capsys):
    assert cache(root) == 0
    path = root / "classes.yaml"
    path.write_text(path.read_text().replace("road", "street"))
    capsys.readouterr()
    assert cache(root) == 1
    assert "the classes of the data set have changed" in capsys.readouterr().err
    assert cache(root, "--overwrite") == 0


def test_computed_scenes_can_be_cached(tmp_path, capsys):
    options = ["--option", "images=2", "--option", "size=32x48", "--output", str(tmp_path / "c")]
    assert main(["data", "cache", "--data", "synthetic", *options]) == 0
    assert len(CachedDataset(tmp_path / "c")) == 2


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--output", ""], ["--split", ""]], ids=str)
def test_invalid_command_lines(tmp_path, capsys, arguments):
    command = ["data", "cache", "--data", "folder", "--root", str(tmp_path), "--output", str(tmp_path / "c")]
    assert main([*command, *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1

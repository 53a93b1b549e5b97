"""Downloads of data sets: checked, unpacked safely, and never half there; from a server on this machine."""

import hashlib
import io
import json
import shutil
import stat
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from hyperseg._downloads import lock_path
from hyperseg._files import file_lock
from hyperseg._transfer import Progress
from hyperseg.data import DataError, download, open_dataset, unpacking
from hyperseg.data.download import VOC_ARCHIVES, download_voc, needs_login
from tests.data.test_folder import check
from tests.data.trees import voc_tree
from tests.server import Page


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tar_of(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname=".", filter=lambda member: None if member.name == "./hidden" else member)
    return buffer.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def voc(server, tmp_path, monkeypatch):
    """VOC's archives on the server; returns their addresses and the labels in them."""
    written = voc_tree(tmp_path / "source")
    base = tmp_path / "source" / "VOCdevkit" / "VOC2012"
    augmented = {
        f"SegmentationClassAug/{path.name}": path.read_bytes() for path in (base / "SegmentationClassAug").iterdir()
    }
    listed = {"list/train_aug.txt": (base / "ImageSets" / "Segmentation" / "train_aug.txt").read_bytes()}
    shutil.rmtree(base / "SegmentationClassAug")
    (base / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    tar = tar_of(tmp_path / "source")
    pages = (tar, zip_of({**augmented, "__MACOSX/x": b""}), zip_of(listed))
    urls = {}
    for archive, data in zip(VOC_ARCHIVES, pages, strict=True):
        server.pages[f"/{archive.name}"] = Page(data)
        urls[archive.name] = f"{server.url}/{archive.name}"
    first = replace(VOC_ARCHIVES[0], md5=hashlib.md5(tar).hexdigest())
    monkeypatch.setattr(download, "VOC_ARCHIVES", (first, *VOC_ARCHIVES[1:]))
    return urls, written


def test_voc(voc, server, tmp_path):
    urls, written = voc
    root = tmp_path / "root"
    states: list[Progress] = []
    base = download_voc(root, states.append, urls)
    assert base == root / "VOCdevkit" / "VOC2012"
    assert left(root) == ["VOCdevkit", "downloads.json"]
    assert {state.name for state in states if state.unpacking} == {archive.name for archive in VOC_ARCHIVES}
    for split, count in {"train": 3, "val": 2, "train_aug": 4}.items():
        data = open_dataset("voc", root, split)
        assert len(data) == count
        check(data, written)
    assert not list(root.rglob("*MACOSX*"))
    count = len(server.requests)
    download_voc(root, urls=urls)
    assert len(server.requests) == count  # nothing is left to do


def test_voc_without_the_augmented_labels_and_with_archives_kept(voc, tmp_path):
    root = tmp_path / "root"
    download_voc(root, urls=voc[0], augmented=False, keep_archives=True)
    assert left(root) == ["VOCdevkit", "VOCtrainval_11-May-2012.tar", "downloads.json"]
    assert len(open_dataset("voc", root, "val")) == 2


def test_wrong_bytes(voc, server, tmp_path):
    root = tmp_path / "root"
    server.pages["/VOCtrainval_11-May-2012.tar"].data += b"x"
    with pytest.raises(DataError, match=r"has the MD5 [0-9a-f]{32}, but [0-9a-f]{32} is published; it was deleted"):
        download_voc(root, urls=voc[0])
    assert left(root) == []


def test_the_first_download_is_recorded_and_later_ones_must_equal_it(voc, server, tmp_path):
    root = tmp_path / "root"
    download_voc(root, urls=voc[0])
    record = json.loads((root / "downloads.json").read_text())
    assert record["list.zip"]["sha256"] == hashlib.sha256(server.pages["/list.zip"].data).hexdigest()
    shutil.rmtree(root / "VOCdevkit" / "VOC2012" / "list")
    good = server.pages["/list.zip"].data
    server.pages["/list.zip"].data = zip_of({"list/train_aug.txt": b"2007_000000\n"})
    with pytest.raises(DataError, match=r"has the SHA-256 .* is recorded in .*downloads\.json; it was deleted"):
        download_voc(root, urls=voc[0])
    server.pages["/list.zip"].data = good
    download_voc(root, urls=voc[0])
    assert len(open_dataset("voc", root, "train_aug")) == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html>Please log in</html>", r"list\.zip is damaged .*it came from http.* and was deleted"),
        (zip_of({"readme.txt": b"x"}), "does not contain list/train_aug.txt or train_aug.txt; give the address"),
        (zip_of({"../../outside.txt": b"x"}), "has the member ../../outside.txt, a link, .*nothing was unpacked"),
        (zip_of({"/outside.txt": b"x"}), "has the member /outside.txt"),
        (zip_of({"a\\..\\..\\outside.txt": b"x"}), "has the member "),
        (zip_of({"list/train_aug.txt": b"x" * 1000})[:-30], "is damaged"),
    ],
)
def test_archives_that_are_not_what_they_should_be(voc, server, tmp_path, data, message):
    root = tmp_path / "root"
    server.pages["/list.zip"].data = data
    with pytest.raises(DataError, match=message):
        download_voc(root, urls=voc[0])
    assert left(root) == ["VOCdevkit", "downloads.json"]
    assert not list(tmp_path.rglob("outside.txt"))
    assert not (root / "VOCdevkit" / "VOC2012" / "list").exists()
    assert "list.zip" not in json.loads((root / "downloads.json").read_text())


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside"),
        member("/outside"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("link", tarfile.LNKTYPE, "../outside"),
        member("device", tarfile.CHRTYPE),
        member("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name} {info.type!r}",
)
def test_unsafe_tar_members(tmp_path, bad):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(member("good.txt"))
        archive.addfile(bad)
    with pytest.raises(unpacking.DamagedArchive, match="nothing was unpacked"):
        unpacking.unpack(path, tmp_path / "out")
    assert left(tmp_path / "out") == []


def test_symbolic_links_in_zips(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(unpacking.DamagedArchive):
        unpacking.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert left(tmp_path / "out") == []


def test_unpacking_joins_folders_and_replaces_files(tmp_path):
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a" / "mine.txt").write_text("mine")
    (out / "a" / "both.txt").write_text("old")
    (tmp_path / "a.zip").write_bytes(zip_of({"a/both.txt": b"new", "a/b/c.txt": b"c"}))
    unpacking.unpack(tmp_path / "a.zip", out)
    found = {path.relative_to(out).as_posix(): path.read_text() for path in out.rglob("*.txt")}
    assert found == {"a/mine.txt": "mine", "a/both.txt": "new", "a/b/c.txt": "c"}


def test_permissions_of_a_tar_do_not_matter(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(member("folder", tarfile.DIRTYPE, mode=0o000))
        archive.addfile(member("folder/file", mode=0o4000))
    unpacking.unpack(tmp_path / "a.tar", tmp_path / "out")
    assert (tmp_path / "out" / "folder" / "file").stat().st_mode & 0o7600 == 0o600  # no setuid, and readable


def test_one_process_at_a_time(voc, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    with file_lock(lock_path(root), patience=0) as held:
        assert held
        with pytest.raises(DataError, match="another process downloads to"):
            download_voc(root, urls=voc[0])


def test_what_cannot_be_downloaded(tmp_path):
    with pytest.raises(DataError, match=r"no archive voc\.tar of voc; there are VOCtrainval"):
        download_voc(tmp_path, urls={"voc.tar": "http://x"})
    message = str(needs_login("cityscapes", tmp_path))
    assert "https://www.cityscapes-dataset.com" in message
    assert str(tmp_path) in message
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        download_voc(tmp_path / "file" / "root")

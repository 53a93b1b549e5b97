"""Downloads of data sets that may be fetched freely: resumed after an interruption, checked, and unpacked safely.

PASCAL VOC 2012 and the labels of train_aug can be; Cityscapes needs a login at its website, CamVid has no official
archive any more.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hyperseg._downloads import RECORD, digests, lock_path, read_record, write_record
from hyperseg._files import file_lock, printable
from hyperseg._transfer import Progress, TransferError, disk_error, fetch
from hyperseg.data.errors import DataError
from hyperseg.data.unpacking import DamagedArchive, unpack


@dataclass(frozen=True)
class Archive:
    """A published archive.

    folder: below the root of the data set, where its contents belong.
    md5: as published; None if no checksum was, so that the first download is trusted and its SHA-256 recorded.
    proofs: files below `folder`, one of which exists once the archive is unpacked.
    """

    name: str
    url: str
    folder: str
    proofs: tuple[str, ...]
    md5: str | None = None


VOC_ARCHIVES = (
    Archive(
        "VOCtrainval_11-May-2012.tar",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        folder=".",
        proofs=("VOCdevkit/VOC2012/ImageSets/Segmentation/trainval.txt",),
        md5="6cd6e144f989b92b3379bac3b3de84fd",
    ),
    Archive(
        "SegmentationClassAug.zip",
        "http://cs.jhu.edu/~cxliu/data/SegmentationClassAug.zip",
        folder="VOCdevkit/VOC2012",
        proofs=("SegmentationClassAug",),
    ),
    Archive(
        "list.zip",
        "http://cs.jhu.edu/~cxliu/data/list.zip",
        folder="VOCdevkit/VOC2012",
        proofs=("list/train_aug.txt", "train_aug.txt"),
    ),
)


def download_voc(
    root: str | os.PathLike[str],
    on_progress: Callable[[Progress], None] | None = None,
    urls: Mapping[str, str] | None = None,
    augmented: bool = True,
    keep_archives: bool = False,
) -> Path:
    """Download PASCAL VOC 2012 and unpack it below `root`; parts that are there already are left alone.

    Call it again after an interruption: it continues where it stopped.

    Args:
        on_progress: called with the state of the transfer a few times per second.
        urls: other addresses of archives by name, such as those of a mirror.
        augmented: also the labels and lists of train_aug.
        keep_archives: whether archives stay in `root` after they are unpacked.

    Returns:
        The folder VOCdevkit/VOC2012.

    Raises:
        DataError: the network, the server or the disk does not do it; the message names the address and what to do.
    """
    folder = Path(root).expanduser()
    addresses = dict(urls or {})
    if unknown := sorted(set(addresses) - {archive.name for archive in VOC_ARCHIVES}):
        known = ", ".join(archive.name for archive in VOC_ARCHIVES)
        raise DataError(f"there is no archive {printable(unknown[0])} of voc; there are {known}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_path(folder)
        with file_lock(lock, patience=0) as held:
            if not held and lock.exists():
                raise DataError(f"another process downloads to {printable(folder)}; wait until it ends")
            for archive in VOC_ARCHIVES if augmented else VOC_ARCHIVES[:1]:
                obtain(archive, addresses.get(archive.name, archive.url), folder, on_progress, keep_archives)
    except TransferError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(str(disk_error(error, folder))) from None
    return folder / "VOCdevkit" / "VOC2012"


def obtain(
    archive: Archive,
    url: str,
    root: Path,
    on_progress: Callable[[Progress], None] | None = None,
    keep: bool = False,
) -> None:
    """Download and unpack one archive, unless `root` records that it is unpacked and its proof is there.

    Raises:
        TransferError: it cannot be downloaded.
        DataError: it cannot be unpacked, or is not as published, or differs from what was recorded.
    """
    entry = read_record(root).get(archive.name, {})
    if entry.get("unpacked") and _is_unpacked(archive, root):
        return
    path = fetch(url, root / archive.name, on_progress)
    md5, sha256 = digests(path)
    for kind, found, wanted in zip(("MD5", "SHA-256"), (md5, sha256), (archive.md5, entry.get("sha256")), strict=True):
        if wanted is not None and found != wanted:
            path.unlink()
            source = "published" if kind == "MD5" else f"recorded in {printable(root / RECORD)}"
            raise DataError(
                f"the file from {printable(url)} has the {kind} {found}, but {wanted} is {source}; it was deleted. Try "
                "again; if it happens again, the server has another file: give the address of a mirror"
            )
    try:
        unpack(path, root / archive.folder, on_progress)
    except DamagedArchive as error:
        path.unlink()
        raise DataError(f"{error}; it came from {printable(url)} and was deleted") from None
    if not _is_unpacked(archive, root):
        path.unlink()
        wanted = " or ".join(archive.proofs)
        raise DataError(f"the file from {printable(url)} does not contain {wanted}; give the address of a mirror")
    write_record(root, archive.name, {"url": url, "md5": md5, "sha256": sha256, "unpacked": True})
    if not keep:
        path.unlink()


def _is_unpacked(archive: Archive, root: Path) -> bool:
    return any((root / archive.folder / proof).exists() for proof in archive.proofs)


def needs_login(name: str, root: str | os.PathLike[str]) -> DataError:
    """Return the error for a data set that cannot be downloaded by a program: where to get it and where to put it."""
    place = printable(root)
    if name == "cityscapes":
        return DataError(
            "Cityscapes needs a login: register at https://www.cityscapes-dataset.com/login, download "
            f"leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB), and put both in {place}; they "
            "are read without being unpacked"
        )
    return DataError(f"{name} cannot be downloaded here; its module in hyperseg.data says which files it needs")

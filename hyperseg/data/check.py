"""Check of data sets: every image and label file is decoded, and what is wrong or odd is listed.

Problems make a data set unfit as it is: damaged files, labels without a meaning, sizes that differ, images of one split
in another, classes without a pixel. Notes are facts to know, such as images on which nothing is labelled.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hyperseg._files import printable
from hyperseg._text import brief, counted
from hyperseg.data.dataset import Dataset, manifest_hash
from hyperseg.data.errors import DataError
from hyperseg.data.masks import MaskDecoder
from hyperseg.data.shares import label_counts

# Kinds of findings.
SPLIT, IMAGE, LABELS, SIZES, MISSING, EMPTY, CLASS, DUPLICATE, PALETTE = (
    "split cannot be opened",
    "image cannot be read",
    "labels cannot be used",
    "sizes differ",
    "no label file",
    "nothing labelled",
    "class never occurs",
    "duplicate",
    "palette of other classes",
)


@dataclass(frozen=True)
class Finding:
    """A problem or a note. split, image: where; empty if it is about all."""

    kind: str
    split: str
    image: str
    message: str


class SplitReport:
    """The counts of one split.

    pixels: of each class, over all label files; ignored: pixels without a class.
    images_with: in how many images each class occurs.
    pixels_beside: of each class, the labelled pixels of the images in which it occurs.
    sizes: number of images by height and width.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        classes = len(dataset.label_set)
        self.pixels, self.images_with, self.pixels_beside = (np.zeros(classes, np.int64) for _ in range(3))
        self.ignored = self.labelled_images = 0
        self.sizes: Counter[tuple[int, int]] = Counter()

    @property
    def shares(self) -> np.ndarray:
        """The share of each class in the labelled pixels; zeros if there are none."""
        return self.pixels / max(int(self.pixels.sum()), 1)

    def weights(self) -> list[float | None]:
        """Return median-frequency weights of the classes (Eigen and Fergus, 2015); None for classes without pixels.

        The frequency of a class is its share in the images in which it occurs.
        """
        present = self.pixels > 0
        if not present.any():
            return [None] * len(present)
        frequency = self.pixels[present] / self.pixels_beside[present]
        weights = iter((np.median(frequency) / frequency).tolist())
        return [next(weights) if occurs else None for occurs in present]

    def document(self) -> dict[str, Any]:
        """Return the counts for JSON."""
        table = self.dataset.label_set
        total = int(self.pixels.sum()) + self.ignored
        rows = zip(table.classes, table.colors, self.pixels, self.shares, self.images_with, self.weights(), strict=True)
        try:
            identity = manifest_hash(self.dataset.manifest())
        except DataError:  # a file is gone, which is a problem of its own
            identity = None
        return {
            "split": self.dataset.split,
            "form": printable(self.dataset.form),
            "images": len(self.dataset),
            "labelled_images": self.labelled_images,
            "classes": [
                {
                    "name": name,
                    "color": list(color),
                    "pixels": int(pixels),
                    "share": float(share),
                    "images": int(images),
                    "weight": weight,
                }
                for name, color, pixels, share, images, weight in rows
            ],
            "ignored": {
                "index": table.ignore_index,
                "pixels": self.ignored,
                "share": self.ignored / total if total else None,
            },
            "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in self.sizes.most_common()],
            "manifest_hash": identity,
        }


@dataclass
class Report:
    """The result of a check."""

    splits: list[SplitReport]
    problems: list[Finding]
    notes: list[Finding]

    def document(self) -> dict[str, Any]:
        """Return everything for JSON; null for numbers that do not exist."""
        return {
            "clean": not self.problems,
            "splits": [split.document() for split in self.splits],
            "problems": [vars(finding) for finding in self.problems],
            "notes": [vars(finding) for finding in self.notes],
        }


@dataclass
class _Looked:
    """What one item gave. digests: of the pixels and of the labels; remark: on its palette."""

    size: tuple[int, int] | None = None
    counts: np.ndarray | None = None
    digests: tuple[bytes | None, bytes | None] = (None, None)
    findings: list[tuple[str, str]] = field(default_factory=list)
    remark: str | None = None


def check_datasets(
    datasets: Sequence[Dataset], workers: int = 1, progress: Callable[[], object] = lambda: None
) -> Report:
    """Check splits of one data set. No file ends the check.

    Args:
        workers: threads that read files.
        progress: called after each image.
    """
    report = Report([], [], [])
    images: dict[bytes, list[tuple[Dataset, str, bytes | None]]] = defaultdict(list)
    for dataset in datasets:
        split = SplitReport(dataset)
        report.splits.append(split)
        empty: list[str] = []
        for index, looked in _in_order(dataset, workers, progress):
            name = dataset.items[index].name
            report.problems += [Finding(kind, dataset.split, name, message) for kind, message in looked.findings]
            if looked.remark is not None:
                report.notes.append(Finding(PALETTE, dataset.split, name, looked.remark))
            if looked.size is not None:
                split.sizes[looked.size] += 1
            if looked.counts is not None and not _count(split, looked.counts):
                empty.append(name)
            pixels, labels = looked.digests
            if pixels is not None:
                images[pixels].append((dataset, name, labels))
        _add_empty(report, split, empty)
    _add_duplicates(report, images)
    _add_absent(report)
    return report


def _in_order(dataset: Dataset, workers: int, progress: Callable[[], object]) -> Iterator[tuple[int, _Looked]]:
    """Yield what each item gave, in their order. A few are in memory at a time."""
    waiting: dict[int, Future[_Looked]] = {}
    todo = iter(range(len(dataset)))
    some_labels = any(item.label is not None for item in dataset.items)
    following = 0
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        try:
            while following < len(dataset):
                while len(waiting) < 2 * workers + 1 and (index := next(todo, None)) is not None:
                    waiting[index] = pool.submit(_look, dataset, index, some_labels)
                    waiting[index].add_done_callback(lambda _: progress())
                yield following, waiting.pop(following).result()
                following += 1
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _look(dataset: Dataset, index: int, some_labels: bool) -> _Looked:
    """Decode one item. `some_labels`: whether the split has labels at all."""
    looked, item = _Looked(), dataset.items[index]
    image = labels = None
    try:
        image = dataset.image(index)
        looked.size = image.shape[0], image.shape[1]
    except Exception as error:  # also of a decoder that raises something unexpected: the check goes on
        looked.findings.append((IMAGE, _message(error, item.image)))
    if item.label is None:
        if some_labels:
            looked.findings.append((MISSING, f"{item.image} has no label file, but others have"))
    else:
        try:
            labels = dataset.labels(index)
            looked.counts = label_counts(labels)
            if isinstance(dataset.decoder, MaskDecoder) and dataset.decoder.colors is not None:
                looked.remark = dataset.decoder.remark(item.label.read(), str(item.label))
        except Exception as error:
            looked.findings.append((LABELS, _message(error, item.label)))
    if image is not None and labels is not None and image.shape[:2] != labels.shape:
        one, two = (f"{a.shape[0]}x{a.shape[1]}" for a in (image, labels))
        looked.findings.append((SIZES, f"{item.image} is {one} but {item.label} is {two} (height x width)"))
    looked.digests = _digest(image), _digest(labels)
    return looked


def _message(error: Exception, file: object) -> str:
    return str(error) if isinstance(error, DataError) else f"{file}: {type(error).__name__}: {brief(error)}"


def _digest(array: np.ndarray | None) -> bytes | None:
    if array is None:
        return None
    digest = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16)
    digest.update(str(array.shape).encode())
    return digest.digest()


def _count(split: SplitReport, counts: np.ndarray) -> bool:
    """Add the counts of one label file; return whether it has a labelled pixel."""
    table = split.dataset.label_set
    counted = counts[: len(table)]
    split.pixels += counted
    split.images_with += counted > 0
    split.pixels_beside += np.where(counted > 0, counted.sum(), 0)
    split.ignored += int(counts[table.ignore_index])
    split.labelled_images += 1
    return bool(counted.any())


def _add_empty(report: Report, split: SplitReport, empty: list[str]) -> None:
    """List label files without a labelled pixel. All of a split, unless it is for a test server, are a problem."""
    name, ignored = split.dataset.split, split.dataset.label_set.ignore_index
    if empty and len(empty) == split.labelled_images:
        message = f"no labelled pixel in {counted(len(empty), 'label file')}: all pixels are ignored ({ignored})"
        (report.notes if name == "test" else report.problems).append(Finding(EMPTY, name, "", message))
    else:
        message = f"no labelled pixel: all are ignored ({ignored})"
        report.notes += [Finding(EMPTY, name, image, message) for image in empty]
    if not split.labelled_images and not split.dataset.has_labels:
        report.notes.append(Finding(MISSING, name, "", f"the split has no labels (images: {len(split.dataset)})"))


def _add_duplicates(report: Report, images: dict[bytes, list[tuple[Dataset, str, bytes | None]]]) -> None:
    """List images with equal pixels: in several splits a problem, in one a note unless their labels differ."""
    for copies in images.values():
        if len(copies) < 2:
            continue
        (dataset, name, _), others = copies[0], copies[1:]
        message = "the same pixels as " + ", ".join(f"{other.split}/{other_name}" for other, other_name, _ in others)
        differ = len({labels for _, _, labels in copies if labels is not None}) > 1
        if differ:
            message += ", but other labels"
        across = any(other is not dataset for other, _, _ in others)
        finding = Finding(DUPLICATE, dataset.split, name, message)
        (report.problems if across or differ else report.notes).append(finding)


def _add_absent(report: Report) -> None:
    """List classes without a pixel in all that was checked as problems, those of one split as notes."""
    labelled = [split for split in report.splits if split.pixels.any()]
    if not labelled:
        return
    table = labelled[0].dataset.label_set
    ignored = sum(split.ignored for split in labelled)
    total = ignored + sum(int(split.pixels.sum()) for split in labelled)
    for index, name in enumerate(table.classes):
        without = [split.dataset.split for split in labelled if not split.pixels[index]]
        if len(without) == len(labelled):
            message = f"0 labelled pixels of class {index} ({name}) in {' and '.join(without)}"
            if ignored:
                share = f"{ignored / total:.1%}" if ignored / total >= 0.001 else "<0.1%"
                message = f"{table.ignore_index} is ignored: {message}; {share} of all pixels are ignored"
            report.problems.append(Finding(CLASS, "", "", message))
        else:
            message = f"0 labelled pixels of class {index} ({name})"
            report.notes += [Finding(CLASS, split, "", message) for split in without]

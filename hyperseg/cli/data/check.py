"""Check a data set: decode every image and label file, count the classes, list what is wrong.

The table has, for each class, its share of the labelled pixels, the number of images in which it occurs, and its weight
for a loss balanced by median frequency.

Without --split all splits that are there are checked. Problems are damaged files, labels without a meaning, sizes that
differ, missing label files, equal images in several splits, and classes that never occur. One bad file does not end
the check. The report is printed; --json writes all of it, also what the report shortens.

Exit codes: 0: the data set is clean. 1: there are problems. 2: the command line is not valid. 130: interrupted.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from hyperseg._files import printable
from hyperseg._text import counted
from hyperseg.cli import _common
from hyperseg.cli._common import UsageError, UserError, user_errors
from hyperseg.cli._datasets import add_dataset_arguments, open_dataset, options_of, root_of
from hyperseg.cli._output import encodable, write_json

if TYPE_CHECKING:
    from hyperseg.data.check import Finding, Report, SplitReport
    from hyperseg.data.dataset import Dataset

_BAR = 24  # columns of the longest bar
_SHOWN = 10  # findings of each kind; --json has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the action."""
    add_dataset_arguments(parser, split=False)
    split = "a split to check; may be repeated (default: all that are there)"
    parser.add_argument("--split", action="append", type=_common.text, help=split)
    workers = "threads that read files (default: %(default)s)"
    parser.add_argument("--workers", metavar="N", type=_common.count, default=4, help=workers)
    parser.add_argument("--json", metavar="FILE", type=_common.text, help="also write all that was found as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the action; return the exit code."""
    import warnings

    from tqdm import tqdm

    import hyperseg
    from hyperseg.data.check import check_datasets

    if args.json is not None:
        _common.check_output_file("--json", args.json)
    datasets, unopened = _open(args)
    total = sum(map(len, datasets))
    bar = tqdm(desc="check", total=total, unit="image", disable=not sys.stderr.isatty(), file=sys.stderr)
    with bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # each file is either right or listed
        report = check_datasets(datasets, args.workers, bar.update)
    report.problems[:0] = unopened
    try:
        print(encodable("\n".join(_lines(report)), sys.stdout), flush=True)
    finally:  # also if nobody reads the lines, as in a pipe to `head`
        if args.json is not None:
            about = {"hyperseg": hyperseg.__version__, "data": args.data, "root": printable(root_of(args))}
            with user_errors(OSError, prefix=f"--json {args.json}: "):
                write_json({**about, "options": options_of(args), **report.document()}, args.json)
    return 1 if report.problems else 0


def _open(args: argparse.Namespace) -> "tuple[list[Dataset], list[Finding]]":
    """Return the splits, and as findings those that cannot be opened. Raises UserError if none can."""
    from hyperseg.data.check import SPLIT, Finding
    from hyperseg.data.errors import DataError
    from hyperseg.data.registry import dataset_names
    from hyperseg.data.splits import available_splits

    splits = args.split
    if splits is None and args.data in dataset_names():
        with user_errors(DataError):
            splits = available_splits(args.data, root_of(args), **options_of(args))
    datasets, unopened = [], []
    for split in dict.fromkeys(splits or ("val",)):
        opened = _open_split(args, split)
        if isinstance(opened, UserError):
            unopened.append(Finding(SPLIT, split, "", str(opened)))
            if args.data == "folder" and "unmatched" not in options_of(args):  # check what is complete
                rest = argparse.Namespace(**{**vars(args), "option": [*args.option, ("unmatched", "skip")]})
                opened = _open_split(rest, split)
        if not isinstance(opened, UserError):
            datasets.append(opened)
    if not datasets:
        others = ", ".join(finding.split for finding in unopened[1:])
        raise UserError(unopened[0].message + (f"; nor can these splits be opened: {others}" if others else ""))
    return datasets, unopened


def _open_split(args: argparse.Namespace, split: str) -> "Dataset | UserError":
    """Return a split, or why it cannot be opened. Raises UsageError."""
    try:
        return open_dataset(args, split)
    except UsageError:
        raise
    except UserError as error:
        return error


def _lines(report: "Report") -> list[str]:
    lines: list[str] = []
    for split in report.splits:
        lines += [*_table(split), ""]
    for title, findings in (("Notes", report.notes), ("Problems", report.problems)):
        if findings:
            lines += [f"{title}:", *_listing(findings), ""]
    images = counted(sum(len(split.dataset) for split in report.splits), "image")
    problems, notes = counted(len(report.problems), "problem"), counted(len(report.notes), "note")
    return [*lines, f"{images} checked: {problems if report.problems else 'no problems'}, {notes}"]


def _table(split: "SplitReport") -> list[str]:
    """Return the classes of a split with bars, and its sizes."""
    from hyperseg.data.legend import percent

    document = split.document()
    title = f"{split.dataset.name} {document['split']}: {counted(document['images'], 'image')}"
    if document["labelled_images"] != document["images"]:
        title += f", {document['labelled_images']:,} with usable labels"
    sizes = [f"{size['height']}x{size['width']}" for size in document["sizes"]]
    counts = [f" ({size['images']:,})" * (len(sizes) > 1) for size in document["sizes"]]
    listed = [f"{size}{count}" for size, count in zip(sizes, counts, strict=True)]
    title += "".join(f", {size}" for size in listed[:4])
    title += f" and {counted(len(listed) - 4, 'other size')}" if len(listed) > 4 else ""
    if not document["labelled_images"]:
        return [title]
    width = max(len(row["name"]) for row in [*document["classes"], {"name": "(ignored 255)"}])
    longest = max([row["share"] for row in document["classes"]] or [0]) or 1
    block = "█" if encodable("█", sys.stdout) == "█" else "#"
    lines = [title, f"  {'class':<{width + 4}} {'share':>7} {'images':>8} {'weight':>8}"]
    for index, row in enumerate(document["classes"]):
        weight = f"{row['weight']:.3g}" if row["weight"] is not None else "-"
        bar = block * max(round(row["share"] / longest * _BAR), row["pixels"] > 0)
        share = f"{percent(row['share']):>7} {row['images']:>8,} {weight:>8} {bar}"
        lines.append(f"  {index:>3} {row['name']:<{width}} {share}".rstrip())
    ignored: dict[str, Any] = document["ignored"]
    name = f"(ignored {ignored['index']})"
    return [*lines, f"      {name:<{width - 2}} {percent(ignored['share'] or 0):>7} of all pixels"]


def _listing(findings: "list[Finding]") -> list[str]:
    """Return findings by kind, the first few of each."""
    lines = []
    for kind in dict.fromkeys(finding.kind for finding in findings):
        same = [finding for finding in findings if finding.kind == kind]
        lines.append(f"  {kind} ({len(same):,}):")
        for finding in same[:_SHOWN]:
            where = "/".join(part for part in (finding.split, finding.image) if part)
            lines.append(printable(f"    {where + ': ' if where else ''}{finding.message}"))
        if len(same) > _SHOWN:
            lines.append(f"    ... and {len(same) - _SHOWN:,} more; --json FILE lists all")
    return lines

"""The work of `hyperseg predict`: a job for all images, and one for each video, camera, stream and pipe."""

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from hyperseg._files import printable
from hyperseg.cli._common import UsageError, UserError

if TYPE_CHECKING:
    from hyperseg.data.labels import Color
    from hyperseg.predict import ImageSource, Sink, Source
    from hyperseg.predict.inputs import Inputs


@runtime_checkable
class Resumable(Protocol):
    """A sink that recognises its own outputs of an earlier run."""

    def is_done(self, name: str) -> bool: ...


KINDS = ("labels", "index", "colors", "overlay", "side", "json")


@dataclass
class Job:
    """Frames that are written to the same sinks.

    title: what messages call it.
    source: opens the source.
    sinks: makes the sinks for the source.
    video: it is one moving picture, not single images.
    """

    title: str
    source: Callable[[], Any]
    sinks: "Callable[[Any], Mapping[str, Sink]]"
    video: bool = True
    names: list[str] = field(default_factory=list)  # of the images


@dataclass
class Outputs:
    """Which outputs are written, and how, by the options."""

    folder: Path
    kinds: tuple[str, ...] | None  # None: the default of each input
    alpha: float
    legend: bool
    image_format: str
    sound: bool
    quality: int
    note: str
    raw: bool  # labels to standard output

    def of_images(self) -> "dict[str, Sink]":
        """Return the sinks of images."""
        from hyperseg.predict import sinks

        if self.raw:
            return {"raw": sinks.RawLabelSink(sys.stdout.buffer)}
        picture = (self.folder, self.alpha, self.legend, self.image_format, self.note)
        makers: dict[str, Callable[[], Sink]] = {
            "labels": lambda: sinks.LabelSink(self.folder, self.note),
            "index": lambda: sinks.IndexSink(self.folder, self.note),
            "colors": lambda: sinks.ColorSink(self.folder, self.note),
            "overlay": lambda: sinks.OverlaySink(*picture),
            "side": lambda: sinks.SideSink(*picture),
            "json": lambda: sinks.JsonSink(self.folder, self.note),
        }
        return {kind: makers[kind]() for kind in self.kinds or ("labels", "overlay")}

    def of_video(self, name: str, source: Any) -> "dict[str, Sink]":
        """Return the sinks of a video, camera or stream of this name."""
        from hyperseg.predict import pictures, sinks
        from hyperseg.predict.video.writing import VideoSink

        if self.raw:
            return {"raw": sinks.RawLabelSink(sys.stdout.buffer)}

        def video(ending: str, draw: Any) -> "Sink":
            rate, base = getattr(source, "rate", None), getattr(source, "time_base", None)
            sound = getattr(source, "path", None) if self.sound and not getattr(source, "live", False) else None
            file = self.folder / f"{name}{ending}.mp4"
            return VideoSink(file, draw, rate, base, sound, self.quality, self.note)

        frames, blend = self.folder / name, pictures.Overlay(self.alpha, "all" if self.legend else None)
        makers: dict[str, Callable[[], Sink]] = {
            "labels": lambda: sinks.LabelSink(frames, self.note),
            "index": lambda: sinks.IndexSink(frames, self.note),
            "colors": lambda: video("_colors", pictures.class_colors),
            "overlay": lambda: video("_overlay", blend),
            "side": lambda: video("_side", pictures.SideBySide(blend)),
            "json": lambda: sinks.JsonLinesSink(self.folder / f"{name}.jsonl", self.note),
        }
        return {kind: makers[kind]() for kind in self.kinds or ("overlay",)}


def parse_kinds(text: str | None, overlay: bool) -> tuple[str, ...] | None:
    """Parse `--write`. Raises UsageError."""
    if text is None:
        return None if overlay else ("labels",)
    kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UsageError(f"--write {text}: give one or more of {', '.join(KINDS)}, with commas between them")
    return kinds


def digest(args: argparse.Namespace, weights: str | None, colors: "Mapping[str, Color]") -> str:
    """Return digits that depend on everything that changes an output: the network's file, colours, and the options."""
    stamp: list[Any] = [weights, args.model, *sorted(colors.items())]
    file = Path(weights or "")
    with contextlib.suppress(OSError, ValueError):
        status = os.stat(file / "model.safetensors" if file.is_dir() else file)
        stamp += [status.st_size, status.st_mtime_ns]
    options = (args.size, args.dtype, args.alpha, args.legend, args.overlay_format, args.quality, args.sound)
    return hashlib.sha256(json.dumps([*stamp, *options]).encode()).hexdigest()[:12]


def make_jobs(args: argparse.Namespace, inputs: "Inputs", outputs: Outputs, names: Mapping[Path, str]) -> list[Job]:
    """Return the jobs for inputs. `names`: those of the outputs of files."""
    from hyperseg.predict import ImageSource
    from hyperseg.predict.camera import CameraSource
    from hyperseg.predict.raw import RawSource
    from hyperseg.predict.video.reading import VideoSource

    def job(title: str, name: str, source: "Callable[[], Source]") -> Job:
        return Job(title, source, lambda opened: outputs.of_video(name, opened))

    jobs = []
    if inputs.images:
        chosen = [names[path] for path in inputs.images]
        images = ImageSource(inputs.images, names=chosen)
        jobs.append(Job("images", lambda: images, lambda source: outputs.of_images(), False, chosen))
    for path in inputs.videos:
        name = names[path]
        jobs.append(job(str(path), name, lambda path=path, name=name: VideoSource(path, name)))  # type: ignore[misc]
    for index in inputs.cameras:
        jobs.append(job(f"camera {index}", f"camera{index}", lambda index=index: CameraSource(index)))  # type: ignore[misc]
    for number, address in enumerate(inputs.streams):
        name = f"stream{number}"
        jobs.append(job(address, name, lambda url=address, name=name: VideoSource(url, name, live=True)))  # type: ignore[misc]
    if inputs.pipe:
        rate, size = Fraction(args.rate), args.raw_size
        jobs.append(job("-", "stdin", lambda: RawSource(sys.stdin.buffer, size, args.raw_format, rate)))
    return jobs


def all_outputs(inputs: "Inputs", outputs: Outputs, names: Mapping[Path, str]) -> Iterator[Path]:
    """Yield the output files of image and video files whose names are known before they are read."""
    if outputs.raw:
        return
    kinds = outputs.of_images()
    for path in inputs.images:
        yield from (sink.path(names[path]) for sink in kinds.values())  # type: ignore[attr-defined]
    for path in inputs.videos:
        for kind in outputs.kinds or ("overlay",):
            if kind not in ("labels", "index"):
                yield outputs.folder / f"{names[path]}{'.jsonl' if kind == 'json' else f'_{kind}.mp4'}"


def leave_out_done(images: "ImageSource", sinks: "Mapping[str, Sink]") -> int:
    """Leave out the images whose outputs an earlier run wrote with the same settings. Return how many there are."""
    pairs = list(zip(images.paths, images.names, strict=True))
    left = [(path, name) for path, name in pairs if not are_done(sinks, name)]
    images.paths, images.names = [path for path, _ in left], [name for _, name in left]
    return len(pairs) - len(left)


def are_done(sinks: "Mapping[str, Sink]", name: str) -> bool:
    """Return whether an earlier run wrote all outputs of a frame, or of a video, with the same settings."""
    return all(isinstance(sink, Resumable) and sink.is_done(name) for sink in sinks.values())


def share_of(rank: int, world: int, inputs: "Inputs") -> None:
    """Keep the part of the images and videos that one of several processes does."""
    if world > 1 and (inputs.cameras or inputs.streams or inputs.pipe):
        raise UserError("several processes cannot share a camera, a stream or a pipe; give files, or start one process")
    inputs.images, inputs.videos = inputs.images[rank::world], inputs.videos[rank::world]


def place_in_group() -> tuple[int, int]:
    """Return the rank of this process and how many there are, as torchrun and srun say in the environment."""
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdigit() and world.isdigit() and int(rank) < max(int(world), 1)):
        raise UserError(f"RANK={printable(rank)} and WORLD_SIZE={printable(world)} do not name a process of a group")
    return int(rank), max(int(world), 1)

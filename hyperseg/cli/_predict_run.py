"""The run of `hyperseg predict`: job after job, with progress, messages and a report."""

import contextlib
import itertools
import operator
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperseg._extras import MissingPackageError
from hyperseg._files import printable
from hyperseg._text import counted
from hyperseg.cli._output import class_lines, record, summary, table, write_line
from hyperseg.cli._predict_jobs import Job, are_done, leave_out_done

if TYPE_CHECKING:
    from hyperseg.predict import Prediction, Predictor, Sink
    from hyperseg.predict.pipeline import Times
    from hyperseg.predict.window import Window


class Run:
    """Runs jobs and keeps what there is to report of them.

    Args:
        predictor: labels the frames.
        lines: whether results are printed as text as they come.
        keep: whether they are kept, for one JSON document at the end.
        frames: ends each video and stream after so many; None: no limit.
        window: shows overlays of this opacity; None: no window.
        resume: leaves out what an earlier run wrote.
        explain: prints where the time of a frame went.
    """

    def __init__(
        self,
        predictor: "Predictor",
        lines: bool,
        keep: bool,
        frames: int | None = None,
        window: "Window | None" = None,
        alpha: float = 0.6,
        resume: bool = False,
        explain: bool = False,
    ) -> None:
        self.predictor, self.lines, self.keep, self.frames = predictor, lines, keep, frames
        self.window, self.alpha, self.resume, self.explain = window, alpha, resume, explain
        self.images: list[dict[str, Any]] = []
        self.videos: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.skipped: list[str] = []
        self.done = 0  # images and videos
        self.failed = 0
        self.earlier = 0  # of those done, how many an earlier run wrote

    def error(self, error: Exception) -> None:
        """Report an input that could not be done."""
        self.failed += 1
        self.frame_error(error)

    def frame_error(self, error: Exception) -> None:
        """Report an error of a video, which may have several."""
        text = str(error)
        self.errors.append(f"{text}; try --size model" if isinstance(error, MemoryError) else text)
        warn(self.errors[-1])

    def job(self, job: Job) -> bool:
        """Run a job; return whether the next one should follow. Raises SinkError, BackendError and EngineError."""
        from hyperseg.predict import SourceError

        try:
            source = job.source()
            sinks = job.sinks(source)
        except (SourceError, MissingPackageError) as error:
            self.error(error)
            return True
        if self.resume:
            earlier = int(are_done(sinks, "")) if job.video else leave_out_done(source, sinks)
            self.earlier += earlier
            self.done += earlier
            if job.video and earlier:
                return True
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # each image is either right or refused with an error
            return self._video(job, source, sinks) if job.video else self._images(source, sinks)

    def _images(self, source: Any, sinks: "Mapping[str, Sink]") -> bool:
        from hyperseg.predict.pipeline import Times

        times, written = Times(), _Written()
        try:
            with _bar("predict", len(source), "image", len(source) < 2) as bar, self._explained(times):
                results = self.predictor.run(
                    source, {**sinks, "": written}, self.error, lambda done, total: bar.update(), times=times
                )
                with contextlib.closing(results):  # type: ignore[type-var]
                    for prediction, files in results:
                        written.queue.popleft()
                        self._image(prediction, files)
                        if not self._shown(prediction):
                            return False
        finally:  # what was still written when an error, an interruption or the window ended the run
            for prediction in written.queue:
                paths = {kind: sink.path for kind, sink in sinks.items() if hasattr(sink, "path")}
                self._image(prediction, {kind: path(prediction.frame.name) for kind, path in paths.items()})
        return True

    def _image(self, prediction: "Prediction", files: dict[str, Path]) -> None:
        """Count and report an image whose outputs are written."""
        self.done += 1
        if self.keep or self.lines:
            entry = record(prediction, files, self.predictor.size)
            if self.keep:
                self.images.append(entry)
            if self.lines:
                write_line(table(entry), sys.stdout)

    def _video(self, job: Job, source: Any, sinks: "Mapping[str, Sink]") -> bool:
        from hyperseg.predict import SourceError
        from hyperseg.predict.frames import is_live
        from hyperseg.predict.pipeline import Times

        times, written, tally = Times(), _Written(), _Tally()
        errors = len(self.errors)
        begin = time.monotonic()
        total = _length(source, self.frames)
        go_on, failed = True, True
        try:
            title = Path(job.title).name or job.title
            with _bar(title, total, "frame", False) as bar, self._explained(times):
                live = is_live(source)
                # Exactly so many frames are written: of a live source, only those labelled count.
                limited = source if live or self.frames is None else itertools.islice(source, self.frames)
                ahead = 0 if live and self.frames else 2
                results = self.predictor.run(
                    limited,
                    {**sinks, "": written},
                    self.frame_error,
                    lambda done, total: bar.update(),
                    ahead,
                    times,
                )
                with contextlib.closing(results):  # type: ignore[type-var]
                    for prediction, _ in results:
                        tally.add(written.queue.popleft())
                        go_on = self._shown(prediction)
                        if not go_on or tally.frames == self.frames:
                            break
            failed = False
        finally:
            # After an error or an interruption too: what is done is kept, and counted.
            for prediction in written.queue:
                tally.add(prediction)
            files = self._closed(sinks, failed)
            if tally.frames:
                seconds = time.monotonic() - begin
                notes = list(dict.fromkeys(n for part in (source, *sinks.values()) for n in getattr(part, "notes", ())))
                self._report(job, tally, files, notes, seconds)
        if not tally.frames and len(self.errors) == errors:
            self.frame_error(SourceError(f"{printable(job.title)} has no frame"))
        right = len(self.errors) == errors
        self.done += right
        self.failed += not right
        return go_on

    def _closed(self, sinks: "Mapping[str, Sink]", failed: bool) -> dict[str, str]:
        from hyperseg.predict import SinkError

        files: dict[str, str] = {}
        for kind, sink in sinks.items():
            # After an error, a sink that cannot be completed either is only mentioned.
            with _warned(SinkError) if failed else contextlib.nullcontext():
                path = sink.close() if hasattr(sink, "close") else getattr(sink, "folder", None)
                if path is not None:
                    files[kind] = str(path)
        return files

    def _report(self, job: Job, tally: "_Tally", files: dict[str, str], notes: list[str], seconds: float) -> None:
        for note in notes:
            warn(f"{job.title}: {note}")
        entry: dict[str, Any] = {
            "video": job.title,
            "frames": tally.frames,
            "height": tally.size[0],
            "width": tally.size[1],
            "network_size": list(self.predictor.size or tally.size),
            "seconds": round(tally.end, 3),
            "frames_per_second": round(tally.frames / max(seconds, 1e-9), 2),
            **files,
            "notes": notes,
            "classes": tally.classes(),
        }
        if self.keep:
            self.videos.append(entry)
        if self.lines:
            size = f"{tally.size[0]}x{tally.size[1]}"
            head = f"{printable(job.title)} ({counted(tally.frames, 'frame')} of {size}, {tally.end:.1f} s)"
            where = printable(", ".join(dict.fromkeys(files.values())) or "nowhere")
            line = f"{head} -> {where}, {entry['frames_per_second']} frames per second"
            write_line("\n".join([line, *class_lines(entry["classes"])]), sys.stdout)

    def _shown(self, prediction: "Prediction") -> bool:
        """Show a picture; return False once the window is closed."""
        if self.window is None:
            return True
        from hyperseg.predict.pictures import Overlay

        self.window.show(Overlay(self.alpha)(prediction))
        return not self.window.closed

    @contextlib.contextmanager
    def _explained(self, times: "Times") -> Iterator[None]:
        """Print where the time went at the end of the block, if that is wanted."""
        before = self.predictor.build_seconds
        yield
        if not self.explain:
            return
        building = self.predictor.build_seconds - before
        if building:
            write_line(f"building and checking the engine, once per size: {building:.1f} s", sys.stderr)
        frames = max(times.frames, 1)
        parts = {"read": times.read, "network": times.label - building, "write": times.write}
        text = ", ".join(f"{name} {seconds / frames * 1e3:.1f} ms" for name, seconds in parts.items())
        slowest = max(parts, key=lambda name: parts[name])
        waits = f"the network waited {times.waited / frames * 1e3:.1f} ms for the others"
        write_line(f"per frame: {text}; they overlap; {waits}; the slowest is: {slowest}", sys.stderr)

    def account(self, total: int, noun: str, rest: str = "not tried") -> str:
        """Return a line that counts inputs. `total`: of them, without skipped files. `rest`: what the others are."""
        return summary(total + len(self.skipped), self.done, self.failed, len(self.skipped), noun, rest)


class _Written:
    """The last sink: keeps what the sinks before it have written, until it is reported."""

    def __init__(self) -> None:
        self.queue: deque[Prediction] = deque()

    def write(self, prediction: "Prediction") -> None:
        self.queue.append(prediction)


class _Tally:
    """Counts over the frames of a video, in constant memory."""

    def __init__(self) -> None:
        self.frames = 0
        self.size = (0, 0)
        self.end = 0.0
        self._shares: dict[int, float] = {}
        self._names: dict[int, str] = {}

    def add(self, prediction: "Prediction") -> None:
        frame = prediction.frame
        self.frames += 1
        self.size = (prediction.labels.shape[0], prediction.labels.shape[1])
        self.end = float((frame.time or 0) + (frame.duration or 0))
        for share in prediction.shares:
            self._shares[share.index] = self._shares.get(share.index, 0.0) + share.share
            self._names[share.index] = share.name

    def classes(self) -> list[dict[str, Any]]:
        """Return the mean share of each class over the frames, the largest first."""
        order = sorted(self._shares, key=lambda index: (-self._shares[index], index))
        return [{"index": i, "name": self._names[i], "share": self._shares[i] / self.frames} for i in order]


def _length(source: Any, most: int | None) -> int | None:
    length = operator.length_hint(source, -1)
    known = [number for number in (length if length >= 0 else None, most) if number is not None]
    return min(known, default=None)


def _bar(title: str, total: int | None, unit: str, hidden: bool) -> Any:
    from tqdm import tqdm

    return tqdm(desc=title, total=total, unit=unit, disable=hidden or not sys.stderr.isatty(), file=sys.stderr)


@contextlib.contextmanager
def _warned(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind as error:
        warn(str(error))


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end the run as Ctrl-C does, so that videos are completed."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread, where signals cannot be handled
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def warn(*messages: str) -> None:
    """Print messages on stderr, under the name of the command and, in a group of processes, the rank."""
    rank = f" (rank {os.environ['RANK']})" if os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ else ""
    for message in messages:
        write_line(f"hyperseg predict{rank}: {printable(message)}", sys.stderr)

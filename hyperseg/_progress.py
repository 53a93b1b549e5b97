"""Progress bars of downloads, shown if stderr is a terminal."""

import sys
from typing import Any

from hyperseg._files import printable
from hyperseg._transfer import Progress


class ProgressBars:
    """A progress bar for each transfer: ``with ProgressBars() as bars: fetch(url, path, bars.show)``."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._of: tuple[str, bool] | None = None

    def __enter__(self) -> "ProgressBars":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, progress: Progress) -> None:
        """Show the state of a transfer, in a new bar if it is another than before."""
        from tqdm import tqdm

        if self._of != (progress.name, progress.unpacking):
            self.__exit__()
            self._of = progress.name, progress.unpacking
            self._bar = tqdm(
                desc=f"{'unpack' if progress.unpacking else 'download'} {printable(progress.name)}",
                total=progress.total,
                unit="B",
                unit_scale=True,
                disable=not sys.stderr.isatty(),
                file=sys.stderr,
            )
        self._bar.update(progress.done - self._bar.n)

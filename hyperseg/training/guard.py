"""What ends a run early: a signal, which is heeded between two steps, and numbers that are not finite."""

import math
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from hyperseg._files import printable


class NonFiniteError(RuntimeError):
    """Training has diverged, or an input is not finite. The message names the step and its images."""


class Guard:
    """Notes SIGTERM and SIGINT instead of ending the process; a second SIGINT interrupts as usual.

    Attributes:
        stop: whether a signal has come.
    """

    def __init__(self) -> None:
        self.stop = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Guard":
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop = True


class FiniteGuard:
    """Ends the run when a loss or gradient is not finite.

    A step with such numbers changes no weight: the optimiser skips it on the device. Without loss scaling the run ends
    at the first. With it, gradients overflow now and then by design, so only a series ends the run; the learning rate
    and the averaged weights go on in a skipped step as in any other.

    Args:
        scaled: whether the loss is scaled (float16).
    """

    LOSSES, GRADIENTS = 3, 25  # steps in a row, with loss scaling

    def __init__(self, scaled: bool) -> None:
        self.limits = (self.LOSSES, self.GRADIENTS) if scaled else (1, 1)
        self.losses = self.gradients = 0

    def check(self, step: int, loss: float, norm: float, names: Sequence[str]) -> None:
        """Check a step, in order.

        Args:
            step: its number, from 1.
            loss, norm: of the step; the norm is that of all gradients.
            names: of the images of the step.

        Raises:
            NonFiniteError: the run has to end.
        """
        self.losses = 0 if math.isfinite(loss) else self.losses + 1
        self.gradients = 0 if math.isfinite(norm) else self.gradients + 1
        if self.losses < self.limits[0] and self.gradients < self.limits[1]:
            return
        what = "the loss" if self.losses >= self.limits[0] else "a gradient"
        count = f" for {self.limits[0 if what == 'the loss' else 1]} steps" if self.limits[0] > 1 else ""
        images = ", ".join(map(printable, names))
        raise NonFiniteError(
            f"{what} is not finite at step {step}{count}; its images: {images}. Look at these, or lower optimizer.lr, "
            "set optimizer.clip, or use speed.amp=none"
        )

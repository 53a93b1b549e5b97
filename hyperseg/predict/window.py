"""A window that shows pictures as they come, by Tk."""

import os
import sys
from typing import Any

import numpy as np
from PIL import Image


class WindowError(RuntimeError):
    """No window can be opened. The message says why."""


class Window:
    """Shows pictures (uint8 [H, W, 3]), shrunk to the screen if they are larger. Use it in one thread, the main one.

    Raises WindowError if there is no display, or Python was built without Tk.
    """

    def __init__(self, title: str) -> None:
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise WindowError("there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set); leave --show out")
        try:
            import tkinter

            from PIL import ImageTk
        except ImportError as error:
            raise WindowError(
                f"this Python has no Tk ({error}); install it, for example with apt install python3-tk"
            ) from None
        self._tk, self._photo_of = tkinter, ImageTk.PhotoImage
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise WindowError(f"the display cannot be used ({error}); leave --show out") from None
        self._root.title(title)
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self.closed = False
        self._photo: Any = None
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        for key in ("<Escape>", "q"):
            self._root.bind(key, lambda event: self.close())

    def show(self, picture: np.ndarray) -> None:
        """Show a picture, and take note of keys and clicks. Nothing happens in a closed window."""
        if self.closed:
            return
        image = Image.fromarray(picture)
        most = (int(self._root.winfo_screenwidth() * 0.9), int(self._root.winfo_screenheight() * 0.85))
        if image.width > most[0] or image.height > most[1]:
            image.thumbnail(most)
        if self._photo is None or (self._photo.width(), self._photo.height()) != image.size:
            self._photo = self._photo_of(image)
            self._label.configure(image=self._photo)
        else:
            self._photo.paste(image)
        self._root.update()

    def close(self) -> None:
        """Close the window."""
        if not self.closed:
            self.closed = True
            self._root.destroy()

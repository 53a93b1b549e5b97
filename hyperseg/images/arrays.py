"""Images and labels as NumPy arrays: the one form in which the project passes them on."""

import numpy as np


def check_labels(labels: np.ndarray) -> None:
    """Raise ValueError for labels that are not uint8 [H, W]."""
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(
            f"labels are uint8 [H, W]; got {labels.dtype} {list(labels.shape)}; convert them with .astype(np.uint8)"
        )


def check_image(image: np.ndarray) -> None:
    """Raise TypeError for an image that is no array, ValueError for one that is not uint8 [H, W, 3]."""
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"an image is a NumPy array, uint8 [H, W, 3] RGB; got {type(image).__module__}.{type(image).__name__}; "
            "read_image reads a file, and np.array(image.convert('RGB')) converts an image of Pillow"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image is uint8 [H, W, 3] RGB; got {image.dtype} {list(image.shape)}")

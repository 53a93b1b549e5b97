"""Computed data: street scenes with exact labels of the 19 classes of Cityscapes, without any files.

A scene is a function of the seed, the split and its index: bitwise equal on every machine, drawn when it is read. Its
plan does not depend on the size, so the same scenes come at any. Some pixels are ignored: the bonnet of the camera's
car, and bins.
"""

from hyperseg.data.synthetic.dataset import SyntheticDataset, open_synthetic

__all__ = ["SyntheticDataset", "open_synthetic"]

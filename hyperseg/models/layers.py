"""Convolution, batch norm and activation as submodules named conv, norm and act, as folding expects them."""

from torch import nn


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> nn.Sequential:
    """Return ``conv`` (no bias) and ``norm``."""
    layers = nn.Sequential()
    layers.add_module("conv", nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False))
    layers.add_module("norm", nn.BatchNorm2d(out_channels, eps, momentum))
    return layers


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    act: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Return ``conv`` (no bias), ``norm`` and ``act``."""
    layers = conv_norm(in_channels, out_channels, kernel_size, stride, padding)
    layers.add_module("act", act(inplace=True))
    return layers

"""Networks of others for real-time segmentation: how each is built, from which package or repository, on what terms.

They get random weights, on which the time does not depend, and are called with normalised images ``[N, 3, H, W]`` whose
sides are multiples of 32. Packages are imported when a network is built, so none is needed to list them.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bench.core.errors import Refused, one_line

Builder = Callable[[int, str], nn.Module]


@dataclass(frozen=True)
class Checkout:
    """A repository that is no package: the user has a clone of it, and names its folder.

    Attributes:
        option: of the command line, without dashes.
        url: to clone.
        file: with the network, relative to the clone.
        build: makes the network for a number of classes, of the module in ``file``.
    """

    option: str
    url: str
    file: str
    build: Callable[[Any, int], nn.Module]


@dataclass(frozen=True)
class Rival:
    """A network of others.

    Attributes:
        package: that has it, as it is imported; empty: `checkout` has it.
        build: makes it for a number of classes and an encoder of HyperSeg's, which only some follow.
        scores: takes the class scores ``[N, C, h, w]``, at any stride, from its output.
        fold: returns a copy with its norms folded, which may raise; None: by torch.fx.
        licence, link: of the code.
        published: mIoU as its authors publish it, with weights that are not used here; empty: not known for sure.
    """

    package: str = ""
    build: Builder | None = None
    checkout: Checkout | None = None
    scores: Callable[[Any], Tensor] = lambda output: output
    fold: Callable[[nn.Module], nn.Module] | None = None
    licence: str = ""
    link: str = ""
    published: str = ""


class Scores(nn.Module):
    """A network and the choice of its class scores among its outputs."""

    def __init__(self, network: nn.Module, pick: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.network, self.pick = network, pick

    def forward(self, images: Tensor) -> Tensor:
        return self.pick(self.network(images))


def _torchvision(name: str) -> Builder:
    def make(classes: int, encoder: str) -> nn.Module:
        from torchvision.models import segmentation

        network: nn.Module = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=classes)
        return network

    return make


def _smp(kind: str) -> Builder:
    def make(classes: int, encoder: str) -> nn.Module:
        smp = importlib.import_module("segmentation_models_pytorch")
        # As of HyperSeg's published encoders: tf_efficientnet_b1 -> efficientnet-b1.
        name = "efficientnet-" + encoder.split(".")[0].rsplit("_", 1)[-1]
        network: nn.Module = getattr(smp, kind)(name, encoder_weights=None, classes=classes)
        return network

    return make


def _segformer(classes: int, encoder: str) -> nn.Module:
    """Build SegFormer with the smallest encoder, MiT-B0: the defaults of transformers."""
    transformers = importlib.import_module("transformers")
    config = transformers.SegformerConfig(num_labels=classes)
    network: nn.Module = transformers.SegformerForSemanticSegmentation(config)
    return network


def _fold_segformer(network: nn.Module) -> nn.Module:
    """Fold its only batch norm; layer norms depend on the image and stay."""
    network = copy.deepcopy(network)
    head: Any = network.get_submodule("decode_head")
    head.linear_fuse = fuse_conv_bn_eval(head.linear_fuse, head.batch_norm)
    head.batch_norm = nn.Identity()
    return network


def _yolo(classes: int, encoder: str) -> nn.Module:
    # A benchmark installs nothing and sends nothing.
    for name, value in (("OFFLINE", "true"), ("AUTOINSTALL", "false"), ("VERBOSE", "false")):
        os.environ.setdefault(f"YOLO_{name}", value)
    tasks = importlib.import_module("ultralytics.nn.tasks")
    if not hasattr(tasks, "SemanticSegmentationModel"):
        raise Refused(
            "this release of ultralytics has no networks for semantic segmentation: pip install -U ultralytics."
        )
    network: nn.Module = tasks.SemanticSegmentationModel("yolo26n-sem.yaml", nc=classes, verbose=False)
    return network


def _fold_yolo(network: nn.Module) -> nn.Module:
    folded: nn.Module = copy.deepcopy(network).fuse(verbose=False)  # type: ignore[operator]
    return folded


def _pidnet(module: Any, classes: int) -> nn.Module:
    network: nn.Module = module.get_pred_model("pidnet_s", classes)
    return network


def _ddrnet(module: Any, classes: int) -> nn.Module:
    # The arguments of its own DualResNet_imagenet, with another number of classes.
    network: nn.Module = module.DualResNet(
        module.BasicBlock, [2, 2, 2, 2], num_classes=classes, planes=32, spp_planes=128, head_planes=64, augment=False
    )
    return network


def _out(output: Any) -> Tensor:
    scores: Tensor = output["out"]
    return scores


def _logits(output: Any) -> Tensor:
    scores: Tensor = output.logits
    return scores


def _of_torchvision(name: str) -> Rival:
    link = "https://github.com/pytorch/vision"
    return Rival("torchvision", _torchvision(name), scores=_out, licence="BSD-3-Clause", link=link)


def _of_smp(kind: str) -> Rival:
    link = "https://github.com/qubvel-org/segmentation_models.pytorch"
    return Rival("segmentation_models_pytorch", _smp(kind), licence="MIT", link=link)


RIVALS: Mapping[str, Rival] = {
    "lraspp_mobilenet_v3_large": _of_torchvision("lraspp_mobilenet_v3_large"),
    "deeplabv3_mobilenet_v3_large": _of_torchvision("deeplabv3_mobilenet_v3_large"),
    "segformer_b0": Rival(
        "transformers",
        _segformer,
        scores=_logits,
        fold=_fold_segformer,
        licence="Apache-2.0",
        link="https://github.com/huggingface/transformers",
        published="76.2 % (Cityscapes val)",
    ),
    "pidnet_s": Rival(
        checkout=Checkout("pidnet", "https://github.com/XuJiacong/PIDNet", "models/pidnet.py", _pidnet),
        licence="MIT",
        link="https://github.com/XuJiacong/PIDNet",
        published="78.8 % (Cityscapes val)",
    ),
    "ddrnet_23_slim": Rival(
        checkout=Checkout("ddrnet", "https://github.com/ydhongHIT/DDRNet", "segmentation/DDRNet_23_slim.py", _ddrnet),
        licence="MIT",
        link="https://github.com/ydhongHIT/DDRNet",
        published="77.8 % (Cityscapes val)",
    ),
    "yolo26n_sem": Rival(
        "ultralytics",
        _yolo,
        fold=_fold_yolo,
        licence="AGPL-3.0",
        link="https://github.com/ultralytics/ultralytics",
    ),
    "smp_unet": _of_smp("Unet"),
    "smp_fpn": _of_smp("FPN"),
}
# Nearest in purpose, for frames (bench/fps.py); nearest in size, or with the same encoder, with scores at image size,
# for training (bench/train_step.py).
FOR_FRAMES = ("lraspp_mobilenet_v3_large", "segformer_b0", "pidnet_s", "ddrnet_23_slim", "yolo26n_sem")
FOR_TRAINING = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "smp_unet", "smp_fpn")
CHECKOUTS = {rival.checkout.option: rival.checkout for rival in RIVALS.values() if rival.checkout}


def missing(name: str, folders: Mapping[str, Path | None] | None = None) -> str | None:
    """Return a message if the package of a network is not installed, or the folder of its repository is not named.

    Args:
        folders: clones of repositories, by option.
    """
    rival = RIVALS[name]
    if (checkout := rival.checkout) is not None:
        if (folders or {}).get(checkout.option) is not None:
            return None
        return f"{name} needs its authors' code: git clone {checkout.url}, then --{checkout.option} FOLDER."
    if importlib.util.find_spec(rival.package) is not None:
        return None
    return f"{name} needs {rival.package}, not installed here: pip install {rival.package.replace('_', '-')}."


def pick(
    names: Iterable[str] | None,
    known: Iterable[str],
    log: Callable[[str], None],
    folders: Mapping[str, Path | None] | None = None,
) -> list[str]:
    """Return the networks of ``known`` that can be built, and say which cannot.

    Args:
        names: chosen by the user; None: all of them.

    Raises:
        Refused: one of ``names`` is unknown or cannot be built.
    """
    known = list(known)
    if unknown := [name for name in names or () if name not in known]:
        raise Refused(f"There is no peer {unknown[0]!r}; there are {', '.join(known)}.")
    picked = []
    for name in dict.fromkeys(known if names is None else names):
        if (message := missing(name, folders)) is None:
            picked.append(name)
        elif names is not None:
            raise Refused(message)
        else:
            log(message)
    return picked


def about(name: str) -> str:
    """Return the package and its version, or the repository."""
    rival = RIVALS[name]
    if rival.checkout is not None:
        return rival.checkout.url.removeprefix("https://github.com/")
    return f"{rival.package} {importlib.metadata.version(rival.package)}"


def build(
    name: str, classes: int, encoder: str, seed: int, folders: Mapping[str, Path | None] | None = None
) -> nn.Module:
    """Build a network with random weights, in training mode.

    Raises:
        Refused: its package or repository has no such network; the message says what is missing.
    """
    rival = RIVALS[name]
    torch.manual_seed(seed)
    if rival.build is not None:
        return rival.build(classes, encoder)
    assert rival.checkout is not None
    folder = (folders or {}).get(rival.checkout.option)
    if folder is None:
        raise Refused(str(missing(name, folders)))
    return ordinary_norms(_build_of_checkout(name, rival.checkout, folder, classes))


def _build_of_checkout(name: str, checkout: Checkout, folder: Path, classes: int) -> nn.Module:
    """Build a network by running the code in a repository's file."""
    file = folder / checkout.file
    wanted = f"--{checkout.option} takes a clone of {checkout.url}"
    if not file.is_file():
        raise Refused(f"{name}: there is no {file}; {wanted}.")
    # A package of the file's folder alone: its relative imports work, and its __init__.py does not run.
    package = f"_bench_{checkout.option}"
    parent = types.ModuleType(package)
    parent.__path__ = [str(file.parent.resolve())]
    sys.modules[package] = parent
    sys.modules.pop(f"{package}.{file.stem}", None)
    try:
        return checkout.build(importlib.import_module(f"{package}.{file.stem}"), classes)
    except Exception as error:  # whatever that code raises
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise Refused(f"{name}: {file} cannot be used ({reason}); {wanted}.") from error


def ordinary_norms(network: nn.Module) -> nn.Module:
    """Replace batch norms over several processes by those of one; in eval mode they compute the same."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.SyncBatchNorm):
                norm = nn.BatchNorm2d(child.num_features, child.eps, child.momentum)
                norm.load_state_dict(child.state_dict())
                setattr(parent, name, norm)
    return network


@torch.no_grad()
def settle_norms(network: nn.Module, images: Tensor) -> None:
    """Set the batch norms' running statistics to those of at least two images; end in eval mode.

    Values stay at the size that they have in a trained network: a random one without this overflows float16.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # an average of all batches, of which there is one
    network.train()(images)
    network.eval()


@torch.no_grad()
def folded(name: str, network: nn.Module, images: Tensor) -> tuple[nn.Module, str]:
    """Return a copy with folded norms, and how it was done; the network itself where it cannot be done.

    Args:
        images: for a comparison of the two.
    """
    rival = RIVALS[name]
    try:
        if rival.fold is not None:
            copied = rival.fold(network)
        else:
            from torch.fx.experimental.optimization import fuse

            copied = fuse(network)
        copied.eval()
        scores, expected = (rival.scores(found(images)).double() for found in (copied, network))
        error = (scores - expected).norm() / expected.norm()
        if not error < 1e-3:
            raise ValueError(f"folding changed its scores by {error:.1e}")
    except Exception as error:  # of packages that change from release to release
        return network, f"norms not folded ({type(error).__name__}: {one_line(error)})"
    left = sum(isinstance(module, _BatchNorm) for module in copied.modules())
    return copied, "norms folded" if not left else f"norms folded but for {left} that follow no convolution"

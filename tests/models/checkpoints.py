"""Checkpoint files like those of the official trainer (SPEC A.4)."""

import functools
import io
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from hyperseg.models import create_model, model_config, official, official_arch, synthesize_weights

# Copied from SPEC A.4; the others have the same order of arguments.
ARCH_CAMVID_S = (
    "hyperseg.models.hyperseg_v1_0.hyperseg_efficientnet('efficientnet-b1',pretrained=True,levels=2,"
    "kernel_sizes=(1,1,1,3,3),level_channels=[64,32,16,16,16],expand_ratio=2,inference_hflip=True,with_out_fc=False,"
    "decoder_dropout=None,weight_groups=[64,32,32,16,8],coords_res=[(576,576),(576,768)],num_classes=12)"
)
ARCH = {
    "hyperseg-s-camvid": ARCH_CAMVID_S,
    "hyperseg-l-camvid": (
        "hyperseg.models.hyperseg_v1_0.hyperseg_efficientnet('efficientnet-b1',pretrained=True,levels=2,"
        "kernel_sizes=(1,1,1,3,3,3),level_channels=[64,32,16,16,16,16],expand_ratio=2,inference_hflip=True,"
        "with_out_fc=False,decoder_dropout=None,weight_groups=[64,32,32,16,8,8],"
        "coords_res=[(768,768),(768,1024)],num_classes=12)"
    ),
    "hyperseg-m-cityscapes": (
        "hyperseg.models.hyperseg_v1_0.hyperseg_efficientnet('efficientnet-b1',pretrained=True,levels=2,"
        "out_feat_scale=[1.0,0.25,0.25,0.25,0.25],kernel_sizes=[1,1,1,3,3],level_channels=[64,32,16,16,16],"
        "expand_ratio=2,inference_hflip=True,with_out_fc=False,decoder_groups=1,decoder_dropout=None,"
        "weight_groups=[32,16,8,16,4],coords_res=[(512,512),(512,1024)],num_classes=19)"
    ),
    "hyperseg-s-cityscapes": (
        "hyperseg.models.hyperseg_v1_0_unify.hyperseg_efficientnet('efficientnet-b1',pretrained=True,levels=2,"
        "out_feat_scale=[1.0,0.166,0.2,0.25,0.4],kernel_sizes=[1,1,1,3,3],level_channels=[32,16,8,8,8],"
        "expand_ratio=2,inference_hflip=True,with_out_fc=False,decoder_groups=1,decoder_dropout=None,"
        "weight_groups=[32,16,8,16,4],unify_level=4,coords_res=[(768,768),(768,1536)],num_classes=19)"
    ),
    "hyperseg-l-voc": (
        "hyperseg.models.hyperseg_v0_1.hyperseg_efficientnet('efficientnet-b3',pretrained=True,levels=3,"
        "kernel_sizes=(1,1,3,3,3,3),expand_ratio=2,inference_hflip=True,with_out_fc=False,decoder_dropout=None,"
        "weight_groups=16,num_classes=21)"
    ),
}


@functools.cache
def weights(name: str = "hyperseg-s-camvid") -> dict[str, torch.Tensor]:
    """Return an official state dict with synthetic weights. It is shared: copy it before you change it."""
    model = synthesize_weights(create_model(name))
    return {key: value.detach().clone() for key, value in official.to_official(model).items()}


def coordinates(name: str) -> dict[str, torch.Tensor]:
    """Return the buffers that the official network caches, computed from their definition (SPEC F)."""
    config = model_config(name)
    result = {}
    for height, width in official_arch.coordinate_sizes(config):
        for i in range(len(config.kernel_sizes)):
            h, w = height // 2**i, width // 2**i
            x, y = torch.linspace(-1, 1, w), torch.linspace(-1, 1, h)
            result[f"decoder.coord{h}_{w}"] = torch.stack([x.expand(h, w), y[:, None].expand(h, w)])[None]
    return result


def trained(name: str = "hyperseg-s-camvid", state=None, **changes) -> dict:
    """Return the trainer's dictionary: counters, optimiser, scheduler, a NumPy scalar and the arch string."""
    state = OrderedDict(weights(name) if state is None else state)
    parameter = torch.zeros(3)
    return {
        "epoch": 7,
        "state_dict": state,
        "optimizer": {
            "state": {0: {"step": torch.tensor(10.0), "exp_avg": parameter, "exp_avg_sq": parameter}},
            "param_groups": [{"lr": 1e-3, "betas": (0.5, 0.999), "initial_lr": 1e-3, "params": [0]}],
        },
        "scheduler": {"max_epoch": 360, "power": 3, "base_lrs": [1e-3], "last_epoch": 7, "_last_lr": [9e-4]},
        "best_iou": np.float64(0.78125),
        "arch": ARCH[name],
        **changes,
    }


def write(path: Path, what: object, numpy_core: str | None = None, legacy: bool = False) -> Path:
    """Write ``what`` in PyTorch's zip or legacy format; ``numpy_core`` is the module name of the NumPy scalar."""
    buffer = io.BytesIO()
    torch.save(what, buffer, _use_new_zipfile_serialization=not legacy)
    data = buffer.getvalue()
    if numpy_core is not None:
        data = rename_numpy(data, numpy_core) if legacy else rewrite(data, lambda p: rename_numpy(p, numpy_core))
    path.write_bytes(data)
    return path


def rename_numpy(pickled: bytes, module: str) -> bytes:
    pickled, found = re.subn(rb"cnumpy\.(_core|core)\.multiarray\n", f"c{module}\n".encode(), pickled)
    assert found == 1
    return pickled


def rewrite(archive: bytes, change) -> bytes:
    """Return the zip file with its ``data.pkl`` changed by ``change``."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for entry in old.namelist():
            data = old.read(entry)
            new.writestr(entry, change(data) if entry.endswith("/data.pkl") else data)
    return out.getvalue()

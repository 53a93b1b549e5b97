"""Input pipelines on one CPU core: samples per second from a cache, from files, and with the official transforms.

    python bench/data.py
    python bench/data.py --model hyperseg-m --json data.json

Training samples of a network's recipe (crop, scales, flip, colours), from computed street scenes with sensor noise that
are written as PNG files of the size of its data set. All pipelines make samples in this process, on one thread, in
alternation. Before timing, samples from the cache are compared with those from the files.
Exit code: 0 measured, 1 something could not be run (a message gives the reason), 2 a comparison failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.core.options import measuring_parser, pick_models, prepare_torch
from bench.core.results import NetworkResults, Row
from bench.core.run import Run, log, run_command
from bench.core.tables import bullets, fixed, percentiles, table
from bench.core.timing import Budget, Case, ratio, summarise, throughput
from hyperseg.data.dataset import Dataset
from hyperseg.data.pipeline.cache import CachedDataset
from hyperseg.data.pipeline.cache_writing import write_cache
from hyperseg.data.pipeline.loader import finish
from hyperseg.data.pipeline.photometry import Photometry
from hyperseg.data.pipeline.recipes import RECIPES, Augmentation
from hyperseg.data.pipeline.samples import Sampler
from hyperseg.data.pipeline.sources import OfficialSource, Source, TrainingSource
from hyperseg.data.registry import open_dataset
from hyperseg.data.writing import write_folder
from hyperseg.models import model_config

IMAGES = 8
BATCH = 16
SEED = 1
# Sizes of the published images; those of VOC differ, this is the most frequent one.
SIZES = {"cityscapes": (1024, 2048), "camvid": (720, 960), "voc": (375, 500)}
BASE = "official"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = measuring_parser("bench/data.py", __doc__, model="hyperseg-m", row="pipeline", quick="same sizes")
    parser.set_defaults(model=["hyperseg-m", "hyperseg-s-camvid"], threads=1)
    return parser.parse_args(argv)


def pick_budget(args: argparse.Namespace) -> Budget:
    rounds = 2 if args.quick else 7
    if args.iterations is not None:
        rounds = min(rounds, args.iterations)
    seconds = args.seconds or (2.0 if args.quick else 30.0)
    return Budget(seconds, rounds, args.iterations, warmup_steps=1 if args.quick else 2, warmup_seconds=1.0)


class DataRun(Run):
    """Rows: pipelines."""

    kind = "hyperseg-data"

    def print_settings(self) -> None:
        log(f"settings  batches of {BATCH} from {IMAGES} images, {torch.get_num_threads()} threads, seed {SEED}")

    def print_notes(self, rows: list[Row]) -> None:
        log("\n" + bullets(NOTES))

    def measure_network(self, entry: NetworkResults) -> None:
        name = entry.name
        kind = name.rsplit("-", 1)[-1]
        size = self.args.resolution or SIZES[kind]
        entry.resolution, entry.batch, entry.dtype = [*size], BATCH, "uint8"
        log(f"\n{name}: images of {size[0]}x{size[1]} (height x width), {describe(RECIPES[name].augmentation)}")
        with tempfile.TemporaryDirectory() as path:
            self.progress(f"writing images for {name}")
            files, cached = write_images(Path(path), size, self.args.seed)
            self.measure_pipelines(entry, files, cached)
        if entry.rows:
            log("\n" + pipelines_table(entry.rows))

    def measure_pipelines(self, entry: NetworkResults, files: Dataset, cached: Dataset) -> None:
        augmentation, config = RECIPES[entry.name].augmentation, model_config(entry.name)
        sampler, photometry = Sampler(IMAGES, SEED), Photometry(config.mean, config.std)
        from_files = TrainingSource(files, sampler, augmentation)
        from_cache = TrainingSource(cached, sampler, augmentation)
        as_official = OfficialSource(files, sampler, augmentation, config.mean, config.std)
        if not same_batches(from_files, from_cache):
            self.refuse(entry, f"{entry.name}: samples from the cache differ from those of the files.", wrong=True)
            return
        cases = [
            Case((BASE,), batches(as_official), items=BATCH),
            Case(("torchvision",), torchvision_v2(files, sampler, augmentation, config.mean, config.std), items=BATCH),
            Case(("files",), batches(from_files), items=BATCH),
            Case(("cache",), batches(from_cache), items=BATCH),
            Case(("cache, all",), batches(from_cache, photometry), items=BATCH),
        ]
        for case, samples in zip(cases, self.time(cases), strict=True):
            entry.rows.append(
                Row(
                    peer=case.name[0],
                    about=ABOUT[case.name[0]],
                    latency_ms=summarise([ms / BATCH for ms in samples.latency_ms]),
                    throughput=throughput(samples),
                    samples=samples,
                )
            )
        base = entry.rows[0].throughput.by_window
        for row in entry.rows:
            row.over_official = ratio(row.throughput.by_window, base)


def write_images(folder: Path, size: tuple[int, int], seed: int) -> tuple[Dataset, Dataset]:
    """Write images and their cache; return the data sets that read them."""
    scenes = open_dataset("synthetic", "-", "train", images=IMAGES, size=size, seed=seed)
    write_folder([scenes], folder / "files")
    files = open_dataset("folder", folder / "files", "train")
    write_cache(files, folder / "cache", workers=1)
    return files, CachedDataset(folder / "cache", files)


def batches(source: Source, photometry: Photometry | None = None) -> Callable[[int], object]:
    """Return a step that makes a batch: up to what a worker sends, or with all that a GPU would do."""

    def step(i: int) -> object:
        batch = source.batch(range(i * BATCH, (i + 1) * BATCH), [])
        return batch if photometry is None else finish(i, batch, photometry)

    return step


def torchvision_v2(
    dataset: Dataset,
    sampler: Sampler,
    augmentation: Augmentation,
    mean: Sequence[float],
    std: Sequence[float],
) -> Callable[[int], object]:
    """Return a step that makes a batch with Pillow's decoder and torchvision's transforms of version 2, on tensors."""
    from torchvision import tv_tensors
    from torchvision.transforms import InterpolationMode, v2

    size, jitter = augmentation.size, augmentation.jitter
    whole = list(dataset.image(0).shape[:2])
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: 255}
    resize = v2.ScaleJitter(whole, augmentation.scale or (1.0, 1.0), InterpolationMode.BICUBIC, antialias=True)
    steps: list[torch.nn.Module] = [v2.RandomApply([resize], augmentation.scale_probability)]
    if augmentation.rotation:
        steps.append(v2.RandomRotation(augmentation.rotation, InterpolationMode.BILINEAR, fill=fill))
    steps += [v2.RandomCrop(size, pad_if_needed=True, fill=fill), v2.RandomHorizontalFlip(augmentation.flip)]
    if jitter is not None:
        steps.append(v2.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue))
    steps += [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), v2.Normalize(mean, std)]
    transforms = v2.Compose(steps)

    def sample(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        item = dataset.items[sampler.sample(number).image]
        assert item.label is not None
        with Image.open(item.image.path) as image, Image.open(item.label.path) as labels:
            pixels = v2.functional.pil_to_tensor(image)
            return transforms(tv_tensors.Image(pixels), tv_tensors.Mask(torch.from_numpy(np.array(labels))))

    def step(i: int) -> object:
        pairs = [sample(number) for number in range(i * BATCH, (i + 1) * BATCH)]
        return [torch.stack(tensors) for tensors in zip(*pairs, strict=True)]

    return step


def same_batches(one: Source, two: Source) -> bool:
    numbers = range(BATCH)
    first, second = one.batch(numbers, []), two.batch(numbers, [])
    return torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)


def describe(augmentation: Augmentation) -> str:
    height, width = augmentation.size
    scale = "" if augmentation.scale is None else f", half of them resized by {augmentation.scale[0]:g} to "
    scale += "" if augmentation.scale is None else f"{augmentation.scale[1]:g}"
    return f"samples of {height}x{width}{scale}{', colours changed' if augmentation.jitter else ''}"


def pipelines_table(rows: Sequence[Row]) -> str:
    head = ["pipeline", "what", "ms per sample", "samples per second", "spread", "times official"]
    body = []
    for row in rows:
        cells = [row.peer, row.about, *percentiles(row.latency_ms, "p50"), fixed(row.throughput.rate)]
        body.append([*cells, f"{row.throughput.spread_percent:.1f} %", str(row.over_official)])
    return table(head, body, left=2)


ABOUT = {
    BASE: "PNG, Pillow, original transforms",
    "torchvision": "PNG, Pillow, torchvision.transforms.v2",
    "files": "PNG, geometry (a worker's part)",
    "cache": "cache, geometry (a worker's part)",
    "cache, all": "cache, geometry, photometry",
}

NOTES = (
    "A worker's part ends with uint8 arrays; flip, colours and normalisation are computed on the GPU. Official and "
    'torchvision end with normalised float32 tensors, as does "cache, all", which computes all of it on this core.',
    "official: those of hyperseg/data/pipeline/official.py, bit-equal to the original's. Each pipeline has its own "
    "random numbers from the same distributions, so batches differ in cost; a round has new batches.",
    "ms per sample: median of single batches; samples per second: median of the rounds, on one core; spread is (max - "
    "min) / median; times official: ratio within a round, median of the rounds, with minimum and maximum.",
    "Files and cache are in the page cache of the operating system.",
)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    args.device = "cpu"

    def make() -> DataRun:
        device = prepare_torch(args.device, args.threads)
        return DataRun(args, device, pick_models(args.model), pick_budget(args))

    return run_command("bench/data.py", args, make)


if __name__ == "__main__":
    sys.exit(main())

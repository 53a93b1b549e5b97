"""Loaders give the same batches whatever the workers, the processes and the start; errors name the file."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image

import hyperseg
from hyperseg.data.dataset import Dataset
from hyperseg.data.errors import DataError
from hyperseg.data.pipeline import official, workers
from hyperseg.data.pipeline.cache import CachedDataset
from hyperseg.data.pipeline.cache_writing import write_cache
from hyperseg.data.pipeline.device_loader import DeviceLoader
from hyperseg.data.pipeline.loader import Loader, ValidationLoader
from hyperseg.data.pipeline.recipes import Augmentation, ColorJitter, EvalResize

ROOT = Path(hyperseg.__file__).parent.parent
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
SIZES = [(40, 60), (33, 47), (64, 48), (20, 30), (40, 61)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORM = {"mean": MEAN, "std": STD}
CROP = Augmentation((32, 48), (0.25, 2.0), jitter=ColorJitter(0.25, 0.25, 0.25, 0.25))
PAD = Augmentation(
    (64, 64), (0.25, 0.9), crop=False, rotation=30.0, jitter=ColorJitter(0.5, 0.5, 0.5, 0.5, before_padding=True)
)


@pytest.fixture
def dataset(make_dataset):
    return make_dataset(*SIZES)


def batches(dataset, augmentation=CROP, first=0, steps=4, **options):
    with Loader(dataset, augmentation, **{"batch_size": 4, "seed": 3, **NORM, **options}) as loader:
        return list(loader.run(first, steps))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert one.step == two.step
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
        assert one.names == two.names


@pytest.mark.parametrize("augmentation", [CROP, PAD], ids=["crop", "pad"])
def test_workers_and_restarts_change_nothing(dataset, augmentation):
    expected = batches(dataset, augmentation)
    for batch in expected:
        assert batch.images.shape == (4, 3, *augmentation.size)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == torch.uint8
        assert all(name.endswith(".png") for name in batch.names)
    assert_same(batches(dataset, augmentation, first=2, steps=2), expected[2:])
    with Loader(dataset, augmentation, batch_size=4, seed=3, workers=2, **NORM) as loader:
        assert_same(list(loader.run(0, 4)), expected)
        unfinished = loader.run(1)
        assert_same([next(unfinished)], expected[1:2])
        assert_same(list(loader.run(2, 2)), expected[2:])  # the same workers, again
    assert not torch.equal(batches(dataset, augmentation, seed=4)[0].images, expected[0].images)


def test_the_global_generator_is_left_alone(dataset):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    batches(dataset, workers=1, steps=1)
    batches(dataset, official=True, steps=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("order", ["replacement", "permutation"])
def test_processes_share_the_samples_of_a_step(dataset, order):
    whole = batches(dataset, order=order)
    shares = [batches(dataset, order=order, rank=rank, world_size=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        for rank in range(2):
            assert torch.equal(shares[rank][step].images, batch.images[rank::2])
            assert torch.equal(shares[rank][step].labels, batch.labels[rank::2])
            assert shares[rank][step].names == batch.names[rank::2]


def test_a_cache_gives_the_samples_of_the_files(dataset, tmp_path):
    write_cache(dataset, tmp_path / "cache")
    assert_same(batches(CachedDataset(tmp_path / "cache"), workers=1), batches(dataset))


def test_labels_go_with_their_pixels(dataset):
    # The labels of these images are their red values modulo 12, and the mean and std below undo the normalisation.
    augmentation = Augmentation((32, 48), (0.5, 2.0), scale_probability=0.0)
    with Loader(dataset, augmentation, batch_size=16, mean=(0.0,) * 3, std=(1 / 255,) * 3) as loader:
        (batch,) = loader.run(0, 1)
    inside = batch.labels != 255
    assert 0 < inside.float().mean() < 1  # some images are smaller than the window
    red = batch.images[:, 0].round().long()
    assert torch.equal(red[inside] % 12, batch.labels[inside].long())
    assert not red[~inside].any()


def test_padding_is_at_the_right_and_at_the_bottom_of_mirrored_images_too(dataset):
    augmentation = Augmentation((64, 64), crop=False)
    options = {"batch_size": 16, "mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    mirrored = 0
    for run in (
        Loader(dataset, augmentation, **options).run,
        DeviceLoader(dataset, augmentation, device="cpu", **options).run,
    ):
        batch = next(run())
        for pixels, labels, name in zip(batch.images, batch.labels, batch.names, strict=True):
            image, classes = dataset.sample(int(name[-6:-4]))
            height, width = classes.shape
            found = pixels[:, :height, :width].permute(1, 2, 0).round().byte().numpy()
            mirror = not (found == image).all()
            mirrored += mirror
            np.testing.assert_array_equal(found, image[:, ::-1] if mirror else image)
            np.testing.assert_array_equal(labels[:height, :width], classes[:, ::-1] if mirror else classes)
            assert not pixels[:, height:].any()
            assert (labels[:, width:] == 255).all()
    assert 0 < mirrored < 32


def test_official_transforms(dataset):
    with Loader(dataset, CROP, batch_size=3, seed=3, official=True, **NORM) as loader:
        for batch in loader.run(5, 2):
            for position, number in enumerate(range(3 * batch.step, 3 * batch.step + 3)):
                sample = loader.sampler.sample(number)
                generators = official.Generators.of(sample.draws)
                image, labels = official.transform(*dataset.sample(sample.image), CROP, generators, MEAN, STD)
                assert torch.equal(batch.images[position], image)
                assert torch.equal(batch.labels[position], labels)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("augmentation", [CROP, Augmentation((64, 64), (0.25, 0.9), crop=False, jitter=PAD.jitter)])
def test_device_loader_gives_the_same_samples(dataset, augmentation):
    options = {"batch_size": 8, "seed": 3, "mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    with Loader(dataset, augmentation, **options) as loader:
        expected = list(loader.run(2, 3))
    found = list(DeviceLoader(dataset, augmentation, device="cpu", **options).run(2, 3))
    for one, two in zip(found, expected, strict=True):
        assert (one.step, one.names) == (two.step, two.names)
        assert torch.equal(one.labels, two.labels)
        error = (one.images - two.images).abs()
        assert error.mean() < 0.05
    plain = Augmentation(augmentation.size, augmentation.scale, crop=augmentation.crop)
    one = next(DeviceLoader(dataset, plain, device="cpu", **options).run())
    with Loader(dataset, plain, **options) as loader:
        two = next(loader.run())
    assert (one.images - two.images).abs().max() <= 2.01  # levels of uint8


def test_device_loader_refuses_what_it_cannot_do(dataset):
    for augmentation, options, message in [
        (PAD, {}, "not rotated; use Loader"),
        (CROP, {"most_bytes": 10_000}, "the first 2 of 5 images have .* GB, but up to 1e-05 GB .*use Loader"),
    ]:
        with pytest.raises(ValueError, match=message):
            DeviceLoader(dataset, augmentation, batch_size=2, device="cpu", **NORM, **options)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("augmentation", [CROP, PAD], ids=["crop", "pad"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_a_gpu_are_those_of_the_cpu(dataset, augmentation, workers):
    found = batches(dataset, augmentation, device="cuda", workers=workers)
    for one, two in zip(found, batches(dataset, augmentation), strict=True):
        assert one.images.device.type == one.labels.device.type == "cuda"
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(one.images.cpu(), two.images, rtol=0, atol=1e-4)
        assert torch.equal(one.labels.cpu(), two.labels)
        assert (one.step, one.names) == (two.step, two.names)


@pytest.mark.gpu
@needs_cuda
def test_device_loader_on_a_gpu(dataset):
    options = {"batch_size": 8, "seed": 3, "mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    plain = Augmentation((32, 48), (0.25, 2.0))
    found = next(DeviceLoader(dataset, plain, device="cuda", **options).run(2, 1))
    with Loader(dataset, plain, **options) as loader:
        expected = next(loader.run(2, 1))
    assert torch.equal(found.labels.cpu(), expected.labels)
    assert (found.images.cpu() - expected.images).abs().max() <= 2.01  # levels of uint8


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_validation_has_each_image_once(dataset, world_size):
    names = []
    for rank in range(world_size):
        options = {"batch_size": 2, "rank": rank, "world_size": world_size}
        with ValidationLoader(dataset, EvalResize((30, 40), labels=True), **options, **NORM) as loader:
            found = list(loader)
            assert len(found) == len(loader)
            assert_same(list(loader), found)
            names += [name for batch in found for name in batch.names]
    assert sorted(names) == [str(item.image) for item in dataset.items]


def test_validation_images(dataset):
    with ValidationLoader(dataset, None, workers=1, **NORM) as loader:
        for index, batch in enumerate(loader):
            image, labels = dataset.sample(index)
            torch.testing.assert_close(batch.images[0], F.normalize(F.to_tensor(image), MEAN, STD), rtol=0, atol=1e-5)
            np.testing.assert_array_equal(batch.labels[0], labels)
    with (
        ValidationLoader(dataset, EvalResize((30, 40)), batch_size=2, **NORM) as loader,
        pytest.raises(DataError, match=r"image01.png is 33x47, but .*image00.png 40x60; .* need a batch size of 1"),
    ):
        list(loader)


def broken(dataset, tmp_path, kind):
    if kind == "truncated":
        path = tmp_path / "data" / "image01.png"
        path.write_bytes(path.read_bytes()[:50])
        return dataset, CROP, r"image01.png is damaged"
    if kind == "missing":
        (tmp_path / "data" / "image01_labels.png").unlink()
        return dataset, CROP, r"there is no file .*image01_labels.png"
    if kind == "label":
        Image.fromarray(np.full((33, 47), 99, np.uint8)).save(tmp_path / "data" / "image01_labels.png")
        return dataset, CROP, r"image01_labels.png contains 99"
    if kind == "too large":
        return dataset, Augmentation((50, 64), crop=False), r"image02.png is 64x48 .* but is to be padded to 50x64"
    return Faulty(dataset), CROP, r"image01.png could not be loaded \(ZeroDivisionError: .*by zero\)"


class Faulty(Dataset):
    """Has a bug."""

    def __init__(self, dataset):
        self.__dict__.update(dataset.__dict__)

    def labels(self, index):
        return super().labels(index) // (index != 1 or 1 // 0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["truncated", "missing", "label", "too large", "bug"])
def test_a_failure_names_the_file(kind, workers, dataset, tmp_path):
    data, augmentation, message = broken(dataset, tmp_path, kind)
    options = {"order": "permutation", "workers": workers, "start_method": "fork"}
    loader = Loader(data, augmentation, batch_size=4, **options, **NORM)
    with pytest.raises(DataError, match=message):
        list(loader.run(0, 4))
    assert loader._workers._iterator is None


def test_the_trace_of_a_bug_is_logged(dataset, caplog):
    with pytest.raises(DataError), Loader(Faulty(dataset), CROP, batch_size=8, order="permutation", **NORM) as loader:
        list(loader.run(0, 2))
    assert "1 // 0" in caplog.text


def test_images_without_labels_are_refused(make_dataset):
    dataset = make_dataset(*SIZES, labels=False)
    for make in (
        lambda: Loader(dataset, CROP, batch_size=2, **NORM),
        lambda: ValidationLoader(dataset, None, **NORM),
        lambda: DeviceLoader(dataset, CROP, batch_size=2, device="cpu", **NORM),
    ):
        with pytest.raises(DataError, match=r"image00.png has no labels: .* give a split with labels"):
            make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3, "world_size": 2}, "a batch of 3 cannot be divided among 2 processes"),
        ({"rank": 1}, "rank 1 of 1 processes"),
        ({"workers": -1}, "workers is -1; give 0"),
        ({"order": "any"}, "no order 'any'"),
    ],
)
def test_arguments_out_of_range(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        Loader(dataset, CROP, **{"batch_size": 4, **NORM, **options})


def worker_processes(loader):
    return list(loader._workers._iterator._workers)


def test_workers_leave_signals_to_the_main_process(dataset):
    expected = batches(dataset, steps=12)
    with Loader(dataset, CROP, batch_size=4, seed=3, workers=2, **NORM) as loader:
        run = loader.run(0, 12)
        found = [next(run)]
        processes = worker_processes(loader)
        for process in processes:
            os.kill(process.pid, signal.SIGTERM)
            os.kill(process.pid, signal.SIGINT)
        assert_same([*found, *run], expected)
        assert all(process.is_alive() for process in processes)
    assert not any(process.is_alive() for process in processes)


def test_signals_to_workers_that_start(dataset, monkeypatch):
    original = workers.init_worker

    def signalled(worker):
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        original(worker)

    monkeypatch.setattr(workers, "init_worker", signalled)
    assert_same(batches(dataset, workers=2, start_method="fork"), batches(dataset))


class Deadly(Dataset):
    """Its image 1 takes too much memory, as far as the system is concerned."""

    def __init__(self, dataset):
        self.__dict__.update(dataset.__dict__)

    def labels(self, index):
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().labels(index)


def test_a_worker_that_dies_is_reported(dataset):
    with Loader(Deadly(dataset), CROP, batch_size=4, workers=2, start_method="fork", **NORM) as loader:
        run = loader.run()
        with pytest.raises(DataError, match=r"a worker has ended .* shared memory .* fewer workers"):
            list(islice(run, 50))
        assert loader._workers._iterator is None


ABANDON = textwrap.dedent(
    """
    import os, pickle, signal, sys
    from hyperseg.data.pipeline.loader import Loader
    from hyperseg.data.pipeline.recipes import Augmentation

    if __name__ == "__main__":
        dataset = pickle.loads(bytes.fromhex(sys.argv[1]))
        loader = Loader(dataset, Augmentation((8, 8)), batch_size=2, mean=(0.5,) * 3, std=(0.5,) * 3, workers=2,
                        start_method=sys.argv[2])
        run = loader.run()
        batch = next(run)
        print(batch.images.sum().item(), *(process.pid for process in loader._workers._iterator._workers), flush=True)
        if sys.argv[3] == "raise":
            raise SystemExit(5)
        os.kill(os.getpid(), signal.SIGINT)
        next(run)
    """
)


@pytest.mark.parametrize(
    ("method", "end", "code"),
    [
        ("fork", "raise", 5),
        pytest.param("forkserver", "signal", -signal.SIGINT, marks=pytest.mark.slow),  # imports torch three times
    ],
)
def test_a_program_that_ends_leaves_no_workers(dataset, tmp_path, method, end, code):
    (tmp_path / "program.py").write_text(ABANDON)
    command = [sys.executable, str(tmp_path / "program.py"), pickle.dumps(dataset).hex(), method, end]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    total, *pids = done.stdout.split()
    with Loader(dataset, Augmentation((8, 8)), batch_size=2, mean=(0.5,) * 3, std=(0.5,) * 3) as loader:
        assert float(total) == next(loader.run()).images.sum().item()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_one_bad_file_does_not_matter_until_it_is_drawn(dataset, tmp_path):
    shutil.copy(tmp_path / "data" / "image00.png", tmp_path / "data" / "image01.png")  # another size than its labels
    sampler = Loader(dataset, CROP, batch_size=1, **NORM).sampler
    first = [sampler.sample(number).image for number in range(20)].index(1)
    assert len(batches(dataset, batch_size=1, seed=0, steps=first)) == first
    with pytest.raises(DataError, match=r"image01.png is 40x60 but .*image01_labels.png is 33x47"):
        batches(dataset, batch_size=1, seed=0, first=first, steps=1)

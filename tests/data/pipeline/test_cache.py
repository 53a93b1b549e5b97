"""Caches hold what the files hold, are resumed after any end, and are refused when they are out of date."""

import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hyperseg
from hyperseg._files import file_lock
from hyperseg.data.dataset import Dataset
from hyperseg.data.errors import DataError
from hyperseg.data.pipeline import cache_writing
from hyperseg.data.pipeline.cache import CachedDataset
from hyperseg.data.pipeline.cache_files import CacheWriter
from hyperseg.data.pipeline.cache_writing import CacheReport, write_cache
from tests.limits import file_size_limit

ROOT = Path(hyperseg.__file__).parent.parent
SIZES = [(20, 30), (33, 17), (20, 30), (1, 5), (64, 48)]


def assert_equal(cached, dataset):
    assert [item.name for item in cached.items] == [item.name for item in dataset.items]
    for index in range(len(dataset)):
        for found, expected in zip(cached.sample(index), dataset.sample(index), strict=True):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == np.uint8


def assert_incomplete(folder):
    assert not folder.exists()
    with pytest.raises(DataError, match="there is no cache in"):
        CachedDataset(folder)


def test_a_cache_holds_the_data_set(make_dataset, tmp_path):
    dataset = make_dataset(*SIZES)
    done = []
    report = write_cache(dataset, tmp_path / "cache", workers=3, progress=lambda *numbers: done.append(numbers))
    assert (report.images, report.kept) == (5, 0)
    assert report.bytes == sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
    assert done == [(number, 5) for number in range(6)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]
    cached = CachedDataset(tmp_path / "cache", dataset)
    assert_equal(cached, dataset)
    assert cached.manifest() == json.loads(json.dumps(dataset.manifest()))
    assert cached.label_set == dataset.label_set
    assert (cached.name, cached.split, cached.form) == (dataset.name, dataset.split, dataset.form)
    pixels = sum(height * width for height, width in SIZES)
    assert (tmp_path / "cache" / "images.bin").stat().st_size == 3 * pixels
    assert (tmp_path / "cache" / "labels.bin").stat().st_size == pixels
    assert write_cache(dataset, tmp_path / "cache") == replace(report, kept=5)


def test_arrays_are_views_of_the_files(make_dataset, tmp_path):
    write_cache(make_dataset(*SIZES), tmp_path / "cache")
    cached = CachedDataset(tmp_path / "cache")
    for array in (cached.image(1), cached.labels(1)):
        assert not array.flags.owndata
        assert not array.flags.writeable
    assert len(pickle.dumps(cached)) < 10_000
    cached.image(0)
    shutil.rmtree(tmp_path / "data")  # the originals need not be there
    copy = pickle.loads(pickle.dumps(cached))
    np.testing.assert_array_equal(copy.image(4), cached.image(4))
    assert str(copy.items[0].image).endswith("data/image00.png")


def test_a_subset_comes_from_the_cache(make_dataset, tmp_path):
    dataset = make_dataset(*SIZES)
    write_cache(dataset, tmp_path / "cache")
    cached = CachedDataset(tmp_path / "cache")
    shutil.move(tmp_path / "data", tmp_path / "away")
    subset = cached.subset([4, 1])
    shutil.move(tmp_path / "away", tmp_path / "data")
    assert_equal(subset, dataset.subset([1, 4]))
    assert subset.manifest() == json.loads(json.dumps(dataset.subset([1, 4]).manifest()))
    assert len(cached) == 5


def test_images_without_labels(make_dataset, tmp_path):
    dataset = make_dataset(*SIZES, labels=False)
    write_cache(dataset, tmp_path / "none")
    cached = CachedDataset(tmp_path / "none", dataset)
    np.testing.assert_array_equal(cached.image(4), dataset.image(4))
    assert not cached.has_labels
    with pytest.raises(DataError, match=r"image00.png has no labels"):
        cached.labels(0)
    labelled = make_dataset(*SIZES)
    items = [replace(item, label=None) if item.name == "image01" else item for item in labelled.items]
    some = Dataset("toy", "train", "mixed", labelled.label_set, items, labelled.decoder)
    write_cache(some, tmp_path / "some")
    cached = CachedDataset(tmp_path / "some", some)
    np.testing.assert_array_equal(cached.labels(4), labelled.labels(4))
    with pytest.raises(DataError, match=r"image01.png has no labels"):
        cached.labels(1)


def touched(dataset, tmp_path):
    os.utime(tmp_path / "data" / "image02.png", ns=(1, 1))
    return dataset


def relabelled(dataset, tmp_path):
    values = {**dataset.decoder.values, 3: 4}
    return Dataset("toy", "train", "", dataset.label_set, dataset.items, replace(dataset.decoder, values=values))


def renamed(dataset, tmp_path):
    table = replace(dataset.label_set, classes=("other", *dataset.label_set.classes[1:]))
    return Dataset("toy", "train", "", table, dataset.items, dataset.decoder)


CHANGES = {
    "file": (touched, "image02 is changed since it was written .size, time or checksum"),
    "label map": (relabelled, "the way that label files become classes has changed .the label map"),
    "classes": (renamed, "the classes of the data set have changed"),
    "removed": (lambda dataset, _: dataset.subset([0, 2, 4]), "2 images .image01, image03. are no longer in the data"),
    "split": (
        lambda d, _: Dataset("toy", "val", "", d.label_set, d.items, d.decoder),
        "it holds toy train, but toy val was asked for",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_cache_that_is_out_of_date_is_refused(kind, make_dataset, tmp_path):
    change, message = CHANGES[kind]
    dataset, folder = make_dataset(*SIZES), tmp_path / "cache"
    write_cache(dataset, folder)
    changed = change(dataset, tmp_path)
    for use in (CachedDataset, lambda folder, dataset: write_cache(dataset, folder)):
        with pytest.raises(DataError, match=f"cache is out of date: {message}.*hyperseg data cache --overwrite"):
            use(folder, changed)
    assert len(CachedDataset(folder)) == 5
    assert write_cache(changed, folder, overwrite=True).kept == 0
    assert_equal(CachedDataset(folder, changed), changed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]


def test_an_added_image_is_named(make_dataset, tmp_path):
    dataset = make_dataset(*SIZES)
    write_cache(dataset.subset([0, 1, 2, 3]), tmp_path / "cache")
    with pytest.raises(DataError, match="image04 is not in it"):
        CachedDataset(tmp_path / "cache", dataset)


DAMAGES = {
    "images.bin": (lambda path: os.truncate(path, 100), "is damaged: images.bin has 100 bytes instead of"),
    "labels.bin": (os.remove, "is incomplete: labels.bin cannot be read"),
    "index.npy": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "cannot be read"),
    "manifest.json": (lambda path: path.write_text('{"format": 1'), "cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_cache_is_refused(name, make_dataset, tmp_path):
    damage, message = DAMAGES[name]
    write_cache(make_dataset(*SIZES), tmp_path / "cache")
    damage(tmp_path / "cache" / name)
    with pytest.raises(DataError, match=f"cache .*{message}.*; write it again"):
        CachedDataset(tmp_path / "cache")


def test_another_format_is_refused(make_dataset, tmp_path):
    write_cache(make_dataset(*SIZES), tmp_path / "cache")
    path = tmp_path / "cache" / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9', 1))
    with pytest.raises(DataError, match="has format 9, but this version reads format 1"):
        CachedDataset(tmp_path / "cache")


def test_a_folder_with_other_files_is_not_replaced(make_dataset, tmp_path):
    dataset = make_dataset(*SIZES)
    with pytest.raises(DataError, match="data is not empty and no cache; give the name of a new folder"):
        write_cache(dataset, tmp_path / "data", overwrite=True)
    assert_equal(dataset, dataset)
    (tmp_path / "empty").mkdir()
    write_cache(dataset, tmp_path / "empty")
    assert_equal(CachedDataset(tmp_path / "empty"), dataset)


def test_images_that_cannot_be_read_are_named_and_the_others_kept(make_dataset, tmp_path):
    dataset, folder = make_dataset(*SIZES), tmp_path / "cache"
    good = (tmp_path / "data" / "image01.png").read_bytes()
    (tmp_path / "data" / "image01.png").write_bytes(good[:60])
    Image.fromarray(np.full((20, 30), 77, np.uint8)).save(tmp_path / "data" / "image02_labels.png")
    with pytest.raises(DataError, match="no cache yet, because 2 images of 5 cannot be used") as error:
        write_cache(dataset, folder)
    assert "image01.png" in str(error.value)
    assert re.search(r"image02_labels.png contains 77", str(error.value))
    assert "the other 3 are kept" in str(error.value)
    assert_incomplete(folder)
    (tmp_path / "data" / "image01.png").write_bytes(good)
    Image.fromarray(np.full((20, 30), 7, np.uint8)).save(tmp_path / "data" / "image02_labels.png")
    assert write_cache(dataset, folder).kept == 3
    assert_equal(CachedDataset(folder, dataset), dataset)


def test_a_size_mismatch_is_named(make_dataset, tmp_path):
    dataset = make_dataset(*SIZES)
    Image.fromarray(np.zeros((20, 31), np.uint8)).save(tmp_path / "data" / "image00_labels.png")
    with pytest.raises(DataError, match=r"image00.png is 20x30 but .*image00_labels.png is 20x31"):
        write_cache(dataset, tmp_path / "cache")
    assert_incomplete(tmp_path / "cache")


def interrupted(dataset, folder, images):
    """Write a cache up to some images, and stop as by Ctrl-C."""

    def stop(done, total):
        if done == images:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(dataset, folder, workers=1, progress=stop)
    assert_incomplete(folder)


def test_an_interrupted_run_is_resumed(make_dataset, tmp_path):
    dataset, folder = make_dataset(*SIZES), tmp_path / "cache"
    interrupted(dataset, folder, 3)
    assert write_cache(dataset, folder).kept == 3
    assert_equal(CachedDataset(folder, dataset), dataset)


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        ("file changed", 1),
        ("pixels lost", 1),
        ("journal cut off", 2),
        ("journal without meaning", 0),
        ("another label map", 0),
    ],
)
def test_only_what_is_intact_is_kept(damage, kept, make_dataset, tmp_path):
    dataset, folder = make_dataset(*SIZES), tmp_path / "cache"
    interrupted(dataset, folder, 3)
    partial = tmp_path / "cache.partial"
    journal = partial / "journal.jsonl"
    if damage == "file changed":
        os.utime(tmp_path / "data" / "image01.png", ns=(1, 1))
    elif damage == "pixels lost":
        with open(partial / "labels.bin", "rb+") as file:
            file.seek(20 * 30 + 5)
            file.write(b"\xff\xff")
    elif damage == "journal cut off":
        os.truncate(journal, journal.stat().st_size - 20)
    elif damage == "journal without meaning":
        journal.write_bytes(bytes(500))
    else:
        dataset = relabelled(dataset, tmp_path)
    assert write_cache(dataset, folder).kept == kept
    assert_equal(CachedDataset(folder, dataset), dataset)


def test_two_processes_do_not_write_one_cache(make_dataset, tmp_path):
    dataset = make_dataset(*SIZES)
    (tmp_path / "cache.partial").mkdir()
    with (
        file_lock(tmp_path / "cache.partial" / "lock", 0),
        pytest.raises(DataError, match=r"cache.partial cannot be locked: another process writes it"),
    ):
        write_cache(dataset, tmp_path / "cache")
    write_cache(dataset, tmp_path / "cache")


def test_too_little_space_is_noticed_before_writing(make_dataset, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache_writing.shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    with pytest.raises(DataError, match=r"the cache needs 0.\d+ MB more, but the disk of .*cache has 0.001 MB free"):
        write_cache(make_dataset(*SIZES), tmp_path / "cache")
    assert not (tmp_path / "cache.partial").exists()


@pytest.mark.parametrize("size", [0, 100])
def test_a_cache_of_nothing_is_removed(size, make_dataset, tmp_path):
    """The disk is full before the first image is complete: the message says of nothing that it is kept."""
    dataset = make_dataset(*SIZES)
    with file_size_limit(size), pytest.raises(DataError, match="make place or give another folder") as error:
        write_cache(dataset, tmp_path / "cache")
    assert "kept" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_full_disk_keeps_what_is_complete(make_dataset, tmp_path):
    dataset, folder = make_dataset(*SIZES), tmp_path / "cache"
    message = r"cache cannot be written \(File too large\); make place or give"
    with file_size_limit(5000), pytest.raises(DataError, match=message) as error:  # in the middle of the third image
        write_cache(dataset, folder)
    assert str(tmp_path / "cache.partial") in str(error.value)
    assert_incomplete(folder)
    assert write_cache(dataset, folder).kept == 2
    assert_equal(CachedDataset(folder, dataset), dataset)


@pytest.mark.parametrize("where", ["finish", "rename"])
def test_an_end_in_the_last_steps_loses_nothing(where, make_dataset, tmp_path, monkeypatch):
    dataset, folder = make_dataset(*SIZES), tmp_path / "cache"

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "finish":
            patch.setattr(CacheWriter, "finish", killed)
        else:
            patch.setattr(cache_writing.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_cache(dataset, folder)
    assert_incomplete(folder)
    assert write_cache(dataset, folder).kept == 5
    assert_equal(CachedDataset(folder, dataset), dataset)


WRITE = textwrap.dedent(
    """
    import pickle, sys
    from hyperseg.data.pipeline.cache_writing import write_cache
    dataset = pickle.loads(bytes.fromhex(sys.stdin.readline()))
    write_cache(dataset, sys.argv[1], workers=2, progress=lambda done, total: print(done, flush=True))
    """
)


def test_kill_at_any_moment(make_dataset, tmp_path):
    dataset, folder = make_dataset(*[(150, 200)] * 60), tmp_path / "cache"
    moments, kept = random.Random(1), 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        process.stdin.write(pickle.dumps(dataset).hex() + "\n")
        process.stdin.flush()
        first = int(process.stdout.readline())  # how many are kept
        assert first >= kept
        kept = first
        for _ in range(8):
            line = process.stdout.readline()
            kept = int(line or kept)
        time.sleep(moments.random() * 0.01)
        process.kill()
        process.communicate()
        if folder.exists():
            break
        assert_incomplete(folder)
    report = write_cache(dataset, folder)
    assert report == CacheReport(60, report.kept, report.bytes)
    assert kept <= report.kept
    assert kept >= 8
    assert_equal(CachedDataset(folder, dataset), dataset)

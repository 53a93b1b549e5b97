"""Two processes: the same samples, the same network on both, and the same run as one process with the whole batch."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.runs import last_state, lines, make_folder, state_at
from tests.training.worker import finish, start

EXACT = [
    "schedule.steps=3",
    "batch=4",
    "run.save_every=1",
    "data.val=null",
    "model.drop_path_rate=0",
    "model.head_dropout=0",
    "model.encoder_norm_momentum=0.1",
]


def run_processes(folder, world, **settings):
    codes, messages = finish(folder, start(folder, world, **settings))
    assert codes == [0] * world, messages
    return messages


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Photo 0 has 100 labelled pixels only, so that the processes' shares of the loss differ."""
    root = make_folder(tmp_path_factory.mktemp("data") / "boxes")
    mask = root / "masks" / "train" / "photo0.png"
    labels = np.array(Image.open(mask))
    labels[10:] = 255
    labels[:, 10:] = 255
    Image.fromarray(labels).save(mask)
    return root


@pytest.fixture(scope="module", params=["synchronised", "frozen"])
def pair(request, data, tmp_path_factory):
    """The folders of a run of two processes and of one, with the same global batch."""
    folder = tmp_path_factory.mktemp(request.param)
    frozen = ["model.freeze_norms=true"] if request.param == "frozen" else []
    for world in (1, 2):
        run = folder / str(world)
        settings = {"root": str(data), "run": str(run), "changes": EXACT + frozen, "double": True}
        assert "expected to have finished reduction" not in run_processes(folder, world, **settings)
    return folder / "1", folder / "2"


def test_each_sample_once_and_the_same_as_in_one_process(pair):
    one, two = pair
    whole = json.loads((one.parent / "1.0.json").read_text())
    parts = [json.loads((two.parent / f"2.{rank}.json").read_text()) for rank in (0, 1)]
    for step, names in enumerate(whole):
        assert names == [parts[i % 2][step][i // 2] for i in range(4)]


def test_step_by_step_equal_to_one_process(pair):
    one, two = pair
    assert [r["loss"] for r in lines(two)] == pytest.approx([r["loss"] for r in lines(one)], rel=1e-9)
    assert [r["labelled"] for r in lines(two)] == [r["labelled"] for r in lines(one)]
    for step in (1, 2, 3):
        expected, found = (state_at(run, step)["network"] for run in pair)
        assert found.keys() == expected.keys()  # without prefixes of DistributedDataParallel
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


def test_the_state_of_two_processes_continues_in_one(pair, data, tmp_path):
    """With the same samples, and equal to rounding."""
    one, two = pair
    run = tmp_path / "run"
    shutil.copytree(two, run, ignore=shutil.ignore_patterns("final"))
    (run / "states" / "step-00000003.pt").unlink()
    frozen = ["model.freeze_norms=true"] if "frozen" in str(two) else []
    settings = {"root": str(data), "run": str(run), "changes": EXACT + frozen, "double": True, "resume": True}
    run_processes(tmp_path, 1, **settings)
    expected, found = last_state(one)["network"], last_state(run)["network"]
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9)


def test_validation_of_three_images_by_two_processes(data, tmp_path):
    """Each image counts once; the parameters of both processes stay equal without synchronised norms too."""
    for kind in ("images", "masks"):
        (data / kind / "val" / "photo9.png").write_bytes((data / kind / "train" / "photo1.png").read_bytes())
    changes = ["schedule.steps=1", "speed.sync_norms=false", "batch=4", "validation.batch=2"]
    settings = {"root": str(data), "run": str(tmp_path / "run"), "changes": changes}
    run_processes(tmp_path, 2, **settings)
    document = json.loads((tmp_path / "run" / "evaluation-val.json").read_text())
    assert [image["name"] for image in document["images"]] == ["photo0", "photo1", "photo9"]
    assert document["protocols"]["standard"]["miou"] == pytest.approx(
        lines(tmp_path / "run", "validation.jsonl")[-1]["miou"]
    )


def test_one_process_that_fails_ends_the_other(data, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    settings = {"root": str(broken), "run": str(tmp_path / "run"), "changes": ["schedule.steps=1000", "batch=2"]}
    processes = start(tmp_path, 2, **settings)
    while not (tmp_path / "run" / "log.jsonl").exists():
        assert all(process.is_alive() for process in processes)
        time.sleep(0.1)
    (broken / "images" / "train" / "photo3.png").write_bytes(b"no image")
    codes, messages = finish(tmp_path, processes, timeout=60)
    assert codes == [1, 1]
    assert "photo3.png" in messages


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hyperseg-m-cityscapes", "hyperseg-s-cityscapes", "hyperseg-l-voc"])
def test_published_networks(name, data, tmp_path):
    """No parameter is without gradient, of which DistributedDataParallel would complain; figures of one process."""
    changes = [*EXACT, "schedule.steps=2", f"model.name={name}", "model.encoder=mobilenetv3_small_050"]
    settings = {"root": str(data), "changes": changes, "double": True}
    for world in (1, 2):
        run_processes(tmp_path, world, **settings, run=str(tmp_path / str(world)))
    one, two = (lines(tmp_path / str(world)) for world in (1, 2))
    for key in ("loss", "grad_norm"):
        assert [record[key] for record in two] == pytest.approx([record[key] for record in one], rel=1e-9)

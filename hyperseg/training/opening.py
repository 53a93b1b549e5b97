"""Opening of a run: data, network, optimiser and state are put together, for a new run or one that continues."""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from hyperseg._processes import Processes
from hyperseg.models.norms import synchronise_norms
from hyperseg.training.config import ConfigError, TrainingConfig
from hyperseg.training.data import Sets, Statistics, check_batch, check_same_data, describe, label_statistics, open_sets
from hyperseg.training.ema import AveragedNetwork
from hyperseg.training.guard import FiniteGuard, Guard
from hyperseg.training.log import Console, RunLog
from hyperseg.training.losses import Objective
from hyperseg.training.network import build_network, prepare, train_mode
from hyperseg.training.run import STATES, Run, check_folder, open_state, read_data, write_records
from hyperseg.training.state import check_same_run, set_random_state
from hyperseg.training.step import Stepper, build_optimizer, restore_optimizer
from hyperseg.verify import verify_kernels

_DTYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def open_run(
    config: TrainingConfig,
    folder: Path,
    device: torch.device,
    processes: Processes,
    guard: Guard,
    resume: bool,
    dtype: torch.dtype = torch.float32,
) -> Run:
    """Build everything, and load the newest state if the run continues. Arguments and errors as of ``train``."""
    console = Console(processes.first)
    state = processes.share(_state(folder, resume, console) if processes.first else None)
    if state is not None:
        check_same_run(state["config"], config.to_dict(), folder)
    check_batch(config, processes)
    sets = open_sets(config.data)
    before = read_data(folder) if processes.first and state is not None else None
    statistics = processes.share(_statistics(config, sets, before, console) if processes.first else None)
    weights = statistics.class_weights(config.loss.class_weights)

    network, messages = build_network(config.model, sets.train.label_set, config.run.seed)
    for message in messages if state is None else ():
        console.say(message)
    network.to(device, dtype)
    if state is not None:
        network.load_state_dict(state["network"])
    ema = None if config.run.ema is None else AveragedNetwork(network, config.run.ema)
    module = _module(network, config, device, processes, dtype)
    objective = Objective(
        config.loss, config.steps, weights if weights is None else weights.to(device), sets.train.label_set.ignore_index
    )
    optimizer = build_optimizer(network, config.optimizer)
    if processes.first and before is None:  # not earlier, so that a run that cannot begin leaves nothing in its folder
        write_records(folder, config, describe(sets, statistics))
    run = Run(
        config=config,
        folder=folder,
        device=device,
        processes=processes,
        guard=guard,
        console=console,
        sets=sets,
        network=network,
        stepper=Stepper(module, optimizer, objective, config.speed, config.optimizer.clip, processes, device),
        ema=ema,
        log=RunLog(folder, 0 if state is None else state["step"], processes.first),
        finite=FiniteGuard(scaled=config.speed.amp == "fp16"),
    )
    if state is None:
        run.save()  # so that there is a state from the first step on, and an unwritable disk is noticed now
    else:
        _restore(run, state)
    return run


def _state(folder: Path, resume: bool, console: Console) -> dict[str, Any] | None:
    check_folder(folder, resume)
    return open_state(folder, console) if resume else None


def _statistics(config: TrainingConfig, sets: Sets, before: dict[str, Any] | None, console: Console) -> Statistics:
    """Return what the labels contain: read, or as recorded ``before`` by the run that continues."""
    console.say(f"data: {sets.train}")
    if before is None:
        return label_statistics(sets.train, config.data.workers)
    for message in check_same_data(before, sets):
        console.say(message)
    return Statistics(**before["labels"])


def _module(
    network: Any, config: TrainingConfig, device: torch.device, processes: Processes, dtype: torch.dtype
) -> torch.nn.Module:
    """Return what computes a training step, with kernels verified on this device."""
    if processes.world > 1 and config.speed.sync_norms:
        synchronise_norms(network)
    train_mode(network, config.model.freeze_norms)
    _check_statistics(network, config, processes)
    amp = {_DTYPES[config.speed.amp]} if dtype == torch.float32 else set()
    verify_kernels(device, tuple({torch.float32, *amp}), training=True)
    module: torch.nn.Module = prepare(network, config.speed)
    if processes.world > 1:
        # Without synchronised norms each process keeps its own running statistics; those of process 0 are saved.
        renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        options["device_ids"] = [device] if device.type == "cuda" else None
        module = DistributedDataParallel(module, gradient_as_bucket_view=True, **options)
    return module


def _check_statistics(network: Any, config: TrainingConfig, processes: Processes) -> None:
    """Refuse crops and batches that leave a batch norm one value per channel, before the first step."""
    images = max(1, config.batch // processes.world // config.speed.accumulate)
    try:
        network._check_statistics(images, config.augmentation.crop)
    except ValueError as error:
        crop = list(config.augmentation.crop)
        raise ConfigError(f"batch {config.batch}, augmentation.crop {crop}: {error}") from None


def _restore(run: Run, state: dict[str, Any]) -> None:
    restore_optimizer(run.stepper.optimizer, state["optimizer"])
    run.stepper.scaler.load_state_dict(state["scaler"])
    if run.ema is not None:
        run.ema.load_state_dict(state["ema"])
    run.step, run.validated, run.best = state["step"], state["validated"], state["best"]
    run.unlabelled = state["unlabelled"]
    set_random_state(state["random"])
    run.console.say(f"continues from step {run.step} of {run.config.steps} ({STATES}/step-{run.step:08d}.pt)")

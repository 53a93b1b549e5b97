"""Training: from a configuration to a trained network. Read this file first; the others hold one part each.

A step is: the next batch, a seed, the learning rate, forward and backward passes, an update. Samples and noise are
functions of the seed and the step, so a run that continues from a state repeats what an uninterrupted run does. No step
waits for the GPU; numbers are read from it every ``run.log_every`` steps, and before a state is written.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from hyperseg._processes import local_device, processes
from hyperseg.data.errors import DataError
from hyperseg.evaluation import Evaluation
from hyperseg.runtime.device import pick_device
from hyperseg.training.config import ConfigError, TrainingConfig
from hyperseg.training.data import build_loader
from hyperseg.training.guard import Guard
from hyperseg.training.network import train_mode
from hyperseg.training.noise import seed_step
from hyperseg.training.opening import open_run
from hyperseg.training.run import Run, Stopped
from hyperseg.training.schedule import learning_rate


@dataclass(frozen=True)
class Outcome:
    """How a call of :func:`train` ended.

    Attributes:
        step: completed steps.
        finished: whether these are all; otherwise a signal came, and the state is saved.
        evaluations: of the final network, by split.
    """

    step: int
    finished: bool
    evaluations: dict[str, Evaluation]


def train(
    config: TrainingConfig,
    output: str | os.PathLike[str],
    device: str | torch.device = "auto",
    resume: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Outcome:
    """Train a network, or continue an interrupted run.

    Under torchrun each process calls this with the same arguments. SIGTERM and SIGINT save the state and return.

    Args:
        config: see :func:`load_recipe`.
        output: the folder of the run, see ``run.py``.
        device: "cpu", "cuda", "cuda:1", ..., or "auto": the GPU if there is one.
        resume: continue the run in ``output`` from its newest state, or begin if it has none.
        dtype: of the weights; float64 is for tests.

    Raises:
        ConfigError: something in the configuration cannot be done. DataError: the data cannot be used.
        NonFiniteError: training has diverged; the states before are kept.
        OSError: a file cannot be written.
    """
    picked = local_device(pick_device(device))
    with Guard() as guard, processes(picked) as group:
        set_determinism(config, picked)
        run = open_run(config, Path(output), picked, group, guard, resume, dtype)
        try:
            return _train(run, dtype)
        except Stopped:
            run.console.say(f"stopped at step {run.step} of {config.steps}; the state is saved, --resume continues")
            return Outcome(run.step, False, {})
        except DataError as error:
            raise DataError(
                f"{error}. The run ended after step {run.step}; when this is mended, --resume continues it "
                "(hyperseg data check lists all such files)"
            ) from None
        finally:
            run.log.close()


def _train(run: Run, dtype: torch.dtype) -> Outcome:
    config = run.config
    read_every = 1 if run.device.type == "cpu" else config.run.log_every  # on a CPU nothing has to be waited for
    if run.validated < run.step < config.steps and _due(run.step, config.validation.every):
        validate(run)  # a signal, or worse, came during this validation
    loader = build_loader(config, run.sets.train, run.network.config, run.processes, run.device, dtype)
    run.meter.restart()
    with loader:
        for batch in loader.run(run.step, config.steps - run.step):
            if run.processes.totals(run.guard.stop)[0]:
                run.save()
                raise Stopped
            run.meter.arrived(config.batch)
            train_mode(run.network, config.model.freeze_norms)
            seed_step(config.run.seed, run.step, run.processes.rank)
            rate = learning_rate(config, run.step)
            figures = run.stepper(batch.images, batch.labels, run.step, rate)
            run.step += 1
            if run.ema is not None:
                run.ema.update(run.network)
            run.note(figures, rate, batch.names)
            last, validates = run.step == config.steps, _due(run.step, config.validation.every)
            if _due(run.step, read_every):
                run.read()
            if last or _due(run.step, config.run.log_every):
                run.report()
            if last or validates or _due(run.step, config.run.save_every):
                run.save()
            if validates and not last:
                validate(run)
            run.meter.asked()
    if run.validated < run.step:
        validate(run)
    return Outcome(run.step, True, run.finish())


def validate(run: Run) -> None:
    """Validate, and note it in the state of this step, which has been written before."""
    if run.sets.val is not None:
        run.validate(run.config.validation.images)
        run.save()
    run.meter.restart()


def _due(step: int, every: int | None) -> bool:
    return every is not None and step > 0 and step % every == 0


def set_determinism(config: TrainingConfig, device: torch.device) -> None:
    """Set what a deterministic run needs; other runs take the fastest convolutions."""
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not config.run.deterministic
    if device.type == "cpu" and config.speed.amp == "fp16":
        raise ConfigError("speed.amp is fp16, which a CPU does not train in; give bf16 or none")

"""Train a network: a recipe, a data set, and a folder for everything that the run writes.

RUN/final is the trained network, for --weights of the other verbs and for hyperseg.load. RUN also has the
configuration, the log (log.jsonl: a line per step), pictures of validations, the scores of the final network, and
states to continue from. After an interruption the same command with --resume continues; it ends as an uninterrupted run
does.

A recipe is a name or a YAML file; --print-config prints it with all settings, and --set changes one. For several GPUs:
torchrun --nproc-per-node N -m hyperseg train ... The batch of the recipe is that of all processes together.

Exit codes: 0: done, or stopped by SIGTERM or Ctrl-C with the state saved. 1: failed; the states before are kept. 2: the
command line is not valid.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hyperseg._files import printable
from hyperseg.cli import _common
from hyperseg.cli._common import UsageError, UserError, user_errors
from hyperseg.cli._output import write_line

if TYPE_CHECKING:
    from hyperseg.training import TrainingConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add, text = parser.add_argument, _common.text
    add("--recipe", metavar="NAME", type=text, help="a recipe of the package (--list), or a YAML file")
    add("--list", action="store_true", help="list the recipes of the package")
    add("--root", metavar="DIR", type=text, help="the folder of the data set")
    add("--output", metavar="RUN", type=text, help="the folder of the run; one that has a run needs --resume")
    add("--resume", action="store_true", help="continue the run in --output; its recipe need not be given again")
    add("--steps", metavar="N", type=_common.count, help="length of the run in optimiser steps: schedule.steps")
    add("--save-every", metavar="N", type=_common.count, help="steps between states: run.save_every")
    change = "change a setting, such as optimizer.lr=1e-4 or augmentation.crop=[256,256]; may be repeated"
    add("--set", metavar="KEY=VALUE", type=text, action="append", default=[], help=change)
    add("--offline", action="store_true", help=f"{_common.OFFLINE}; of model.init and the encoder")
    add("--device", type=text, default="auto", help=f"{_common.DEVICE} (default: %(default)s)")
    add("--deterministic", action="store_true", help="the same numbers every time on a GPU too: run.deterministic")
    add("--print-config", action="store_true", help="print the whole configuration as a recipe, and end")
    plot = "draw the curves of a run to RUN/curves.png, and end (pip install 'hyperseg[plot]')"
    add("--plot", metavar="RUN", type=text, help=plot)


def run(args: argparse.Namespace) -> int:
    """Run the verb; return the exit code."""
    from hyperseg.training import ConfigError, recipe_names

    if args.list:
        print("\n".join(recipe_names()))
        return 0
    if args.plot is not None:
        return _plot(args.plot)
    with user_errors(ConfigError, to=UsageError):
        config = _config(args)
    if args.print_config:
        print(config.to_yaml(), end="")
        return 0
    if args.output is None:
        raise UsageError("there is no folder for the run; give --output RUN")
    return _train(args, config)


def _config(args: argparse.Namespace) -> "TrainingConfig":
    from hyperseg.training import load_recipe

    recipe = args.recipe
    if recipe is None:
        saved = Path(args.output or ".") / "config.yaml"
        if not args.resume or not saved.is_file():
            raise UsageError("there is no recipe; give --recipe NAME (--list names them), or --resume with --output")
        recipe = saved
    changes = list(args.set)
    changes += [f"data.root={json.dumps(args.root)}"] if args.root is not None else []
    changes += [f"schedule.steps={args.steps}"] if args.steps is not None else []
    changes += [f"run.save_every={args.save_every}"] if args.save_every is not None else []
    changes += ["run.deterministic=true"] if args.deterministic else []
    return load_recipe(recipe, changes)


def _train(args: argparse.Namespace, config: "TrainingConfig") -> int:
    from hyperseg._processes import ProcessLostError
    from hyperseg.data.errors import DataError
    from hyperseg.evaluation.results import text_table
    from hyperseg.ops import BackendError
    from hyperseg.runtime import EngineError
    from hyperseg.runtime.device import is_out_of_memory
    from hyperseg.training import ConfigError
    from hyperseg.training.guard import NonFiniteError
    from hyperseg.training.loop import train

    device = _common.pick_device(args.device)
    _common.check_outputs(args.output, (), ())
    try:
        outcome = train(config, args.output, device, args.resume)
    except NonFiniteError as error:
        raise UserError(f"{error}. The states before are kept in {printable(args.output)}/states") from None
    except (ConfigError, DataError, BackendError, EngineError, ValueError) as error:
        raise UserError(str(error)) from None
    except BrokenPipeError:
        raise
    except OSError as error:  # such as a full disk
        raise UserError(
            f"{printable(error.filename or args.output)} cannot be used ({_common.reason(error)}). States that are "
            "complete are kept; when this is mended, --resume continues"
        ) from None
    except ProcessLostError as error:
        raise UserError(str(error)) from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "the memory is not enough for a step; give --set speed.accumulate=2 (or more), speed.recompute=true, "
            "speed.amp=bf16, or a smaller augmentation.crop or batch"
        ) from None
    if os.environ.get("RANK", "0") != "0":
        return 0
    for evaluation in outcome.evaluations.values():
        write_line(text_table(evaluation), sys.stdout)
    if outcome.finished:
        write_line(f"hyperseg train: the network is in {printable(args.output)}/final", sys.stderr)
    return 0


def _plot(folder: str) -> int:
    from hyperseg._extras import MissingPackageError
    from hyperseg.training import ConfigError
    from hyperseg.training.pictures import plot

    with user_errors(ConfigError, MissingPackageError, prefix="--plot: "):
        path = plot(Path(folder))
    print(path)
    return 0

"""What `bench/gpu_report.py` runs: the commands that need a GPU, the most valuable first, each with a time limit."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass

MODEL = "hyperseg-m"


@dataclass(frozen=True)
class Stage:
    """A command of the repository.

    Attributes:
        what: description for the list of stages.
        seconds: time limit.
        command: with ``{python}``, ``{result}`` and ``{scratch}`` (a file that nobody reads) to be filled in.
        result: ending of the result file, if there is one.
        tool: program that must be installed.
        wrong: exit code that means a wrong output.
        beside: it runs at the same time as the stage before it in the list; neither of them measures time.
    """

    name: str
    what: str
    seconds: float
    command: str
    result: str = ""
    tool: str = ""
    wrong: int = 2
    beside: bool = False

    def missing(self) -> str:
        return f"{self.tool} is not installed" if self.tool and not shutil.which(self.tool) else ""


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def pytest_command() -> str:
    """Return pytest for the tests that need a GPU; one that hangs is ended after a minute where pytest can do that."""
    limit = " --timeout=60 --timeout-method=thread" if installed("pytest_timeout") else ""
    return f"{{python}} -m pytest -q -p no:cacheprovider{limit} -m 'gpu and not slow'"


def parallel(workers: int) -> str:
    """Return pytest on several processes; a worker that a kernel's fault ended is replaced (tests/conftest.py)."""
    workers = min(workers, os.cpu_count() or 1)
    return pytest_command() + (
        f" -n {workers} --dist worksteal --max-worker-restart 24" if installed("xdist") and workers > 1 else ""
    )


def parity(name: str, what: str, cases: str, seconds: float, workers: int = 14) -> Stage:
    return Stage(name, what, seconds, f"{parallel(workers)} tests/ops/test_parity.py -k '{cases}'", wrong=1)


def sanitizer(tool: str, cases: str, seconds: float, name: str = "", beside: bool = False) -> Stage:
    """Return a stage of compute-sanitizer.

    The tests poison fresh memory themselves, except under initcheck, which must see that nothing was written to it.
    Without PyTorch's cache every tensor is an allocation of its own, whose bounds memcheck knows.
    """
    return Stage(
        name or tool,
        f"{'a few' if name else 'small'} cases under compute-sanitizer's {tool}",
        seconds,
        f"env PYTORCH_NO_CUDA_MEMORY_CACHING=1 HYPERSEG_POISON={int(tool != 'initcheck')} "
        f"compute-sanitizer --tool {tool} --kernel-regex kns=hyperseg --error-exitcode 1 "
        f"{pytest_command()} tests/ops/test_parity.py -k '{cases}'",
        tool="compute-sanitizer",
        wrong=1,
        beside=beside,
    )


def peers(name: str, what: str, seconds: float, options: str) -> Stage:
    """Return a stage of HyperSeg-M beside the networks of others that are installed.

    No exit code of it means a wrong output of ours: it is 2 also for labels of another network that change when it is
    repeated, and stages before it have judged the engine.
    """
    command = f"{{python}} bench/fps.py --model {MODEL} --dtype float16 --peers {options} --json {{result}}"
    return Stage(name, what, seconds, command, "json", wrong=0)


def timeline(what: str, name: str = "timeline", setting: str = "", seconds: float = 30) -> Stage:
    return Stage(
        name,
        what,
        seconds,
        f"{f'env {setting} ' if setting else ''}{{python}} bench/timeline.py {MODEL} float16 {{result}}",
        "json",
    )


_HALF = "float16 and not bfloat16"  # "float16" alone also matches bfloat16
_FEW = f"cuda-cuda and {_HALF} and (nhwc or efficientnet or signal or tiles or m-cityscapes-4)"
_SMALL = "cuda-cuda and not (cityscapes or camvid or voc or bfloat16)"
_OPS = f"{{python}} bench/ops.py --model {MODEL} --dtype float16"

# The first five minutes show whether it runs, whether outputs are right, and what each kernel of a frame takes.
FIRST = (
    Stage("build", "the extension for this GPU", 300, "{python} setup.py build_ext"),
    timeline("every kernel of a frame of HyperSeg-M, float16, in its CUDA graph", seconds=60),
    parity("parity-cuda", "every operator of cuda against the reference", "cuda-cuda", 100, workers=12),
    sanitizer("memcheck", _FEW, 90, "memcheck-few", beside=True),
    timeline("the same with the fewest launches for the encoder's blocks", "timeline-fewest", "HYPERSEG_MBCONV=fewest"),
    timeline("the same with the most", "timeline-most", "HYPERSEG_MBCONV=most"),
    timeline("the same without programmatic launches", "timeline-plain", "HYPERSEG_DEPENDENT=0"),
    Stage(
        "fps-quick",
        "the five networks, float16, in CUDA graphs, a first look",
        70,
        f"{{python}} bench/fps.py --model {MODEL} all --dtype float16 --quick --mode cudagraph --scope frame labels "
        "--json {result}",
        "json",
    ),
    Stage(
        "ops-quick",
        "operators of HyperSeg-M in CUDA C++ and Triton, float16, a first look",
        60,
        f"{_OPS} --quick --op decoder_level generate_weights upsample_argmax stem --backend cuda triton "
        "--json {result}",
        "json",
    ),
    parity("parity-triton-float16", "every operator of triton, float16", f"triton-cuda and {_HALF}", 120),
)

STAGES = (
    *FIRST,
    Stage("engine", "engines of all networks and dtypes, in every mode", 60, f"{parallel(8)} tests/runtime", wrong=1),
    sanitizer("racecheck", _FEW, 90, "racecheck-few", beside=True),
    Stage(
        "train-ops",
        "operators of a training step of HyperSeg-M, 16 images, float16, in CUDA C++ and Triton",
        90,
        f"{_OPS} --batch 16 --backward --quick --op decoder generate_weights upsample_cross_entropy "
        "patch_inverted_residual_batch_norm --backend cuda triton --json {result}",
        "json",
    ),
    Stage(
        "train-step",
        "training steps of HyperSeg-M, 16 images, float32 and bfloat16: time and memory against plain PyTorch",
        300,
        f"{{python}} bench/train_step.py --model {MODEL} --backend auto --quick --peers --json {{result}}",
        "json",
    ),
    # Without torch.compile, whose minutes could use up the time of a stage before anything is timed.
    peers("peers-quick", "HyperSeg-M beside networks of others, float16", 150, "--quick --mode eager cudagraph"),
    Stage(
        "profile",
        "the kernels of a frame of HyperSeg-M under Nsight Compute",
        120,
        # Leave the clocks as they are: this script does not change the settings of a GPU. And leave the caches as the
        # kernel before left them: a frame's maps live there. Two frames have at most this many kernels.
        "ncu --clock-control none --cache-control none --csv --log-file {result} --kernel-name-base demangled "
        "--kernel-name regex:hyperseg --launch-count 160 "
        f"{{python}} bench/timeline.py {MODEL} float16 {{scratch}} once",
        "csv",
        "ncu",
        0,
    ),
    Stage(
        "decoders",
        "whole decoders and levels of all networks, float16",
        240,
        "{python} bench/ops.py --model all --dtype float16 --op decoder decoder_level --json {result}",
        "json",
    ),
    parity("parity-triton", "every operator of triton in the other dtypes", "triton-cuda and not (" + _HALF + ")", 360),
    Stage(
        "tests",
        "all other tests that need a GPU",
        480,
        f"{parallel(8)} tests --ignore tests/ops/test_parity.py --ignore tests/runtime",
        wrong=1,
    ),
    sanitizer("memcheck", _SMALL, 480),
    sanitizer("racecheck", _SMALL, 480),
    Stage(
        "modes",
        "HyperSeg-M in every mode and backend, float16",
        480,
        f"{{python}} bench/fps.py --model {MODEL} --dtype float16 --mode eager compile cudagraph "
        "--backend reference triton cuda --json {result}",
        "json",
    ),
    peers("peers", "the same, with torch.compile too, in full", 900, "--mode eager compile cudagraph"),
    Stage(
        "overhead",
        "host overhead per call",
        120,
        "{python} bench/overhead.py --dtype float16 --backward --json {result}",
        "json",
    ),
    Stage(
        "tune",
        "launch options of the Triton kernels",
        600,
        f"{{python}} bench/tune.py --model {MODEL} all --dtype float16",
    ),
    *(
        Stage(
            f"ops-{dtype}",
            f"every operator of all networks, {dtype}, forward and backward",
            720,
            f"{{python}} bench/ops.py --model {MODEL} all --dtype {dtype} --backward --json {{result}}",
            "json",
        )
        for dtype in ("float16", "float32", "bfloat16")
    ),
    Stage(
        "fps",
        "the five networks, float16, in full",
        720,
        f"{{python}} bench/fps.py --model {MODEL} all --dtype float16 --mode eager cudagraph --json {{result}}",
        "json",
    ),
    Stage(
        "train-steps",
        "training steps of the five recipes, eager and compiled, beside other networks, and which batch fits",
        1200,
        f"{{python}} bench/train_step.py --model {MODEL} all --compile none encoder model --fits --json {{result}}",
        "json",
    ),
    sanitizer("synccheck", _SMALL, 480),
    sanitizer("initcheck", _SMALL, 480),
)


def turns(stages: list[Stage]) -> list[list[Stage]]:
    """Return the stages in turns: those of a turn run at the same time."""
    found: list[list[Stage]] = []
    for stage in stages:
        if stage.beside and found:
            found[-1].append(stage)
        else:
            found.append([stage])
    return found

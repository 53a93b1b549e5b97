"""The engine: a network built for one frame size, with its buffers, its mode, and the copies around it."""

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator

import torch
from torch import Tensor, nn

from hyperseg import ops
from hyperseg.models.hyperseg import HyperSeg
from hyperseg.models.state import check_finite
from hyperseg.models.synthetic import probe_frames
from hyperseg.models.wrappers import unwrap
from hyperseg.ops.backends.native import BFLOAT16_CAPABILITIES, constants_ready, cpu_capability
from hyperseg.runtime.arguments import check_frames, check_has_values, check_images, check_settings, name_of
from hyperseg.runtime.device import MissingDeviceError, keep_freed_memory, pick_device
from hyperseg.runtime.errors import EngineError
from hyperseg.runtime.explanation import Explanation, Rates, explain
from hyperseg.runtime.fallback import FirstGuarded, falling_back
from hyperseg.runtime.folding import FUSED, FoldedNetwork
from hyperseg.runtime.graphs import Captured
from hyperseg.runtime.ordinary import ordinary, without_subclass
from hyperseg.runtime.parity import TOLERANCES, Parity, compare_logits, reference_logits
from hyperseg.runtime.pipelined import pipelined
from hyperseg.runtime.precision import exact_float32, in_own_dtype
from hyperseg.runtime.shared import Shared
from hyperseg.verify import verify_kernels

logger = logging.getLogger("hyperseg.runtime")

_NOT_FASTER = (
    "%s saves no time here: on CPUs only bfloat16 does, by AVX512-BF16 or AMX, and the C++ operators use %s. "
    "float32 is as fast."
)


def build_engine(
    model: nn.Module,
    size: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    batch: int = 1,
    mode: str = "eager",
    check: bool = True,
) -> "Engine":
    """Build an engine that runs a network on frames of one size.

    Batch norms are folded (in float64), context that no generator reads is dropped, memory is channels-last. Then the
    engine's output is compared with the module's in float32 with the reference operators. Where a kernel raises an
    error in the first frame, the next backend runs its operator from then on, and the reason is logged. On the CPU the
    process keeps freed memory from then on (:func:`hyperseg.runtime.device.keep_freed_memory`; HYPERSEG_KEEP_MEMORY=0
    prevents it).

    Args:
        model: any HyperSeg network, also inside DataParallel, DistributedDataParallel, AveragedModel or torch.compile;
            it is copied, not changed.
        size: (H, W) of the frames, any up to 2^24.
        dtype: float32, float16 or bfloat16. On the CPU bfloat16 is fast where there is AVX512-BF16 or AMX, and
            float16 is not.
        device: see :func:`hyperseg.runtime.device.pick_device`; default: the current CUDA device, else the CPU.
        batch: frames per call.
        mode: ``"eager"``; ``"compile"``: through torch.compile (minutes to build); ``"cudagraph"``: captured once and
            replayed, CUDA only.
        check: False skips the comparison. For further sizes of the same network there is :meth:`Engine.at`.

    Raises:
        EngineError: these settings do not go together, or the engine's output does not match the module; or a kernel
            failed such that the GPU runs nothing in this process any more.
        TypeError: there is not exactly one network in ``model``.
        ValueError: an argument is out of range or of a wrong type; the network has no values yet, or weights that are
            not finite, which the message names.
    """
    size, batch = check_settings(size, dtype, batch, mode)
    model = unwrap(model)
    check_has_values(model)
    check_finite(model)
    try:
        device = pick_device(device)
    except MissingDeviceError as error:
        raise EngineError(str(error)) from None
    if mode == "cudagraph" and device.type != "cuda":
        raise EngineError(f"mode 'cudagraph' needs a CUDA device, not {device}; use 'eager' or 'compile'.")
    if device.type == "cpu" and dtype != torch.float32:
        found = cpu_capability()
        if dtype != torch.bfloat16 or found not in BFLOAT16_CAPABILITIES:
            logger.warning(_NOT_FASTER, name_of(dtype), found)
    verify_kernels(device, (dtype,))
    engine = Engine(model, size, dtype, device, batch, mode)
    if check:
        engine.parity = engine.check(model)
        logger.info("engine for %s at %dx%d: %s", model.config.name, *engine.size, engine.parity)
    return engine


class Engine:
    """Network for one frame size, built by :func:`build_engine`.

    Results are ordinary tensors: they may be written to, viewed, and read by autograd. No setting around a call changes
    them: autocast, PyTorch's default dtype and device, float32 precision, grad modes. While a float32 engine runs,
    float32 operations of other threads are exact too. Several threads may call one engine; on a GPU, calls in mode
    ``"cudagraph"`` and calls with frames in host memory then wait for each other.

    :meth:`at` returns an engine for another size or batch, :meth:`stream` one that runs at the same time, both with the
    same weights in memory. :meth:`pipeline` labels a stream of frames and overlaps their copies. :meth:`explain` lists
    the calls of a frame.

    It runs in four nested scopes, each in the engine's mode: :meth:`network` (images to logits), :meth:`labels` (images
    to labels), ``frame`` (frames to labels, by calling the engine) and ``host`` (the same from and to host memory,
    :meth:`from_host`). :meth:`logits` maps frames to logits at their own size.

    Attributes:
        config, size, dtype, device, batch, mode: what it was built for.
        padded: (H, W) of the padded frames, see :meth:`HyperSegConfig.padded_size`.
        parity: how its logits compare to the module's; None if that was skipped.
    """

    def __init__(
        self, model: HyperSeg, size: tuple[int, int], dtype: torch.dtype, device: torch.device, batch: int, mode: str
    ) -> None:
        self.config, self.dtype, self.device, self.mode = model.config, dtype, device, mode
        if device.type == "cpu":
            keep_freed_memory()
        self.folded = fold_for(model, device, dtype, fused_operators(device, dtype))
        self.folded.keep_arguments()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # constants_ready promises that nothing still writes the weights
        self._build(size, batch, Shared())

    def _build(
        self, size: tuple[int, int], batch: int, shared: Shared, stream: torch.cuda.Stream | None = None
    ) -> None:
        """Prepare the stages for one size. Everything else of the engine is as it should be."""
        self.size, self.batch, self.padded = size, batch, self.config.padded_size(size)
        self.parity: Parity | None = None
        self._shared, self._stream = shared, stream
        # The buffers of captured graphs belong to one call at a time.
        self._exclusive = shared.lock if self.mode == "cudagraph" else contextlib.nullcontext()
        folded = self.folded  # the stages do not refer to the engine, so its memory is freed with it at once
        self._run = {
            "network": self._prepare(folded.from_images),
            "labels": self._prepare(lambda images: folded.from_images(images, labels=True)),
            "frame": self._prepare(folded.from_frames),
            "logits": self._prepare(lambda frames: folded.from_frames(frames, labels=False)),
        }

    def at(self, size: tuple[int, int], batch: int | None = None, check: bool = True) -> "Engine":
        """Return an engine for frames of another size or batch, with the same weights, dtype, device and mode.

        The weights are in memory once. On a GPU the engines also share pinned memory and the memory of their CUDA
        graphs. So calls that use those, see :class:`Engine`, wait for each other.

        Args:
            size: (H, W) of the frames.
            batch: frames per call; default: as here.
            check: compare its logits on a probe frame with those of the reference operators in float32 on the same
                folded weights, which were compared with the module when the first engine was built.

        Raises:
            EngineError: its output does not match.
            ValueError: an argument is out of range or of a wrong type.
        """
        size, batch = check_settings(size, self.dtype, self.batch if batch is None else batch, self.mode)
        return self._sibling(size, batch, self._shared, self._stream, check)

    def stream(self, check: bool = False) -> "Engine":
        """Return an engine for the same size and weights that runs at the same time as this one.

        On a GPU it has a CUDA stream, a lock, pinned memory and CUDA graphs of its own: one per thread, so that threads
        do not wait for each other. With frames in host memory only its own stream is used. Frames on the device are
        read after what the caller's current stream was given before, and that stream waits for the output: threads
        that share a stream, such as the default one, wait for each other there. On the CPU only the lock is new, and
        calls share PyTorch's threads.

        Args:
            check: as of :meth:`at`; the stages are the same, so by default nothing is compared.
        """
        own = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        return self._sibling(self.size, self.batch, Shared(), own, check)

    def _sibling(
        self, size: tuple[int, int], batch: int, shared: Shared, stream: torch.cuda.Stream | None, check: bool
    ) -> "Engine":
        engine = copy.copy(self)
        engine._build(size, batch, shared, stream)
        if check:
            engine.parity = engine.check()
            logger.info("engine for %s at %dx%d: %s", self.config.name, *size, engine.parity)
        return engine

    def pipeline(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Label a stream of single frames; overlap copies and computation on a GPU.

        While a batch is computed, the next one is copied to the device and the labels of the one before it are copied
        back, by three CUDA streams and two buffers each way. So two batches are read ahead. On the CPU a batch is
        labelled when it is read. The last batch may be short.

        Several pipelines may be open, also of one engine. If the iterable raises an error, the labels of the frames
        before it come first. Ending the loop early is safe; close the generator to free its buffers at once.

        Args:
            frames: yields uint8 RGB frames ``[H, W, 3]`` in host memory, which may be overwritten once the next one is
                asked for (with a batch of 1 on the CPU: once its labels were yielded).

        Yields:
            The labels of each frame in order: uint8 ``[H, W]`` in host memory, not pinned.

        Raises:
            TypeError, ValueError: a frame is not a tensor, or has another dtype, shape or device.
        """
        return pipelined(self, frames)

    def explain(self, frames: Tensor | None = None, repeats: int = 9, rates: Rates | None = None) -> Explanation:
        """Time every operator call of a frame, and say which backend ran it and why not another.

        The calls are timed where they happen, inside whole frames: on the CPU with a clock around each, on a GPU with
        events around each. In mode ``"cudagraph"`` this is done outside of the graph. Results do not change.

        Args:
            frames: uint8 ``[N, H, W, 3]`` on device or host; default: a probe frame.
            repeats: frames that are timed; times are medians over them.
            rates: of this device, for the shortest time that each call could take; default: the nominal ones of a known
                GPU, else none. :func:`hyperseg.runtime.measure_rates` measures them.

        Raises:
            TypeError, ValueError: as of a call; ``repeats`` is less than 1.
        """
        frames = probe_frames(self.batch, self.size) if frames is None else frames
        self._check_frames(frames)
        return explain(self, frames.to(self.device), repeats, rates)

    def network(self, images: Tensor) -> Tensor:
        """Map normalised images ``[N, 3, H, W]`` on the device to logits at the network's output stride.

        In mode ``"cudagraph"`` the next call, of any thread, overwrites the output.
        """
        check_images(images, (self.batch, 3, *self.size), self.dtype, self.device)
        return self._call("network", images, owned=False)

    def labels(self, images: Tensor) -> Tensor:
        """Map normalised images ``[N, 3, H, W]`` on the device to labels, uint8 ``[N, H, W]``."""
        check_images(images, (self.batch, 3, *self.size), self.dtype, self.device)
        return self._call("labels", images)

    def __call__(self, frames: Tensor) -> Tensor:
        """Map uint8 RGB frames ``[N, H, W, 3]`` on device or host to labels, uint8 ``[N, H, W]``, on the same side."""
        self._check_frames(frames)
        return self._call("frame", frames) if frames.device == self.device else self._from_host(frames)

    def from_host(self, frames: Tensor) -> Tensor:
        """Map frames in host memory to labels in host memory; return when the labels are complete.

        Frames in pinned memory are copied faster. With a CUDA device the labels are in pinned memory of their own.
        """
        self._check_frames(frames)
        return self._call("frame", frames) if self.device.type == "cpu" else self._from_host(frames)

    def _from_host(self, frames: Tensor) -> Tensor:
        own = contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with self._shared.lock, own:
            labels = self._call("frame", self._pin(frames), owned=False)
            # PyTorch caches pinned blocks, so this allocates in the first calls only.
            host = torch.empty(labels.shape, dtype=labels.dtype, device="cpu", pin_memory=True)
            host.copy_(labels, non_blocking=True)
            torch.cuda.current_stream(self.device).synchronize()
        return host

    def logits(self, frames: Tensor) -> Tensor:
        """Map uint8 frames ``[N, H, W, 3]`` to float32 logits ``[N, num_classes, H, W]`` on the engine's device."""
        self._check_frames(frames)
        with self._exclusive:
            return self._on_own_stream(lambda: self._logits(frames))

    def _logits(self, frames: Tensor) -> Tensor:
        strided = self._call("logits", frames.to(self.device), owned=False)
        logits = self._full_size(strided.float())
        return logits.clone() if logits.data_ptr() == strided.data_ptr() else logits

    def _full_size(self, strided: Tensor) -> Tensor:
        """Resize logits of the padded frame, which are at the network's output stride, and crop them: in one step."""
        size, padded = self.size, self.padded
        if strided.shape[2:] == padded:
            return strided if size == padded else strided[:, :, : size[0], : size[1]].contiguous()
        scales = [full / part for full, part in zip(padded, strided.shape[2:], strict=True)]
        return torch.ops.aten.upsample_bilinear2d.default(strided, size, False, *scales)

    def normalise(self, frames: Tensor) -> Tensor:
        """Normalise frames ``[N, H, W, 3]`` on the device for :meth:`network` and :meth:`labels`."""
        self._check_frames(frames)
        return self.folded.normalise(frames)

    def check(self, model: HyperSeg | None = None) -> Parity:
        """Compare the engine's logits on a probe frame with the module's in float32 with the reference operators.

        Args:
            model: the module; default: the engine's own folded weights, which tests the kernels and not the folding.

        Raises:
            EngineError: they differ by more than rounding in the engine's dtype explains.
        """
        frames = probe_frames(self.batch, self.size).to(self.device)
        images = self.normalise(frames).float()
        logits, expected = self.logits(frames), self._reference(model, images)
        parity = compare_logits(logits, expected)
        name = f"({self.mode}, {name_of(self.dtype)}, {self.device})"
        if expected.amax() - expected.amin() < 1e-30:
            warnings.warn(
                "The network's logits are the same everywhere, so comparing the engine with it proves nothing. Load "
                "trained weights, or random ones of a usual scale by hyperseg.synthesize_weights.",
                stacklevel=3,
            )
        elif not parity.relative_rms <= (allowed := self._tolerance(model, images, expected, parity)):
            hint = " Its weights may not fit float16; try bfloat16 or float32." if self.dtype == torch.float16 else ""
            raise EngineError(
                f"Engine output {name} does not match the module: relative RMS error {parity.relative_rms:.2g}, "
                f"tolerance {allowed:.2g}.{hint}"
            )
        elif not self._labels_match(frames, logits):
            raise EngineError(
                f"Engine labels {name} do not match the engine's own logits. Please report this; "
                "HYPERSEG_BACKEND=reference avoids the kernels."
            )
        return parity

    def _reference(self, model: HyperSeg | None, images: Tensor) -> Tensor:
        """Return logits of float32 or float64 images by the reference operators in their dtype."""
        if model is not None:
            return reference_logits(model, images, self.device)
        exact = copy.deepcopy(self.folded).to(images.dtype)
        with exact_float32(self.device), ops.use_backend("reference"), torch.no_grad():
            return self._full_size(exact(images.contiguous()))

    def _tolerance(self, model: HyperSeg | None, images: Tensor, expected: Tensor, parity: Parity) -> float:
        """Return the allowed relative RMS error: more than usual if float32 itself does not determine the logits."""
        usual = TOLERANCES[self.dtype].relative_rms
        if parity.relative_rms <= usual or self.dtype != torch.float32:
            return usual
        exact = self._reference(model, images.double())
        # Of images that differ in the last bit: with one of them, rounding may happen to do little.
        random = torch.Generator().manual_seed(0)
        changed = [
            images * (1 + (torch.rand(images.shape, generator=random) - 0.5).to(images) * 2**-23) for _ in range(3)
        ]
        rounded = [expected, *(self._reference(model, each) for each in changed)]
        return max(usual, *(4 * compare_logits(each, exact).relative_rms for each in rounded))

    def _labels_match(self, frames: Tensor, logits: Tensor) -> bool:
        """Return whether each label's logit is close to the largest, without building another stage."""
        with torch.no_grad(), falling_back(self.device):
            labels = in_own_dtype(self.folded.from_frames, self.device, self.dtype)(frames)
            missing = logits.amax(1) - logits.gather(1, labels[:, None].long())[:, 0]
            return bool(missing.max() <= TOLERANCES[self.dtype].relative_rms * logits.abs().max())

    def cuda_graph(self) -> torch.cuda.CUDAGraph | None:
        """Return the CUDA graph of the frame scope, for profilers; None before the first call or in another mode."""
        frame = self._run["frame"]
        return frame.graph if isinstance(frame, Captured) else None

    def _prepare(self, stage: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Put a stage into the engine's mode."""
        if self.mode == "compile":
            stage = torch.compile(stage, fullgraph=True, dynamic=False)
        else:
            stage = _with_constants_ready(stage)
        stage = FirstGuarded(in_own_dtype(stage, self.device, self.dtype), self.device)
        return Captured(stage, self.device, self._shared.graphs) if self.mode == "cudagraph" else stage

    def _call(self, stage: str, x: Tensor, owned: bool = True) -> Tensor:
        """Run a stage on a tensor on the device or in pinned memory.

        Args:
            owned: return memory that no later call overwrites.
        """
        x = without_subclass(x)
        if self.device.type == "cpu":
            with torch.inference_mode():
                output = self._run[stage](x)
            return ordinary(output)
        # Graphs are captured and replayed on the current device's stream.
        with self._exclusive, torch.cuda.device(self.device):
            return self._on_own_stream(lambda: self._compute(stage, x, owned))

    def _compute(self, stage: str, x: Tensor, owned: bool) -> Tensor:
        """Run a stage on the GPU's current stream."""
        with torch.inference_mode():
            if self.mode != "cudagraph":  # a captured stage copies into its own input
                x = x.to(self.device, non_blocking=True)
            output = self._run[stage](x)
        return output.clone() if owned and self.mode == "cudagraph" else ordinary(output)

    def _on_own_stream(self, run: Callable[[], Tensor]) -> Tensor:
        """Run something on the engine's own stream if it has one, in the order of the caller's current stream."""
        own = self._stream
        if own is None or (caller := torch.cuda.current_stream(self.device)) == own:
            return run()
        own.wait_stream(caller)
        with torch.cuda.stream(own):
            output = run()
        caller.wait_stream(own)
        output.record_stream(caller)  # its memory is that of the own stream
        return output

    def _pin(self, x: Tensor) -> Tensor:
        """Return frames in pinned memory: themselves, or a copy that the next call overwrites."""
        if x.device.type != "cpu" or (x.is_pinned() and x.is_contiguous()):
            return x
        return self._shared.pinned(x.shape).copy_(x)

    def _check_frames(self, frames: Tensor) -> None:
        check_frames(frames, self.size, self.batch, self.device)


def _with_constants_ready(stage: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Let kernels read weights early: the engine's copy never changes. Not for compiled code, which may copy them."""

    def run(x: Tensor) -> Tensor:
        with constants_ready():
            return stage(x)

    return run


def fold_for(model: HyperSeg, device: torch.device, dtype: torch.dtype, fused: Collection[str]) -> FoldedNetwork:
    """Return a network folded, on its device and in the order of memory that its operators want there.

    Args:
        fused: operators that run parts of it, of :func:`fused_operators`.
    """
    folded = FoldedNetwork(model, fused, generate_ahead=device.type != "cpu")
    folded = folded.to(device, dtype).to(memory_format=torch.channels_last)
    if device.type == "cpu":
        folded.order_for_cpu()
    return folded


def fused_operators(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Return the operators that run parts of a network here, as of :class:`FoldedNetwork`."""
    found = [operator for operator in FUSED if ops.has_kernel(operator, device.type)]
    if device.type == "cpu" and dtype == torch.bfloat16:
        # There PyTorch's convolutions are faster, by instructions for bfloat16 that this C++ operator does not use.
        found = [operator for operator in found if operator != "pointwise_conv"]
    if ops.chosen("mbconv_chain", device.type)[0] not in ("cpp", "cuda"):  # elsewhere it is a loop in Python
        found = [operator for operator in found if operator != "mbconv_chain"]
    return found if {"mbconv", "stem"} <= set(found) else []

"""Engines on the fake CUDA device with asynchronous streams: prints what they return, and what a missing wait would do.

python -m tests.runtime.streams
"""

import json
import sys

from tests.fakes import cuda

cuda.install()
import torch  # noqa: E402

import hyperseg  # noqa: E402
from hyperseg.models import probe_frames  # noqa: E402
from hyperseg.runtime import Engine  # noqa: E402

SIZE = (33, 40)
FRAMES = probe_frames(5, SIZE, seed=3)


class BrokenError(Exception):
    pass


def equal(labels, expected) -> bool:
    return torch.equal(torch.stack(list(labels)), expected)


def reused():
    """Yield every frame in the same memory, which the next one overwrites."""
    memory = torch.empty_like(FRAMES[0])
    for frame in FRAMES:
        yield memory.copy_(frame)


def broken(count):
    yield from FRAMES[:count]
    raise BrokenError


def labelled(engine: Engine) -> torch.Tensor:
    """Return the labels of all frames, batch by batch, with streams that are not asynchronous."""
    padded = torch.cat([FRAMES, torch.zeros(-len(FRAMES) % engine.batch, *SIZE, 3, dtype=torch.uint8)])
    return torch.cat([engine(batch) for batch in padded.split(engine.batch)])[: len(FRAMES)]


def pipelines(engine: Engine, expected: torch.Tensor) -> dict[str, object]:
    found: dict[str, object] = {"in order": equal(engine.pipeline(iter(FRAMES)), expected)}
    cuda.COPIES.clear()
    found["overwritten frames"] = equal(engine.pipeline(reused()), expected)
    found["copies"] = sorted({c for c in cuda.COPIES if c != "pageable to pinned"})
    found["own stream"] = equal(engine.stream().pipeline(FRAMES), expected)
    found["none"] = list(engine.pipeline([]))
    labels = []
    try:
        labels.extend(engine.pipeline(broken(4)))
    except BrokenError:
        found["error"] = equal(labels, expected[:4])
    read: list[None] = []
    pipeline = engine.pipeline(frame for frame in FRAMES if read.append(None) is None)
    found["first"] = torch.equal(next(pipeline), expected[0])
    found["read ahead"] = len(read)
    pipeline.close()
    found["on its way after closing"] = sum(len(s.queue) for s in cuda.STREAMS if s is not cuda.Stream.current)
    both = zip(engine.pipeline(FRAMES), engine.pipeline(FRAMES), strict=True)
    one, other = zip(*both, strict=True)
    found["two at once"] = equal(one, expected) and equal(other, expected)
    return found


def streams(engine: Engine, expected: torch.Tensor) -> dict[str, object]:
    host = FRAMES[: engine.batch]
    device, expected = host.cuda(), expected[: engine.batch]
    found: dict[str, object] = {
        "device": torch.equal(engine.stream()(device).cpu(), expected),
        "host": torch.equal(engine.stream().from_host(host), expected),
        "logits": torch.equal(engine.stream().logits(device).cpu(), engine.logits(device).cpu()),
    }
    larger = engine.at((40, 64), batch=2)
    found["larger"] = list(larger.from_host(probe_frames(2, (40, 64))).shape)
    found["after another size"] = torch.equal(engine.from_host(host), expected)
    found["one memory"] = larger.folded is engine.folded and larger._shared is engine._shared
    if engine.mode == "cudagraph":
        own = engine.stream()
        own(device)
        pools = [e.cuda_graph().pool for e in (engine, larger, own)]
        found["pools"] = [pools.index(pool) for pool in pools]
        del engine, larger, own
    return found


def main() -> None:
    torch.set_num_threads(1)
    model = hyperseg.synthesize_weights(hyperseg.create_model("hyperseg-s-camvid")).eval()
    found: dict[str, object] = {}
    for mode, batch in (("eager", 3), ("cudagraph", 1)):
        engine = hyperseg.build_engine(model, SIZE, device="cuda", batch=batch, mode=mode, check=False)
        expected = labelled(engine)
        explained = engine.explain(repeats=1)
        with cuda.lazy():
            found[mode] = {"pipeline": pipelines(engine, expected), "stream": streams(engine, expected)}
        found[mode]["explanation"] = [explained.calls[0].operator, explained.rates.source, explained.notes]
    for cls, name in ((cuda.Stream, "wait_event"), (cuda.Event, "synchronize")):
        kept = getattr(cls, name)
        setattr(cls, name, lambda *args: None)
        with cuda.lazy():
            found[f"without {name}"] = equal(engine.pipeline(reused()), expected)
        setattr(cls, name, kept)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

"""The scope of the official FPS script, so that the published figures have something comparable beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bench import report
from bench.harness import Case, latency_slice, quiet, schedule, summarise
from bench.subject import Subject, settings

if TYPE_CHECKING:
    from bench.session import Session

GPU = "GTX 1080 Ti"

NOTES = (
    "Scope: a normalised float32 image in host memory is copied to the device and goes through the network up to "
    "scores at full size, its own last upsampling included: as the official script, no argmax, no labels, no loading.",
    "The official script deletes the norms while it times, so that it times another network; module keeps them, the "
    "engine has them folded. Its default batch is 16, and the figure it saves counts batches, not images; here FPS are "
    "images per second, from the sum of all steps.",
    "Two passes over the same inputs, the first one is the warm-up; the device is synchronised around each step. "
    "Rows take turns step by step.",
    f"Published FPS are the authors', on a {GPU}. The GPUs differ, so the two numbers are not a speed-up.",
)


def rows(session: Session) -> list[tuple[str, str]]:
    """The module as it is, as a baseline, then what was asked for."""
    return [("module", "reference"), *((mode, backend) for backend in session.backends for mode in session.modes)]


def make(subject: Subject, mode: str, backend: str) -> Case:
    config = subject.model.config
    hosts = subject.float_hosts(config.mean, config.std)
    if mode == "module":
        network, dtype = subject.model, torch.float32
    else:
        engine, dtype = subject.build(mode, backend), subject.dtype

        def network(images: torch.Tensor) -> torch.Tensor:
            return subject.full_size(engine.network(images))

    def step(i: int) -> torch.Tensor:
        return network(hosts[i % len(hosts)].to(subject.device).to(dtype))

    return Case((mode, backend, "paper"), step, images=subject.batch, context=lambda: settings(backend))


def one_pass(cases: list[Case], steps: int, device: torch.device) -> list[list[float]]:
    """Milliseconds of every step of every case, the cases taking turns."""
    samples: list[list[float]] = [[] for _ in cases]
    with quiet():
        for index in schedule(len(cases), steps):
            with cases[index].context():
                samples[index] += latency_slice(cases[index], device, 1, len(samples[index]))
    return samples


def steps_in_a_pass(session: Session) -> int:
    if session.args.iterations is not None:
        return session.args.iterations
    return (50 if session.args.quick else 500) if session.cuda else (3 if session.args.quick else 10)


def run(session: Session, subject: Subject, entry: dict[str, Any]) -> None:
    """Compare, pass twice, compare again, print beside the published figure."""
    from hyperseg.models.variants import PUBLISHED

    ready, checks = [], []
    for mode, backend in rows(session):
        try:
            case = make(subject, mode, backend)
            result = subject.check(case)
        except Exception as error:
            session.refuse(entry, session.cannot(f"Mode {mode}, backend {backend}", error))
            continue
        if result.passed:
            ready.append(case)
            checks.append(result)
        else:
            session.refuse(entry, result.sentence(case.name, "before timing"), wrong=True)
    steps = steps_in_a_pass(session)
    one_pass(ready, steps, subject.device)
    session.watch.read_if_quick("during")
    timed = one_pass(ready, steps, subject.device)
    session.watch.read_if_quick("during")

    published = PUBLISHED[subject.name].fps if subject.name in PUBLISHED else None
    if tuple(subject.size) != tuple(subject.model.config.resolution):
        published = None
    entry["published"] = {"fps": published, "gpu": GPU}
    shown = []
    for case, before, samples in zip(ready, checks, timed, strict=True):
        after = subject.check(case)
        if not after.passed:
            session.refuse(entry, after.sentence(case.name, "after timing"), wrong=True)
            continue
        mode, backend, scope = case.name
        latency = summarise(samples)
        fps = 1e3 * len(samples) * case.images / sum(samples)
        row = {
            "mode": mode,
            "backend": backend,
            "scope": scope,
            "parity_before": before.to_dict(),
            "parity_after": after.to_dict(),
            "latency_ms": latency,
            "fps": fps,
            "raw": {"latency_ms": samples},
        }
        entry["rows"].append(row)
        cells = [mode, backend, report.number(latency, "p50"), report.fixed(latency["mean"]), str(len(samples))]
        shown.append([*cells, report.fixed(fps), str(published or "none"), report.parity_cell(row)])
    if shown:
        head = ["mode", "backend", "p50 ms", "mean ms", "n", "FPS", f"published FPS, {GPU}", "labels agree, error"]
        print("\n" + report.table(head, shown, left=2), flush=True)

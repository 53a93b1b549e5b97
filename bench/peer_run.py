"""One run of bench/peers.py: build everybody, compare, time in alternation, compare again, then ask for memory."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import torch

import hyperseg
from bench import memory, onnx_form, parity, report, runtimes
from bench.harness import Budget, Case, summarise
from bench.parity import Parity
from bench.peer import BUILDERS, FRAME, MODEL, Peer
from bench.run import Run, ratio, ratio_text, say, throughput
from bench.subject import Refused, Subject, load

ROTATE = 2
BASE = "eager"
OURS = "engine"


def pick_peers(text: str | None) -> list[str]:
    """Those that can be had here; of those named each must."""
    names = list(BUILDERS) if text is None else [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in BUILDERS]:
        raise Refused(f"There is no peer {unknown[0]!r}; there are {', '.join(BUILDERS)}.")
    picked = []
    for name in dict.fromkeys(names):
        if (sentence := runtimes.missing(name)) is None:
            picked.append(name)
        elif text is not None:
            raise Refused(sentence)
        else:
            say(sentence)
    if not picked:
        raise Refused("No peer was named.")
    return picked


class PeerRun(Run):
    """The rows of bench/peers.py."""

    kind = "hyperseg-peers"

    def __init__(
        self, args: argparse.Namespace, device: torch.device, models: list[str], peers: list[str], budget: Budget
    ) -> None:
        super().__init__(args, device, models, budget)
        self.peers = peers
        self.threads = torch.get_num_threads()
        self.inputs(ROTATE)
        self.document |= {"threads": self.threads, "pause_seconds": budget.pause}

    def introduce(self) -> None:
        say(f"settings  float32, frame to labels, {self.threads} threads each, seed {self.args.seed}")
        if "compile" in self.peers:
            say("Peer compile: torch.compile takes minutes before the first frame.")

    def model(self, name: str, entry: dict[str, Any]) -> None:
        network, weights = load(name, None, self.args.seed)
        size = self.args.resolution or tuple(network.config.resolution)
        subject = Subject(name, network, size, 1, torch.float32, self.device, ROTATE, self.args.seed)
        entry |= {"resolution": list(size), "dtype": "float32", "weights": weights}
        say(f"\n{name}: {size[0]}x{size[1]} (height x width), weights {weights['source']}")
        self.progress(f"preparing {name}: reference")
        subject.prepare()
        entry["reference"] = subject.reference_scale
        with tempfile.TemporaryDirectory() as path:
            folder = Path(path)
            self.fill(folder, subject)
            self.measure(folder, subject, entry)
        if entry["rows"]:
            say("\n" + peers_table(entry["rows"]))
            for sentence in sentences(entry["rows"]):
                say(sentence)

    def fill(self, folder: Path, subject: Subject) -> None:
        """What everybody builds from."""
        hyperseg.save(subject.model, folder / MODEL)
        numpy.save(folder / FRAME, subject.frames[0].numpy())
        if set(self.peers) & set(runtimes.RUNTIMES):
            self.progress(f"preparing {subject.name}: ONNX export")
            onnx_form.write(onnx_form.export(subject.model, subject.frames[0]), folder)

    def measure(self, folder: Path, subject: Subject, entry: dict[str, Any]) -> None:
        ready: list[tuple[Peer, Case, dict[str, Any]]] = []
        for name in self.peers:
            self.progress(f"preparing {subject.name}: {name}")
            try:
                peer = BUILDERS[name](folder, self.threads)
                case = peer_case(peer, subject)
                labels = check_labels(case, subject)
                logits = check_logits(peer, subject)
            except Exception as error:
                self.refuse(entry, self.cannot(f"Peer {name}", error))
                continue
            if failed := next((p for p in (labels, logits) if p is not None and not p.passed), None):
                self.refuse(entry, failed.refusal(f"peer {name}", "before timing"), wrong=True)
                continue
            checks = {"parity_before": labels.to_dict(), "parity_logits": logits.to_dict() if logits else None}
            ready.append((peer, case, checks))
        for (peer, case, checks), samples in zip(ready, self.time([case for _, case, _ in ready]), strict=True):
            after = check_labels(case, subject)
            if not after.passed:
                self.refuse(entry, after.refusal(f"peer {peer.name}", "after timing"), wrong=True)
                continue
            row = {"peer": peer.name, "about": peer.about, **checks, "parity_after": after.to_dict()}
            row |= {"latency_ms": summarise(samples.latency_ms), "throughput": throughput(samples)}
            row |= {"warmup": {"steps": samples.warmup_steps, "stable": samples.warmup_stable}, "raw": asdict(samples)}
            entry["rows"].append({**row, "memory": None})
        ready.clear()
        compare(entry["rows"])
        if not self.args.no_memory:
            for row in entry["rows"]:
                self.progress(f"memory of {subject.name}: {row['peer']}")
                try:
                    row["memory"] = memory.in_a_process(row["peer"], folder, self.threads)
                except (RuntimeError, OSError) as error:
                    self.refuse(entry, f"Of {row['peer']}, {error}")

    def clean(self) -> None:
        super().clean()
        if "compile" in self.peers:
            torch.compiler.reset()

    def close(self, rows: list[dict[str, Any]]) -> None:
        say("\n" + report.bullets(NOTES))


def peer_case(peer: Peer, subject: Subject) -> Case:
    frames = [frame.numpy() for frame in subject.frames]
    return Case((peer.name,), lambda i: peer.labels(frames[i % len(frames)]), context=peer.context)


def check_labels(case: Case, subject: Subject) -> Parity:
    """Of the very callable that is timed, on every frame."""
    found = []
    for i, reference in enumerate(subject.references):
        with case.context():
            labels = torch.as_tensor(case.step(i)).clone()
        found.append(parity.compare_labels(labels, reference, subject.tolerance))
    return parity.worst(found)


def check_logits(peer: Peer, subject: Subject) -> Parity | None:
    """Of the scores behind the labels, on the first frame."""
    if peer.logits is None:
        return None
    with peer.context():
        logits = torch.as_tensor(peer.logits(subject.frames[0].numpy()))
    return parity.compare_logits(logits, subject.references[0], subject.tolerance)


def compare(rows: list[dict[str, Any]]) -> None:
    """Everybody over eager, and ours over everybody, round by round."""
    fps = {row["peer"]: row["throughput"]["fps_by_window"] for row in rows}
    for row in rows:
        mine = fps[row["peer"]]
        row["over_eager"] = ratio(mine, fps[BASE]) if BASE in fps else None
        row["engine_over"] = ratio(fps[OURS], mine) if OURS in fps else None


def peers_table(rows: list[dict[str, Any]]) -> str:
    head = ["peer", "what", "p50 ms", "p90", "n", "FPS", "spread", "times eager", "engine is times it"]
    head += ["MiB idle", "build", "run", "labels agree", "logits' error"]
    body = []
    for row in rows:
        latency, through, used = row["latency_ms"], row["throughput"], row["memory"]
        cells = [row["peer"], row["about"]]
        cells += [report.number(latency, p) for p in ("p50", "p90")] + [str(latency["n"])]
        cells += [report.fixed(through["fps"]), f"{through['spread_percent']:.1f} %"]
        cells += ["-" if row[key] is None else ratio_text(row[key]) for key in ("over_eager", "engine_over")]
        cells += ["-"] * 3 if used is None else [f"{used[key]:.0f}" for key in ("idle_mib", "build_mib", "run_mib")]
        logits = row["parity_logits"]
        cells += [report.parity_cell(row), "-" if logits is None else f"{logits['relative']:.0e}"]
        body.append(cells)
    return report.table(head, body, left=2)


def sentences(rows: list[dict[str, Any]]) -> list[str]:
    """What the columns do not say at once."""
    out = []
    peers = {row["peer"]: row for row in rows}
    runs = [peers[name] for name in runtimes.RUNTIMES if name in peers]
    if OURS in peers and runs:
        fastest = max(runs, key=lambda row: row["throughput"]["fps"])
        text = ratio_text(fastest["engine_over"])
        out.append(f"The engine is {text} times the fastest ONNX runtime measured, {fastest['peer']}.")
    if restless := [row["peer"] for row in rows if not row["warmup"]["stable"]]:
        out.append(f"Not yet steady when the warm-up ended: {', '.join(restless)}.")
    return out


NOTES = (
    "Scope: a uint8 RGB frame in host memory to its uint8 labels at full size; normalisation, upsampling and argmax "
    "are inside for everybody. float32, as many threads for everybody; ONNX Runtime and OpenVINO get the same file.",
    "p50, p90: milliseconds of a single frame. FPS: frames one after the other, median of the rounds; spread is "
    "(max - min) / median. Peers take turns (A B C A B C ...) in one process, after a rest and an untimed frame.",
    "times eager, engine is times it: ratios of FPS within a round, median of the rounds, with the least and the most.",
    "The engine has malloc keep the memory that the process frees (HYPERSEG_KEEP_MEMORY=0 prevents it); all in "
    "this process gain by it; eager PyTorch in a process of its own is slower than here.",
    "MiB: the largest resident size of a process of its own: idle after its imports (torch or the runtime), once built "
    "(our engine's check of itself against the module included), and while running frames.",
    "labels agree: worst over all frames and over the checks before and after timing, against the plain float32 module "
    "(reference operators); logits' error: the largest, relative to the largest score. compile answers labels only.",
)

"""An engine on the CPU does not request its memory from the system for every frame."""

import os
import platform
import subprocess
import sys

import pytest

from hyperseg.runtime.device import keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")

SCRIPT = """
import resource, torch, hyperseg

model = hyperseg.synthesize_weights(hyperseg.create_model("hyperseg-s-camvid", num_classes=3)).eval()
engine = hyperseg.build_engine(model, (512, 1024), device="cpu", check=False)
frames = torch.zeros(1, 512, 1024, 3, dtype=torch.uint8)
counts = []
for _ in range(13):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    engine(frames)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(counts[4:])[4])
"""


def test_frames_cause_no_page_faults():
    """The median of nine, because the heap grows now and then. Otherwise each frame causes about ten thousand."""
    environment = os.environ | {"HYPERSEG_KEEP_MEMORY": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


def test_the_setting_of_malloc_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("HYPERSEG_KEEP_MEMORY", "0")
    assert not keep_freed_memory.__wrapped__()

"""The shim finds cooperative launches whose blocks would wait for one another forever."""

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
PROGRAM = r"""
#define HYPERSEG_SHIM
#include <cstdio>
#include <stdexcept>
#include <string>
#include "cuda/device/grid_barrier.cuh"

using namespace hyperseg;

unsigned counter, sums[3][5];
bool missed, twice, ordinary, early;

void kernel() {
  cuda::GridBarrier barrier(&counter);
  for (unsigned step = 0; step < 3; ++step) {
    for (unsigned i = 0; step && threadIdx.x == 0 && i < gridDim.x; ++i) sums[step][blockIdx.x] += sums[step - 1][i];
    if (!step && threadIdx.x == 0) sums[0][blockIdx.x] = blockIdx.x;
    if (missed && step == 1 && blockIdx.x == 2) continue;
    barrier.arrive();
    if (early && step == 2 && blockIdx.x == 1) return;
    barrier.wait();
  }
  if (twice && blockIdx.x == 1) barrier.arrive(), barrier.wait();
}

int main(int, char** arguments) {
  const std::string fault = arguments[1];
  missed = fault == "missed", twice = fault == "twice", ordinary = fault == "ordinary", early = fault == "early";
  try {
    (ordinary ? shim::run : shim::run_together)("test", {5, 1, 1}, 64, 256, kernel);
  } catch (const std::runtime_error& error) {
    std::puts(error.what());
    return 0;
  }
  std::printf("%u %u", sums[1][4], sums[2][0]);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "main.cpp").write_text(PROGRAM)
    command = [compiler, "-std=c++20", f"-I{CSRC}", "main.cpp", str(CSRC / "shim/fibers.cpp"), "-o", "program"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "program"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("none", "10 50"),
        ("early", "10 50"),  # a block that has arrived at the last barrier need not wait there
        ("missed", "deadlock: it waits for other blocks"),
        ("twice", "in block (1, 0, 0) deadlock: it waits for other blocks"),
        ("ordinary", "waits for another block, which an ordinary launch does not run at the same time"),
    ],
)
def test_barriers_of_the_grid(program, fault, message):
    assert message in subprocess.run([program, fault], capture_output=True, text=True, check=True).stdout

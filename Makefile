PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
FPS_ARGS ?=
PYTEST_ARGS ?= -q
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.hyperseg-installed
EXTENSION := build/.extension-built
SHIM := build/shim/hyperseg/_C.abi3.so
CSRC := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
OLDEST_TRITON := build/triton-3.6
# One process per core with one thread each; tests of threads set their own number.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
PARALLEL := OMP_NUM_THREADS=1 $(PYTEST)

.DEFAULT_GOAL := help
.PHONY: help install ext shim wheels smoke test test-all test-cpus test-avx2 test-oldest gate gate-oldest gate-cuda sm90 budgets sanitize sanitize-gpu gpu-test lint format fps clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: PYTHON=$(PYTHON) VENV=$(VENV) JOBS=$(JOBS) PYTEST_ARGS='$(PYTEST_ARGS)' FPS_ARGS='$(FPS_ARGS)'"

install: $(INSTALLED) ## create VENV and install the package into it, editable, with pinned versions

ext: $(EXTENSION) ## build the C++ and CUDA extension in place

shim: $(SHIM) ## compile the CUDA kernels for the CPU, for their tests

test: $(EXTENSION) $(SHIM) ## set up and run the tests, but for those marked slow
	$(PARALLEL) tests/ -m "not slow" $(PYTEST_ARGS)

test-all: $(EXTENSION) $(SHIM) ## all tests
	$(PARALLEL) tests/ $(PYTEST_ARGS)

test-cpus: $(EXTENSION) ## the tests that depend on vectors, at each instruction set of this machine
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.cpus -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

test-avx2: $(EXTENSION) $(SHIM) ## the tests as on a CPU with AVX2 only, on one that has AVX-512
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.cpuid $(PYTEST) tests/ -m "not slow" $(PYTEST_ARGS)

test-oldest: ## the tests with the oldest supported torch and Triton, in a clone of what is committed
	rm -rf build/oldest && git clone -q . build/oldest
	sed -e 's/^torch==.*/torch==2.11.0/; s/^torchvision==.*/torchvision==0.26.0/; s/^triton==.*/triton==3.6.0/' \
	-e 's/^setuptools==.*/setuptools==81.0.0/; s/^numpy==.*/numpy==2.3.5/' constraints.txt > build/oldest/oldest.txt
	$(MAKE) -C build/oldest test CONSTRAINTS=oldest.txt PYTHON=$(PYTHON)

gate: $(INSTALLED) ## compile every Triton kernel for sm_80, sm_90 and sm_100 and judge the code; needs no GPU
	$(BIN)/python -m pytest tests/kernels -n auto $(PYTEST_ARGS)

gate-oldest: $(OLDEST_TRITON) ## the same with the oldest supported Triton
	PYTHONPATH=$(OLDEST_TRITON) $(BIN)/python -m pytest tests/kernels -n auto $(PYTEST_ARGS)

gate-cuda: $(INSTALLED) ## compile the CUDA kernels for sm_80, sm_90 and sm_100 and judge the code; needs nvcc, but no GPU
	TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0" $(BIN)/python setup.py build_ext
	$(BIN)/python -m pytest tests/kernels/test_cuda_gate.py $(PYTEST_ARGS)

budgets: $(OLDEST_TRITON) ## record what the kernels need of a GPU now, for both versions of Triton
	$(BIN)/python -m tools.gate.budgets --write
	PYTHONPATH=$(OLDEST_TRITON) $(BIN)/python -m tools.gate.budgets --write

sanitize: $(INSTALLED) ## run the tests of the C++ operators under AddressSanitizer and UBSan
	HYPERSEG_SANITIZE=address,undefined HYPERSEG_CUDA=0 $(BIN)/python setup.py build_ext --build-lib build/sanitize
	HYPERSEG_EXTENSION=build/sanitize/hyperseg/_C.abi3.so ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so) $$(g++ -print-file-name=libstdc++.so)" \
	$(BIN)/python -m pytest tests/ops tests/training/test_fused.py -p no:cacheprovider \
	-k "(cpp or mbconv_bfloat16 or test_fused) and not compile" $(PYTEST_ARGS)

sm90: $(INSTALLED) ## build the extension for H100 and H200 alone, into build/sm90, to carry it to such a machine
	TORCH_CUDA_ARCH_LIST=9.0 $(BIN)/python setup.py build_ext --build-lib build/sm90-tree
	mkdir -p build/sm90 && cp build/sm90-tree/hyperseg/_C.abi3.so build/sm90/

gpu-test: $(EXTENSION) ## only the tests that need a GPU
	$(BIN)/python -m pytest tests/ -m gpu $(PYTEST_ARGS)

sanitize-gpu: $(EXTENSION) ## run the CUDA kernels under compute-sanitizer; needs a GPU and a CUDA toolkit
	$(BIN)/python bench/gpu_report.py --output build --stage memcheck racecheck synccheck initcheck

lint: $(INSTALLED) ## check style, types and banned words
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CSRC)
	$(BIN)/python -m tools.words

format: $(INSTALLED) ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

fps: $(EXTENSION) ## set up and measure frames per second on whatever this machine has
	$(BIN)/python bench/fps.py --model hyperseg-s $(FPS_ARGS)

wheels: $(INSTALLED) ## build the sdist and the wheels into dist: plain Python, CPU, and CUDA if there is nvcc
	$(BIN)/python -m tools.wheels

smoke: wheels ## install and use them: the wheels and, with and without a compiler, the sdist; downloads torch
	$(BIN)/python -m tools.smoke dist/hyperseg-*-cp310-abi3-*.whl --environment build/smoke
	$(BIN)/python -m tools.smoke dist/hyperseg-*-py3-none-any.whl --expect reference --environment build/smoke
	$(BIN)/python -m tools.smoke dist/hyperseg-*.tar.gz --environment build/smoke
	$(BIN)/python -m tools.smoke dist/hyperseg-*.tar.gz --no-compiler --expect reference --environment build/smoke
	$(BIN)/python -m tools.smoke dist/hyperseg-*-cp310-abi3-*.whl --torch torch==2.11.0 torchvision==0.26.0 triton==3.6.0

clean: ## remove what was built; VENV stays
	rm -rf build dist *.egg-info hyperseg/_C*.so compile_commands.json .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Without build isolation the extension is built against the torch that is installed, not against another copy of it;
# its build requirements have to be there first.
$(INSTALLED): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python -m pip install -c $(CONSTRAINTS) torch setuptools cmake ninja
	$(BIN)/python -m pip install -c $(CONSTRAINTS) --no-build-isolation -e '.[dev]'
	@touch $@

$(OLDEST_TRITON): | $(INSTALLED)
	$(BIN)/python -m pip install --target $@ --no-deps triton==3.6.0

# No stamp without an extension: a machine that lacks a compiler today may have one tomorrow.
$(SHIM): $(INSTALLED) setup.py CMakeLists.txt $(CSRC)
	HYPERSEG_SHIM=1 $(BIN)/python setup.py build_ext --build-lib build/shim
	@if test -f $@; then touch $@; fi

$(EXTENSION): $(INSTALLED) setup.py CMakeLists.txt csrc/runtime/CMakeLists.txt $(CSRC)
	$(BIN)/python setup.py build_ext
	@mkdir -p $(@D) && if test -f hyperseg/_C.abi3.so; then touch $@; fi

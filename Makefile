# Two commands for a fresh machine: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
MODELS := src/hasten/models

.PHONY: help demo study test lint docs bench native sanitize emulate setup-core setup-dev

# The native engine stands in src, where the editable installation finds it; without a C++ compiler there is none, and hasten runs all the same.
CMAKE := $(or $(shell command -v cmake),$(BIN)/cmake)
COMPILER := $(firstword $(foreach c,$(CXX) c++ g++ clang++,$(shell command -v $(c))))
ENGINE := build/native/$(if $(COMPILER),.built,.without)
CONFIGURE := $(CMAKE) --log-level=WARNING -S native -DHASTEN_WERROR=ON -DHASTEN_TESTS=ON

help:  ## This list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("hasten needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

# torch comes first and pinned: a bare `torch` may bring several GB of CUDA.
$(VENV)/.core: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e '.[openvino]'
	@touch $@

$(VENV)/.learn: $(VENV)/.core
	$(PIP) torch
	$(PIP) -e '.[torch]'
	@touch $@

$(VENV)/.dev: $(VENV)/.learn
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) -e '.[bench]'
	@touch $@

build/native/.built: $(VENV)/.core $(shell find native -type f)
	@command -v cmake >/dev/null || $(PIP) cmake
	$(PIP) nanobind
	$(CONFIGURE) -B build/native -DHASTEN_PYTHON=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DCMAKE_CXX_COMPILER=$(COMPILER)
	MAKEFLAGS=--no-print-directory $(CMAKE) --build build/native -j $(shell nproc)
	$(CMAKE) --install build/native --component python --prefix src
	@touch $@

build/native/.without: $(VENV)/.core
	@echo "no C++ compiler: hasten goes without its native engine (apt-get install g++ adds one)"
	@mkdir -p $(@D) && touch $@

setup-core: $(VENV)/.core $(ENGINE)  ## Install hasten with onnxruntime, OpenVINO and its native engine into .venv.
setup-dev: $(VENV)/.dev $(ENGINE)  ## The same with torch, Keras and the test tools.

demo: $(VENV)/.learn $(ENGINE)  ## The main job on real handwritten digits, training included: optimise the CNN that travels with the package.
	@$(BIN)/hasten optimize $(MODELS)/digits_cnn.onnx --data $(MODELS)/digits.npz --train-data $(MODELS)/digits.npz --max-drop 0.01 \
	  --time-limit 4m -o out/demo --force; code=$$?; \
	if [ $$code = 0 ]; then echo "demo: exit code 0: something faster was found within the budget"; \
	elif [ $$code = 3 ]; then echo "demo: exit code 3: nothing better on this machine, the original is kept"; \
	else exit $$code; fi

study: $(VENV)/.dev $(ENGINE)  ## The case study in full: MNIST from HASTEN_DATA, an hour or so; goes on where it was interrupted.
	$(BIN)/python tools/mnist_npz.py build/mnist.npz
	$(BIN)/python examples/handwritten_digits/study.py build/study --mnist build/mnist.npz

test: $(VENV)/.dev $(ENGINE)  ## All tests; TESTS="-n 2" parts them among two processes, for example.
	$(BIN)/python -m pytest $(TESTS)

native: build/native/.built  ## The native engine, for C and for Python, and its tests in C and C++.
	cd build/native && ctest --output-on-failure

# The part of the threads under the thread sanitizer, the others under those for addresses and undefined behaviour.
SANITIZE := $(CONFIGURE) -DHASTEN_PYTHON=OFF -DHASTEN_PLANS=$(abspath build/sanitize/plans) -DCMAKE_CXX_COMPILER=$(COMPILER)

sanitize: $(VENV)/.core  ## The tests of kernels and engine under sanitizers, at every level of instructions.
	@command -v cmake >/dev/null || $(PIP) cmake
	$(BIN)/python -m tests.native.plans build/sanitize/plans
	$(SANITIZE) -B build/sanitize -DHASTEN_SANITIZE=address,undefined
	MAKEFLAGS=--no-print-directory $(CMAKE) --build build/sanitize -j $(shell nproc)
	cd build/sanitize && ctest -j $(shell nproc) --output-on-failure
	$(SANITIZE) -B build/sanitize-threads -DHASTEN_SANITIZE=thread
	MAKEFLAGS=--no-print-directory $(CMAKE) --build build/sanitize-threads -j $(shell nproc) --target engine_test
	cd build/sanitize-threads && ctest -R engine_threads --output-on-failure

# An emulator's word for what this machine is too new for. (Forks are left out: qemu's own breaks with its plugins.)
OLDER := Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid Nehalem,-x2apic

emulate: build/native/.built  ## The tests of kernels and engine on processors without AVX-512, and without AVX2: needs qemu-user.
	$(BIN)/python -m tests.native.plans build/native/plans
	for cpu in $(OLDER); do \
	  qemu-x86_64 -cpu $$cpu build/native/kernels_test 200 || exit 1; \
	  for part in arguments crafted; do qemu-x86_64 -cpu $$cpu build/native/engine_test $$part build/native/plans || exit 1; done; \
	done

lint: $(VENV)/.dev  ## Style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev  ## The documentation, into build/docs.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(VENV)/.bench $(ENGINE)  ## Side by side with the peers; see benchmarks/README.md.
	$(BIN)/python benchmarks/peers.py

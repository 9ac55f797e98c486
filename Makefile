# Two commands for a fresh machine: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
MODELS := src/hasten/models

.PHONY: help demo study test lint docs bench setup-core setup-dev

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

setup-core: $(VENV)/.core  ## Install hasten with onnxruntime and OpenVINO into .venv.
setup-dev: $(VENV)/.dev  ## The same with torch, Keras and the test tools.

demo: $(VENV)/.learn  ## The main job on real handwritten digits, training included: optimise the CNN that travels with the package.
	@$(BIN)/hasten optimize $(MODELS)/digits_cnn.onnx --data $(MODELS)/digits.npz --train-data $(MODELS)/digits.npz --max-drop 0.01 \
	  --time-limit 4m -o out/demo --force; code=$$?; \
	if [ $$code = 0 ]; then echo "demo: exit code 0: something faster was found within the budget"; \
	elif [ $$code = 3 ]; then echo "demo: exit code 3: nothing better on this machine, the original is kept"; \
	else exit $$code; fi

study: $(VENV)/.dev  ## The case study in full: MNIST from HASTEN_DATA, an hour or so; goes on where it was interrupted.
	$(BIN)/python tools/mnist_npz.py build/mnist.npz
	$(BIN)/python examples/handwritten_digits/study.py build/study --mnist build/mnist.npz

test: $(VENV)/.dev  ## All tests.
	$(BIN)/python -m pytest

lint: $(VENV)/.dev  ## Style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev  ## The documentation, into build/docs.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(VENV)/.bench  ## Side by side with the peers; see benchmarks/README.md.
	$(BIN)/python benchmarks/peers.py

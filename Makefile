# Every target sets itself up: a virtual environment in .venv with the pinned packages, installed
# once and again whenever pyproject.toml or constraints.txt changes.
#
#   make demo     train, compile, evaluate and benchmark a small network
#   make test     what .ci/run runs: ruff, mypy, pytest
#   make lint     ruff and mypy alone
#   make bench    the three benchmarks behind the README's figures (BENCH_DATA=../shared)
#   make wheel    dist/tvmquant-*.whl
#   make clean    remove what was built; make distclean removes .venv too
#
# Variables: PYTHON (any Python >= 3.10), JOBS (test processes), PYTEST_FLAGS, BENCH_DATA,
# PIP_FLAGS. On x86-64 Linux PyPI's torch brings several GB of CUDA libraries nothing here needs;
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# installs the same version without them.
PYTHON ?= python3
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
BENCH_DATA ?= ../shared
PIP_FLAGS ?=
PYTEST_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin

# Each test process keeps to one thread: JOBS processes already fill the machine.
ONE_THREAD := TVM_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench wheel clean distclean
# Two targets of one `make -j` would otherwise install into the same environment at once.
.NOTPARALLEL:

help:
	@sed -n '/^#   make/s/^#  //p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-demo
	$(BIN)/tvmquant demo

test: lint
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_FLAGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-demo,peers
	$(BIN)/python -m benchmarks kernels --json build/kernels.json
	$(BIN)/python -m benchmarks accuracy --data $(BENCH_DATA) --json build/accuracy.json
	$(BIN)/python -m benchmarks latency --models resnet50,mobilenetv2,squeezenet \
	    --peers onnxruntime,openvino --data $(BENCH_DATA) --json build/latency.json

wheel: $(VENV)/.installed-test
	$(BIN)/python -m build --wheel --outdir dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "tvmquant needs Python >= 3.10, and '$(PYTHON)' is not one;" \
	       "name another with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || $(PYTHON) -m virtualenv --quiet $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "No virtual environment could be made; install the venv module" \
	       "(on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing tvmquant[$*] and its pinned packages (minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on \
	    -c constraints.txt $(PIP_FLAGS) -e '.[$*]'
	@touch $@

clean:
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

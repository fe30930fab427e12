# Every target sets itself up: a virtual environment in .venv with the pinned packages, installed
# once and again whenever pyproject.toml or constraints.txt changes.
#
#   make demo     train, compile, evaluate and benchmark a small network
#   make test     what .ci/run runs: ruff, mypy, pytest without the tests marked slow
#   make test-all the same with them
#   make lint     ruff and mypy alone (make typecheck: mypy alone)
#   make bench    the benchmarks kernels, accuracy and latency as JSON (BENCH_DATA=../shared)
#   make wheel    dist/tvmquant-*.whl
#   make clean    remove what was built; make distclean removes .venv too
#
# Variables: PYTHON (any Python >= 3.10), JOBS (test processes), PYTEST_FLAGS, BENCH_DATA,
# PIP_FLAGS. On x86-64 Linux PyPI's torch brings several GB of CUDA libraries nothing here needs;
# PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" installs the same version
# without them.
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
.PHONY: help demo test test-all emulation lint typecheck bench wheel clean distclean
# Two targets of one `make -j` would otherwise install into the same environment at once.
.NOTPARALLEL:

help:
	@sed -n 's/^#   make/make/p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-demo
	$(BIN)/tvmquant demo

PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 20
test: lint emulation
	$(PYTEST) -m "not slow" $(PYTEST_FLAGS)

test-all: lint emulation
	$(PYTEST) $(PYTEST_FLAGS)

# Where qemu-user and a cross compiler are installed, tests run on emulated processors too.
emulation: $(VENV)/.installed-test
	@$(BIN)/python -m benchmarks.aarch64.emulator

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory typecheck

# mypy looks for tvmquant.passes inside tvmquant/, where only the installed package has it, so it
# is shown a tree of links in which every module lies where it is imported from.
TYPED := build/typing
typecheck: $(VENV)/.installed-test
	@rm -rf $(TYPED) && mkdir -p $(TYPED)
	@cp -rs $(CURDIR)/tvmquant $(TYPED)/tvmquant
	@cp -rs $(CURDIR)/passes $(CURDIR)/schedules $(TYPED)/tvmquant/
	cd $(TYPED) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
	    --cache-dir $(CURDIR)/.mypy_cache

bench: $(VENV)/.installed-demo,peers
	@mkdir -p build
	$(BIN)/python -m benchmarks kernels --json build/kernels.json
	$(BIN)/python -m benchmarks accuracy --data $(BENCH_DATA) --json build/accuracy.json
	$(BIN)/python -m benchmarks latency --models resnet50,mobilenetv2,squeezenet \
	    --peers onnxruntime,openvino --data $(BENCH_DATA) --json build/latency.json

wheel: $(VENV)/.installed-test
	rm -rf build/lib build/bdist.*
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

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
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints.txt $(PIP_FLAGS) -e '.[$*]'
	@touch $@

clean:
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

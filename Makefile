# Everything runs in .venv, which `make setup` creates with the pinned versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
INSTALL := --constraint constraints.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# make test PYTHON=python3.13: an environment of another version is created again.
ifneq ($(origin PYTHON),file)
ifneq ($(shell $(PYTHON) --version),$(shell $(BIN)/python --version 2>/dev/null))
.PHONY: $(STAMP)
CLEAR := --clear
endif
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-detection evidence test test-latest test-slow test-gpu test-slurm test-cifar test-browser chaos lint format bench bench-gpu gpu-day bench-feed schedules clean

help:  ## List all targets; PYTHON=python3.13 chooses the interpreter
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## Create the environment .venv (6 GB, most of it torch)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "geexp needs Python 3.11 or newer; set it with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "creating $(VENV) with $$($(PYTHON) --version); this takes some minutes"
	@$(PYTHON) -m venv $(CLEAR) $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(INSTALL) --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## Train baseline, SE and the three GE variants on small real images; prints a table and plots the curves
	@$(BIN)/python -m geexp.train +sweep=demo

demo-detection: $(STAMP)  ## Train a small detector on synthetic images (minutes); prints COCO's twelve metrics and draws detections
	@$(BIN)/python -m geexp.detect experiment=demo_detection outputs=outputs/demo_detection
	@$(BIN)/python -m geexp.detect mode=predict run=$$(dirname $$(ls -t outputs/demo_detection/fashion_coco_mini/*/*/*/*/result.json | head -1))

# OPTIONS="data=cifar10" trains the same on CIFAR-10.
evidence: DATA ?= $(GEEXP_DATA)
evidence: $(STAMP)  ## Train or continue Table 5 in miniature on the CIFAR archives in DATA (12 hours on two cores); scripts/publish.py publishes it
	@test -n "$(DATA)" || { echo "make evidence needs the folder of the CIFAR archives: make evidence DATA=/data"; exit 1; }
	@OMP_NUM_THREADS=1 $(BIN)/python -m geexp.train +sweep=evidence data.root=$(DATA) outputs=outputs/evidence $(OPTIONS)

test: $(STAMP)  ## Run the tests (5 minutes on two cores)
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal tests

test-latest:  ## Run the tests with the newest version of every dependency, in an environment of its own (.venv-latest)
	@rm -f .venv-latest/.installed
	@$(MAKE) --no-print-directory test VENV=.venv-latest INSTALL="--upgrade --upgrade-strategy eager"

test-slow: $(STAMP)  ## Run the slow tests
	@$(BIN)/python -m pytest -q -m slow tests

test-gpu: $(STAMP)  ## Run the tests that need a GPU
	@$(BIN)/python -m pytest -q -m gpu tests

test-slurm: $(STAMP)  ## Run the SLURM tests on a real single-node SLURM, installed if missing (Debian, as root)
	@folder=$$(mktemp -d); scripts/slurm_cluster.sh $$folder $(BIN)/python -m pytest -q -m slurm tests; \
		code=$$?; rm -rf $$folder; exit $$code

test-cifar: $(STAMP)  ## Run the tests on the real CIFAR-10 and CIFAR-100 in GEEXP_DATA
	@$(BIN)/python -m pytest -q -m real_cifar tests

test-browser: $(STAMP)  ## Run the tests of the report page in Chromium, installed if missing (Debian, as root)
	@command -v chromedriver >/dev/null || { apt-get update -q && apt-get install -y -q chromium chromium-driver; }
	@$(BIN)/python -m pytest -q -m browser tests

chaos: $(STAMP)  ## Kill 25 runs at random moments, resume them, compare bit for bit (10 minutes on two cores)
	@$(BIN)/python scripts/chaos.py --runs 20
	@$(BIN)/python scripts/chaos.py --runs 5 --ranks 2

lint: $(STAMP)  ## Run ruff and mypy
	@$(BIN)/ruff check src tests scripts
	@$(BIN)/ruff format --check src tests scripts
	@$(BIN)/mypy

format: $(STAMP)  ## Format and fix with ruff
	@$(BIN)/ruff check --fix src tests scripts
	@$(BIN)/ruff format src tests scripts

bench: $(STAMP)  ## Benchmark operators, training steps, the trainer, start-up and feeds (10 minutes on two cores)
	@$(BIN)/python scripts/benchmarks/operators.py
	@$(BIN)/python scripts/benchmarks/steps.py
	@$(BIN)/python scripts/benchmarks/trainer.py
	@$(BIN)/python scripts/benchmarks/startup.py
	@$(BIN)/python scripts/benchmarks/feeds.py --images 192 --rounds 3

# DEVICE=cpu runs them on the CPU. OPTIONS="--rounds 3" is passed to both benchmarks.
bench-gpu: DEVICE ?= cuda
bench-gpu: $(STAMP)  ## Benchmark operators and training steps on a GPU
	@$(BIN)/python scripts/benchmarks/operators.py --device $(DEVICE) --out outputs/benchmarks/operators-$(DEVICE).json $(OPTIONS)
	@$(BIN)/python scripts/benchmarks/steps.py --device $(DEVICE) --out outputs/benchmarks/steps-$(DEVICE).json $(OPTIONS)

gpu-day: $(STAMP)  ## Everything that needs a GPU, in 10 minutes: tests, benchmarks against targets, runs; again: what is left
	@scripts/gpu_day.sh

bench-feed: $(STAMP)  ## Benchmark all feeds against the reference feed, on synthetic photographs
	@$(BIN)/python scripts/benchmarks/feeds.py

schedules: $(STAMP)  ## Plot the learning rate of every schedule
	@$(BIN)/python scripts/plot_schedules.py

clean:  ## Remove the environment, build files and caches; keeps outputs/
	@rm -rf .venv .venv-latest build dist .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

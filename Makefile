# Everything from nothing: `make sweep` trains the small real sweep and writes its report, `make test` runs the tests.
# Needs make and Python 3.11 or newer with its venv module. All versions are locked in requirements.lock.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup sweep own-model tests test test-quick soak soak-ends slurm-faults lint format lock contract-gpu gpu-smoke gpu-smoke-quick clean

help:
	@echo "make setup   virtual environment .venv with the upcycle command (2 to 10 minutes; torch is the bulk of it)"
	@echo "make sweep   setup, then the small real sweep and its report (about 10 minutes on two idle cores)"
	@echo "make own-model   SmolLM2-135M imported, upcycled, trained, exported (about an hour; 11 GB of memory)"
	@echo "make test    setup, then linters, types and every test (about 16 minutes on two idle cores)"
	@echo "make test-quick   the same with the tests that take less than 2 seconds each (about 3 minutes)"
	@echo "make soak    200 SIGKILLs at random moments of training, result in docs/soak.md (about 10 minutes)"
	@echo "make soak-ends   300 runs by two tensor-parallel processes whose threads are held up, to their end (about an hour)"
	@echo "make slurm-faults   everything that goes wrong on a cluster, on a real SLURM; prints a table (about 20 minutes)"
	@echo "make lint    linters and types alone"
	@echo "make contract-gpu   the wrappers of GPU libraries against those libraries' own source (10 MB; needs no GPU)"
	@echo "make gpu-smoke      on a machine with a GPU: versions, kernels, gpu tests, speed, in one file"
	@echo "make gpu-smoke-quick   speed alone, in five minutes, with the Python that has torch (PYTHON=...)"
	@echo "make lock    rewrite requirements.lock from the environment"

# The lock is complete, so nothing is resolved; torch alone brings its own dependencies (a CUDA build has many).
# The stamp is made anew when the lock or the project's metadata change.
.venv/.ready: requirements.lock pyproject.toml
	@echo "Setting up .venv: locked versions of torch, snakemake and the rest (2 to 10 minutes; outside the CPU-only"
	@echo "wheel's reach the torch pin downloads its CUDA build, about 3 GB)."
	@$(PYTHON) -c 'import sys; sys.exit("upcycle needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "Python's venv module is missing: apt-get install python3-venv, then call make again"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) pip==$(shell sed -n 's/^pip==//p' requirements.lock)
	$(PIP) torch==$(shell sed -n 's/^torch==//p' requirements.lock) --constraint requirements.lock
	$(PIP) --no-deps --requirement requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $@

setup: .venv/.ready

sweep: setup
	@echo "Running the default sweep (config.yaml): about 10 minutes on two idle cores. An interrupted sweep resumes."
	$(BIN)/snakemake
	@echo
	@cat results/summary.txt
	@echo "Read $(CURDIR)/results/report.html"

# A real checkpoint of 135 M parameters: about 100 MB of downloads, 11 GB of memory, an hour of two cores.
own-model: setup
	$(BIN)/python benchmarks/smollm2.py prepare
	$(BIN)/snakemake --config study=own-model
	$(BIN)/python benchmarks/smollm2.py check

LINT := ruff check . && ruff format --check . && snakefmt --check Snakefile workflow && mypy

lint: setup
	@$(LINT)

# A file's tests stay together, as they share fixtures; tests/conftest.py puts the costly files first.
# One process more than there are cores: many tests wait for a process that they started.
PYTEST := pytest --numprocesses $$(($$(nproc) + 1)) --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Linters use one core, and tests seldom all of them: side by side. make ends with an error if either fails.
CHECKS = $(MAKE) --no-print-directory --jobs=2 lint tests
# Says how long a command took, also when it fails.
timed = @trap 'echo "$(1): $$((SECONDS / 60)) min $$((SECONDS % 60)) s in all"' EXIT; $(2)

tests: setup
	@$(PYTEST) $(if $(SELECT),-m "$(SELECT)")

test: setup
	@$(BIN)/python tests/support/library_sources.py --optional
	$(call timed,make test,$(CHECKS) SELECT="not slurm_fault")

test-quick: setup
	$(call timed,make test-quick,$(CHECKS) SELECT="not slow and not workflow")

# flash-attn and transformer-engine as source, unpacked and not installed (.gpu-sources).
contract-gpu: setup
	$(BIN)/python tests/support/library_sources.py
	$(BIN)/pytest tests/signatures

gpu-smoke: setup
	$(BIN)/python benchmarks/gpu_smoke.py

# Any Python with torch and the packages that the engine needs (docs/cluster.md): nothing is installed.
PYTHON ?= python3
gpu-smoke-quick:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_smoke.py --quick

soak: setup
	$(BIN)/python tests/support/soak.py --kills 200 --out docs/soak.md

# Needs gcc.
soak-ends: setup
	$(BIN)/python tests/support/soak.py --ends 300 --slow-workers

# Needs root and SLURM's packages (Debian); skips without. Two labs side by side: tests wait most of the time.
slurm-faults: setup
	@rm -f .slurm-faults.jsonl
	@FAULTS_FILE=$(CURDIR)/.slurm-faults.jsonl $(BIN)/pytest --numprocesses 2 --dist load tests/slurm/test_faults.py; code=$$?; \
	 [ ! -s .slurm-faults.jsonl ] || $(BIN)/python tests/support/slurm_faults.py .slurm-faults.jsonl; exit $$code

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

lock: setup
	$(BIN)/python -m pip freeze --all --exclude-editable | sed 's,^\(torch==[^+]*\)+.*,\1,; s, @ file.*,,' > requirements.lock

clean:
	rm -rf .venv .snakemake

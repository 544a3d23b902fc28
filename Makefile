# `make` alone lists the targets. Each makes what it needs first: a virtual environment in .venv,
# a Docker engine where none answers (and this user may), the images.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLD := .venv-ipykernel6
PIP_FLAGS := --quiet --disable-pip-version-check
ROWS ?=

# A CI machine may set it. The tests start kernels and commands by the hundred: each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.ready  ## From nothing to executed notebooks on real containers
	$(BIN)/python -m notebooks.demo

check: $(VENV)/.ready  ## Lint, types, floors and unit tests: minutes, no Docker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest tests/unit tests/contract

test: $(VENV)/.bench $(OLD)/.ready engine browser registry  ## All suites: checks, unit, integration, notebooks, browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tests.images.build --all
	$(BIN)/python -m pytest --run-docker -n 2 --dist loadfile

bench: $(VENV)/.bench engine  ## Measure, beside the floor and the peers: make bench [ROWS=start,pass]
	$(BIN)/python -m tests.bench $(if $(ROWS),--rows $(ROWS)) --out build/bench

bench-readme: $(VENV)/.bench  ## Put the table and the plot of build/bench.csv into README
	$(BIN)/python -m tests.bench.readme build/bench.csv

notebooks: $(VENV)/.ready  ## Execute the notebooks anew and keep their outputs
	$(BIN)/python -m notebooks.demo --in-place

engine: $(VENV)/.ready  ## Make sure that a Docker engine answers; start one if we may
	@$(BIN)/python -m tests.machine.engine ensure

stop-engine:  ## Stop the engine that `make engine` started, and no other
	@$(PYTHON) -m tests.machine.engine stop

browser: $(VENV)/.ready
	@$(BIN)/python -m tests.machine.packages chromium tmux

registry: $(VENV)/.ready
	@$(BIN)/python -m tests.machine.packages docker-registry iproute2 openssl

clean:  ## Remove the virtual environments and build results
	rm -rf $(VENV) $(OLD) build dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.ready: pyproject.toml
	@echo "Installing into $(VENV)"
	@$(PYTHON) -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 10)' 2>/dev/null || { \
	  echo "Needs Python >= 3.10 with venv. Debian, Ubuntu: sudo apt-get install python3-venv"; \
	  echo "Another Python: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install $(PIP_FLAGS) --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install $(PIP_FLAGS) --group test --group lint --editable .
	@touch $@

# What the benchmark measures with and draws with.
$(VENV)/.bench: pyproject.toml $(VENV)/.ready
	@$(BIN)/python -m pip install $(PIP_FLAGS) --group bench
	@touch $@

# The other generation of the notebook's own kernel, for the tests.
$(OLD)/.ready: pyproject.toml $(VENV)/.ready
	@echo "Installing into $(OLD)"
	@$(PYTHON) -m venv $(OLD)
	@$(OLD)/bin/python -m pip install $(PIP_FLAGS) --upgrade 'pip>=25.1'
	@$(OLD)/bin/python -m pip install $(PIP_FLAGS) 'ipykernel>=6.29,<7' 'ipython<9' --editable .
	@touch $@

.PHONY: help demo check test bench bench-readme notebooks engine stop-engine browser registry clean

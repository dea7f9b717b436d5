# make demo: films on this machine, from nothing.   make test: the tests.   Both install into .venv first.
PYTHON ?= python3
CORES ?= $(shell nproc)
# The index of another build of torch 2.13.0 (CPU, or a CUDA version), as the install page of pytorch.org names it.
TORCH_INDEX ?=
BIN := .venv/bin
RUNS := $(BIN)/python -m

.PHONY: install models demo test lint generated clean

install: .venv/installed

.venv/installed: pyproject.toml envs/constraints.txt
	$(PYTHON) -m venv .venv
	$(RUNS) pip install --disable-pip-version-check --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--constraint envs/constraints.txt --editable '.[dev]'
	touch $@

models: models/tiny-wan-14b models/tiny-wan-5b models/tiny-internvl

models/tiny-wan-%: | .venv/installed
	$(RUNS) stages.models.wan.tiny $@ --variant $*

models/tiny-internvl: | .venv/installed
	$(RUNS) stages.models.vlm.tiny $@

demo: install models
	$(BIN)/snakemake --cores $(CORES)
	@find results -maxdepth 2 -name '*.mp4' | sort
	@echo 'These films are noise behind their sources: the tiny models have random weights. README.md tells how to use real ones.'

test: install
	$(RUNS) pytest --quiet

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile
	$(BIN)/snakemake --lint

# Files made from the declared options: schemas/ and the tables in docs/.
generated: install
	$(RUNS) docs.generate

clean:
	rm -rf .venv models results .snakemake

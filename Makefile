# make demo: films on this machine, from nothing.   make test: the tests.   Both install into .venv first.
PYTHON ?= python3
CORES ?= $(shell nproc)
# The index of another build of torch 2.13.0 (CPU, or a CUDA version), as the install page of pytorch.org names it.
TORCH_INDEX ?=
BIN := .venv/bin
RUNS := $(BIN)/python -m

.PHONY: install demo test test-cluster lint generated clean

install: .venv/installed

.venv/installed: pyproject.toml envs/constraints.txt
	$(PYTHON) -m venv .venv
	$(RUNS) pip install --disable-pip-version-check --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--constraint envs/constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/snakemake --cores $(CORES)
	$(BIN)/score results/v2v results/chain results/text2video results/unet
	@find results -maxdepth 2 -name '*.mp4' | sort

test: install
	$(RUNS) pytest --quiet --ignore tests/cluster

# A real Slurm of one node: needs root, Debian's slurm-wlm and munge; skipped with the reason where it cannot be started.
test-cluster: install
	$(RUNS) pip install --disable-pip-version-check --quiet --constraint envs/constraints.txt --editable '.[dev,slurm]'
	$(RUNS) pytest --quiet tests/cluster

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile
	$(BIN)/snakemake --lint

# Files made from the declared options: schemas/ and the tables in docs/.
generated: install
	$(RUNS) docs.generate

clean:
	rm -rf .venv results .snakemake

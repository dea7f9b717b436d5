# make demo: films on this machine, from nothing, and the page that shows them.   make demo-all: by every shipped model.   make test: the tests.
# make containers: an image for every stage.
# All of them install into .venv first.
PYTHON ?= python3
CORES ?= $(shell nproc)
# The index of another build of torch 2.13.0 (CPU, or a CUDA version), as the install page of pytorch.org names it.
TORCH_INDEX ?=
# What the images are built on: docker://NAME, a folder with a root file system, or debian, which is made of packages.
BASE ?=
DEMO := v2v chain longlive text2video
BIN := .venv/bin
RUNS := $(BIN)/python -m

# The tests start many processes, and each of them would compile the project again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo demo-all test test-cluster containers lint generated clean

install: .venv/installed

.venv/installed: pyproject.toml commands/pyproject.toml envs/constraints.txt
	$(PYTHON) -m venv .venv
	$(RUNS) pip install --disable-pip-version-check --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--constraint envs/constraints.txt --editable '.[dev]' ./commands
	touch $@

demo: install
	$(BIN)/snakemake $(DEMO) --cores $(CORES)
	$(BIN)/score $(DEMO:%=results/%)
	$(BIN)/page $(DEMO:%=results/%)

demo-all: DEMO += helios unet look picture
demo-all: demo

test: install
	OMP_NUM_THREADS=1 $(RUNS) pytest --quiet --numprocesses $(CORES) --dist loadfile --no-loadscope-reorder --ignore tests/cluster

# Images and a real Slurm of one node: tests/cluster/install brings what they need, but for Apptainer on an old Debian; what cannot be
# built or started here is skipped with the reason.
test-cluster: .venv/slurm
	$(RUNS) pytest --quiet --numprocesses $(CORES) --dist loadfile tests/cluster

.venv/slurm: .venv/installed
	$(RUNS) pip install --disable-pip-version-check --quiet --constraint envs/constraints.txt --editable '.[dev,slurm]' ./commands
	touch $@

# containers/STAGE.sif, for snakemake --sdm apptainer. What is built already stays.
containers: install
	$(RUNS) containers.build $(if $(BASE),--base $(BASE)) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile
	$(BIN)/snakemake --lint

# Files made from the declared options: schemas/ and the tables in docs/.
generated: install
	$(RUNS) docs.generate

clean:
	rm -rf .venv results .snakemake

# Everything runs in .venv, which is made when it is missing or when the dependencies change.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 3
DISTURBANCES ?= 100
SEED ?= 0

.PHONY: demo test chaos fuzz lint cluster-up cluster-down clean

demo: .venv/installed
	$(BIN)/carabid demo

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=15

# A grid on a private Slurm while a seeded adversary disturbs it: the long form of tests/test_chaos.py.
chaos: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --disturbances $(DISTURBANCES) --seed $(SEED)

# Configurations, profiles, tables, images and damaged files by the thousand: the long form of tests/test_fuzz.py.
fuzz: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --seed $(SEED)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A private Slurm on this machine: two nodes with (pretended) GPUs, and accounting.
cluster-up:
	$(PYTHON) tests/cluster/cluster.py up

cluster-down:
	$(PYTHON) tests/cluster/cluster.py down

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "carabid needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

clean:
	rm -rf .venv demo

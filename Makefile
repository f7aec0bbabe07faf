# Everything runs in .venv, which is made when it is missing or when the dependencies change.
PYTHON ?= python3
BIN := .venv/bin
# Of two cores: tests that wait for Slurm leave room for a third.
WORKERS ?= 3
# Modules are compiled once, whatever the shell says, and not in each of the hundreds of processes that the tests start.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --group docs
DISTURBANCES ?= 100
SEED ?= 0

.PHONY: demo check test test-long bench bench-gpu chaos fuzz lint docs cluster-up cluster-down clean

demo: .venv/installed
	$(BIN)/carabid demo

# What a contributor runs ten times a day: lint, types, and the tests that start no job and train nothing.
check: lint
	$(PYTEST) -m "not slurm and not jobs and not long"

test: .venv/installed
	$(PYTEST) --durations=15 -m "not long"

# What repeats other tests at greater length: the whole demo, a grid that is disturbed, trainings that are killed at random.
test-long: .venv/installed
	$(PYTEST) --durations=15 -m long

# Every figure of speed beside its goal, in benchmarks/results.md: under a quarter of an hour on two cores.
bench: .venv/installed
	$(BIN)/python -m benchmarks.bench

bench-gpu: .venv/installed
	$(BIN)/python -m benchmarks.bench --gpu

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

# The documentation as a site, in site/; a link or an anchor that leads nowhere is an error. (The variable: no advertisement for a successor.)
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# A private Slurm on this machine: two nodes with (pretended) GPUs, and accounting.
cluster-up:
	$(PYTHON) tests/cluster/cluster.py up

cluster-down:
	$(PYTHON) tests/cluster/cluster.py down

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "carabid needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(INSTALL) --editable ".[demo]" || $(INSTALL) --editable .  # (not every package index has the demo's pretrained network)
	touch $@

clean:
	rm -rf .venv demo site

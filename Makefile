# make demo       create the environment, then quantize, score, publish and reload
#                 a small recognizer on synthesised digits (about a minute);
#                 TRAIN=1 trains it first instead of taking the sample
# make test       the same environment, lint and the tests, on all cores
# make test-all   ... and the benchmarks' own tests
# make docs       the documentation, in docs/_build/html
#
# PYTHON=python3.11 chooses the interpreter, VENV=path the environment,
# PYTEST_OPTIONS="-k clip" further options, PARALLEL= one process.

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
# Whole files go to a worker, so that it trains a fixture's model once. They
# start in the order of tests/conftest.py: hence no reordering by xdist.
PARALLEL ?= -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-all docs lint format clean

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: $(READY)
	cd recipes/DigitStrings/ASR/CTC && $(BIN)/python demo.py $(if $(filter 1,$(TRAIN)),--train)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_OPTIONS)

test-all: lint
	$(BIN)/python -m pytest $(PARALLEL) -m "" $(PYTEST_OPTIONS) speechbrain_stablequant benchmarks tests

docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build docs/_build *.egg-info

# make demo   create the environment, then quantize, score, publish and reload
#             a small recognizer on synthesised digits (about two minutes);
#             TRAIN=1 trains it first instead of taking the sample
# make test   the same environment, lint and all tests
# make docs   the documentation, in docs/_build/html
#
# PYTHON=python3.11 chooses the interpreter, VENV=path the environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready

export HF_HUB_OFFLINE ?= 1

.PHONY: demo test docs lint format clean

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

test: lint
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build docs/_build *.egg-info

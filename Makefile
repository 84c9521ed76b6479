# Two commands matter: `make demo` and `make test`. Both create .venv when it is missing.
PYTHON ?= python3
VENV ?= .venv
# Extra arguments for pip, e.g. PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'
PIP_ARGS ?=
OUT ?= fl-audit-demo

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export FLWR_TELEMETRY_ENABLED ?= 0
export FLWR_DISABLE_UPDATE_CHECK ?= 1

.PHONY: demo test lint bench build clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/fl-audit demo --overwrite --out '$(OUT)'

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/virtual_clients.py
	$(BIN)/python tests/benchmarks/growth.py
	$(BIN)/python tests/benchmarks/recorder.py
	$(BIN)/python tests/benchmarks/reading.py
	$(BIN)/python tests/benchmarks/passive.py

build: $(STAMP)
	$(BIN)/python -m build

clean:
	rm -rf build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache

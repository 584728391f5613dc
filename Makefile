# Each target sets up what it needs. PYTHON names the interpreter the environment is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOC_VENV := .venv-protoc
PROTOS := $(sort $(wildcard protos/cmamil/v1/*.proto))

.PHONY: setup demo test test-long lint protos gpu-check clean

setup: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cmamil-sdk needs Python 3.11; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/cmamil demo --out demo

test: setup
	$(BIN)/python -m pytest

test-long: setup
	$(BIN)/python -m pytest -m long

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

gpu-check: setup
	$(BIN)/python -m pytest -m gpu -rs

clean:
	rm -rf $(VENV) $(PROTOC_VENV) demo build dist *.egg-info

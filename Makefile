# Every task a contributor runs. `make` alone lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test unit trainer lint format crds bench clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## make .venv with everything; does nothing when nothing changed

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

unit: setup ## the pure rooms, in seconds
	$(BIN)/pytest tests/unit -q -n 2

trainer: setup ## the Trainer, one process and several
	$(BIN)/pytest tests/trainer -q -n 2

lint: setup ## ruff, mypy on the operator, the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

crds: setup ## write crds/ from the Python types
	$(BIN)/python -m trainwright_operator.schema crds

clean: ## remove what setup and runs made
	rm -rf $(VENV) runs artefacts

# make demo   install what the demonstration needs, then run it
# make test   install what the tests need, then run linters, types, layering and the tests
# make check  the tests that take minutes
# make clean  remove what was installed and built

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
INPUTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test check clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \(make\)/\1/p' Makefile

demo: $(VENV)/.demo
	$(BIN)/swarm demo

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m 'not slow'

check: $(VENV)/.dev
	@echo 'The slow tests: installations from scratch, whole swarms, long searches for counterexamples.'
	$(BIN)/python -m pytest -v -m slow

clean:
	rm -rf $(VENV) node_modules build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.made:
	@command -v '$(PYTHON)' >/dev/null || { echo 'No $(PYTHON) here. Install Python 3.11 or newer, or run: make PYTHON=/path/to/python3'; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is $$('$(PYTHON)' -V). Run: make PYTHON=/path/to/python3.11"; exit 1; }
	'$(PYTHON)' -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made $(INPUTS)
	@echo 'Installing what the demonstration needs; torch and transformers are a few hundred megabytes.'
	$(PIP) --quiet --editable '.[demo]'
	@touch $@

# What the tests need includes what the demonstration needs.
$(VENV)/.dev: $(VENV)/.made $(INPUTS) package.json
	@echo 'Installing what the tests need; torch and transformers are a few hundred megabytes.'
	$(PIP) --quiet --editable '.[dev]'
	@command -v npm >/dev/null && npm install --no-package-lock --no-audit --no-fund --silent \
		|| echo 'No npm here: the tests against anvil, a real EVM node, will be skipped.'
	@touch $@ $(VENV)/.demo

# Two commands do everything: `make demo` and `make test`. Each makes the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made
# So many processes run the tests (as there are cores, at most four), each a file at a time, in order: whole models come before the many
# quick files that end it. `make test WORKERS=0` takes one alone.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? n : 4)))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help env demo test format lint types compat pgstac clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

env: $(STAMP)  ## Make .venv with pinned versions (about 6 GB with torch)

# sam2 is built from source; in pip's isolated build it would download torch a second time.
$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "geosam-stac needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 78; }
	@$(PYTHON) -c 'import venv, ensurepip' || \
	  { echo "this Python has no venv: install it (Debian: apt-get install python3-venv)" >&2; exit 78; }
	@echo "== environment" >&2
	$(PYTHON) -m venv $(VENV)
	grep -v '^sam2==' requirements.txt > $(VENV)/without-sam2.txt
	$(PIP) -r $(VENV)/without-sam2.txt
	SAM2_BUILD_CUDA=0 $(PIP) --no-build-isolation --no-deps "$$(grep '^sam2==' requirements.txt)"
	$(PIP) --no-build-isolation --no-deps -e .
	@touch $@

demo: env  ## Encode the sample scene, and say where the result lies
	@BIN=$(BIN) sh catalogs/sample/demo.sh

test: env  ## Format, lint, types, and the whole test suite
	@echo "== format" >&2
	$(BIN)/ruff format --check .
	@echo "== lint" >&2
	$(BIN)/ruff check .
	@echo "== types" >&2
	$(BIN)/mypy
	@echo "== tests" >&2
	$(BIN)/pytest --run-slow -n $(WORKERS) --dist loadfile --no-loadscope-reorder

format: env  ## Format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: env  ## Lint alone
	$(BIN)/ruff check .

types: env  ## Types alone
	$(BIN)/mypy

compat: env  ## Open our folders with geosam 0.1.3, in an environment of its own (not in CI)
	tests/compat/run.sh

pgstac: .venv-pgstac/.made  ## The STAC API that some tests start (they skip without it)

.venv-pgstac/.made: requirements-pgstac.txt
	$(PYTHON) -m venv .venv-pgstac
	.venv-pgstac/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-pgstac.txt
	@touch $@

clean:  ## Remove the environments, outputs and caches
	rm -rf $(VENV) .venv-compat .venv-pgstac out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

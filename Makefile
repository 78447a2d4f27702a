# Few Labels, Many Images. `make` alone lists the targets.
PYTHON ?= python3
CHAPTER ?=
PEER ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile
LONG := slow or fault

.DEFAULT_GOAL := help
.PHONY: help book test slow lab execute bench clean
.DELETE_ON_ERROR:

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

book: $(READY) ## build the book; a warning is an error
	@rm -rf _build
	@$(BIN)/jupyter-book build . -W -n --keep-going
	@test -f _build/html/index.html
	@echo "Open $(CURDIR)/_build/html/index.html"

test: $(READY) ## run the tests, the notebooks included, without those of make slow
	@$(PYTEST) -m 'not ($(LONG))'

slow: $(READY) ## run the other tests: injected faults, cheats, assignments, pages in a browser
	@$(PYTEST) -m '$(LONG)'

lab: $(READY) ## open the chapters in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=book $(if $(filter 0,$(shell id -u)),--allow-root)

execute: $(READY) ## run the chapters in place and renew their outputs (CHAPTER=03 for one)
	@$(BIN)/python book/tools/notebooks.py execute $(CHAPTER)

bench: $(READY) ## measure how fast training is, and renew book/speed.md (PEER=checkout to race)
	@$(BIN)/python book/tools/bench.py $(if $(PEER),--peer "$(PEER)")
	@$(BIN)/python book/tools/speed_page.py
	@$(BIN)/python book/tools/scaling_page.py

clean: ## remove what make made: the environment, the built book, caches
	@rm -rf $(VENV) _build build semigen_lib.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
	@find semigen_lib tests book \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# The environment: made once, brought up to date whenever what it is made from changes.
$(READY): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "expected Python 3.10 or newer as '$(PYTHON)', got no such command; name yours: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "expected Python 3.10 or newer as '$(PYTHON)', got $$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "expected the venv module of '$(PYTHON)', got none; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV); the first time this takes some minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

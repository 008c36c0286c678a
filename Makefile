# Two commands for a fresh machine, each doing all of its set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# An environment of its own for torch, so that nothing else can come to depend on it.
PARITY := .venv-parity
PARITY_INSTALLED := $(PARITY)/.installed

.PHONY: demo test lint types parity format clean

demo: $(INSTALLED)
	$(BIN)/python -m experiments.recipes demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/basedpyright

parity: $(PARITY_INSTALLED)
	$(PARITY)/bin/python -c 'import torch'
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PARITY)/bin/python -m pytest -q tests/parity

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(INSTALLED): EXTRAS := recipes,language,kernels,serve,test
$(PARITY_INSTALLED): EXTRAS := recipes,language,kernels,serve,test,parity
$(INSTALLED) $(PARITY_INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "recipe-jax needs Python 3.11 or newer; set PYTHON=python3.11 or the like" >&2; exit 2; }
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV) $(PARITY) build *.egg-info runs

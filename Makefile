# make help lists the targets. Every variable here can be set on the command line: make demo DEMO_BYTES=64

PYTHON      ?= python3
VENV        ?= .venv
CHECKPOINT  ?= checkpoints/blt-d-8m
BUNDLE      ?= build/demo-bundle
METHODS     ?= ar,s:4,s:8,dv:8@one,d:8@0.7,auto
BENCH_JSON  ?= build/demo-bench.json
WHEEL_VENV  ?= build/wheel-venv
TEST_JOBS   ?= auto
PYTEST_ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Programs that tests start import PyTorch: they need its compiled modules, which the first of them writes.
unexport PYTHONDONTWRITEBYTECODE

BIN         := $(VENV)/bin
INSTALL     := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
DEMO_READY  := $(VENV)/.demo-installed
TEST_READY  := $(VENV)/.test-installed
PACKAGING   := pyproject.toml setup.py constraints.txt

# The bundle is exported again when the checkpoint or the code that exports it is newer.
MANIFEST         := $(BUNDLE)/manifest.json
CHECKPOINT_FILES := $(wildcard $(CHECKPOINT)/*)
EXPORT_SOURCES   := $(wildcard export/*.py models/*.py models/formats/*.py) $(wildcard runtime/bundle/*.py) runtime/backends/host_embeddings.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test build lint format clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(MANIFEST) ## export the shipped checkpoint, generate text, measure the methods
	$(BIN)/fastblt generate $(BUNDLE) --show
	$(BIN)/fastblt bench $(BUNDLE) --methods $(METHODS) --against eager --json $(BENCH_JSON)

test: lint ## all checks: ruff, mypy, pytest
	$(BIN)/pytest --numprocesses $(TEST_JOBS) --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

build: $(MANIFEST) $(TEST_READY) ## build sdist and wheel, run the wheel in an empty environment
	rm -rf dist $(WHEEL_VENV)
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	cd $(WHEEL_VENV) && bin/fastblt generate $(abspath $(BUNDLE)) "In the beginning" --max-new-bytes 64

lint: $(TEST_READY) ## the checks that run no code: ruff, mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(TEST_READY) ## rewrite the sources the way lint wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove what was built, but not the environment
	rm -rf build dist src/*.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove the environment too
	rm -rf $(VENV)

$(MANIFEST): $(CHECKPOINT_FILES) $(EXPORT_SOURCES) | $(DEMO_READY)
	$(BIN)/fastblt export $(CHECKPOINT) $(BUNDLE) --force

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fastblt needs Python 3.11 or newer, $(PYTHON) is older or missing: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(DEMO_READY): $(PACKAGING) | $(BIN)/pip
	$(INSTALL) -e '.[export]'
	@touch $@

$(TEST_READY): $(PACKAGING) | $(BIN)/pip
	$(INSTALL) -e '.[export,train,dev]'
	@touch $@

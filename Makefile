# make help lists the targets. Every variable here can be set on the command line: make demo DEMO_BYTES=64

PYTHON      ?= python3
VENV        ?= .venv
CHECKPOINT  ?= checkpoints/blt-d-8m
BUNDLE      ?= build/demo-bundle
METHODS     ?= ar,s:4,s:8,dv:8@one,d:8@0.7,auto
BENCH_JSON  ?= build/demo-bench.json
# Each of these runs the wheel in an empty environment of its own.
WHEEL_PYTHONS ?= $(PYTHON)
# One more than there are cores: some tests wait for other processes.
TEST_JOBS   ?= $(shell expr $$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) + 1)
PYTEST_ARGS ?=
# Which build of PyTorch: empty takes the CPU build where an index has it, otherwise PyPI's.
TORCH_LOCK  ?=
MINUTES     ?= 10
SEED        ?= 1
PARTS       ?=
JOBS        ?= 2
GPU_OUT     ?= build/gpu-campaign
GPU_OPTIONS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Programs that tests start import PyTorch: they need its compiled modules, which the first of them writes.
unexport PYTHONDONTWRITEBYTECODE

BIN         := $(VENV)/bin
TOOLS       := build/tools-venv/bin
# Every file that is downloaded has one of the hashes in its lock, and nothing is downloaded that is not in a lock:
# neither dependencies nor what a source distribution is built with.
LOCKED      := -m pip install --quiet --no-compile --require-hashes --no-deps --no-build-isolation
INSTALL     := $(BIN)/python $(LOCKED)
# uv checks the same hashes and takes a fifth of pip's time.
UV_INSTALL  := $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps --no-build-isolation
MYPY_LOG    := build/mypy.log
DEMO_READY  := $(VENV)/.demo-installed
TEST_READY  := $(VENV)/.test-installed
PACKAGING   := pyproject.toml setup.py $(wildcard locks/*.txt)
UV_COMPILE  := $(TOOLS)/uv pip compile --quiet --generate-hashes --no-annotate --constraints constraints.txt \
	--custom-compile-command 'make lock'
COMPILE     := $(UV_COMPILE) --universal --python-version 3.11
COMPILE_FOR_JETPACK := $(UV_COMPILE) --python-version 3.10 --python-platform aarch64-manylinux_2_35

# The bundle is exported again when the checkpoint or the code that exports it is newer.
MANIFEST         := $(BUNDLE)/manifest.json
CHECKPOINT_FILES := $(wildcard $(CHECKPOINT)/*)
EXPORT_SOURCES   := $(wildcard export/*.py models/*.py models/formats/*.py) $(wildcard runtime/bundle/*.py) runtime/backends/host_embeddings.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test campaign launches gpu-campaign build docs lint format lock advisories clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(MANIFEST) ## export the shipped checkpoint, generate text, measure the methods
	$(BIN)/fastblt generate $(BUNDLE) --show
	$(BIN)/fastblt bench $(BUNDLE) --methods $(METHODS) --against eager --json $(BENCH_JSON)

test: $(TEST_READY) ## all checks: ruff, mypy, pytest
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@mkdir -p build; \
	echo 'mypy runs beside pytest; what it finds follows the tests'; \
	$(BIN)/mypy >$(MYPY_LOG) 2>&1 & mypy=$$!; \
	$(BIN)/pytest --numprocesses $(TEST_JOBS) --maxprocesses 8 --dist worksteal $(PYTEST_ARGS); tests=$$?; \
	wait $$mypy; types=$$?; \
	cat $(MYPY_LOG); \
	exit $$((tests | types))

campaign: $(TEST_READY) ## try to break it: damaged files, kills, full disks, threads (MINUTES= SEED= PARTS= JOBS=)
	PYTHONPATH=src:tests $(BIN)/python -m campaign --minutes $(MINUTES) --seed $(SEED) --jobs $(JOBS) --parts '$(PARTS)'

gpu-campaign: $(TEST_READY) ## check and measure everything on this machine's GPU (GPU_OUT= GPU_OPTIONS= TORCH_LOCK=)
	$(BIN)/fastblt gpu-campaign $(GPU_OUT) --checkpoint $(CHECKPOINT) $(GPU_OPTIONS)

launches: $(TEST_READY) ## count launches and waits over a stub of CUDA (COLUMN= of docs/results/launches.json)
	PYTHONPATH=src:tests $(BIN)/python -m fakes.cuda_stub.measure --shapes $(COLUMN)

build: $(MANIFEST) $(TEST_READY) ## build sdist and wheel, run the wheel in empty environments (WHEEL_PYTHONS=)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(foreach python,$(WHEEL_PYTHONS),$(call run_wheel,$(python),build/wheel-$(notdir $(python))))

docs: $(TEST_READY) ## build the documentation as a site, build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(TEST_READY) ## the checks that run no code: ruff, mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(TEST_READY) ## rewrite the sources the way lint wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: $(TOOLS)/uv ## write locks/*.txt anew, from pyproject.toml and constraints.txt
	echo setuptools | $(COMPILE) - --output-file locks/build.txt
	echo uv | $(COMPILE) - --output-file locks/uv.txt
	echo torch | $(COMPILE) - --output-file locks/torch.txt
	$(COMPILE) locks/tools.in --output-file locks/tools.txt
	$(COMPILE) pyproject.toml --output-file locks/core.txt
	$(COMPILE) pyproject.toml --extra gpu --output-file locks/gpu.txt
	$(COMPILE) pyproject.toml --extra tensorrt-rtx --output-file locks/tensorrt-rtx.txt
	$(COMPILE_FOR_JETPACK) pyproject.toml --extra jetpack6 --output-file locks/jetpack6.txt
	$(COMPILE) pyproject.toml --extra export --excludes locks/cuda.in --no-emit-package torch \
		--no-emit-package cuda-bindings --no-emit-package cuda-pathfinder --output-file locks/export.txt
	$(COMPILE) pyproject.toml --extra export --extra train --extra eval --extra grammar --extra serve --extra fleet --extra docs --extra dev --excludes locks/cuda.in \
		--no-emit-package torch --output-file locks/dev.txt

advisories: $(TOOLS)/uv ## look up known vulnerabilities of what is in the locks; needs the network
	$(TOOLS)/pip-audit --strict --disable-pip --require-hashes \
		$(foreach name,build dev gpu jetpack6 tensorrt-rtx tools torch uv,--requirement locks/$(name).txt)

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
	$(call install_project,locks/export.txt)
	@touch $@

$(TEST_READY): $(PACKAGING) | $(BIN)/pip
	$(call install_project,locks/dev.txt)
	@touch $@

$(TOOLS)/uv: locks/tools.txt
	$(PYTHON) -m venv $(dir $(TOOLS))
	$(TOOLS)/python $(LOCKED) -r $<
	@touch $@

define run_wheel
rm -rf $(2)
$(1) -m venv $(2)
$(2)/bin/python $(LOCKED) -r locks/core.txt
$(2)/bin/python -m pip install --quiet --no-deps --no-index dist/*.whl
$(2)/bin/python -m pip check
cd $(2) && bin/python --version && bin/fastblt generate $(abspath $(BUNDLE)) "In the beginning" --max-new-bytes 64

endef

# What builds source distributions comes first. uv knows no configuration of pip's (another index, files on a disk), so
# where it fails pip tries, which stops at a wrong hash as well. PyPI has no CPU build of PyTorch, so pip may find none;
# any other failure, a wrong hash above all, stops.
define install_project
$(INSTALL) -r locks/build.txt -r locks/uv.txt
$(UV_INSTALL) -r $(1) || $(INSTALL) -r $(1)
@if test -n "$(TORCH_LOCK)"; then $(INSTALL) -r $(TORCH_LOCK); \
elif errors=$$($(INSTALL) -r locks/torch-cpu.txt 2>&1); then :; \
else case $$errors in \
	*'No matching distribution'*) \
		echo "pip finds no CPU build of PyTorch; installing PyPI's"; $(INSTALL) -r locks/torch.txt ;; \
	*) echo "$$errors" >&2; exit 1 ;; \
	esac; fi
$(BIN)/python -m pip install --quiet --no-compile --no-deps --no-build-isolation --no-index -e .
endef

# Everything from a fresh clone: each target makes .venv from the pinned requirements first.

PYTHON      ?= python3
# Where a new .venv and the image take torch from. Empty: PyPI (CUDA 13.0, large). CPU only:
# https://download.pytorch.org/whl/cpu; older drivers: https://download.pytorch.org/whl/cu126
TORCH_INDEX ?=
ENGINE      ?= $(shell command -v docker || command -v podman)
VERSION     := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' pvs_model/__init__.py)
IMAGE       ?= pvs-model:$(VERSION)

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.requirements
TRIAL := build/image-test

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all lint bench image image-test image-save clean need-engine

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
	    while IFS='|' read -r name text; do printf '  make %-11s %s\n' "$$name" "$$text"; done

venv: $(STAMP)  ## only make .venv

# The stamp is newer than the requirements once they are installed.
$(STAMP): $(wildcard requirements*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: Python 3.11 or newer is needed; '$(PYTHON)' is missing or older." >&2; \
	    echo "make: name another one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@[ -x $(BIN)/python ] && $(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	    $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	        echo "make: '$(PYTHON)' cannot make virtual environments. On Debian and Ubuntu:" >&2; \
	        echo "make:     apt-get install python3-venv" >&2; exit 1; }; \
	    $(PYTHON) -m venv --clear $(VENV); }
	@[ -z "$(TORCH_INDEX)" ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --index-url "$(TORCH_INDEX)" "$$(grep -m1 '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-nodeps.txt \
	    -r requirements-openvino.txt
	@touch $@

demo: $(STAMP)  ## simulate one subject, segment it, print the scores, draw demo_output/*.png
	$(BIN)/python -m pvs_model demo --output demo_output

# Tests of tiny networks gain nothing from threads: a process per core does (four at most: each takes 2 GiB).
PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: $(STAMP)  ## the tests, without the slow ones
	$(PYTEST) -m "not slow and not gpu"

test-all: $(STAMP)  ## all tests (those that need a GPU skip themselves without one)
	$(PYTEST)

lint: $(STAMP)  ## ruff, mypy, hadolint
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

bench: $(STAMP)  ## seconds and memory per stage
	$(BIN)/python -m benchmarks.speed

need-engine:
	@[ -n "$(ENGINE)" ] || { echo "make: neither docker nor podman is installed." >&2; exit 1; }

image: need-engine  ## build the container image (TORCH_INDEX=... for another torch)
	$(ENGINE) build --build-arg TORCH_INDEX="$(TORCH_INDEX)" --tag $(IMAGE) .

# The image as a challenge runs it, over the demo's simulated case. What the container's user has written is
# copied out and then removed by that same user, since another user may not.
CONFINED = --rm --network none --read-only --tmpfs /tmp:rw,nosuid,nodev,size=4g,mode=1777 --shm-size 128m \
    --cap-drop ALL --security-opt no-new-privileges --pids-limit 512 --memory 8g --memory-swap 8g
image-test: need-engine $(STAMP)  ## run the image over a simulated case: no network, read-only, non-root, 8 GiB
	rm -rf $(TRIAL)/demo $(TRIAL)/masks
	mkdir -p $(TRIAL)/output && chmod 0777 $(TRIAL)/output
	$(BIN)/python -m pvs_model demo --output $(TRIAL)/demo
	$(ENGINE) run $(CONFINED) -v "$(CURDIR)/$(TRIAL)/demo/input:/input:ro,z" \
	    -v "$(CURDIR)/$(TRIAL)/output:/output:rw,z" $(IMAGE)
	cp -R $(TRIAL)/output $(TRIAL)/masks
	$(ENGINE) run $(CONFINED) -v "$(CURDIR)/$(TRIAL)/output:/output:rw,z" --entrypoint find $(IMAGE) \
	    /output -mindepth 1 -delete
	@find $(TRIAL)/masks -name '*.nii.gz' -size +0 | grep . || { echo "make: the image wrote no mask." >&2; exit 1; }

image-save: need-engine  ## write the image to build/*.tar.gz, as grand-challenge takes it
	mkdir -p build
	$(ENGINE) save $(IMAGE) | gzip -c > build/pvs-model-$(VERSION).tar.gz.part
	mv build/pvs-model-$(VERSION).tar.gz.part build/pvs-model-$(VERSION).tar.gz

clean:  ## remove .venv and whatever else was made here
	rm -rf $(VENV) build demo_output .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

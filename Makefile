# One entry for people and CI. `make help` lists the targets; CONTRIBUTING.md says what they check.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
RUN ?= runs/demo
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
MADE := $(VENV)/.made
PACKAGES := kernels/nbagent_kernels context/nbagent_context nbagent benchmarks/bixbench/nbagent_bixbench \
  training/nbagent_training docker/nbagent_images

# Content, not age, decides whether to install again: a fresh checkout or a branch switch changes ages only.
TORCH_KEY := $(shell echo "$(TORCH) $(TORCH_INDEX)" | cksum | cut -d' ' -f1)
PROJECT_KEY := $(shell cksum < pyproject.toml | cut -d' ' -f1)
TORCH_STAMP := $(MADE)/torch-$(TORCH_KEY)
STAMP := $(MADE)/project-$(PROJECT_KEY)

# A build that was asked for by name replaces the one that is there; pip alone would call it satisfied.
ASKED := $(filter-out file default,$(origin TORCH) $(origin TORCH_INDEX))

export HF_HUB_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PYTEST := $(BIN)/pytest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test check slow lint golden vllm images image-python image-full clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  variables  PYTHON=$(PYTHON)  TORCH=$(TORCH)  TORCH_INDEX=$(TORCH_INDEX)  RUN=$(RUN)  WORKERS=$(WORKERS)"

setup: $(STAMP) ## a virtual environment in .venv with PyTorch, nbagent and the development tools

demo: setup ## train a notebook agent on the CPU, score it before and after, write report and notebooks
	$(BIN)/nbagent demo --out $(RUN)

test: lint images ## every check and every test
	OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS)

check: lint ## linters, types, floors and the quick tests, in about two minutes
	OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS) -m "not slow" -q

slow: lint images ## every test, and a new tests/slow.txt: what `make check` leaves out
	NBAGENT_SLOW=write OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS)

lint: setup ## ruff, mypy --strict, import-linter, interrogate
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/interrogate -q $(PACKAGES)

golden: setup ## rewrite the golden files; read the diff before you commit it
	NBAGENT_GOLDEN=write $(PYTEST) -q -k golden
	git --no-pager diff --stat -- tests/golden

vllm: ## real vLLM for machines without a GPU in .venv-vllm (3.4 GB); its tests run where this is
	PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" .ci/vllm

images: setup ## the images that tests run in: python and r; nothing where no Docker engine answers
	@if $(BIN)/python -c 'from nbagent_images.engine import engine; engine().__enter__().ping()' 2>/dev/null; then \
	  for image in python r; do \
	    $(BIN)/nbagent sandbox build --image $$image $(if $(shell command -v mmdebstrap),--offline) || exit; \
	  done; \
	else echo "images: no Docker engine answers; tests that need one are skipped"; fi

image-python: setup ## the image of Python sandboxes, built without a registry
	$(BIN)/nbagent sandbox build --image python --offline

image-full: setup ## the image with R, Bioconductor and command-line tools as well
	$(BIN)/nbagent sandbox build --image full --offline

clean: ## remove .venv, .venv-vllm, caches and builds; runs/ stays
	rm -rf $(VENV) $(VENV)-vllm build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE)/venv:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: no '$(PYTHON)' here; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $$($(PYTHON) --version) is too old, nbagent needs 3.11 or newer; name one: make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) cannot make virtual environments; install them first (Debian, Ubuntu: apt install python3-venv)"; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@mkdir -p $(MADE) && touch $@

$(TORCH_STAMP): | $(MADE)/venv
	$(if $(ASKED),$(BIN)/python -m pip uninstall -q -y torch)
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") "$(TORCH)"
	@rm -f $(MADE)/torch-* && touch $@

$(STAMP): $(TORCH_STAMP)
	$(BIN)/python -m pip install -e ".[dev]"
	@rm -f $(MADE)/project-* && touch $@

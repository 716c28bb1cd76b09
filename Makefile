# The two commands are `make run` and `make test`; each does all of its own set-up and repeats only what changed.
#
#   PYTHON       the interpreter the environment is made from (3.11 or newer)
#   PORT         where the server listens on 127.0.0.1
#   TORCH_INDEX  a package index to take PyTorch from, such as PyTorch's own index of CPU builds: on Linux the
#                default index serves the CUDA build, several GB of it
#   PYTEST_ARGS  passed on to pytest, as in `make test PYTEST_ARGS="-k tokenizer -x"`
#   CUTAWAY_HOME where models are kept, ~/.cache/cutaway unless set

PORT ?= 8000
TORCH_INDEX ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
CHAT := smollm2-135m-instruct
EMBEDDINGS := all-minilm-l6-v2
TEST_MODELS := $(CHAT) $(EMBEDDINGS) gemma-3-270m
STUDIO := $(shell find studio \( -name node_modules -o -name tests \) -prune -o -type f -print 2>/dev/null)

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help run test lint studio clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.core $(VENV)/.studio ## set up, get the default model, start the server and the studio on 127.0.0.1
	@echo "==> models: $(CHAT), $(EMBEDDINGS)"
	@cutaway pull $(CHAT) $(EMBEDDINGS)
	@echo "==> starting the server"
	@exec cutaway serve $(CHAT) --embeddings $(EMBEDDINGS) --port $(PORT)

test: $(VENV)/.test $(VENV)/.studio ## set up, check style and types, run the whole suite
	@echo "==> models: $(TEST_MODELS)"
	@cutaway pull $(TEST_MODELS)
	@sh tools/browser.sh
	@$(MAKE) --no-print-directory lint
	@echo "==> tests"
	@python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.test ## style and types (ruff, mypy; svelte-check where the studio is built)
	@echo "==> ruff, mypy"
	@ruff check --quiet .
	@ruff format --quiet --check .
	@mypy --no-error-summary
	@if [ -d studio/node_modules ]; then echo "==> svelte-check, tsc"; cd studio && npm run --silent check; fi

studio: $(VENV)/.core ## build the studio again
	@sh tools/studio.sh
	@touch $(VENV)/.studio

clean: ## remove the environment and everything built (pulled models stay)
	rm -rf $(VENV) src/cutaway/studio/static studio/node_modules build dist
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf .pytest_cache .mypy_cache .ruff_cache src/*.egg-info

# A stamp is touched when its step is done, so that an interrupted step is repeated and a finished one is not.

$(VENV)/.python:
	@sh tools/venv.sh $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.python
	@echo "==> installing PyTorch (0.2 GB for the CPU build; minutes on a slow line)"
	@$(PIP) "torch==2.13.0" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@touch $@

$(VENV)/.core: pyproject.toml $(VENV)/.torch
	@echo "==> installing Cutaway"
	@$(PIP) -e .
	@echo "==> compiling the kernels for this processor"
	@python -m cutaway.native.build
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "==> installing what the tests compare with"
	@$(PIP) -e ".[test]"
	@touch $@

$(VENV)/.studio: $(VENV)/.core $(STUDIO)
	@sh tools/studio.sh
	@touch $@

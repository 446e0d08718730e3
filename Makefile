PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo up test fast check format openapi install

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

demo: install ## train a real model with PMPO on this machine, and watch it (ARGS="--seed 1", ENGINE=vllm)
	@$(BIN)/powermean demo $(if $(ENGINE),--engine $(ENGINE)) $(ARGS)

up: install ## start the service to stay, on loopback
	@$(BIN)/powermean up $(ARGS)

WITH_VLLM := $(if $(filter vllm,$(ENGINE)),-vllm)

install: ## set up .venv (a second time it does nothing); with ENGINE=vllm that engine as well
	@$(PYTHON) tools/install.py run$(WITH_VLLM)

.PHONY: install-test
install-test:
	@$(PYTHON) tools/install.py test$(WITH_VLLM)

test: install-test ## all tests; prints how many were skipped and why (ENGINE=vllm: vLLM's as well)
	@$(BIN)/python -m pytest $(ARGS)

fast: install-test ## the tests without the slow ones, on all cores
	@$(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist worksteal $(ARGS)

check: install-test ## format, lint, types, import rules, API schema and docs in step
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m server.openapi --check
	$(BIN)/python tools/check_docs.py

format: install-test ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

openapi: install-test ## write openapi.json anew
	$(BIN)/python -m server.openapi

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo up test fast long fuzz chaos check format openapi install

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

demo: install ## train a real model with PMPO on this machine and watch it (ARGS="--seed 1", ENGINE=vllm)
	@$(BIN)/powermean demo $(if $(ENGINE),--engine $(ENGINE)) $(ARGS)

up: install ## start the service on loopback and keep it running
	@$(BIN)/powermean up $(ARGS)

# Byte code is kept even where the shell says otherwise: the tests start hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

WITH_VLLM := $(if $(filter vllm,$(ENGINE)),-vllm)

install: ## set up .venv (repeating it does nothing); ENGINE=vllm installs that engine, too
	@$(PYTHON) tools/install.py run$(WITH_VLLM)

.PHONY: install-test
install-test:
	@$(PYTHON) tools/install.py test$(WITH_VLLM)

test: install-test ## all tests but the long ones; prints how many were skipped and why (ENGINE=vllm: vLLM's, too)
	@$(BIN)/python tools/run_tests.py $(ARGS)

fast: install-test ## the tests without the slow ones and Postgres, on one worker more than there are cores
	@$(BIN)/python -m pytest -m "not slow and not postgres" --hypothesis-profile fast --numprocesses auto --dist worksteal $(ARGS)

long: install-test ## the tests that take a minute of CPU time or more each and that `make test` leaves out (ENGINE=vllm: vLLM's, too)
	@$(BIN)/python -m pytest -m long $(ARGS)

fuzz: install-test ## tens of thousands of generated requests as each role; N=100 for more an operation
	@POWERMEAN_FUZZ=$(or $(N),30) $(BIN)/python -m pytest -s tests/server/test_schema_conformance.py $(ARGS)

chaos: install-test ## 200 faults over 30 jobs, and a table of what was lost: nothing (SEED=7, FAULTS=50, JOBS=8)
	@$(BIN)/python -m tests.chaos.run --seed $(or $(SEED),1) --faults $(or $(FAULTS),200) --jobs $(or $(JOBS),30) $(ARGS)

.PHONY: servers
servers: install-test ## three servers on one Postgres: leads, streams and a rolling restart, with the timings
	@POWERMEAN_REAL_JOB=1 $(BIN)/python -m pytest -s tests/integration/test_several_servers.py $(ARGS)

check: install-test ## check format, lint, types, import rules, API schema and docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m server.openapi --check
	$(BIN)/python tools/check_docs.py

format: install-test ## format, and fix what can be fixed automatically
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

openapi: install-test ## regenerate openapi.json
	$(BIN)/python -m server.openapi

# Everything runs in .venv, which is made from pyproject.toml. Only Python >= 3.11 and git are
# required.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_BIN := .venv-bench/bin
BENCH := .venv-bench/.ready

# Tests start hundreds of interpreters, which must not recompile everything each time.
unexport PYTHONDONTWRITEBYTECODE

# Tests wait for processes of theirs a quarter of the time: one worker more than there are cores.
WORKERS := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

# What checks the project takes one core where it runs beside the tests, and they take the rest.
CHECKS := lint types verify
SQL_RULES_OF_SQLITE := AL03,AM04,LT02,RF01,RF03,RF04,ST06

.DEFAULT_GOAL := help
.PHONY: help setup demo test quick suite fast lint types sql verify format torture pythons mutants bench bench-quick wheel clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Create the environment, .venv

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(READY) ## Run real workers on this checkout, with embedded SQLite
	$(BIN)/metastore demo

test: $(READY) ## Check lint, types, SQL and generated files, and run the whole suite
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target suite sql $(CHECKS)

quick: $(READY) ## The same without the batteries and the SQL checks, while you work
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target fast $(CHECKS)

suite: $(READY) ## Run all tests, on as many cores as there are
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

fast: $(READY) ## Run the tests but for the batteries
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(foreach it,batteries simulation servers,--ignore tests/$(it))

lint: $(READY) ## Check style with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## Check types with mypy --strict
	$(BIN)/mypy

sql: $(VENV)/.sql-sqlite $(VENV)/.sql-postgres ## Check changed SQL with sqlfluff, the shared statements in both dialects

# Each stamp is as old as the last check; $? is what has changed since, and with the rules all has.
SQL_CHANGED = $(filter %.sql,$(if $(filter pyproject.toml,$?),$^,$?))
SQL_LINT := $(BIN)/sqlfluff lint --disable-progress-bar --processes 2

$(VENV)/.sql-sqlite: $(wildcard migrations/sqlite/*.sql migrations/sqlite/*/*.sql sql/*.sql) pyproject.toml | $(READY)
	$(SQL_LINT) --dialect sqlite $(SQL_CHANGED)
	@touch $@

$(VENV)/.sql-postgres: $(filter-out %.sqlite.sql,$(wildcard sql/*.sql)) pyproject.toml | $(READY)
	$(SQL_LINT) --dialect postgres --exclude-rules $(SQL_RULES_OF_SQLITE) $(SQL_CHANGED)
	@touch $@

verify: $(READY) ## Fail when a generated file is stale
	$(BIN)/python -m docs.generate --check

format: $(READY) ## Format the code and write the generated files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m docs.generate

torture: $(READY) ## Run the long batteries: processes that race, are killed and stopped
	$(BIN)/python -m pytest -m torture --torture --ignore tests/simulation
	$(BIN)/python -m pytest -m torture --torture --numprocesses auto --dist worksteal tests/simulation

pythons: $(READY) ## Run the tests on every CPython from 3.11 on, each in .venv-<version>
	$(BIN)/python -m tests.pythons

mutants: $(READY) ## Plant faults in a copy, one at a time, and check that each is caught
	$(BIN)/python -m tests.mutants
	$(BIN)/python -m tests.simulation.mutants

bench: $(BENCH) ## Benchmark against every peer, and update docs/performance.md
	$(BENCH_BIN)/python -m benchmarks --write
	$(BENCH_BIN)/python -m benchmarks.costs --write
	$(BENCH_BIN)/python -m benchmarks.pragmas --write

bench-quick: $(BENCH) ## Benchmark against the main peers in under two minutes, print only
	$(BENCH_BIN)/python -m benchmarks --quick

$(BENCH): pyproject.toml benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	$(BENCH_BIN)/python -m pip install --quiet --editable . --requirement benchmarks/requirements.txt
	@touch $@

wheel: $(READY) ## Build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## Remove the environment and all build products
	rm -rf $(VENV) .venv-3.* .artifacts dist build .mypy_cache .pytest_cache .ruff_cache

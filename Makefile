# Everything a developer types. `make` alone lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON := .venv/bin/python
.PHONY: help setup demo test check format bench bench-quick soak fuzz fronts cycles proto lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing: Debian packages (root or sudo) and .venv; nothing when all is there
	@scripts/setup

demo: setup ## sign a model with a key in SoftHSM, verify it with model_signing, verify its receipt offline
	@$(PYTHON) scripts/demo.py

test: setup ## run the tests (unit, contract, integration, e2e, faults)
	@base=$$(mktemp -d) && trap 'rm -rf "$$base"' EXIT && \
	$(PYTHON) -m pytest -m "not bench" --numprocesses auto --maxprocesses 4 --dist loadfile --basetemp "$$base/t" $(PYTEST_ARGS)

check: setup ## ruff, mypy --strict, import rules, buf lint, drift of generated files and locks
	@scripts/check

format: setup ## format and sort imports
	@.venv/bin/ruff check --quiet --select I --fix . ; .venv/bin/ruff format .

bench: setup ## measure against bare token, bare log and bare gRPC in one run; JSON lines out, docs/benchmarks.md
	@$(PYTHON) -m tests.bench --report docs/benchmarks.md

bench-quick: setup ## the same in under a minute; reports, never judges
	@$(PYTHON) -m tests.bench --quick

soak: setup ## mixed load for SOAK_MINUTES (60): is memory flat, is latency, is the log whole; JSON lines out
	@$(PYTHON) tests/bench/soak.py

fuzz: setup ## fuzz every parser of foreign bytes for FUZZ_SECONDS in sum (180), guided by coverage
	@$(PYTHON) tests/fuzz $(FUZZ_ARGS)

fronts: setup ## three daemons on one PostgreSQL, killed and restarted at random for ten minutes
	@GREATSEAL_FRONTS_SECONDS=$${GREATSEAL_FRONTS_SECONDS:-600} $(PYTHON) -m pytest -s tests/faults/test_fronts_killed.py $(PYTEST_ARGS)

cycles: setup ## pull YubiKeys of a pool and kill their hosts under load, CYCLES times (1,000); a quarter of an hour
	@GREATSEAL_CYCLES=$${CYCLES:-1000} $(PYTHON) -m pytest -s tests/yubikey/test_pool_cycles.py $(PYTEST_ARGS)

proto: setup ## generate clients/python/src/greatseal/v1 from protos/
	@$(PYTHON) scripts/generate_stubs.py

lock: setup ## resolve requirements/*.txt again, with hashes (needs the network)
	@$(PYTHON) scripts/lock.py

clean: ## remove what builds and tests leave; keeps .venv
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage* htmlcov
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

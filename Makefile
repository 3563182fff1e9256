# Everything a person or a machine does here is a target; .ci/run calls nothing else.

# A distribution's own Python comes first: it is built with profile-guided optimisation, as that of the image is, and
# what version managers compile mostly is not (docs/performance.md).
PYTHON ?= $(shell for p in /usr/bin/python3 python3 python3.11 python3.12 python3.13 python3.14; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
WORKERS ?= 2
SEED    ?= 1
HOURS   ?= 24
EXECUTIONS ?= 1000000
EXAMPLES   ?= 1000
VENV    := .venv
BIN     := $(VENV)/bin
UV      := uv==0.13.9
# Scripts in a virtual environment hold its path, so a copied or moved one counts as not made.
READY   := $(VENV)/.ready-$(shell pwd | cksum | cut -d ' ' -f 1)

COMPILE := $(BIN)/uv pip compile --quiet pyproject.toml --universal --generate-hashes --no-header --no-emit-index-url

.DEFAULT_GOAL := help
.PHONY: help tools setup run clean-run test test-clients test-unit check faults faults-ci soak fuzz audit format lock clean bench bench-quick bench-smoke bench-growth

##@ Use

run: $(READY) ## Serve with private Postgres, Valkey and simulator; prints what to paste; Ctrl-C stops all
	@exec $(BIN)/tollhouse run

clean-run: ## Forget the data, keys and master key of `make run`
	rm -rf .run

##@ Measure

bench: $(READY) ## Tollhouse beside what people use, 40 minutes on a quiet machine: bench/results and docs/performance.md
	$(BIN)/python -m bench.run

bench-quick: $(READY) ## The same in four minutes, once each: a look, nothing to quote
	$(BIN)/python -m bench.run --quick

bench-smoke: $(READY) ## CPU per call against nginx, under a minute: fails on an error or a tenfold slip
	$(BIN)/python -m bench.run --smoke

bench-growth: $(READY) ## Does a call cost the same with more tenants, rows and bytes? GROWTH="--tenants 10,10000 ..."
	$(BIN)/python -m bench.growth $(GROWTH)

##@ Change

setup: $(READY) ## Make .venv from the hashed lock

test: $(READY) ## Every test, on real private servers, WORKERS (2) at a time
	@# What failed runs once more alone: real servers on two busy cores miss a deadline now and then.
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile \
		|| $(BIN)/python -m pytest -q --last-failed --last-failed-no-failures none

test-clients: $(READY) ## Unmodified clients, newest from their registries, each in its own environment; prints a table
	$(BIN)/python -m pytest -q tests/clients/suite.py

test-unit: $(READY) ## The tests that start nothing
	$(BIN)/python -m pytest -q tests/unit

check: $(READY) ## Format, lint, types, unit tests, policy files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit
	$(BIN)/tollhouse policies check
	$(BIN)/python helm/schema.py --check
	$(BIN)/python helm/dashboards.py --check

tools: ## Debian packages that some tests use, where this may install them; without them those tests say NOT CHECKED
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		missing=; for tool in spin:spin gcc:gcc promtool:prometheus nginx:nginx wrk:wrk faketime:faketime; do \
			command -v "$${tool%%:*}" >/dev/null || missing="$$missing $${tool##*:}"; done; \
		if [ -n "$$missing" ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $$missing >/dev/null || echo "not installed:$$missing" >&2; fi; \
	else echo "not root or not Debian: left as it is" >&2; fi

faults: $(READY) ## Every fault of docs/reliability.md and every mutant, half an hour on a quiet machine; SEED (1)
	$(BIN)/python -m tests.faults --form full --seed $(SEED) --json build/faults.json
	$(BIN)/python -m tests.faults.report build/faults.json
	$(BIN)/python -m tests.faults --form full --mutants --seed $(SEED)

faults-ci: $(READY) ## The short form, four minutes: a few kills at every named step
	$(BIN)/python -m tests.faults --form ci --seed $(SEED)

soak: $(READY) ## Mixed faults for HOURS (24): memory, files and the invariants of the ledger
	$(BIN)/python -m tests.faults --form soak --hours $(HOURS) --seed $(SEED)

fuzz: $(READY) ## EXECUTIONS (1,000,000) of every fuzzer of tests/fuzz, and its OpenAPI fuzzer with EXAMPLES (1,000) an operation
	$(BIN)/python -m tests.fuzz.run --executions $(EXECUTIONS) --processes $(WORKERS)
	OPENAPI_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -q -rA tests/fuzz/test_openapi.py

audit: $(READY) ## Licences, hashes, secrets in the tree, the wheel's contents, an SBOM, known vulnerabilities where they can be asked for
	$(BIN)/python -m tests.security.audit

format: $(READY) ## Format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(READY) ## Resolve both lock files again from pyproject.toml (keeps what still fits)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	$(COMPILE) --extra embedded --extra otel --group dev --output-file requirements.lock
	$(COMPILE) --extra otel --constraint requirements.lock --no-annotate --output-file requirements.runtime.lock

clean: ## Remove the virtual environment and every cache; `make run`'s data stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

##@ Help

help: ## This list
	@awk 'BEGIN { FS = ":.*## "; printf "Usage: make <target>\n" } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-zA-Z0-9_-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv and ensurepip found (on Debian: apt install python3-venv); name one with PYTHON=..." >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) -V)"
	@rm -f $(VENV)/.ready-*
	@$(PYTHON) -m venv --clear $(VENV)
	@# uv takes seconds and reads no pip configuration; pip takes longer and works where only pip is configured.
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV) \
		&& $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --requirement requirements.lock; then :; else \
		echo "Without uv: installing with pip" >&2; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock; fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Everything runs in .venv, which is created on first use from the locks in requirements/. `make` alone lists the targets.

PYTHON ?= python3
# Arguments for `up`, `demo`, `bench` and `pytest`, as in: make up ARGS="--port 9000"
ARGS ?=
# Test processes side by side. More than there are cores, because many tests mostly wait for timers and for other processes.
JOBS ?= 4

# Compiled once and kept: the tests start a hundred processes, and each would compile the whole service again.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --no-input --quiet
RUNTIME := .venv/.runtime-installed
DEV := .venv/.dev-installed
DOCS := .venv/.docs-installed
BENCH := .venv/.bench-installed
GENERATORS := .venv/.generators-installed
TYPESCRIPT := .venv/.typescript-installed
# One lock for all platforms and Python versions that pyproject.toml allows. Locked versions are kept; `make lock ARGS=--upgrade` takes newer ones.
LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate --no-header

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint pytest guests docs up bench soak openapi client reference fmt lock dist clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(RUNTIME) ## Install everything and show pools, claims and every path to a VM
	$(BIN)/emberpool demo $(ARGS)

test: lint docs pytest ## Everything that must pass: format, lint, types, import contracts, documents, tests

lint: $(DEV) ## Only the checks without the tests: format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

pytest: $(DEV) $(DOCS) $(GENERATORS) $(TYPESCRIPT) ## Only the tests; they include migrations and generated files
	$(BIN)/pytest -n $(JOBS) --dist loadscope $(ARGS)

guests: $(DEV) ## Only the tests of real guests, and why any is skipped (needs QEMU, and apt for their guest)
	@command -v qemu-system-x86_64 >/dev/null && command -v qemu-img >/dev/null || echo "QEMU is missing: apt-get install qemu-system-x86 qemu-utils" >&2
	$(BIN)/pytest -rs tests/unit/devcluster/guests tests/integration/devcluster/guests $(ARGS)

docs: $(DOCS) ## Build the documents into build/site; a broken link is an error
	$(BIN)/zensical build --strict

up: $(RUNTIME) ## Serve with an embedded Postgres and a dev cluster, until stopped
	$(BIN)/emberpool up $(ARGS)

bench: $(BENCH) ## Measure what a claim costs, and check its bounds (needs wrk)
	$(BIN)/python -m bench.claims $(ARGS)

soak: $(RUNTIME) ## Run the service under faults and kills, and check its invariants
	$(BIN)/python -m bench.soak $(ARGS)

openapi: $(RUNTIME) ## Generate openapi/openapi.json
	mkdir -p openapi
	$(BIN)/emberpool openapi > openapi/openapi.json.new
	mv openapi/openapi.json.new openapi/openapi.json

client: openapi $(DEV) ## Generate what of clients/python is made of the OpenAPI document
	$(BIN)/python -m scripts.client

reference: $(RUNTIME) ## Generate docs/settings.md and docs/metrics.md
	$(BIN)/python -m scripts.reference

fmt: $(DEV) ## Format, and fix what the linter can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(BIN)/pip ## Resolve the dependencies into requirements/
	$(PIP) install uv
	$(LOCK) pyproject.toml --extra local --group dev -o requirements/dev.txt $(ARGS)
	$(LOCK) pyproject.toml -c requirements/dev.txt -o requirements/runtime.txt $(ARGS)
	$(LOCK) pyproject.toml --extra local -c requirements/dev.txt -o requirements/local.txt $(ARGS)
	$(LOCK) pyproject.toml --extra local --group bench -c requirements/dev.txt -o requirements/bench.txt $(ARGS)
	$(LOCK) --group generators -o requirements/generators.txt $(ARGS)
	$(LOCK) --group docs -c requirements/dev.txt -o requirements/docs.txt $(ARGS)
	echo setuptools | $(LOCK) - -c requirements/dev.txt -o requirements/build.txt $(ARGS)

dist: $(DEV) ## Build the wheels and the source distributions, of the service and of the client, into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m build --no-isolation --outdir dist clients/python

clean: ## Remove .venv, caches and builds; the data of `up` stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info clients/python/build clients/python/*.egg-info

# setuptools comes from a lock, so that the project is built without a download.
$(RUNTIME): requirements/local.txt requirements/build.txt pyproject.toml | $(BIN)/pip
	$(PIP) install --require-hashes -r requirements/local.txt -r requirements/build.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

$(DEV): requirements/dev.txt $(RUNTIME)
	$(PIP) install --require-hashes -r requirements/dev.txt
	touch $@

$(DOCS): requirements/docs.txt | $(BIN)/pip
	$(PIP) install --require-hashes -r requirements/docs.txt
	touch $@

$(BENCH): requirements/bench.txt $(RUNTIME)
	$(PIP) install --require-hashes -r requirements/bench.txt
	touch $@

# Generators of clients, which the tests run. Each has an environment of its own, beside the service's.
$(GENERATORS): requirements/generators.txt | $(BIN)/pip
	$(BIN)/python -m venv .venv/generators
	.venv/generators/bin/pip --disable-pip-version-check --no-input --quiet install --require-hashes -r requirements/generators.txt
	touch $@

# Where npm is not there, or reaches no registry, the tests that need it are skipped, and say so.
$(TYPESCRIPT): tests/generators/typescript/package-lock.json | $(BIN)/pip
	@mkdir -p .venv/typescript
	@cp tests/generators/typescript/package.json tests/generators/typescript/package-lock.json .venv/typescript
	@if (cd .venv/typescript && npm ci --silent --no-audit --no-fund --ignore-scripts) >/dev/null 2>&1; then touch $@; \
	else rm -rf .venv/typescript; echo "openapi-typescript is not tested: npm is not there, or cannot install it" >&2; fi

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Emberpool needs Python 3.11 or newer, and '$(PYTHON)' is not: $$($(PYTHON) --version 2>&1). Name one: make $(MAKECMDGOALS) PYTHON=python3.13" >&2; exit 1; }
	$(PYTHON) -m venv .venv

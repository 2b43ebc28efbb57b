# Targets for people who work on the code. Users need only scripts/quickstart.sh and scripts/test.sh.
PYTHON := .venv/bin/python
THREADS := 2
STEP = $(PYTHON) -m benchmarks align_step --threads $(THREADS)
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

.PHONY: setup format lint types fast test check bench faults pages site clean

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

bench: setup      ## every benchmark, which takes hours; lines and a plot in output/benchmarks; THREADS=1 for a shared machine
	mkdir -p output/benchmarks
	$(STEP) --precision fp32 bf16 --test-batch 4 --reference-rounds 2 | tee output/benchmarks/step.txt
	$(STEP) --classes 10 50 400 1000 --budget 7 --precision fp32 bf16 --reference-classes 15 35 --test-batch 4 --rounds 2 | tee output/benchmarks/classes.txt
	$(STEP) --modes 1 2 4 8 --precision fp32 bf16 --reference-rounds 0 --rounds 2 | tee output/benchmarks/modes.txt
	$(PYTHON) -m benchmarks shots --threads $(THREADS) | tee output/benchmarks/shots.txt
	$(PYTHON) -m benchmarks plot $(addprefix output/benchmarks/,modes.txt classes.txt step.txt shots.txt) --output output/benchmarks/cost.png
	for name in methods sinkhorn feature_cache; do \
	  $(PYTHON) -m benchmarks $$name --threads $(THREADS) | tee output/benchmarks/$$name.txt || exit 1; \
	done
	$(PYTHON) -m benchmarks loader | tee output/benchmarks/loader.txt

faults: setup     ## 220 kills, full and broken disks and unreadable files in runs of 11 set-ups; --kills 0 --others 0: everywhere
	$(PYTHON) tests/faults/every_fault.py

site: setup       ## the documentation as a site, in build/site
	$(PYTHON) -m mkdocs build --strict

pages:            ## docs/results: Markdown and one HTML page per recipe of the embedded benchmark, from the runs in output/
	for recipe in recipes/embedded_*.yaml; do \
	  $(PYTHON) report.py $$recipe --output docs/results --format md,html --no-links || exit 1; \
	done

clean:            ## caches only; runs in output/ stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# Needs Python >= 3.11, git and make, and nothing activated.
PYTHON ?= python3
# DVC runs `python -m stages...`: the project's own python has to be the first one in PATH
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# DVC cannot name this folder in a locale without UTF-8, if the name has other letters than ASCII's
export PYTHONUTF8 := 1
INSTALLED := .venv/.installed

.PHONY: help install repro study verify test lint bench sync find check serve ui

help:
	@echo "make repro   run the pipeline, as far as it is not up to date, and show the comparison"
	@echo "make study   compare the recipes over several seeds (what is committed is not run again)"
	@echo "make verify  compute the committed results anew and compare, to the bit"
	@echo "make test    run the tests"
	@echo "make lint    ruff and mypy"
	@echo "make bench   measure what is fast, what it is compared with, and where the time goes"
	@echo "make sync    write the MLflow runs that are missing, from the results"
	@echo "make find WHAT=RUN|MODEL|FILE|COMMIT   from a run to its commits, from a commit to its runs"
	@echo "make ui      browse the runs in MLflow (PORT=...)"
	@echo "make check WHAT=MODEL   whether a logged model is, byte by byte, what a commit holds"
	@echo "make serve   answer images over HTTP with the champion"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"error: {sys.executable} is Python {sys.version.split()[0]}, needed is 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED)

repro: $(INSTALLED)
	@python -m stages.preflight
	dvc repro
	@[ "$(MIRROR)" = off ] || python -m stages.tracking sync || true
	@echo
	@cat reports/comparison.md
	@echo
	@echo "Figures: reports/figures   Metrics: .venv/bin/dvc metrics show   Runs: make ui"

study: $(INSTALLED)
	@python -m stages.preflight
	dvc repro study/dvc.yaml
	@[ "$(MIRROR)" = off ] || python -m stages.tracking sync-study || true
	@echo
	@cat reports/study/study.md

test: $(INSTALLED)
	python -m pytest -m 'not slow'

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy

# A quarter of an hour, and 7 GB of scratch space for the largest set of images
bench: $(INSTALLED)
	@python -m benchmarks

sync: $(INSTALLED)
	@python -m stages.tracking sync $(REV)
	@$(if $(REV),,python -m stages.tracking sync-study)

find: $(INSTALLED)
	@python -m stages.tracking find '$(WHAT)'

check: $(INSTALLED)
	@python -m stages.tracking check '$(WHAT)'

# The model is served only if it is, byte by byte, what a commit's dvc.lock holds
MODEL ?= models:/mnist@champion
serve: $(INSTALLED)
	@python -m stages.serve '$(MODEL)' $(or $(PORT),5001)

# Without PORT it is 5000, or the first free one after it
ui: $(INSTALLED)
	@python -m stages.tracking ui $(PORT)

# Clones the last commit, computes everything anew and compares with dvc.lock (three minutes)
verify: $(INSTALLED)
	@python -m stages.verify

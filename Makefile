# Needs Python >= 3.11, git and make, and nothing activated.
PYTHON ?= python3
VENV := .venv
# The model is built from the weights in a commit's dvc.lock
MODEL ?= models:/mnist@champion
# Values that a user gives are data: no $ in them is expanded, and a recipe reads them from its
# environment ("$$WHAT"), so no quote in them ends a string of the shell.
GIVEN := PYTHON VENV MODEL WHAT REV IMAGE FORMAT ATTEST SCHEDULER WORKERS RENDEZVOUS HOST PORT ENGINE \
    AUDIT MIRROR
# Only from the command line: tcsh and conda have a HOST of their own in the environment
ifneq ($(origin HOST),command line)
override HOST := 127.0.0.1
endif
$(foreach name,$(GIVEN),$(if $(filter undefined,$(origin $(name))),,\
    $(eval override $(name) := $$(value $(name)))$(eval export $(name))))
# By its path, because make 3.81 (macOS) does not look for programs in the PATH that is set here
PY := $(if $(filter .venv,$(VENV)),.venv,"$$VENV")/bin/python
# DVC runs `python -m stages...`: the project's own python has to be the first one in PATH
export PATH := $(if $(filter /%,$(VENV)),,$(CURDIR)/)$(VENV)/bin:$(value PATH)
# DVC cannot name this folder in a locale without UTF-8, if the name has other letters than ASCII's
export PYTHONUTF8 := 1
INSTALLED := installed
WITH_ENGINES = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[engines]'
# The settings of pip that would put packages elsewhere than into $(VENV) are taken back, also for
# the pip that pip itself starts. The others hold, such as the address of the index.
export PIP_USER := 0
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_NO_DEPS PIP_DRY_RUN

.PHONY: help install installed environment repro join study search scheduler worker verify attest test mutants lint bench sync find predict serve ui

help:
	@echo "make repro   run the pipeline, as far as it is not up to date, and show the comparison"
	@echo "             WORKERS=3: three processes share each training; RENDEZVOUS=HOST:PORT: others join"
	@echo "make join RENDEZVOUS=HOST:PORT   let this machine work for the trainings of that one"
	@echo "make study   compare the recipes over several seeds (what is committed is not run again)"
	@echo "make search  search for recipes on validation images (what is committed is not run again)"
	@echo "             both on other machines: ENGINE=dask://HOST:PORT or ENGINE=slurm"
	@echo "make scheduler   the one that ENGINE=dask://HOST:8786 and SCHEDULER=HOST:8786 name"
	@echo "make worker SCHEDULER=HOST:PORT   let this machine compute cells for the study elsewhere"
	@echo "make verify  compute the committed results anew and compare, to the bit"
	@echo "make attest  on how many kinds of machines each out was rebuilt (ATTEST=yes make verify writes a statement)"
	@echo "make test    run the tests"
	@echo "make mutants make mistakes in the code, one at a time, and see whether the tests notice"
	@echo "             (WHAT='stages.scoring*': only in the functions of this name)"
	@echo "make lint    ruff, mypy, codespell and zizmor"
	@echo "make bench   measure what is fast, what it is compared with, and how it grows"
	@echo "make sync    write the MLflow runs that are missing, from the results"
	@echo "make find WHAT=RUN|MODEL|FILE|COMMIT   from a run to its commits, from a commit to its runs"
	@echo "make predict IMAGE=photo.png   what both networks say about a digit on paper, or a folder of them"
	@echo "             (IMAGE=- reads standard input, FORMAT=json writes JSON)"
	@echo "make ui      browse the runs in MLflow (PORT=...)"
	@echo "make serve   answer images over HTTP with the champion"
	@echo "             both for other machines, too: HOST=0.0.0.0, or an address of this machine"

.DEFAULT:
	@echo "error: there is no target $@: \`make\` lists those that there are" >&2; exit 2

install: $(INSTALLED)

# By content: see install.py
installed:
	@$(PY) -IS install.py "$$VENV" --check 2>/dev/null || $(MAKE) --no-print-directory environment

environment:
# What the machine lacks is said before anything is downloaded
	@case "$$(uname)" in *_NT*) echo "error: on Windows this runs in WSL: \`wsl --install\`, and make there" >&2; exit 2;; esac
	@command -v "$$PYTHON" >/dev/null || { echo "error: there is no $$PYTHON in PATH: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: %s is Python %s, needed is 3.11 or newer: make PYTHON=python3.12 ..." % (sys.executable, sys.version.split()[0]) or sys.maxsize < 2**32 and "error: %s is a 32-bit Python, and PyTorch is made for 64 bits only: make PYTHON=..." % sys.executable)'
	@$(PY) -m pip --version >/dev/null 2>&1 || "$$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $$PYTHON cannot make an environment, because its module venv or ensurepip is missing: on Debian and Ubuntu, \`apt install python3-venv\`" >&2; exit 1; }
	@"$$PYTHON" -IS install.py "$$VENV"

# Looks after the pipeline: its locks and its runs. Those of the study are left to `make study`
repro: $(INSTALLED)
	@$(PY) -m dvc_guard mend --project .
	$(PY) -m dvc repro
	@! test -f reports/comparison.md || { echo; cat reports/comparison.md; echo; }
	@[ "$$MIRROR" = off ] || $(PY) -m dvc_mlflow sync --project . --address || true
	@echo "Metrics: $$VENV/bin/dvc metrics show   MLflow: make ui"
	@! test -f reports/report.html || echo "Open in a browser: reports/report.html"

study: $(INSTALLED)
	@$(PY) -m dvc_guard mend
	@case "$$ENGINE" in ""|local*) ;; *) $(WITH_ENGINES);; esac
	$(PY) -m dvc repro prepare
	cd study && python -m dvc repro bits
	@$(PY) -m study.engine
# Only the report: all cells are there now, and the search is not asked for
	cd study && python -m dvc repro --single-item report
	@[ "$$MIRROR" = off ] || $(PY) -m dvc_mlflow sync || true
	@echo
	@cat study/report/study.md
	@echo
	@echo "Open in a browser: study/report/study.html"

search: $(INSTALLED)
	@$(PY) -m dvc_guard mend
	@case "$$ENGINE" in ""|local*) ;; *) $(WITH_ENGINES);; esac
	$(PY) -m dvc repro prepare
	cd study && python -m dvc repro findings
	@[ "$$MIRROR" = off ] || $(PY) -m dvc_mlflow sync || true
	@echo
	@echo "Open in a browser: study/findings/search.html"

scheduler: $(INSTALLED)
	@$(WITH_ENGINES)
	$(PY) -m dask scheduler --port "$${PORT:-8786}"

# One cell at a time on each core
worker: $(INSTALLED)
	@test -n "$$SCHEDULER" || { echo "error: make worker SCHEDULER=HOST:PORT names the scheduler of Dask" >&2; exit 2; }
	@$(WITH_ENGINES)
	$(PY) -m dvc repro prepare
	MIRROR=off $(PY) -m dask worker "tcp://$$SCHEDULER" --nthreads 1 --nworkers "$${WORKERS:--1}" --no-dashboard

# Until Ctrl-C. WORKERS=N: so many processes instead of one, which has a thread for each core
join: $(INSTALLED)
	@test -n "$$RENDEZVOUS" || { echo "error: make join RENDEZVOUS=HOST:PORT names the machine that trains" >&2; exit 2; }
	$(PY) -m dvc repro prepare
	@$(PY) -m stages.learn.launch

test: $(INSTALLED)
	$(PY) -m pytest -n 2 --dist worksteal

# Hours without WHAT. It may be stopped: the next one goes on
mutants: $(INSTALLED)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mutants]'
	MIRROR=off $(PY) -m mutmut run $${WHAT:+"$$WHAT"}

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m codespell_lib
	zizmor --offline --quiet .github

# Half an hour, and 7 GB of scratch space for the largest set of images
bench: $(INSTALLED)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	@$(PY) -m benchmarks

sync: $(INSTALLED)
	@$(PY) -m dvc_mlflow sync $${REV:+"--rev=$$REV"}

find: $(INSTALLED)
	@$(PY) -m dvc_mlflow find -- "$$WHAT"

# One name, because names have spaces: a file, a folder, or - for standard input
predict: $(INSTALLED)
	@test -n "$$IMAGE" || { echo "error: make predict IMAGE=photo.png names an image or a folder of images" >&2; exit 2; }
	@$(PY) -m stages.predict $${FORMAT:+"--format=$$FORMAT"} -- "$$IMAGE"

serve: $(INSTALLED)
	@$(PY) -m stages.serve "$$MODEL" "$${PORT:-5001}" "$${HOST:-127.0.0.1}"

# Without PORT it is 5000, or the first free one after it. The pages open although a sync fails.
ui: $(INSTALLED)
	@[ "$$MIRROR" = off ] || $(PY) -m dvc_mlflow sync || true
	@$(PY) -m dvc_mlflow view "--host=$${HOST:-127.0.0.1}" -- "$$PORT"

# Clones the last commit, computes everything anew and compares with dvc.lock (two to seven minutes)
verify: $(INSTALLED)
	@$(PY) -m dvc_guard verify $${ATTEST:+--statement}

# Checks the statements in reports/rebuilds
attest: $(INSTALLED)
	@$(PY) -m dvc_guard attest

PYTHON ?= python3
PORT ?= 5000
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := fedray jobs tests benchmarks
REAL := real

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint ui real zoo clean

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## five small LLMs answer 200 questions together (installs everything first)
	$(BIN)/python jobs/federate.py

test: $(VENV)/.installed-dev ## the tests, without the slow ones
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-dev ## the slow tests only
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: $(VENV)/.installed-dev ## ruff and pyright
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/pyright

ui: $(VENV)/.installed ## browse the runs with MLflow on http://127.0.0.1:5000 (PORT=..., MLFLOW_TRACKING_URI=...)
	$(BIN)/mlflow ui --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db} --workers 1 --port $(PORT)

real: $(VENV)/.installed-real ## two real LLMs (330 MB): train a translator of drafts, measure what it carries (an hour)
	$(BIN)/python benchmarks/real/fetch.py $(REAL)
	$(BIN)/python benchmarks/real/documents.py $(REAL)/factbook $(REAL)/data
	$(BIN)/python jobs/train_fuser.py +experiment=real_translator
	$(BIN)/python jobs/evaluate.py +experiment=real
	$(BIN)/python jobs/federate.py zoo=hub receiver=$(REAL)/smollm2.gguf task.limit=null \
		questions=$(REAL)/data/pooled.jsonl protocol=standalone
	$(BIN)/python jobs/federate.py zoo=hub receiver=$(REAL)/smollm2.gguf task.limit=null \
		questions=$(REAL)/data/test.jsonl '+senders=[$(REAL)/smollm2.gguf#2]' fuser=identity gate=open

zoo: $(VENV)/.installed ## train the embedded LLMs, fusers and gates from nothing (hours)
	$(BIN)/python jobs/build_zoo.py

clean: ## remove caches and build folders; runs, weights and the virtual environment stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed anew only when the dependencies change.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fedray needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "installing into $(VENV) (once, some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) -c constraints.txt -e '.[all,dev]'
	@touch $@

$(VENV)/.installed-real: $(VENV)/.installed
	@$(PIP) -c constraints.txt -e '.[all,gguf]'
	@touch $@

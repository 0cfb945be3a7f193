# `make` alone lists the targets. `demo` and `test` set up all they need: Python 3.11+, pip and make suffice.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= 2

# The stamps carry a checksum of what is installed, so that a change there, and nothing else, installs anew.
KEY := $(shell cat pyproject.toml requirements.lock | cksum | cut -d' ' -f1)
CORE := $(VENV)/core-$(KEY)
DEV := $(VENV)/dev-$(KEY)
NOTEBOOKS := $(VENV)/notebooks-$(KEY)
CHAT := $(VENV)/chat-$(KEY)
PORT ?= 8000
# setuptools warns of what an editable installation is, which this is meant to be.
INSTALL = PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q -c requirements.lock -e

.DEFAULT_GOAL := help
.PHONY: help demo chat-model chat test exhaustive lint notebooks notebook clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(CORE)  ## train a small GPT from raw text on this machine (ARGS=--fresh starts over)
	$(BIN)/python -m pretraining.demo $(ARGS)

# A model that answers needs one that can write: without the demo's, that is made first.
chat-model: $(CORE)  ## teach the demo's model to answer, on this machine (ARGS=--fresh starts over)
	test -e runs/demo/results.json || $(BIN)/python -m pretraining.demo
	$(BIN)/python -m finetuning.instruction.train demo $(ARGS)

chat: $(CHAT)  ## talk to the models in runs/, or to GPT-2, in the browser (PORT=8000)
	$(BIN)/python -m chat_ui.server --host 127.0.0.1 --port $(PORT) --runs runs $(ARGS)

# Each worker has one core: two threads each would wait for one another, and so would processes that compile.
PYTEST = OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

test: $(DEV)  ## run the tests (ARGS="-m 'not slow'" for a quick round, WORKERS=8 with more cores)
	$(PYTEST) $(ARGS)

exhaustive: $(DEV)  ## sweep all that the tests take samples of; stores results/exhaustive.json
	$(PYTEST) -m exhaustive --record results/exhaustive.json $(ARGS)

lint: $(DEV)  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What a cell prints is stored in as many parts as it came in; the second command joins them, so that pages compare.
PAGES := $(wildcard [a-z]*/[0-9]*.ipynb [a-z]*/*/[0-9]*.ipynb [a-z]*/*/*/[0-9]*.ipynb)
notebooks: $(NOTEBOOKS)  ## execute every notebook and store its outputs
	$(BIN)/jupyter nbconvert --to notebook --inplace --execute --ExecutePreprocessor.record_timing=False $(PAGES)
	$(BIN)/jupyter nbconvert --coalesce-streams $(PAGES)

notebook: $(NOTEBOOKS)  ## open the notebooks in Jupyter
	$(BIN)/jupyter lab

clean:  ## delete the environment and caches; runs/ stays
	rm -rf $(VENV) $(VENV).lock build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(CORE): | $(VENV)/ready
	$(INSTALL) .
	@touch $@

# With an extra comes the core.
$(DEV) $(NOTEBOOKS) $(CHAT): $(VENV)/%-$(KEY): | $(VENV)/ready
	$(INSTALL) '.[$*]'
	@touch $@ $(CORE)

$(VENV)/ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON) cannot make virtual environments; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@mkdir $(VENV).lock 2>/dev/null || { \
		echo "error: another make is setting up $(VENV): wait for it; if there is none, make clean" >&2; exit 1; }; \
	trap 'rmdir $(VENV).lock 2>/dev/null' EXIT INT TERM; \
	echo "setting up $(VENV): the first time downloads packages, PyTorch above all"; \
	rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install -q --upgrade pip && touch $@

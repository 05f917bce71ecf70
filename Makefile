PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint lock
demo: $(VENV)/.ready
	$(BIN)/python pipeline/run.py configs/digits

test: $(VENV)/.ready
	$(BIN)/python -m pytest

lint: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt ruff
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

lock:  # needs uv; writes versions only, no addresses
	uv pip compile pyproject.toml --all-extras --universal --no-emit-index-url --no-annotate --no-header -o constraints.txt

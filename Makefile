PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test check docs pretrained lock test-lowest test-newest
demo: $(VENV)/.ready
	$(BIN)/python pipeline/run.py configs/digits

test: $(VENV)/.ready-to-test
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

check: $(VENV)/.ready-to-test  # style and types
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[check]'
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

docs: $(VENV)/.ready-to-test
	$(BIN)/sphinx-build -W --keep-going -n -q -b html docs build/docs
	@echo "the site is build/docs/index.html"

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.ready-to-test: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

pretrained: $(VENV)/.ready  # trains what comes with the package again: minutes
	$(BIN)/python pipeline/run.py configs/digits_small
	$(BIN)/python tokenizer/evaluate.py runs/digits_small
	$(BIN)/python prior/evaluate.py runs/digits_small
	$(BIN)/python pipeline/evaluate.py runs/digits_small
	$(BIN)/python pipeline/publish.py runs/digits_small --to pretrained/digits --place smalti/digits --license apache-2.0

lock:  # needs uv; writes versions only, no addresses
	uv pip compile pyproject.toml --all-extras --universal --no-emit-index-url --no-annotate --no-header -o constraints.txt

test-lowest:  # needs uv; the tests with the oldest versions that pyproject.toml allows
	uv venv --quiet --clear --python $(PYTHON) build/lowest
	uv pip install --quiet --python build/lowest --resolution lowest-direct -e '.[test]'
	build/lowest/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test-newest:  # needs uv; the tests with the newest, whatever constraints.txt says
	uv venv --quiet --clear --python $(PYTHON) build/newest
	uv pip install --quiet --python build/newest --resolution highest -e '.[test]'
	build/newest/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

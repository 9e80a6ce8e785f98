PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test bench lint clean

demo: $(VENV)/.installed
	$(BIN)/python -m examples.digits

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

bench: $(VENV)/.installed-test
	$(BIN)/python -m tests.benchmarks

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and pinned, so that no later step can pull another build of it.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (once, about a minute) ..."
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable ".[test,cli]"
	@touch $@

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without compiling ahead: half of an install's time went into files that nobody imports.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

.PHONY: demo test bench lint clean

demo: $(VENV)/.installed
	$(BIN)/python -m examples.digits

# A thread for each of the tests' processes: two that each take all cores wait for each other. Asserts are told in full
# only for tests that failed: rewriting all of them takes longer than collecting the tests.
test: export OMP_NUM_THREADS = 1
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal --assert=plain || { $(BIN)/python -m pytest --last-failed; exit 1; }

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

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) with what tests need (once, about a minute) ..."
	$(PIP) torch
	$(PIP) --editable ".[test,cli]"
	@touch $(VENV)/.installed $@

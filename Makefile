# Two commands do everything: `make demo` and `make test`. PYTHON chooses the interpreter.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test test-slow test-hardware lint docs clean

# One thread: the demo's network is too small to share, and its numbers then depend on no core count.
demo: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/divqat run --config examples/demo.yaml --out runs/demo --resume

# Two processes of one thread each; a file's tests stay together, for they share what they trained.
test: $(VENV)/.installed-dev lint docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not hardware"

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "slow and not hardware"

test-hardware: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m hardware

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A warning is an error: mkdocs.yml says strict.
docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build -q -d site

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
		|| { echo "Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# About 3 minutes and 5 GB, most of it torch.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[dev,fpga]'
	@touch $@ $(VENV)/.installed

# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: install demo test test-all test-lowest test-newest lint audit docs guide clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,app]"
	touch $@

demo: install
	$(BIN)/hf-coop demo --output outputs/demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

CRAFTED ?= 500  # crafted files to open

test-all: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -m "" --crafted $(CRAFTED)

# The suite at the oldest versions that pyproject.toml allows, and at the newest there are; of torch, whose other builds
# are gigabytes, both take the one of constraints.txt. Without the app, whose Gradio holds Pillow and pydantic back.
# `make test-lowest TORCH=2.8.0` checks the oldest torch as well.
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)

test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	echo torch==$(TORCH) | .venv-lowest/bin/uv pip compile --quiet --resolution lowest-direct --extra dev \
		--python .venv-lowest/bin/python --output-file .venv-lowest/constraints.txt pyproject.toml -
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable ".[dev]"
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest --numprocesses 2

test-newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager torch==$(TORCH) --editable ".[dev]"
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest --numprocesses 2

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known vulnerabilities of the pinned versions; a pin that the service does not know is an error too.
audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

# The site in build/site. The warning that is silenced is of a future mkdocs 2.
docs: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# docs/how-clip-reads-a-class-name.md and its figures, from the notebook of that name.
guide: install
	$(BIN)/python docs/make_guide.py

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest .venv-audit outputs build dist

# Two commands on a fresh machine with python3, pip and make: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-slow check lint types bench lock clean

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --upgrade --target .uv uv
	.uv/bin/uv venv --quiet --clear --python $(PYTHON) .venv
	.uv/bin/uv pip sync --quiet --python $(BIN)/python requirements.lock
	.uv/bin/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@


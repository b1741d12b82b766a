# Two commands on a fresh machine with python3, pip and make: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-slow check lint types bench gpu-check gpu-paper lock clean

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --upgrade --target .uv uv
	.uv/bin/uv venv --quiet --clear --python $(PYTHON) .venv
	.uv/bin/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	.uv/bin/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: $(STAMP)  ## set-up and the main job: train, fit, score an S3 archive on Ray, evaluate
	$(BIN)/gradosr demo

test: $(STAMP)  ## set-up and the tests
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile --durations 15

test-slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/pytest -m slow -n 2 --dist loadfile --durations 30

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test  ## lint, strict types, tests

bench: $(STAMP)  ## the speed table of the README, measured on this machine
	$(BIN)/gradosr bench table README.md

gpu-check: $(STAMP)  ## on a CUDA device: the tests that need one, and what it does how fast (into gpu.json)
	$(BIN)/pytest -m gpu
	$(BIN)/gradosr bench gpu gpu.json

gpu-paper: $(STAMP)  ## on a CUDA device: the paper's preset on well-trained networks; DATA holds cifar10-jpg/
	$(BIN)/gradosr evaluate --protocol osr configs/evaluate-paper-gpu.yaml --set device=cuda --set data=$(DATA)

lock:  ## pin the newest versions, with hashes and without any registry's address
	.uv/bin/uv pip compile pyproject.toml --all-extras --generate-hashes --universal --python-version 3.10 \
		--no-header --upgrade --output-file requirements.lock

clean:
	rm -rf .venv .uv build dist demo gpu.json *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

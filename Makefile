# Two commands on a fresh machine with python3, pip and make: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-slow check lint types docs bench gpu-check gpu-paper lock release-check sbom clean

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

docs: $(STAMP)  ## the documentation as a site in site/; a dead link fails
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

bench: $(STAMP)  ## the speed table of docs/cost.md, measured on this machine
	$(BIN)/gradosr bench table docs/cost.md

gpu-check: $(STAMP)  ## on a CUDA device: the tests that need one, and what it does how fast (into gpu.json)
	$(BIN)/pytest -m gpu
	$(BIN)/gradosr bench gpu gpu.json

gpu-paper: $(STAMP)  ## on a CUDA device: the paper's preset on well-trained networks; DATA holds cifar10-jpg/
	$(BIN)/gradosr evaluate --protocol osr configs/evaluate-paper-gpu.yaml --set device=cuda --set data=$(DATA)

lock:  ## pin the newest versions, with hashes and without any registry's address
	.uv/bin/uv pip compile pyproject.toml --all-extras --generate-hashes --universal --python-version 3.10 \
		--no-header --upgrade --output-file requirements.lock

release-check: $(STAMP)  ## sdist and wheel, and whether they are fit to be published
	rm -rf build dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

sbom: $(STAMP)  ## a CycloneDX list of everything installed, in sbom.json
	$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --output-file sbom.json $(BIN)/python

clean:
	rm -rf .venv .uv build dist site sbom.json demo gpu.json *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Everything runs in .venv, which these targets make on their own. `make train` and `make test` need
# nothing but Python >= 3.11 (with its venv module) and the network.
PYTHON ?= python3
BIN := .venv/bin
# Without an NVIDIA driver a CPU build of torch saves gigabytes: it is taken where pip's index offers
# one (local version `+cpu`), otherwise the index's default build is.
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: train test test-full lint bench report docs clean

train: .venv/installed
	$(BIN)/python train.py slim env=tabletop seed=1

test: .venv/installed-dev
	$(BIN)/python -m pytest -q

test-full: .venv/installed-dev
	$(BIN)/python -m pytest -q -m full

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/installed
	$(BIN)/python benchmarks/slim.py all

report: .venv/installed
	$(BIN)/python benchmarks/gallery.py $(wildcard runs)

# NO_MKDOCS_2_WARNING: the theme announces its successor, which is no warning about our pages.
docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml
	@echo 'open dist/docs/index.html'

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	command -v nvidia-smi >/dev/null || $(BIN)/python -m pip install -q '$(TORCH)+cpu' 2>/dev/null \
		|| echo 'no CPU build of torch on offer, taking the default one'
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,docs,plot,video,ray,onnx]'
	touch $@

clean:
	rm -rf .venv runs

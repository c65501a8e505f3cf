# A fresh machine needs only Python (3.11 to 3.13, with its venv module) and make.
#   make run ARGS="guide=savi train.steps=500"                    the main command, its settings in ARGS
#   make run PYTHON=/path/to/python3.12                           builds .venv from that Python
#   make docs                                                     executes the notebooks, builds the site in build/site
#   make notebooks                                                executes them, writes notebooks/*.ipynb; ARGS="01 03" picks some
#   make run TORCH_INDEX=https://download.pytorch.org/whl/cpu     takes torch from that index (here: CPU builds,
#                                                                 where pip would fetch the much larger CUDA ones)
ARGS ?= guide=sib
TORCH_INDEX ?=
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	>/dev/null 2>&1 && echo $$p && break; done)

BIN := .venv/bin
READY := .venv/.ready
READY_DOCS := .venv/.ready_docs

# Compiled modules are kept: otherwise each process of a test, of a notebook or of a benchmark compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test check docs notebooks wheel dist bench bench-gpu audit clean

run: $(READY)
	$(BIN)/python -m experiments.run $(ARGS)

# What the library costs; ARGS="sib sampling" picks cases, ARGS=--toy only tries that they run.
bench: ARGS = --out runs/bench.json
bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $(ARGS)

# What a GPU does with it, in 8 minutes, to runs/bench-gpu.json; ARGS=--toy only tries, on the CPU, that it runs.
bench-gpu: ARGS =
bench-gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu $(ARGS)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# As it is installed: mypy and the reference of the site look at one package, which a checkout has in four folders.
PACKAGE := build/package
$(PACKAGE): $(READY) FORCE
	@rm -rf $(PACKAGE) build/wheel
	@$(BIN)/python -m hatchling build -t wheel -d build/wheel >/dev/null
	@$(BIN)/python -m zipfile -e build/wheel/*.whl $(PACKAGE)

FORCE:

check: $(PACKAGE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(PACKAGE) && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p pyro_metabayes

# With --quiet, mkdocs would not count warnings, and --strict would let them pass.
docs: $(READY_DOCS) $(PACKAGE)
	$(BIN)/python docs/site/notebooks.py
	$(BIN)/python docs/site/pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "the site: build/site/index.html"

# Each notebook with its outputs, beside its text. METABAYES_DATA names the folder of the table of the fifth.
notebooks: ARGS =
notebooks: $(READY_DOCS)
	$(BIN)/python docs/site/notebooks.py --keep $(ARGS)

# The wheel from the sdist, as a package index builds it, installed into an empty environment and tried there.
wheel: $(READY)
	rm -rf dist build/installed
	$(BIN)/python -m hatchling build -t sdist
	mkdir -p build/installed/source
	tar -xzf dist/*.tar.gz -C build/installed/source --strip-components=1
	cd build/installed/source && ../../../$(BIN)/python -m hatchling build -t wheel -d ../../../dist
	"$(PYTHON)" -m venv build/installed/venv
	build/installed/venv/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		-c constraints.txt "$$(ls dist/*.whl)[experiments]"
	build/installed/venv/bin/python tests/installed.py build/installed/try tests/assets/version_0_1

# What a release uploads, in dist/, checked as the package index checks it.
dist:
	rm -rf dist
	"$(PYTHON)" -m venv build/dist
	build/dist/bin/python -m pip install --quiet build twine cffconvert
	build/dist/bin/python -m build
	build/dist/bin/python -m twine check --strict dist/*
	build/dist/bin/cffconvert --validate

# Known vulnerabilities of the pinned packages, by a pip-audit of its own; fails too where it cannot look one up.
audit:
	"$(PYTHON)" -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit
	build/audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip --strict

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installs again whenever a setting or a pin changed; the stamp comes last, so a failed install leaves none.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python >=3.11,<3.14 with venv on the PATH; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e ".[dev]"
	@touch $@

$(READY_DOCS): $(READY)
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e ".[dev,docs]"
	@touch $@

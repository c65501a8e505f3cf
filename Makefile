# A fresh machine needs only Python (3.11 to 3.13, with its venv module) and make.
#   make run ARGS="guide=savi train.steps=500"                    the main command, its settings in ARGS
#   make run PYTHON=/path/to/python3.12                           builds .venv from that Python
#   make docs                                                     executes the notebooks, builds the site in build/site
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

.PHONY: run test check docs wheel bench bench-gpu audit clean

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

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY_DOCS)
	$(BIN)/python docs/site/notebooks.py
	$(BIN)/python docs/site/pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "the site: build/site/index.html"

wheel: $(READY)
	rm -rf dist
	$(BIN)/python -m hatchling build -t wheel
	@$(BIN)/python -c 'import glob, zipfile; \
	names = zipfile.ZipFile(*glob.glob("dist/*.whl")).namelist(); \
	others = [n for n in names if not n.startswith(("pyro_metabayes/", "pyro_metabayes-"))]; \
	assert not others, f"the wheel must hold pyro_metabayes alone, it holds {others}"; \
	assert "pyro_metabayes/py.typed" in names, "the wheel lacks pyro_metabayes/py.typed"; \
	assert any("/data/splits/" in n for n in names), "the wheel lacks pyro_metabayes/data/splits"'

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

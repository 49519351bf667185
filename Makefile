.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Lamina into $(VENV) (about a minute, once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

.PHONY: help install demo test check wheel clean
help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

install: $(VENV)/.installed ## Build .venv with the pinned versions and the `lamina` command

demo: install ## Set up, then run the main job on the embedded model and data (CPU, about 3 minutes)
	@$(BIN)/python -m train experiment=quickstart

test: install ## Set up, then pass the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --ignore=tests/slurm
	@$(BIN)/python -m pytest tests/slurm

check: install ## Lint, format, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

wheel: install ## Build the wheel into dist/
	@$(BIN)/python -m pip wheel --quiet --no-deps -w dist .

clean: ## Remove the environment and everything built
	rm -rf $(VENV) dist build

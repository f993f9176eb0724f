# `make demo` and `make test` each set themselves up from nothing: Python with venv and pip.
# Extra arguments for pip go into PIP_FLAGS, for example a machine without a GPU:
#   make test PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
CODE := lightning_dqnlr tests $(wildcard examples)

# What the bundled policy is the mean of.
MEMBERS := $(addprefix outputs/policy/,broad/episode-00448 broad/episode-00576 \
  second/episode-00640 second/episode-00768 small/last other/last)

.PHONY: test demo policy lint format clean
.DEFAULT_GOAL := test

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

demo: $(VENV)/.installed-train
	$(BIN)/python examples/demo.py

policy: $(VENV)/.installed-train
	$(BIN)/dqnlr-train experiment=default folder=outputs/policy/broad resume=true
	$(BIN)/dqnlr-train experiment=default folder=outputs/policy/second resume=true seed=2 \
	  train.episodes=768 'env.collect.demonstrated_drifts=[-0.5,1.0]' \
	  env.spec.decay_share=0.3 env.spec.cuts_in_decay=false
	$(BIN)/dqnlr-train experiment=small folder=outputs/policy/small resume=true
	$(BIN)/dqnlr-train experiment=small folder=outputs/policy/other resume=true train.episodes=120 \
	  env.collect.epsilon=0.08 env.collect.epsilon_alpha=0 env.collect.demonstrator_episodes=150
	$(BIN)/dqnlr-combine $(MEMBERS) --into outputs/policy/combined \
	  --set decay_share=0.3 --set cuts_in_decay=false

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps are newer than what they were made from: nothing is installed twice.
$(VENV)/.installed-train: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[train]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/.installed-train

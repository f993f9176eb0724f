# `make demo`, `make test` and `make docs` each set themselves up from nothing: Python with venv and pip.
# Extra arguments for pip go into PIP_FLAGS, for example a machine without a GPU:
#   make test PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
CODE := lightning_dqnlr tests $(wildcard benchmarks examples) setup.py docs/conf.py

# What the bundled policy is the mean of: three moments of two training runs, named by their seeds.
SEEDS := 5 2
MEMBERS := $(foreach seed,$(SEEDS),$(addprefix outputs/policy/seed-$(seed)/episode-0,1280 1408 1536))

# The code that trained what ships: of the commit in its record.
BUNDLED := lightning_dqnlr/policy/default
COMMIT := $(shell sed -n 's/^ *"commit": "\(.*\)",$$/\1/p' $(BUNDLED)/policy.json)
REBUILT := outputs/rebuilt/$(COMMIT)

.PHONY: test test-oldest libraries demo docs tutorial policy $(SEEDS:%=policy-%) rebuild lint format clean
.DEFAULT_GOAL := test

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# The hosts under the oldest Lightning that pyproject.toml allows, in an environment of its own.
OLDEST := .venv-oldest
test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest tests/host

# That Lightning wants older packages than constraints.txt has: the ones left out here. Its bar of
# Rich does not work with Rich 14.1 and later.
$(OLDEST)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OLDEST)
	grep -Ev '^(lightning|pytorch-lightning|fsspec|packaging|rich|setuptools)==' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) \
		-c $(OLDEST)/constraints.txt -e ".[train]" lightning==2.5.0 pytorch-lightning==2.5.0 'rich<14.1' \
		pytest pytest-xdist hypothesis gymnasium
	touch $@

# Public libraries with and without the callback, each in an environment of its own.
LIBRARIES := .venv-libraries
USED := $(basename $(notdir $(wildcard examples/libraries/requirements/*.txt)))
libraries: $(VENV)/.installed-train $(USED:%=$(LIBRARIES)/%/.installed)
	$(BIN)/python examples/libraries/compare.py --environments $(LIBRARIES)

$(LIBRARIES)/%/.installed: examples/libraries/requirements/%.txt pyproject.toml
	$(PYTHON) -m venv $(LIBRARIES)/$*
	$(LIBRARIES)/$*/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -r $< -e .
	touch $@

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

demo: $(VENV)/.installed-train
	$(BIN)/python examples/demo.py

# The site, in outputs/docs/index.html. A warning, a dead link among the pages included, ends it.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs outputs/docs
	@echo "The site: outputs/docs/index.html"

# The tutorial's stored output made again.
tutorial: $(VENV)/.installed-dev
	cd docs && OMP_NUM_THREADS=1 ../$(BIN)/jupyter execute --inplace tutorial.ipynb && rm -f lr.png

# `make -j2 policy` makes both runs at once; interrupted ones go on where they were.
policy: $(SEEDS:%=policy-%)
	$(BIN)/dqnlr-combine $(MEMBERS) --into outputs/policy/combined --force

$(SEEDS:%=policy-%): policy-%: $(VENV)/.installed-train
	OMP_NUM_THREADS=1 $(BIN)/dqnlr-train experiment=default folder=outputs/policy/seed-$* resume=true seed=$*

# The bundled policy's very weights; their last bits depend on the CPU's instructions and on versions.
rebuild: $(REBUILT)
	$(MAKE) -C $(REBUILT) VENV=.venv policy
	cmp $(REBUILT)/outputs/policy/combined/policy.safetensors $(BUNDLED)/policy.safetensors || \
		{ echo "Other weights: made on another kind of CPU, or with other versions than $(BUNDLED)/policy.json names."; exit 1; }
	@echo "The same weights as those that ship, bit for bit."

$(REBUILT):
	rm -rf $@.part
	git clone --quiet --no-checkout . $@.part
	git -C $@.part checkout --quiet --detach $(COMMIT)
	mv $@.part $@

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

clean:
	rm -rf $(VENV) $(OLDEST) $(LIBRARIES) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps are newer than what they were made from: nothing is installed twice.
$(VENV)/.installed-train: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[train]"
	touch $@

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[docs]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/.installed-train

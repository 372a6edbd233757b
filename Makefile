# Start here: `make demo` installs everything into .venv and writes two pages of a real model. `make help` lists the rest.
#
# PYTHON           the Python (3.11 or newer) that .venv is made with
# PIP_ARGS         more arguments for every pip install, e.g. PIP_ARGS="--index-url URL" for a mirror
# TORCH_INDEX_URL  a package index with CPU builds of torch. On Linux the torch of the usual index is a CUDA build of
#                  several GB, which works but is not needed: where PyTorch's own CPU index can be reached, name it here.
# BENCH_ARGS       e.g. BENCH_ARGS="S --no-peers"
# PYTEST_ARGS      e.g. PYTEST_ARGS="-k json -x"

PYTHON ?= python3
PIP_ARGS ?=
TORCH_INDEX_URL ?=
BENCH_ARGS ?=
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadgroup

VENV := .venv
RUN := $(VENV)/bin/python -m
install_in = $(1)/bin/python -m pip install --disable-pip-version-check --no-compile --constraint $(2) $(PIP_ARGS)
INSTALL := $(call install_in,$(VENV),constraints.txt)
TORCH_FIRST := $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) torch hatchling
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# What is tested on other versions of TransformerLens. There is no TransformerBridge in 2.
TESTS_tl3 := $(patsubst %,tests/test_%.py,ablation benchmark_material demo ending fetching full_ablation hooked_transformer \
  invariances model_fns prompt sae_lens vocabulary)
TESTS_tl2 := $(patsubst %,tests/test_%.py,benchmark_material demo hooked_transformer vocabulary)
ALSO_tl3 := sae-lens

.PHONY: help demo bench test test-tl2 test-tl3 coverage lint format schema clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST)

demo: $(VENV)/installed  ## both views of the bundled model, as two pages in this folder
	$(RUN) sae_vis demo

test: $(VENV)/installed-dev  ## the whole test suite
	$(RUN) pytest $(PYTEST_ARGS)

test-tl2: .venv-tl2/installed  ## the tests that meet a HookedTransformer, on TransformerLens 2
	.venv-tl2/bin/python -m pytest $(PYTEST_ARGS) $(TESTS_tl2)

test-tl3: .venv-tl3/installed  ## the tests that meet a model, on TransformerLens 3 with SAELens 6
	.venv-tl3/bin/python -m pytest $(PYTEST_ARGS) $(TESTS_tl3)

bench: $(VENV)/installed  ## sae_vis beside its peers and the machine's own limit (hours; see README)
	$(RUN) benchmarks $(BENCH_ARGS)

coverage: $(VENV)/installed-dev  ## the test suite, with the lines that it does not reach
	$(RUN) pytest $(PYTEST_ARGS) --cov

lint: $(VENV)/installed-dev  ## ruff and mypy
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy --strict sae_vis

format: $(VENV)/installed-dev  ## lay the code out and fix what ruff can fix
	$(RUN) ruff check --fix
	$(RUN) ruff format

schema: $(VENV)/installed-dev  ## write docs/schema.json from the dataclasses
	$(VENV)/bin/python -c 'from sae_vis import MultiFeatureData, MultiPromptData, PromptComparisonData, _json; \
	  _json.write_atomic("docs/schema.json", _json.schema(MultiFeatureData, MultiPromptData, PromptComparisonData))'

clean:  ## remove what was built and cached (not .venv)
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage .coverage.*
	rm -f demo_feature_vis.html demo_prompt_vis.html demo_features.json benchmark.json
	find sae_vis tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment that is already there (made by hand, or by another tool without pip) is used, and completed.
$(VENV)/bin/python:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "make: there is no '$(PYTHON)'. Install Python 3.11 or newer (Debian: apt install python3 python3-venv)," \
	       "or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { \
	  echo "make: '$(PYTHON)' is $$($(PYTHON) --version), but 3.11 or newer is needed. Name one:" \
	       "make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "make: '$(PYTHON)' cannot make an environment. Install its venv module (Debian: apt install python3-venv)" \
	       "and try again." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@$(VENV)/bin/python -c '$(NEW_ENOUGH)' || { \
	  echo "make: $(VENV) was made with $$($(VENV)/bin/python --version), but 3.11 or newer is needed." \
	       "Remove $(VENV) and try again." >&2; exit 1; }
	@$(RUN) pip --version > /dev/null 2>&1 || $(RUN) ensurepip
	$(INSTALL) $(TORCH_FIRST)
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

# Other versions of TransformerLens, each in an environment of its own beside .venv.
.venv-%/installed: pyproject.toml constraints-%.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m venv .venv-$*
	$(call install_in,.venv-$*,constraints-$*.txt) $(TORCH_FIRST)
	$(call install_in,.venv-$*,constraints-$*.txt) --no-build-isolation --editable . hypothesis pytest pytest-xdist $(ALSO_$*)
	@touch $@

# Everything runs in .venv, which is made on first use and brought up to date when what it is made from changes.
# Versions are pinned in constraints.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
EXTRAS ?=
SEED ?=
MINUTES ?= 3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
PINS := pyproject.toml constraints.txt

comma := ,
empty :=
space := $(empty) $(empty)
# onnx and gpu exclude each other.
light := $(if $(findstring gpu,$(EXTRAS)),embedded,embedded onnx)
extras := $(sort $(light) $(subst $(comma), ,$(EXTRAS)))
demo_ready := $(VENV)/.demo-$(subst $(space),-,$(extras))
dev_ready := $(VENV)/.dev

.DEFAULT_GOAL := help
.PHONY: help demo serve test lint fuzz bench chaos chaos-kafka overload clean distclean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(demo_ready) ## serve the example models, send them real inputs, check the answers (EXTRAS=torch for more)
	$(BIN)/python examples/demo.py $(ARGS)

serve: $(demo_ready) ## build the example models and serve them until Ctrl-C
	$(BIN)/python examples/build_models.py --out examples/models
	$(BIN)/qinfer serve examples/models $(ARGS)

# Files of tests side by side, each in one process: they mostly wait.
test: lint ## linters, types and tests: what CI runs (ARGS for pytest)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: $(dev_ready) ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fuzz: $(dev_ready) ## look for bytes on the bus that do harm, for ten minutes (ARGS=-max_total_time=SECONDS)
	$(BIN)/python -m tests.fuzz.frames -max_total_time=600 $(ARGS)

bench: $(dev_ready) ## measure qinfer beside its peers (ARGS for python -m loadtest)
	$(BIN)/python -m loadtest $(ARGS)

chaos: $(dev_ready) ## kill and cut off parts of a system under load (SEED, MINUTES, ARGS for python -m loadtest.chaos)
	$(BIN)/python -m loadtest.chaos $(if $(SEED),--seed $(SEED)) --minutes $(MINUTES) $(ARGS)

chaos-kafka: $(dev_ready) ## the same to the stream scorer, on a real Kafka of three nodes; writes docs/kafka.md (SEED, ARGS)
	$(BIN)/python -m loadtest.kafka chaos $(if $(SEED),--seed $(SEED)) $(ARGS)

overload: $(dev_ready) ## offer three times what can be answered, and measure what is (ARGS for python -m loadtest.overload)
	$(BIN)/python -m loadtest.overload $(ARGS)

clean: ## remove what was built, but not .venv and downloads
	rm -rf build dist examples/models .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv and downloads too
	rm -rf $(VENV) .cache

$(VENV)/.created:
	$(if $(PYTHON),,$(error no Python found; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and sys.executable + " is Python " \
		+ sys.version.split()[0] + "; expected 3.11 or newer: make PYTHON=/path/to/python")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(demo_ready): $(VENV)/.created $(PINS) examples/requirements.txt
	$(PIP) --editable '.[$(subst $(space),$(comma),$(extras))]' --requirement examples/requirements.txt
	@touch $@

$(dev_ready): $(VENV)/.created $(PINS) examples/requirements.txt
	$(PIP) --editable '.[all,dev]' --requirement examples/requirements.txt
	@touch $@

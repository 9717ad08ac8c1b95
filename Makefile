# Every task a contributor runs. `make` alone lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
XLA := .venv-xla
COMPAT := .venv-compat
TRACKERS := .venv-trackers
ZERO := .venv-deepspeed
DOCS := .venv-docs
LOWEST := .venv-lowest
NEWEST := .venv-newest
PACKAGE := .venv-package
TYPES := .venv-types
BROWSER := .browser
PROMETHEUS := .prometheus
BIN := $(CURDIR)/$(VENV)/bin
CLUSTER := cd tests && $(BIN)/python -m cluster
NAME ?= trainwright
DOCKER ?= docker
TARGETS ?= cpu
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' trainer_image/trainwright/__init__.py)
TESTS ?= tests/unit tests/fake tests/trainer

# Where it is set, each of the many processes that tests start compiles the packages anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## make .venv with everything; does nothing when nothing changed

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 setup")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo-queue: setup cluster-tools ## two teams share one quota by the real Kueue, on simulated nodes, in a minute
	cd tests && $(BIN)/python -m demo_queue

demo: setup ## the product on a real cluster in one command: chart, job, live table, trained model; leaves the cluster up
	cd tests && $(BIN)/python -m demo --name $(NAME)

xla: $(XLA)/.ready ## make .venv-xla with PyTorch/XLA and the torch that it needs; the tests of it run where it is there

$(XLA)/.ready: pyproject.toml constraints.txt trainer_image/trim.py
	$(PYTHON) -m venv $(XLA)
	grep -vE '^(torch|triton|nvidia-.*|cuda-.*)==' constraints.txt > $(XLA)/constraints.txt
	$(XLA)/bin/pip install --quiet --disable-pip-version-check --constraint $(XLA)/constraints.txt --editable '.[trainer,hf,xla]'
	@if command -v ld nm objdump > /dev/null; then $(PYTHON) trainer_image/trim.py $(XLA)/lib/python*/site-packages; fi
	@touch $@

compat: compat-env ## make .venv-compat with TRL, sentence-transformers and SetFit, and hold them on our Trainer against transformers'
	TRAINWRIGHT_LIBRARIES=all $(BIN)/pytest tests/trainer/test_libraries.py -q -s

compat-env: $(COMPAT)/.ready

# A layer over .venv: the same torch and transformers, and beside them what nothing else shall import.
$(COMPAT)/.ready: $(VENV)/.ready pyproject.toml constraints.txt
	$(PYTHON) -m venv $(COMPAT)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$($(COMPAT)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	$(COMPAT)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[compat]'
	@touch $@

trackers: $(TRACKERS)/.ready ## what trackers hold of a run beside transformers' callbacks, with their packages and a real MLflow server, in minutes
	TRAINWRIGHT_MLFLOW=$(CURDIR)/$(TRACKERS)-mlflow/bin/mlflow $(TRACKERS)/bin/python -m pytest tests/trainer/test_trackers_alike.py -q

# A layer over .venv as above, but for pillow, of which trackio takes no new one. MLflow's server has an environment of its
# own, because it needs older packages.
$(TRACKERS)/.ready: $(VENV)/.ready pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TRACKERS)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$($(TRACKERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	grep -v '^pillow==' constraints.txt > $(TRACKERS)/constraints.txt
	$(TRACKERS)/bin/pip install --quiet --disable-pip-version-check --constraint $(TRACKERS)/constraints.txt --editable '.[trackers]'
	$(PYTHON) -m venv $(TRACKERS)-mlflow
	$(TRACKERS)-mlflow/bin/pip install --quiet --disable-pip-version-check mlflow
	@touch $@

deepspeed: $(ZERO)/.ready compat-env ## make .venv-deepspeed with DeepSpeed, and hold ZeRO 1, 2 and 3 on two ranks against one process, in minutes
	$(ZERO)/bin/python -m pytest tests/zero -q --timeout 1800

interchange: $(ZERO)/.ready ## checkpoints of transformers' Trainer under ours and back, with ZeRO 1, 2, 3 and FSDP 2 on two ranks, in minutes
	$(ZERO)/bin/python -m pytest tests/interchange -q --timeout 1800

zero-table: $(ZERO)/.ready ## ZeRO 1, 2 and 3 on two ranks beside one process, over 20 steps of six architectures; ONLY="Llama T5" for some
	cd tests && OMP_NUM_THREADS=1 ../$(ZERO)/bin/python -m zero $(ONLY)

bench-zero: $(ZERO)/.ready ## a step of the Trainer under ZeRO 1, 2 and 3 beside a bare loop around deepspeed.initialize
	cd tests && OMP_NUM_THREADS=1 ../$(ZERO)/bin/python -m bench.bench_zero

# A layer over .venv as above. DeepSpeed is built by the torch that is there, without its operators.
$(ZERO)/.ready: $(VENV)/.ready pyproject.toml
	$(PYTHON) -m venv $(ZERO)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$($(ZERO)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	printf '%s\n' $(CURDIR)/trainer_image $(CURDIR)/operator >> $$($(ZERO)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	$(ZERO)/bin/pip install --quiet --disable-pip-version-check setuptools wheel hjson py-cpuinfo ninja msgpack einops
	DS_ACCELERATOR=cpu DS_BUILD_OPS=0 $(ZERO)/bin/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps 'deepspeed>=0.19'
	@touch $@

quickstart: setup ## train a small GPT here, in two pods without a cluster
	$(BIN)/trainwright run examples/gpt-on-stdlib.yaml

# Tests

# Neighbours stay in one process, and with them the group of ranks that a module starts once.
IN_TWO = -n 2 --dist worksteal

# Real processes and clusters share the machine with others: one that fails is tried once more, and the summary names it.
TWICE = --reruns 1 -raR

test: ## every test that this machine can run; what it could not is said in one line
	@$(MAKE) --no-print-directory -j 2 setup compat-env cluster-tools
	$(BIN)/pytest tests/unit tests/fake -q -n 2
	$(BIN)/pytest tests/trainer tests/local -q $(IN_TWO) $(TWICE)
	$(BIN)/pytest tests/cluster tests/integration tests/e2e -q $(TWICE)

browser: setup $(BROWSER)/.ready ## the report in headless Chromium (Debian: chromium), looked at by axe; needs node and npm
	$(BIN)/pytest tests/browser -q -s

$(BROWSER)/.ready:
	npm install --silent --no-audit --no-fund --prefix $(BROWSER) axe-core@4 puppeteer-core@24
	@touch $@

dashboard: setup cluster-tools $(PROMETHEUS)/.ready ## the chart's dashboard and alerts on a real Prometheus (Debian: prometheus), beside the status of jobs
	cd tests && $(BIN)/python -m dashboard

# Unpacked and not installed, because the package would start a server.
$(PROMETHEUS)/.ready:
	mkdir -p $(PROMETHEUS)
	command -v prometheus promtool > /dev/null || { cd $(PROMETHEUS) && apt-get download prometheus && dpkg-deb --extract prometheus_*.deb . && rm prometheus_*.deb; }
	@touch $@

unit: setup ## the pure rooms, in seconds
	$(BIN)/pytest tests/unit -q -n 2

fake: setup ## the operator's shell against an API server that fails on cue
	$(BIN)/pytest tests/fake -q -n 2

trainer: setup ## the Trainer and the launcher, one process and several
	$(BIN)/pytest tests/trainer -q $(IN_TWO)

local: setup ## jobs without a cluster: real processes and signals
	$(BIN)/pytest tests/local -q $(IN_TWO)

integration: setup cluster-tools ## the real API server, controllers and scheduler
	$(BIN)/pytest tests/cluster tests/integration -q

multikueue: setup cluster-tools ## jobs that Kueue sends to another cluster: two control planes, two Kueues, in two minutes
	TRAINWRIGHT_MULTIKUEUE=1 $(BIN)/pytest tests/integration/test_multikueue.py -q

kueue-oldest: setup cluster-tools ## the stories of queues with the oldest Kueue that is tested, 0.17, built once, in minutes
	cd tests && $(BIN)/python -m cluster build --programs kueue-0.17
	TRAINWRIGHT_TEST_KUEUE=kueue-0.17 $(BIN)/pytest tests/integration/test_kueue.py -q

sweep: setup ## the Trainer's promise on every architecture of the table, in minutes; ONLY="causal T5" for some of them
	cd tests && $(BIN)/python -m sweep $(ONLY)

footprints: setup ## the estimate of plan --memory against measured peaks of training, in minutes
	TRAINWRIGHT_FOOTPRINTS=all $(BIN)/pytest tests/trainer/test_footprint.py -q -s

mutations: setup cluster-tools ## ask validate and the API server about 10,000 mutated manifests, in minutes
	TRAINWRIGHT_MUTATIONS=10000 $(BIN)/pytest tests/integration/test_validation.py -q --timeout 1800 \
		-k "mutated_specs or right_by_themselves"

fault-stories: setup cluster-tools ## faults on the cluster of `make cluster`, as kubectl sees them: STORY=kill-rank for one
	cd tests && $(BIN)/python -m fault_stories $(STORY)

e2e: setup ## real pods on the cluster of `make cluster`, or on any other by KUBECONFIG
	TRAINWRIGHT_CLUSTER=$(NAME) $(BIN)/pytest tests/e2e -q

types: setup $(TYPES)/.ready ## pyright over what users override, as their editor sees it
	$(TYPES)/bin/basedpyright --pythonpath $(BIN)/python --level error tests/typing

$(TYPES)/.ready: pyproject.toml
	test -x $(TYPES)/bin/python || $(PYTHON) -m venv $(TYPES)
	$(TYPES)/bin/pip install --quiet --disable-pip-version-check 'basedpyright>=1.39'
	@touch $@

test-lowest: $(LOWEST)/.ready ## the tests with the oldest releases that pyproject.toml allows; TESTS="..." for some of them
	$(LOWEST)/bin/python -m pytest $(TESTS) -q -n 2

# The oldest releases have no wheels for a Python that came after them.
$(LOWEST)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "The oldest releases need Python 3.11: make PYTHON=python3.11 test-lowest")'
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct --editable '.[dev]'
	@touch $@

test-newest: ## the tests with the newest releases of everything, whatever constraints.txt says; TESTS="..." for some of them
	test -x $(NEWEST)/bin/uv || { $(PYTHON) -m venv $(NEWEST) && $(NEWEST)/bin/pip install --quiet --disable-pip-version-check uv; }
	$(NEWEST)/bin/uv pip install --quiet --python $(NEWEST) --upgrade --editable '.[dev]'
	$(NEWEST)/bin/python -m pytest $(TESTS) -q -n 2

lint: setup actionlint ## ruff, mypy on the operator, the layers, hadolint on the Dockerfiles, actionlint on the workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/hadolint trainer_image/Dockerfile operator/Dockerfile

actionlint: ## lint the workflows, where Go is at hand
	@if command -v go > /dev/null; then cd tests && $$($(PYTHON) -m cluster build --programs actionlint) ../.github/workflows/*.yml; fi

format: setup ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

same-losses: setup ## the example scripts with either import: how far their losses are apart
	$(BIN)/python examples/scripts/same_losses.py 2> /dev/null

bench: setup ## speed and memory of the Trainer, as ratios
	cd tests && OMP_NUM_THREADS=1 $(BIN)/python -m bench.bench_step
	cd tests && OMP_NUM_THREADS=1 $(BIN)/python -m bench.bench_fsdp
	cd tests && OMP_NUM_THREADS=1 $(BIN)/python -m bench.bench_eval
	cd tests && OMP_NUM_THREADS=1 $(BIN)/python -m bench.bench_trackers
	cd tests && $(BIN)/python -m bench.bench_save
	cd tests && $(BIN)/python -m bench.bench_import

starts: setup ## 2,000 starts of data workers in the midst of busy threads: none may stall
	cd tests && $(BIN)/python -m bench.bench_starts

warm: setup ## 2,000 ranks forked from a warm parent, each of which uses every library: none may stall; FORKS=100 for fewer
	cd tests && $(BIN)/python -m warm $(or $(FORKS),2000)

bench-operator: setup cluster-tools ## what the operator costs, on a control plane on loopback; BENCH=burst for one of them
	cd tests && $(BIN)/python -m bench.operator $(BENCH)

chaos: setup cluster-tools ## faults by a seed on real processes and on the control plane, for hours: SEED=1 FAULTS=100 JOBS=20; ONLY=trained-3 replays
	cd tests && $(BIN)/python -m chaos --seed $(or $(SEED),1) --faults $(or $(FAULTS),100) --jobs $(or $(JOBS),20) $(if $(ONLY),--only $(ONLY))

# What is released

package: $(PACKAGE)/.ready ## build the sdist and the wheel into dist/, and install and try the wheel
	rm -rf dist
	$(PACKAGE)/bin/python -m build --quiet
	$(PACKAGE)/bin/twine check --strict dist/*
	$(PACKAGE)/bin/python tests/package.py dist

$(PACKAGE)/.ready:
	$(PYTHON) -m venv $(PACKAGE)
	$(PACKAGE)/bin/pip install --quiet --disable-pip-version-check build twine
	@touch $@

# What is generated

crds: setup ## write crds/ and the fields of a pool in the chart's values.schema.json from the Python types
	$(BIN)/python -m trainwright_operator.api.crd crds
	$(BIN)/python charts/values_schema.py

chart: setup cluster-tools ## lint the chart and write charts/bundle from it
	@helm=$$(cd tests && $(BIN)/python -c 'from cluster import programs; print(programs.program("helm"))') && \
	$$helm lint --strict charts/trainwright && \
	$$helm template trainwright charts/trainwright --namespace trainwright-system 2> /dev/null \
	| $(BIN)/python charts/bundle/generate.py > charts/bundle/trainwright.yaml

sharding: setup ## models sharded over 2 and 4 processes beside one process, in minutes; ONLY="Llama T5" for some of them
	cd tests && OMP_NUM_THREADS=1 $(BIN)/python -m sharding $(ONLY)

layouts: setup ## resumes from the checkpoints of every layout in every other, and how far the ends are apart
	cd tests && OMP_NUM_THREADS=1 $(BIN)/python -m sharding.layouts

bench-shards: setup ## memory and saves of a sharded model of 1 GB on 4 ranks, in minutes; FOLDER=/mnt/disk for another disk
	cd tests && OMP_NUM_THREADS=1 $(BIN)/python -m bench.bench_shards $(if $(FOLDER),--folder $(FOLDER))

prove: setup ## let every process forget an argument, and demand that the test named for it fails
	$(BIN)/python tests/prove.py

manual: setup ## write docs/training-arguments.md from the fields and their proofs, docs/api.md from the docstrings
	$(BIN)/python tests/effects.py > docs/training-arguments.md
	$(BIN)/python docs/reference.py

docs: $(DOCS)/.ready ## build the documentation as a site into site/, or say which link or anchor leads nowhere
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet
	@echo "site/index.html"

$(DOCS)/.ready: pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

# Clusters of the tests

cluster-tools: ## build etcd, the API server, the controllers, kwok and helm once for this machine, where Go is at hand
	@if command -v go > /dev/null; then cd tests && $(PYTHON) -m cluster build --programs integration; fi

cluster: setup ## a real cluster of three nodes with the project's images
	$(CLUSTER) up --provider kind --name $(NAME)

cluster-down: setup ## remove every trace of it
	$(CLUSTER) down --provider kind --name $(NAME)

cluster-status: setup ## what runs, and its memory
	$(CLUSTER) status --provider kind --name $(NAME)

kubeconfig: setup ## print the path of its kubeconfig
	@$(CLUSTER) kubeconfig --provider kind --name $(NAME)

push: ## build the images, tag and push them: REGISTRY=registry.example/team, TARGETS="cpu nvidia", DOCKER=podman, BUILD="--platform ..."
	@test -n "$(REGISTRY)" || { echo "push: name the registry: make push REGISTRY=registry.example/team" >&2; exit 2; }
	$(DOCKER) build $(BUILD) -f operator/Dockerfile -t $(REGISTRY)/operator:$(VERSION) .
	@for target in $(TARGETS); do set -x; \
	$(DOCKER) build $(BUILD) -f trainer_image/Dockerfile --target $$target -t $(REGISTRY)/trainer:$(VERSION)-$$target . || exit 1; done
	$(DOCKER) push $(REGISTRY)/operator:$(VERSION)
	@for target in $(TARGETS); do set -x; $(DOCKER) push $(REGISTRY)/trainer:$(VERSION)-$$target || exit 1; done
	@echo "helm: --set image.repository=$(REGISTRY)/operator --set trainerImage=$(REGISTRY)/trainer:$(VERSION)-cpu"

images: setup ## build the images again and bring them to the nodes; MORE=trainer-xla for that of PyTorch/XLA too
	$(CLUSTER) images --name $(NAME) --more $(MORE)

clean: ## remove what setup and runs made
	rm -rf $(VENV) $(XLA) $(COMPAT) $(ZERO) $(TRACKERS) $(TRACKERS)-mlflow $(DOCS) $(LOWEST) $(NEWEST) $(PACKAGE) $(TYPES) runs artefacts dist site

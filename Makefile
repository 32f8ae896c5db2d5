# tokenservice-operator. `make help` lists what people use; every target makes what it needs.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
VENV := .venv/bin
READY := .venv/.ready
COMPILE = $(VENV)/uv pip compile -q --upgrade --python-version 3.11 --generate-hashes --no-header --no-annotate
CLUSTERS := $(or $(TOKENSERVICE_LOCALCLUSTER_STATE),/var/lib/tokenservice-localcluster)
export TOKENSERVICE_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tokenservice-operator

.PHONY: help
help: ## this list
	@echo "Usage: make TARGET"
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  \1\t/' | expand -t 22
	@echo "demo takes MODEL=hf://org/name, and CLUSTER=existing REGISTRY=host/path for the cluster of KUBECONFIG."

$(READY): pyproject.toml requirements-dev.lock service_image/token_server/pyproject.toml tools/venv.sh
	@tools/venv.sh

.PHONY: .venv
.venv: $(READY)

.PHONY: demo
demo: $(READY) ## a real cluster from nothing, and tokens out of a TokenService
	@$(VENV)/python -m tools.demo --cluster "$(CLUSTER)" --registry "$(REGISTRY)" --model "$(or $(MODEL),tiny)"

.PHONY: test
test: lint unit apiserver scale e2e ## every test

.PHONY: lint
lint: $(READY) ## ruff, mypy and the import contracts
	@$(VENV)/ruff check --quiet .
	@$(VENV)/ruff format --quiet --check . || { echo "run: make format"; exit 1; }
	@$(VENV)/mypy
	@$(VENV)/mypy tools/localcluster tools/*.py bench
	@$(VENV)/mypy tools/localchannel tests/support
	@$(VENV)/lint-imports --no-cache | tail -n 4

.PHONY: format
format: $(READY) ## formats the code
	@$(VENV)/ruff check --quiet --fix-only .
	@$(VENV)/ruff format --quiet .

.PHONY: unit
unit: $(READY) ## tests of what decides; seconds
	@$(VENV)/pytest -q tests/unit

.PHONY: programs
programs: $(READY) ## Kubernetes and what goes with it, built unless cached; 20 minutes the first time
	@$(VENV)/python tools/localcluster build

.PHONY: apiserver
apiserver: programs ## tests against a real etcd and kube-apiserver; minutes
	@$(VENV)/pytest -q tests/apiserver

.PHONY: scale
scale: programs ## the benchmarks of reconciling and claims, small, with limits; two minutes
	@$(VENV)/pytest -q tests/scale

.PHONY: e2e
e2e: programs ## tests on a real kubelet, with real torch; minutes
	@$(VENV)/pytest -q tests/e2e

.PHONY: bench-reconcile
bench-reconcile: $(READY) ## 1,000 TokenServices at once against a bare client
	@$(VENV)/python -m bench.reconcile

.PHONY: bench-claim
bench-claim: $(READY) ## how fast warm pods are claimed, against a bare client, and that no claim is lost or made twice
	@$(VENV)/python -m bench.claim

.PHONY: bench-environment
bench-environment: $(READY) ## what an environment and a change of it cost, from apply to the node
	@$(VENV)/python -m bench.environment $(if $(CUDA),--cuda)

.PHONY: bench-history
bench-history: $(READY) ## what changes of real projects' locks cost, in our layers and in one for each package
	@$(VENV)/python -m bench.history

.PHONY: bench-rollout
bench-rollout: $(READY) ## what clients notice of an environment change, a rollback and a drained node
	@$(VENV)/python -m bench.rollout

.PHONY: bench-start
bench-start: $(READY) ## where a new replica's seconds go: without its image, with it, from a pool; draws a chart
	@$(VENV)/python -m bench.start --chart docs/start-stages.svg

.PHONY: crds
crds: $(READY) ## carries crds/ and values.yaml over to the chart and the docs
	@$(VENV)/python -m tools.sync_crds
	@$(VENV)/python -m tools.crd_reference
	@$(VENV)/python -m tools.chart_values

.PHONY: lock
lock: $(READY) ## renews the lock files
	@$(COMPILE) --extra builder pyproject.toml -o requirements.lock
	@$(COMPILE) --extra dev pyproject.toml -o requirements-dev.lock
	@$(COMPILE) --python-platform x86_64-manylinux_2_36 service_image/requirements.in -o service_image/requirements.lock
	@for part in more older; do $(COMPILE) --python-platform x86_64-manylinux_2_36 --only-binary :all: --no-deps \
		tools/localchannel/$$part.in -o tools/localchannel/$$part.lock; done

.PHONY: clean
clean: ## takes all local clusters down; leaves no process, mount, interface or file of theirs
	@if [ -n "$$(ls -A $(CLUSTERS) 2>/dev/null)" ]; then $(MAKE) --no-print-directory $(READY); $(VENV)/python tools/localcluster down --all; fi
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@find . -name '*.egg-info' -type d -prune -exec rm -rf {} +

.PHONY: clean-cache
clean-cache: clean ## clean, and the cache folder with built binaries, wheels and images
	@rm -rf "$(TOKENSERVICE_CACHE)"

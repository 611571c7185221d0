# SPDX-License-Identifier: Apache-2.0
# `make` alone prints what there is. `make demo` and `make test` install what they need.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
BIN := .venv/bin
PYTEST := $(BIN)/pytest -p no:cacheprovider
.DEFAULT_GOAL := help

.PHONY: image tilt-ci kind-up kind-down kind-e2e e2e help setup python lint format unit integration lab-test vm-test test demo down crds chart bench-path bench-relay bench-controlplane wheel clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install Debian packages, the Python environment and the control plane (first run about 6 minutes, then seconds)
	@hack/setup

python: ## Install the Python environment alone: enough for lint and unit
	@hack/setup python

lint: python ## Check style, types, import layers and generated files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check -q .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache | tail -n 3
	@$(BIN)/python -m wirekube.api.crds --check
	@MYPYPATH=src:hack/chart $(BIN)/mypy hack/chart/*.py
	@$(BIN)/python hack/chart --check

format: python ## Format and sort imports
	@$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format -q .

unit: python ## Tests without root and without a network (seconds)
	@$(PYTEST) tests/unit

integration: setup ## Tests against a real kube-apiserver and etcd; with Helm, which is built once (about 5 minutes more)
	@command -v helm >/dev/null || hack/controlplane/build helm >/dev/null
	@$(PYTEST) tests/integration

lab-test: setup ## Tests with real packets in network namespaces (root)
	@WIREKUBE_WIREGUARD_GO=$$(hack/controlplane/build --where)/wireguard-go $(PYTEST) tests/lab

vm-test: ## The WireGuard suite and the steering table under a kernel that has WireGuard, in a virtual machine
	@hack/setup vm
	@hack/vm/run hack/vm/kernel-suite
	@$(BIN)/python hack/vm/dump-speed

test: setup lint unit integration lab-test vm-test kind-e2e ## Everything, as CI runs it

demo: setup ## Six nodes behind different NATs join a mesh; every pair is pinged, a direct path is broken and healed
	@$(BIN)/wirekube lab demo

image: ## Build the images wirekube:dev and wirekube-wireguard:dev
	@eval "$$(hack/kind/docker env)" && hack/image

kind-up: ## A kind cluster with NAT between its nodes (FLAT=1: without); see hack/kind/cluster
	@hack/setup kind
	@hack/kind/cluster up $(if $(FLAT),--flat)

kind-down: ## Remove the kind cluster and all that was started for it
	@hack/kind/cluster down

kind-e2e: ## kind-up, e2e, kind-down, as `make test` does it
	@trap 'hack/kind/cluster down' EXIT; $(MAKE) --no-print-directory kind-up && unset KUBECONFIG && $(MAKE) --no-print-directory e2e

e2e: ## Tests against a real cluster: that of kind-up, or the one that KUBECONFIG names
	@hack/e2e

tilt-ci: ## What Tilt makes of the Tiltfile on the kind cluster, where there is a tilt: builds, deploys, updates live
	@hack/tilt-ci

down: python ## Remove what a demo or a lab left
	@$(BIN)/wirekube lab down --all

crds: python ## Generate config/crd from the models
	@$(BIN)/python -m wirekube.api.crds

chart: crds ## Generate config/helm from the manifests of config/default
	@$(BIN)/python hack/chart

bench-path: setup ## Throughput of bare WireGuard, direct and relayed pairs, and the relay alone; an idle agent's cost
	@$(BIN)/python -m wirekube.lab.bench_path

bench-relay: setup ## Throughput of the relay alone
	@$(BIN)/python -m wirekube.lab.bench_relay

bench-controlplane: setup ## What 10, 100 and 1000 simulated nodes cost API server, operator and agents (20 minutes)
	@$(BIN)/python -m wirekube.lab.bench_controlplane

wheel: python ## Build sdist and wheel into dist/
	@$(BIN)/python -m build --no-isolation

clean: ## Remove build products and the Python environment (the control plane's cache stays)
	@rm -rf .venv dist build *.egg-info .mypy_cache .ruff_cache .hypothesis

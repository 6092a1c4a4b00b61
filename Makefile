# Bellrock. The two commands of the README are `make demo` and `make test`.

SHELL := /bin/bash
.DEFAULT_GOAL := help

CARGO ?= cargo
N ?= 10
LAB_FLAGS ?=
SIM_FLAGS ?=
FAULT_FLAGS ?=

NETNS_CRATES := -p bellrock-arp -p bellrock-bfd -p bellrock-bgp -p bellrock-forward -p bellrock-speaker -p bellrock-sys

# Runs a suite and prints how long it took: $(call suite,name,command).
define suite
@start=$$(date +%s); printf '== %s\n' '$(1)'; { $(2); } && printf '== %s: passed in %s s\n' '$(1)' $$(( $$(date +%s) - start ))
endef

.PHONY: help
help: ## this text
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: lab-tools build ## the whole story on one screen: address, ARP, BGP, a pulled cable
	@target/release/bellrock-lab demo $(LAB_FLAGS)

.PHONY: build
build:
	@$(CARGO) build --release --locked -p bellrock -p bellrock-e2e

.PHONY: lab
lab: lab-tools build ## leaves a lab running and prints how to use it (LAB_FLAGS: see bellrock-lab up --help)
	@target/release/bellrock-lab up --detach --bellrock $(LAB_FLAGS)

.PHONY: lab-down
lab-down: ## ends every lab that `make lab` left
	@target/release/bellrock-lab down --all

.PHONY: test
test: test-unit sim-short test-netns e2e ## unit, simulator, namespace and lab tests

.PHONY: test-unit
test-unit: lab-tools ## what sits in the crates themselves, and the definitions
	$(call suite,unit tests,$(CARGO) test --locked --workspace --lib --bins --quiet && $(CARGO) test --locked -p bellrock-api --test '*' --quiet)

.PHONY: sim-short
sim-short: ## 200 seeds of the simulator
	$(call suite,simulator,$(CARGO) run --locked --quiet -p bellrock-sim -- --seeds 200)

.PHONY: sim
sim: ## 500 seeds of the simulator (SIM_FLAGS: see cargo run -p bellrock-sim -- --help)
	$(call suite,simulator,$(CARGO) run --locked --quiet -p bellrock-sim -- --seeds 500 $(SIM_FLAGS))

.PHONY: sim-mutants
sim-mutants: ## breaks rules of the protocol one by one: the simulator must notice each
	$(call suite,mutants,sim/mutants/run.sh)

.PHONY: test-netns
test-netns: lab-tools ## the protocol crates against the kernel and real routers
	$(call suite,namespace tests,$(CARGO) build --locked --quiet -p bellrock-bgp --example announce && $(CARGO) test --locked $(NETNS_CRATES) --test '*' --quiet)

.PHONY: e2e
e2e: lab-tools parts ## the lab tests alone
	$(call suite,lab tests,$(CARGO) build --locked --quiet -p bellrock && $(CARGO) test --locked -p bellrock-e2e --test '*' -- --test-threads=1)

.PHONY: e2e-cluster
e2e-cluster: cluster-tools image ## image and chart on nodes with a real kubelet, deployed by containerlab
	$(call suite,cluster lab,$(CARGO) run --locked --quiet -p bellrock-e2e -- cluster $(LAB_FLAGS))

.PHONY: image
image: ## a static image: an OCI archive in dist/, loaded into Docker where it runs
	@image/build
	@archive=$$(ls -t dist/bellrock-*.tar | head -n 1); if docker version >/dev/null 2>&1; then docker load --quiet --input "$$archive"; fi

.PHONY: image-check
image-check: image ## builds the image once more in another folder: the digests must be the same
	@image/check

.PHONY: bench
bench: bench-path bench-bgp bench-bfd bench-flood bench-forward bench-ipam bench-l2 ## all benchmarks

.PHONY: bench-bgp
bench-bgp: lab-tools ## BGP beside BIRD and FRR: packing, 100,000 routes, one change to the kernel, memory
	@$(CARGO) build --release --locked --quiet -p bellrock-bgp --examples
	@target/release/examples/bench

.PHONY: bench-bfd
bench-bfd: lab-tools ## BFD beside FRR and BIRD: failed links to routes, busy cores, a restart
	@$(CARGO) build --release --locked --quiet -p bellrock-speaker --example bench-bfd
	@target/release/examples/bench-bfd

.PHONY: bench-flood
bench-flood: lab-tools ## a flood of 50,000 ARP requests a second: who is answered, memory, takeover
	@$(CARGO) build --release --locked --quiet -p bellrock-arp --example flood
	@target/release/examples/flood

.PHONY: bench-forward
bench-forward: lab-tools build ## forwarding: loads, floods, open connections, beside kube-proxy
	@target/release/bellrock-lab bench-forward

.PHONY: bench-path
bench-path: lab-tools build ## the whole path in the lab: times to address and answer, memory, pulled cables
	@target/release/bellrock-lab bench

.PHONY: bench-ipam
bench-ipam: lab-tools build ## addresses: 1,000 and 10,000 Services beside MetalLB, writes, memory, the allocator alone
	@target/release/bellrock-lab bench-ipam

.PHONY: bench-l2
bench-l2: lab-tools build ## the segment: pulled cables, moves, drains, rollouts, crashes, floods, beside MetalLB
	@target/release/bellrock-lab bench-l2 $(BENCH_FLAGS)

.PHONY: fault-ipam
fault-ipam: lab-tools build ## ten minutes of killed, frozen and cut-off controllers; no address may move (FAULT_FLAGS: see --help)
	@target/release/bellrock-lab fault-ipam $(FAULT_FLAGS)

.PHONY: test-repeat
test-repeat: lab-tools parts ## namespace and lab tests N times beside a busy loop (BURNERS=1)
	@e2e/repeat.sh $(N)

.PHONY: parts
parts: lab-tools
	@$(CARGO) run --locked --quiet -p bellrock-e2e -- parts

.PHONY: lab-tools
lab-tools:
	@e2e/prerequisites.sh

.PHONY: cluster-tools
cluster-tools:
	@e2e/prerequisites.sh cluster

.PHONY: crds
crds: ## writes the CRDs from their Rust types into the chart
	$(CARGO) run --locked --quiet -p bellrock-api --example write_crds -- charts/bellrock/crds

.PHONY: lint
lint: lab-tools parts ## fmt, clippy, cargo-deny, CRD drift, chart lint
	$(call suite,fmt,$(CARGO) fmt --all --check)
	$(call suite,clippy,$(CARGO) clippy --locked --workspace --all-targets --quiet -- -D warnings)
	$(call suite,cargo-deny,e2e/deny.sh)
	$(call suite,CRD drift,$(CARGO) run --locked --quiet -p bellrock-api --example write_crds -- --check charts/bellrock/crds)
	$(call suite,chart lint,"$$($(CARGO) run --locked --quiet -p bellrock-e2e -- parts --path helm)" lint charts/bellrock)

# `make` lists what there is. What a target does is in cargo, crates/xtask or scripts/; this file only orders it.
SHELL := /bin/sh
.SHELLFLAGS := -euc
MAKEFLAGS += --no-print-directory

DENY_VERSION := 0.20.2
DENY_STAMP := .cache/tools/.cargo-deny-$(DENY_VERSION)
# Seconds for each target of `make fuzz`; KEEP=1 adds inputs that got somewhere new to the corpus.
SECONDS := 60
KEEP := 0
# How often `make soak` repeats each of its tests.
ROUNDS := 1000
# Rounds of fifty Auth Services on each store, in `make soak`.
MANY := 20
# Worlds of 1,000, 10,000 and 100,000 hosts that `make sim` plays, each twice.
WORLDS := 200 10 2
# Sessions that run through live restarts, in `make soak`.
SESSIONS := 200
# The size of the store that `make soak` backs up and restores; needs twice that on the disk.
BACKUP_MIB := 10240
PREFIX := /usr/local

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

.PHONY: deps
deps: ## what building and the demo need (Debian packages; only those missing)
	@scripts/deps.sh build-essential expect

.PHONY: test-deps
test-deps: deps ## what the tests need besides: the real OpenSSH, PostgreSQL, etcd, an S3 server, curl, git, python3, rsync
	@scripts/deps.sh curl etcd-client etcd-server git openssh-client openssh-server openssh-sftp-server pgbouncer postgresql python3 python3-venv rsync
	@scripts/s3-tools.sh

.PHONY: build
build: deps ## the program, optimised, with its two other names, in target/demo
	cargo build --locked --profile demo --package cli --bin lockgate
	@ln -sfn lockgate target/demo/tsh
	@ln -sfn lockgate target/demo/tctl

.PHONY: demo
demo: build ## a cluster from nothing to a recorded shell, each command shown
	@scripts/demo.sh target/demo

.PHONY: test
test: test-deps ## all tests
	cargo build --locked --workspace --bin lockgate
	@scripts/with-accounts.sh cargo test --locked --workspace

.PHONY: soak
soak: test-deps ## random tests of stores (ROUNDS=1000), a million plans, every crash of a migration, a large backup (BACKUP_MIB=10240), 50 Auth Services (MANY=20), 10 minutes without, kills, restarts (SESSIONS=200)
	LOCKGATE_STORE_ROUNDS=$(ROUNDS) cargo test --locked --package store --test it -- zombie:: cut_connections cluster::
	LOCKGATE_PLANS=1000000 cargo test --locked --package upgrade --test it -- --nocapture random::
	LOCKGATE_MIGRATE_CRASHES=all cargo test --locked --package migrate --test it -- crash:: contract::
	LOCKGATE_BACKUP_MIB=$(BACKUP_MIB) cargo test --locked --package auth --test it -- --nocapture backup::large::
	cargo build --locked --workspace --bin lockgate
	LOCKGATE_MANY_AUTHS=50 LOCKGATE_ROUNDS=$(MANY) LOCKGATE_SOAK_SECONDS=600 LOCKGATE_STORM_SECONDS=60 \
		scripts/with-accounts.sh cargo test --locked --package harness --test it -- --nocapture --test-threads=1 ha::
	LOCKGATE_RESTART_SESSIONS=$(SESSIONS) scripts/with-accounts.sh cargo test --locked --package harness --test it -- --nocapture --test-threads=1 restart::

.PHONY: sim
sim: deps ## upgrades of clusters of 1,000, 10,000 and 100,000 hosts where things go wrong, on virtual time (WORLDS="200 10 2")
	@cargo test --locked --profile demo --package sim --test it --no-run
	@agents=1000; for seeds in $(WORLDS); do \
		SIM_SEEDS=$$seeds SIM_AGENTS=$$agents cargo test --locked --quiet --profile demo --package sim --test it -- --nocapture seeds::; \
		agents=$$((agents * 10)); \
	done

.PHONY: check
check: deps tools ## format, lints, arrows, generated files, documentation, licences, advisories
	cargo xtask check

.PHONY: tools
tools: $(DENY_STAMP) ## cargo-deny, compiled once into .cache/tools

# It runs for a second, so it is compiled as quickly as can be: its own profile (fat LTO, one unit) takes three times as long.
$(DENY_STAMP): export CARGO_PROFILE_RELEASE_OPT_LEVEL := 0
$(DENY_STAMP): export CARGO_PROFILE_RELEASE_LTO := off
$(DENY_STAMP): export CARGO_PROFILE_RELEASE_CODEGEN_UNITS := 16
$(DENY_STAMP):
	cargo install cargo-deny --quiet --locked --version $(DENY_VERSION) --root .cache/tools
	@touch $@

.PHONY: bench
bench: build test-deps ## against the OpenSSH of this machine; writes bench/RESULTS.md
	@scripts/with-accounts.sh cargo bench --locked --profile demo --package harness --bench peers

.PHONY: fuzz
fuzz: ## every parser of a stranger's bytes, SECONDS=60 each
	FUZZ_SECONDS=$(SECONDS) FUZZ_KEEP=$(KEEP) cargo test --locked --package harness --test it fuzz -- --nocapture

.PHONY: release
release: deps ## a release of HEAD into dist/<version>/, the same bytes on every machine; VERIFY=1 builds it twice and compares
	cargo xtask dist $(if $(VERIFY),--verify)

.PHONY: install
install: deps ## a release build into PREFIX=/usr/local
	cargo build --locked --release --package cli --bin lockgate
	@scripts/install.sh target/release/lockgate "$(PREFIX)"

.PHONY: clean
clean: ## everything that was built, tools too
	cargo clean
	rm -rf .cache fuzz/current dist

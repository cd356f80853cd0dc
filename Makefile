# `make demo` exports the shipped model and generates with it; `make test` runs all checks.
# Both set up what they need in .venv first.

PYTHON ?= python3
# What pip is asked for; on Linux its usual build brings CUDA libraries of several GB along. Options
# of pip may follow, such as an index of CPU builds: TORCH="torch==2.13.0 --index-url …".
TORCH ?= torch==2.13.0

ifneq ($(shell $(PYTHON) -c "import sys; print(sys.version_info >= (3, 11))"),True)
$(error DRL needs Python 3.11 or newer, and $(PYTHON) is not; run make with PYTHON=python3.11)
endif

BIN := .venv/bin
INSTALLED := .venv/.installed
# transformers 4.57 beside 5, to check imports that 5 computes wrongly or reads differently.
ORACLE := build/transformers-4
DEMO := build/numbers
CHECKPOINT := $(addprefix examples/numbers/,config.json model.safetensors tokenizer.json)

EXPORTER := $(wildcard export/*.py export/*/*.py plugins/ops/*.py)
# Engines to compare with, an environment each, and what `make bench` makes on the way.
PEERS := build/peers
BENCH := build/bench
BENCH_BUNDLES := t5-small t5-small-int8 t5-small-int4 switch-small switch-small-int8 drl-small drl-base
BENCH_OPTIONS ?= --batch 1,8,32 --beams 1,4 --repeats 3

NATIVE := $(wildcard plugins/native/src/*.* plugins/native/src/*/*.*)

.PRECIOUS: $(BENCH)/%-checkpoint/.written
.PHONY: demo test lint types pytest native install clean bench bench-peers

demo: $(DEMO)/bundle.json
	@echo
	@$(BIN)/drl-generate $(DEMO) --verbose < examples/numbers/samples.txt

$(DEMO)/bundle.json: $(INSTALLED) $(CHECKPOINT) $(EXPORTER)
	$(BIN)/drl-export examples/numbers $(DEMO) --force
	@touch $@

test: lint types pytest

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# mypy cannot see through an editable install, so it checks an ordinary one.
types: $(INSTALLED)
	@rm -rf build/types build/lib build/bdist.*
	$(BIN)/pip install --quiet --no-deps --target build/types .
	MYPYPATH=build/types $(BIN)/mypy -p drl.plugins -p drl.runtime -p drl.export -p drl.benchmarks

pytest: $(INSTALLED) $(ORACLE)/.installed
	DRL_TRANSFORMERS_4=$(ORACLE)/bin/python $(BIN)/pytest

$(ORACLE)/.installed:
	$(PYTHON) -m venv $(ORACLE)
	$(ORACLE)/bin/pip install --quiet $(TORCH)
	$(ORACLE)/bin/pip install --quiet transformers==4.57.1
	@touch $@

# Measures seven bundles of four models, five of them beside other engines. Takes most of an hour;
# let nothing else run.
bench: bench-peers $(BENCH_BUNDLES:%=$(BENCH)/%/bundle.json)
	$(BIN)/pip install --quiet --editable ".[bench]"
	@mkdir -p benchmarks/results
	$(BIN)/drl-bench $(BENCH)/t5-small-int8 $(BENCH_OPTIONS) --first-token 64,512 \
		--json $(BENCH)/t5-small-int8.json --checkpoint $(BENCH)/t5-small-checkpoint \
		--peers $(PEERS) --beside $(BENCH)/t5-small-int4 --beside $(BENCH)/t5-small \
		--beside $(BENCH)/switch-small-int8
	$(BIN)/drl-bench $(BENCH)/switch-small $(BENCH_OPTIONS) --json $(BENCH)/switch-small.json \
		--checkpoint $(BENCH)/switch-small-checkpoint --peers $(PEERS) \
		--beside $(BENCH)/switch-small-int8
	for name in drl-small drl-base; do \
		$(BIN)/drl-bench $(BENCH)/$$name $(BENCH_OPTIONS) --json $(BENCH)/$$name.json || exit 1; \
	done
	$(BIN)/python -m drl.benchmarks.publish $(BENCH)/*.json benchmarks/results/cpu-$$(date +%F)

$(BENCH)/%-checkpoint/.written: $(INSTALLED) benchmarks/models.py
	rm -rf $(BENCH)/$*-checkpoint
	$(BIN)/python -m drl.benchmarks.models $* $(BENCH)/$*-checkpoint
	@touch $@

$(BENCH)/%-int8/bundle.json: $(BENCH)/%-checkpoint/.written $(EXPORTER)
	$(BIN)/drl-export $(BENCH)/$*-checkpoint $(BENCH)/$*-int8 --precision int8 --force
	@touch $@

$(BENCH)/%-int4/bundle.json: $(BENCH)/%-checkpoint/.written $(EXPORTER)
	$(BIN)/drl-export $(BENCH)/$*-checkpoint $(BENCH)/$*-int4 --precision int4 --force
	@touch $@

$(BENCH)/%/bundle.json: $(BENCH)/%-checkpoint/.written $(EXPORTER)
	$(BIN)/drl-export $(BENCH)/$*-checkpoint $(BENCH)/$* --force
	@touch $@

# An engine that cannot be installed is reported, and the comparison leaves it out.
bench-peers: $(INSTALLED)
	-$(BIN)/python -m drl.benchmarks.peers.install $(PEERS) $(TORCH)

# The kernels in C++, into plugins/native. Without a compiler this leaves them out.
native: build/.native

build/.native: $(INSTALLED) setup.py $(NATIVE)
	$(BIN)/pip install --quiet --no-deps --editable .
	@mkdir -p $(@D)
	@touch $@

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[cpu,constraints,export,rtx,kernels,dev]"
	@touch $@

clean:
	rm -rf build dist .venv *.egg-info plugins/native/libdrl_native.*

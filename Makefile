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

NATIVE := $(wildcard plugins/native/src/*.* plugins/native/src/*/*.*)
SANITIZED := build/kernel_checks_address,undefined build/kernel_checks_thread

.PHONY: demo test lint types pytest native sanitize install clean

demo: $(DEMO)/bundle.json
	@echo
	@$(BIN)/drl-generate $(DEMO) --verbose < examples/numbers/samples.txt

$(DEMO)/bundle.json: $(INSTALLED) $(CHECKPOINT) $(wildcard export/*.py export/*/*.py plugins/ops/*.py)
	$(BIN)/drl-export examples/numbers $(DEMO) --force
	@touch $@

test: lint types sanitize pytest

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# mypy cannot see through an editable install, so it checks an ordinary one.
types: $(INSTALLED)
	@rm -rf build/types build/lib build/bdist.*
	$(BIN)/pip install --quiet --no-deps --target build/types .
	MYPYPATH=build/types $(BIN)/mypy -p drl.plugins -p drl.runtime -p drl.export -p drl.benchmarks

pytest: $(INSTALLED) $(ORACLE)/.installed native
	DRL_TRANSFORMERS_4=$(ORACLE)/bin/python $(BIN)/pytest

$(ORACLE)/.installed:
	$(PYTHON) -m venv $(ORACLE)
	$(ORACLE)/bin/pip install --quiet $(TORCH)
	$(ORACLE)/bin/pip install --quiet transformers==4.57.1
	@touch $@

# The kernels in C++, into plugins/native. Without a compiler this leaves them out.
native: build/.native

build/.native: $(INSTALLED) setup.py $(NATIVE)
	$(BIN)/pip install --quiet --no-deps --editable .
	@mkdir -p $(@D)
	@touch $@

# Their C interface, under the sanitizers for memory, for undefined behaviour and for threads.
sanitize: $(SANITIZED)
	@for check in $^; do echo $$check; $$check || exit 1; done

build/kernel_checks_%: tests/plugins/native/kernel_checks.cpp $(NATIVE)
	@mkdir -p $(@D)
	$(CXX) -std=c++17 -O1 -g -Wall -Wextra -Werror -ffp-contract=off -fno-omit-frame-pointer \
		-fsanitize=$* -fno-sanitize-recover=all -o $@ $< $(wildcard plugins/native/src/*.cpp) -pthread

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[cpu,constraints,export,dev]"
	@touch $@

clean:
	rm -rf build dist .venv *.egg-info plugins/native/libdrl_native.*

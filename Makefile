# Everything a developer or CI runs. `make check` while working, `make test` before a push,
# `make test-full` before a change is called done.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed.stamp

# Tests run in as many processes; those beside each other in order share what a folder prepares.
TEST_PROCESSES ?= 2
PYTEST := $(BIN)/pytest -n $(TEST_PROCESSES) --dist worksteal

BENCHES := $(patsubst tests/benchmarks/bench_%.py,out/bench/%.json,$(wildcard tests/benchmarks/bench_*.py))
EXPORT_TIME := out/bench/export_time.json
SOAKS := $(patsubst tests/benchmarks/soak_%.py,out/soak/%.json,$(wildcard tests/benchmarks/soak_*.py))

# Where a core is taken, OpenMP's threads that spin while they wait take many times as long
# (edgekit/cores.py).
export GOMP_SPINCOUNT ?= 1000

# The recipe in fewer epochs, which take two cores less than five minutes.
DEMO := -s teacher.train.epochs=6 -s student.train.epochs=10 -s prune.recover.epochs=4 \
  -s qat.train.epochs=1 -s quantize.rounds=6

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install lint demo check test test-full test-arm64 qemu compiler browser ray bench soak clean $(BENCHES) $(SOAKS) $(EXPORT_TIME)

help:
	@echo "make demo        export a model for every target: a bundle and a report in out/demo"
	@echo "make check       lint, types, layers and unit tests (minutes)"
	@echo "make test        all of that and every test not marked slow; what CI runs"
	@echo "make test-full   every test"
	@echo "make test-arm64  the runtimes on an emulated ARM64 Debian; makes the machine as root"
	@echo "make bench       tests/benchmarks/bench_*.py and export_time.py, each writing"
	@echo "                 out/bench/NAME.json"
	@echo "make soak        tests/benchmarks/soak_*.py, each writing out/soak/NAME.json"
	@echo "make clean       what the above made, but not $(VENV)"
	@echo "PYTHON=...       the interpreter to make $(VENV) with: $(PYTHON)"

# One pip command, torch included: pip then takes the torch that suits the machine and everything
# else is resolved against that one.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,dev]'
	touch $@

install: $(INSTALLED)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

demo: $(INSTALLED)
	$(BIN)/edgekit run mobilenet -o out/demo $(DEMO)

check: lint
	$(PYTEST) -m "not slow" tests/unit

test: lint
	$(PYTEST) -m "not slow"

test-full: lint qemu compiler browser ray
	$(PYTEST)

# A machine of another architecture, in out/arm64: Debian's kernel and programs, and the wheels for
# ARM. It is made once, by root, from a Debian mirror and the package index.
ARM64 := out/arm64
ARM64_MACHINE := $(ARM64)/initramfs

$(ARM64_MACHINE): tests/arm64/image.sh constraints.txt $(INSTALLED)
	@for tool in qemu-system-aarch64 mmdebstrap cpio ssh-keygen; do command -v $$tool >/dev/null || \
	  { echo "make test-arm64 needs $$tool: apt-get install -y qemu-system-arm mmdebstrap cpio" \
	    "openssh-client" >&2; exit 1; }; done
	PYTHON=$(BIN)/python sh $< $(ARM64)

test-arm64: $(ARM64_MACHINE)
	EDGEKIT_ARM64=$(ARM64) $(BIN)/pytest tests/arm64

# Tests of x86 processors that this machine is not.
qemu:
	@test "$$(uname -m)" != x86_64 || command -v qemu-x86_64 >/dev/null || \
	  { echo "make test-full runs on an emulated processor: apt-get install -y qemu-user" >&2; exit 1; }

# The C++ clients of a bundle are compiled.
compiler:
	@command -v c++ >/dev/null || \
	  { echo "make test-full compiles C++: apt-get install -y g++" >&2; exit 1; }

# Reports are opened in it.
browser:
	@command -v chromium >/dev/null || \
	  { echo "make test-full opens reports in a browser: apt-get install -y chromium" >&2; exit 1; }

# Replicas of the server. Ray takes a quarter of a gigabyte, so it is in neither all nor dev.
ray: $(INSTALLED)
	@$(BIN)/python -c 'import ray.serve' 2>/dev/null || \
	  { echo "make test-full runs Ray Serve: $(BIN)/pip install -c constraints.txt -e '.[ray]'" >&2; \
	    exit 1; }

bench: $(BENCHES) $(EXPORT_TIME)
	@test -n "$(BENCHES)" || { echo "no tests/benchmarks/bench_*.py" >&2; exit 1; }

soak: $(SOAKS)
	@test -n "$(SOAKS)" || { echo "no tests/benchmarks/soak_*.py" >&2; exit 1; }

$(BENCHES): out/bench/%.json: tests/benchmarks/bench_%.py $(INSTALLED)
	@mkdir -p $(@D)
	$(BIN)/python $< --out $@

$(EXPORT_TIME): tests/benchmarks/export_time.py $(INSTALLED)
	@mkdir -p $(@D)
	$(BIN)/python $< --out $@

$(SOAKS): out/soak/%.json: tests/benchmarks/soak_%.py $(INSTALLED)
	@mkdir -p $(@D)
	$(BIN)/python $< --out $@

clean:
	rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find edgekit tests recipes -name __pycache__ -type d -prune -exec rm -rf {} +

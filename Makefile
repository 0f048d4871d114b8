# Everything runs in .venv, which `make` builds itself. `make demo` is the whole product once round.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DONE := $(VENV)/.installed-for-tests
PYTEST := $(BIN)/python -m pytest
BENCHMARKS := boot boots serial guest hypercall syscalls exec fork pool fleet micro growth guard

.PHONY: demo test lint bench bench-quick $(addprefix bench-,$(BENCHMARKS)) bench-9p soak powercut fuzz test-long oracle-9p oracle-multiboot docs picture dist clean

# The guest is fetched, booted and asked a few things; then how long everything took.
demo: $(INSTALLED)
	$(BIN)/emu info
	$(BIN)/emu fetch
	$(BIN)/emu demo

# On two processors; each file's tests stay together. The guests come first, since two processes cannot use apt at once.
test: $(DONE)
	$(BIN)/emu fetch --kernel generic
	$(BIN)/emu fetch --kernel cloud
	$(PYTEST) --numprocesses 2 --dist loadfile

lint: $(DONE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lint]'
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

# The documentation's site. A warning is an error; nothing that it shows is asked of another host.
docs: $(DONE)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs
	@echo 'build/docs/index.html'

# README's picture: what a session on a terminal shows.
picture: $(DONE)
	$(BIN)/python -m bench.terminal docs/pictures/terminal.svg

# Wheel and sdist.
dist: $(DONE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m build --outdir dist .

# All of them, one table and pictures; the quick one is a look of some three minutes.
bench: $(DONE)
	$(BIN)/python -m bench

bench-quick: $(DONE)
	$(BIN)/python -m bench --quick

$(addprefix bench-,$(BENCHMARKS)): bench-%: $(DONE)
	$(BIN)/python -m bench.$*

# The same script in a share of ours and in one of QEMU's.
oracle-9p: $(DONE)
	$(BIN)/python -m tests.oracle.ninep

# The multiboot kernels of the tests, here and on QEMU.
oracle-multiboot: $(DONE)
	$(BIN)/python -m tests.oracle.multiboot

bench-9p: $(DONE)
	$(BIN)/python -m bench.ninep

soak: $(DONE)
	$(BIN)/python -m bench.soak

# Half a million malformed inputs: rings and registers, then 9p frames, some ten to an example.
fuzz: $(DONE)
	EMU_FUZZ_EXAMPLES=300000 $(PYTEST) --timeout=0 -p no:cacheprovider -k model tests/devices/virtio/test_fuzz_queue.py
	EMU_FUZZ_EXAMPLES=20000 $(PYTEST) --timeout=0 -p no:cacheprovider -s tests/devices/p9/test_fuzz.py \
	    tests/devices/virtio/test_fuzz_queue.py tests/devices/virtio/test_vsock_properties.py \
	    tests/devices/virtio/test_blk.py

# The tests that take minutes: a thousand connections, hundreds of MiB.
test-long: $(DONE)
	$(PYTEST) -m soak --timeout=7200

powercut: $(DONE)
	$(BIN)/python -m bench.powercut

# Editable, so that a changed source needs no new installation. Debian packages venv apart from Python.
$(INSTALLED): setup.py pyproject.toml
	@python=; for name in python3.11 python3.12 python3.13 python3.14 python3; do \
	    if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	test -n "$$python" || { echo 'make: Python 3.11 or later is needed: apt-get install python3 python3-venv' >&2; exit 1; }; \
	rm -rf $(VENV); \
	if $$python -c 'import ensurepip' 2>/dev/null; then $$python -m venv $(VENV); \
	elif $$python -m virtualenv --version >/dev/null 2>&1; then $$python -m virtualenv --quiet $(VENV); \
	else echo 'make: Python has no venv here: apt-get install python3-venv' >&2; exit 1; fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	$(BIN)/python -m compileall -q emu devices hypercalls
	touch $@

# What the tests and benchmarks need beside it takes longer to install than the rest.
$(DONE): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info bench/out .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Every target works from a clean clone; each runs what it needs first. One cargo profile for everything: --release.

CARGO ?= cargo
# Where cargo builds; a cache outside the checkout may be used, and is never needed.
CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
KARRI = $(CARGO_TARGET_DIR)/release/karri
# A cargo that is too old steps back behind Debian's, which `make setup` then installs.
ifeq ($(shell $(CARGO) --version 2>/dev/null | awk '{split($$2, v, "."); print (v[1] > 1 || v[2] >= 95)}'),1)
else
export PATH := /usr/bin:$(PATH)
endif

.PHONY: all setup build up check test e2e s3-tests s3s-e2e sim soak fuzz bench bench-s3 guest clean
.NOTPARALLEL:

all: check test

# Debian packages, a compiler where there is none, aws cli and boto3 for tests.
setup:
	@scripts/setup

build: setup
	$(CARGO) build --release --workspace
	@[ $(KARRI) -ef target/release/karri ] || { mkdir -p target/release && ln -sf $(KARRI) target/release/karri; }

# The whole cloud on this machine, in the foreground. ARGS go to `karri up`.
up: build
	@exec $(KARRI) up $(ARGS)

# Formatting, lints and documentation; a warning is an error.
check: setup
	@if $(CARGO) fmt --version >/dev/null 2>&1; then set -x; $(CARGO) fmt --all --check; else echo "SKIPPED fmt: this cargo has no rustfmt"; fi
	@if $(CARGO) clippy --version >/dev/null 2>&1; then set -x; $(CARGO) clippy --release --workspace --all-targets -- -D warnings; else echo "SKIPPED clippy: this cargo has no clippy"; fi
	@if rustdoc --version >/dev/null 2>&1; then set -x; RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --release --workspace --no-deps; else echo "SKIPPED docs: this compiler has no rustdoc"; fi

# Everything that tests: units, seams, simulation (tens of seeds), end to end with real clients and a booted guest.
test: setup guest
	@scripts/test

# Only the end-to-end suite.
e2e: setup guest
	@scripts/test -p karri --test e2e

# ceph/s3-tests against `karri walrus serve`: `make s3-tests SUITE=dir` takes the suite's checkout; ARGS go to pytest.
s3-tests: build
	@scripts/s3-tests "$(SUITE)" $(ARGS)

# s3s-e2e, from crates.io, against `karri walrus serve`.
s3s-e2e: build
	@scripts/s3s-e2e $(ARGS)

# Simulation with thousands of seeds; `make sim SEED=n` replays one, `TEST=name` narrows.
SIMULATED = karri-engine karri-meta karri-bulk karri-blockstore karri-objectstore
sim: setup
	@$(if $(SEED),KARRI_SIM_SEED=$(SEED),KARRI_SIM_SEEDS=$(or $(SEEDS),2000)) \
		ONLY="$(SIMULATED)" scripts/test $(TEST)

# Half an hour of mixed S3 load with kill -9 every minute and times of a full store: `make soak MINUTES=30 SEED=1`.
soak: build
	@target/venv/bin/python scripts/soak $(MINUTES)

# Hostile bytes against every parser, each target for so long: `make fuzz TARGET=part-of-a-name SECONDS=60`.
fuzz: setup
	@NONE_IS_FINE=$(TARGET) KARRI_FUZZ_SECONDS=$(or $(SECONDS),60) scripts/test --workspace $(or $(TARGET),fuzz)
	@fuzz/run $(or $(TARGET),all) $(or $(SECONDS),60)

# Figures side by side with peers, in one run.
bench: setup
	@scripts/bench $(ARGS)

# S3 whole, beside every peer: PUT, GET, HEAD, LIST, DELETE and both mixed, 4 KiB to 16 MiB, 1 to 64 at once; and LIST
# and start with a million objects.
bench-s3: setup
	@scripts/bench s3 list $(ARGS)

# The small bootable guest: target/guest/vmlinuz, initrd and root.img.
guest: setup
	@scripts/guest

clean:
	$(CARGO) clean

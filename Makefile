# The development loop. Everything is built in one profile (fast, see Cargo.toml), but for demo, bench and bench-fleet,
# which run what users run: release. TARGET follows CARGO_TARGET_DIR.
TARGET := $(or $(CARGO_TARGET_DIR),target)
CARGO := cargo
PROXY := -p heliosdb-proxy

.PHONY: setup demo test check lint features instructions reference micro bench bench-failover bench-fleet soak fuzz release deb sbom deny clean

# Installs what is missing (PostgreSQL 15 and 18, PgBouncer, etcd, Patroni, protoc, drivers with their languages).
setup:
	tools/setup

# A cluster with a standby and two replicas, and the proxy in front; Ctrl-C ends and removes it.
demo:
	tools/setup --without-drivers
	$(CARGO) build --release --locked $(PROXY)
	exec tools/demo --proxy "$(TARGET)/release/heliosdb-proxy"

# Everything that a change has to pass.
test: setup check

check: lint features instructions
	$(CARGO) build --profile fast --locked $(PROXY) -p helios-controlplane -p heliosctl --features heliosdb-proxy/distribcache
	RUST_BACKTRACE=0 HELIOS_PROXY_BIN="$(abspath $(TARGET))/fast/heliosdb-proxy" timeout --foreground 1800 $(CARGO) test --profile fast --locked --workspace

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --profile fast --locked --workspace --all-targets -- -D warnings

# The feature matrix of the proxy; the defaults are what lint and check build.
features:
	$(CARGO) clippy --profile fast --locked $(PROXY) --no-default-features --all-targets -- -D warnings
	$(CARGO) clippy --profile fast --locked $(PROXY) --no-default-features --features pool-modes --all-targets -- -D warnings
	$(CARGO) clippy --profile fast --locked $(PROXY) --features pool-modes,distribcache --all-targets -- -D warnings

# Writes docs/reference/ anew, from the tables and command lines that the programs use; tests fail where it is out of date.
reference:
	HELIOS_RENEW_REFERENCE=1 $(CARGO) test --profile fast --locked -p helios-proto --test reference
	HELIOS_RENEW_REFERENCE=1 $(CARGO) test --profile fast --locked -p heliosctl --lib reference

# The proxy against PgBouncer, HAProxy and PostgreSQL itself; BENCH takes options of tests/bench/run.py, such as
# BENCH="--rounds 5 --workloads all --syscalls --svg ratios.svg".
bench:
	tools/setup --without-drivers
	$(CARGO) build --release --locked $(PROXY) --features heliosdb-proxy/distribcache
	python3 tests/bench/run.py --proxy "$(TARGET)/release/heliosdb-proxy" $(BENCH)

# How long each piece of the hot path takes, without sockets, and how many instructions it is: more of them than
# tests/micro/instructions.txt has, by 3 %, are an error; INSTRUCTIONS=--renew writes it anew.
micro:
	$(CARGO) bench --locked -p helios-micro

instructions:
	$(CARGO) build --release --locked -p helios-micro
	tools/instructions --program "$(TARGET)/release/helios-micro" $(INSTRUCTIONS)

# From the end of a promotion to the first write, twenty times; BENCH takes options, such as BENCH="--kind planned".
bench-failover:
	tools/setup --without-drivers
	$(CARGO) build --profile fast --locked $(PROXY)
	HELIOS_PROXY_BIN="$(abspath $(TARGET))/fast/heliosdb-proxy" $(CARGO) run --profile fast --locked -p helios-tests --bin bench-failover -- $(BENCH)

# A change to every data plane of a large fleet; BENCH takes options, such as BENCH="--topology 300".
bench-fleet:
	tools/setup --without-drivers
	$(CARGO) build --release --locked -p helios-controlplane
	HELIOS_PROXY_BIN="$(abspath $(TARGET))/release/heliosdb-proxy" $(CARGO) run --profile fast --locked -p helios-tests --bin bench-fleet -- $(BENCH)

# A mixed load for an hour, every answer checked, and cancels that race; SOAK takes options, such as SOAK="--seconds 600".
soak:
	tools/setup --without-drivers
	$(CARGO) build --profile fast --locked $(PROXY)
	HELIOS_PROXY_BIN="$(abspath $(TARGET))/fast/heliosdb-proxy" $(CARGO) run --profile fast --locked -p helios-tests --bin soak -- $(SOAK)

# The three programs as they are released, with SBOMs and checksums, in DIST; the same bytes wherever the sources lie. Last,
# the Debian package of them, looked at by lintian where that is installed.
DIST := dist
release:
	tools/release "$(DIST)"

deb: release
	tools/setup
	tools/deb "$(DIST)"
	if command -v lintian; then lintian --fail-on error "$(DIST)"/heliosproxy_*.deb; else echo "no lintian here" >&2; fi

# Bills of materials of the programs (CycloneDX), in DIST.
sbom:
	tools/sbom "$(DIST)"

# Licences, sources, duplicates and advisories of every dependency, by deny.toml; needs cargo-deny and the network.
deny:
	$(CARGO) deny check

# libFuzzer over each target, FUZZ_SECONDS each; what it finds is in fuzz/artifacts. Needs cargo-fuzz and g++; the target
# scanner, which compares the lexer with PostgreSQL's own, needs clang with libclang too: leave it out of FUZZ_TARGETS if not.
FUZZ_SECONDS := 300
FUZZ_TARGETS := frames startup scram login sql names ledger session hostile scanner
FUZZ := RUSTC_BOOTSTRAP=1 $(CARGO) fuzz
FUZZ_FLAGS := -s none $(if $(filter scanner,$(FUZZ_TARGETS)),--features scanner)
fuzz:
	cd fuzz && $(FUZZ) build $(FUZZ_FLAGS)
	cd fuzz && for target in $(FUZZ_TARGETS); do \
	  seeds=../tests/targets/corpus/$$target; test -d $$seeds || seeds=../tests/targets/corpus/sql; mkdir -p corpus/$$target; \
	  $(FUZZ) run $(FUZZ_FLAGS) $$target corpus/$$target $$seeds -- -max_total_time=$(FUZZ_SECONDS) -timeout=10 || exit 1; done

clean:
	$(CARGO) clean

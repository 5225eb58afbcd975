# A developer's day: make check, make test, make demo, make bench, make campaign.
CARGO ?= cargo
export CARGO_TERM_COLOR ?= auto
# Versions of PostgreSQL that the tests play on, beside the installed one: all, a list (14,17), or installed (fetches none).
PG_MAJORS ?=
export PG_MAJORS
comma := ,
FETCHED = $(if $(filter all,$(PG_MAJORS)),14 15 16 17 18,$(if $(filter installed,$(PG_MAJORS)),,18 $(subst $(comma), ,$(PG_MAJORS))))

.PHONY: build check test demo bench campaign need-cargo need-postgres fetch-postgres

need-cargo:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust 1.91 or newer (rustup.rs, or your distribution's rustup package)"; exit 1; }
	@command -v cc >/dev/null || { echo "a C linker is missing: apt-get install build-essential"; exit 1; }

need-postgres:
	@sh .ci/need-postgres

fetch-postgres:
	@sh .ci/fetch-postgres $(FETCHED)

build: need-cargo
	$(CARGO) build --release --locked

check: need-cargo
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --workspace --no-deps --quiet

test: build need-postgres fetch-postgres
	$(CARGO) test --release --locked --workspace

demo: need-cargo need-postgres
	$(CARGO) build --release --locked -p daemon
	target/release/carveout demo

bench: build need-postgres
	bench/run

campaign: FETCHED = 14 15 16 17 18
campaign: build need-postgres fetch-postgres
	$(CARGO) test --release --locked -p tests -- --ignored --nocapture --test-threads=1

# The most used commands; `just --list` shows them.

# All checks that must pass.
check:
    .ci/run

# The tests, or those whose names contain a word.
test *WORDS:
    cargo test --all-features -- {{WORDS}}

# Formats the code and runs clippy.
lint:
    cargo fmt --all
    cargo clippy --locked --all-targets --all-features -- -D warnings

# The documentation as published.
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features --open

# The long campaigns: kills, schedules, random sequences.
long *WORDS:
    WASTORE_LONG=1 cargo test --all-features --release -- --nocapture {{WORDS}}

# Compares the store with the alternatives; takes ten minutes.
bench:
    cargo bench --bench peers

# Runs a fuzz target for this many seconds: header, envelope, names, carriers, import or inspect.
fuzz TARGET SECONDS="600":
    cargo +nightly fuzz run {{TARGET}} -- -max_total_time={{SECONDS}}

# Licences and sources of the dependencies.
deny:
    cargo deny check bans licenses sources

# The commands that are typed most; `just --list` shows them.

# Everything that must be green.
check:
    .ci/run

# The tests, or those whose names contain a word.
test *WORDS:
    cargo test --all-features -- {{WORDS}}

# Formatting, and what clippy says.
lint:
    cargo fmt --all
    cargo clippy --locked --all-targets --all-features -- -D warnings

# The documentation, as it is published.
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features --open

# The long campaigns: kills, schedules, random sequences.
long *WORDS:
    WASTORE_LONG=1 cargo test --all-features --release -- --nocapture {{WORDS}}

# The store beside what people would use instead; ten minutes.
bench:
    cargo bench --bench peers

# A fuzz target for so many seconds: header, envelope, names, carriers, import or inspect.
fuzz TARGET SECONDS="600":
    cargo +nightly fuzz run {{TARGET}} -- -max_total_time={{SECONDS}}

# Licences and sources of the dependencies.
deny:
    cargo deny check bans licenses sources

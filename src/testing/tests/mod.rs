//! Tests of the kit itself.
mod cancellation;
mod mutants;

//! Tests of the kit itself.
mod mutants;

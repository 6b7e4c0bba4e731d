//! Tests that need to see both sides of the layer: what the client gets, and what the inner store holds.

mod vectors;

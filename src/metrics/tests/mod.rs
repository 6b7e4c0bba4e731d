//! The counts, the exported series, and that they name no one.

mod between;
mod chart;
mod counts;
#[cfg(feature = "metrics")]
mod export;
mod network;
#[cfg(feature = "tracing")]
mod privacy;
mod slow;

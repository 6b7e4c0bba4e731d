//! What is counted, what is exported, and that nobody is named in it.

mod between;
mod chart;
mod counts;
#[cfg(feature = "metrics")]
mod export;
mod network;
#[cfg(feature = "tracing")]
mod privacy;
mod slow;

//! The counts, the exported series, and that no text names an account or a contact.

mod between;
mod cache_store;
mod chart;
mod counts;
#[cfg(feature = "metrics")]
mod export;
mod network;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "tracing")]
mod privacy;
mod slow;

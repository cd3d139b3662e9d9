//! portpool.
#[cfg(feature = "agent")]
pub mod config;
#[cfg(feature = "agent")]
pub mod plan;
#[cfg(feature = "cli")]
pub mod cli;

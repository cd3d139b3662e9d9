//! portpool.
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "agent")]
pub mod config;
#[cfg(feature = "agent")]
pub mod plan;

//! portpool.
#[cfg(feature = "agent")]
pub mod config;
#[cfg(feature = "agent")]
pub mod plan;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "agent")]
pub mod ledger;
pub mod protocol;
mod sys;
#[cfg(feature = "agent")]
pub mod policy;
pub mod client;
#[cfg(feature = "agent")]
pub(crate) mod agent;

//! **portpool** holds every port of every pool in the kernel and hands services ready listening
//! sockets. Exclusivity comes from holding the socket itself: there is no lock file to go stale
//! and no moment between "is it free?" and "then bind" in which somebody else can come first.
//!
//! Most services need no library: run them under `portpool exec POOL -- PROGRAM` and let them read
//! `LISTEN_FDS`, as under systemd (in Rust: the `listenfd` crate). A program that takes and gives
//! back ports while it runs uses [`Client`]:
//!
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/agent.rs"));
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let agent = DocAgent::start();
//! # let path = agent.socket();
//! use portpool::Client;
//!
//! let client = Client::connect_to(&path)?; // or Client::connect(), to the system's agent
//! let lease = client.acquire("web")?;
//! let (listener, lease) = lease.into_parts(); // bound and listening: never bind it
//! assert_eq!(listener.local_addr()?.port(), lease.port());
//!
//! drop(lease); // ends the lease: the port may be another's from here on
//! # Ok(())
//! # }
//! ```
//!
//! The library alone (`default-features = false`) blocks, needs no runtime and few crates. The
//! daemon and the command line are the features `agent` and `cli`.

#[cfg(feature = "agent")]
mod agent;
#[cfg(feature = "cli")]
pub mod cli;
pub mod client;
#[cfg(feature = "agent")]
pub mod config;
#[cfg(feature = "agent")]
pub mod ledger;
#[cfg(feature = "agent")]
pub mod plan;
#[cfg(feature = "agent")]
pub mod policy;
pub mod protocol;
mod sys;

pub use client::{Client, Error, Lease};

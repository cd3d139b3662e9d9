//! The real binary, real sockets, real processes; each test on a host of its own: a network
//! namespace, so that real ports such as 9000 are used and tests run side by side.
//!
//! They need root (for the namespace). Without it they say loudly that they were skipped; with
//! `CI` set, or `PORTPOOL_TEST_ALL`, they fail instead.
#![expect(
    clippy::expect_used,
    reason = "a test says what it expects and dies of it"
)]

mod chaos;
mod cli;
mod conflict;
mod conformance;
mod container;
mod death;
mod diff;
mod exchange;
mod exclusive;
mod handoff;
mod host;
mod hostile;
mod identity;
mod init;
mod instances;
mod intruders;
mod library;
mod load;
mod map;
mod memory;
mod mortal;
mod next;
mod next_holder;
mod own_agent;
mod quotas;
mod raw;
mod readers;
mod reclaim;
mod reload;
mod revoke;
mod revoked;
mod revoked_services;
mod rotation;
mod services;
mod shared_uid;
mod steering;
mod successors;
mod survive;
mod takeover;
mod upgrade;
mod waiting;
mod watch;
mod who;

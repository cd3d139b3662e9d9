//! `portpool release`: end leases of one's own user's processes.

use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use super::revoke::end;
use super::target::{self, Target};
use crate::sys::inspect::own_uid;

/// End leases of your own user's processes.
///
/// A lease belongs to a process, and ends with it: this is for those that shall go on without. They
/// get no further connection, and the signal of `on_revoke`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Which: PORT, POOL, POOL/INSTANCE or POOL/INSTANCE/PORT
    #[arg(value_name = "PORT|POOL", value_parser = target::parse)]
    target: Target,

    /// Only of this instance
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    instance: Option<u16>,

    /// Ask the agent that `exec --config FILE` started for this file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, socket: Option<PathBuf>) -> Result<u8, Failure> {
    let client = super::connect_to(arguments.config.as_deref(), socket)?;
    let own_uid = own_uid();
    let is_own = |holder: &crate::protocol::Process| holder.uid == own_uid;
    let leases = arguments
        .target
        .leases(&client, arguments.instance, is_own)?;
    end(&client, &leases, false, "released")
}

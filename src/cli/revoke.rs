//! `portpool revoke`: end anybody's leases.

use std::path::PathBuf;

use clap::Args;

use super::failure::{Failure, print};
use super::target::{self, Leased, Target};
use crate::client::{Client, Error};
use crate::protocol::{Fault, program_and_pid, user};

/// End anybody's leases, for administrators: root, the agent's user, and those of [access] admin.
///
/// From then on their holders get no further connection, whatever they do with the socket. They are
/// sent the signal of `on_revoke`, for most servers never notice; what they have accepted goes on.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Which: PORT, POOL, POOL/INSTANCE or POOL/INSTANCE/PORT
    #[arg(value_name = "PORT|POOL", value_parser = target::parse)]
    target: Target,

    /// Only of this instance
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    instance: Option<u16>,

    /// End the established connections, too
    #[arg(long)]
    kill_connections: bool,

    /// Ask the agent that `exec --config FILE` started for this file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, socket: Option<PathBuf>) -> Result<u8, Failure> {
    let client = super::connect_to(arguments.config.as_deref(), socket)?;
    let leases = arguments
        .target
        .leases(&client, arguments.instance, |_| true)?;
    end(&client, &leases, arguments.kill_connections, "revoked")
}

/// Ends these leases one after the other, and says of each that it did.
///
/// # Errors
/// The first that cannot be ended; those before it are.
pub(super) fn end(
    client: &Client,
    leases: &[Leased],
    kill_connections: bool,
    done: &str,
) -> Result<u8, Failure> {
    for Leased {
        lease_id,
        holder,
        slot,
    } in leases
    {
        match client.revoke(*lease_id, kill_connections) {
            Ok(()) => print(&format!(
                "{done} {}/{} {} of {} {}\n",
                slot.pool,
                slot.instance,
                slot.port,
                program_and_pid(holder),
                user(holder)
            ))?,
            // Its holder came first.
            Err(Error::Refused(fault)) if matches!(*fault, Fault::UnknownLease { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(0)
}

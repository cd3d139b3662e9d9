//! `portpool port`: the bare ports of a pool's running service, for scripts.

use std::path::PathBuf;

use clap::Args;

use super::failure::{FINDINGS, Failure, print};
use crate::protocol::ListParameters;

/// Print the ports a pool's service is on now, one a line.
///
/// Exit code 1, and nothing printed, when nobody holds a slot of the pool.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The pool, or POOL.COMPANION
    #[arg(value_name = "POOL")]
    pool: String,

    /// Of which instance [default: 1]
    #[arg(long, value_name = "N", env = "PORTPOOL_INSTANCE", value_parser = clap::value_parser!(u16).range(1..))]
    instance: Option<u16>,

    /// Ask the agent that `exec --config FILE` started for this file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, socket: Option<PathBuf>) -> Result<u8, Failure> {
    let client = super::connect_to(arguments.config.as_deref(), socket)?;
    let (pool, _) = arguments
        .pool
        .split_once('.')
        .unwrap_or((&arguments.pool, ""));
    let instance = arguments.instance.unwrap_or(1);
    let wanted = ListParameters {
        pool: Some(pool.to_owned()),
        instance: Some(instance),
    };
    let slots = client.list(&wanted)?;
    let is_on =
        |slot: &&crate::protocol::Slot| slot.pool == arguments.pool && slot.holder.is_some();
    let ports: String = slots
        .iter()
        .filter(is_on)
        .map(|slot| format!("{}\n", slot.port))
        .collect();
    match ports.is_empty() {
        false => print(&ports).map(|()| 0),
        true => Err(Failure::new(
            FINDINGS,
            format_args!(
                "nobody holds a slot of {} in instance {instance}; start it with: portpool exec {} -- CMD",
                arguments.pool, pool
            ),
        )),
    }
}

//! `portpool map`: the numbering space as a picture.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;

use super::failure::{CONFIGURATION, Failure, print};
use crate::plan::map::{Map, svg, terminal};
use crate::protocol::ListParameters;

/// Draw the numbering space: a character for each port, in colour on a terminal.
///
/// Where an agent answers, its slots are drawn in the state they are in.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// As SVG, for documents
    #[arg(long)]
    svg: bool,

    /// Ask no agent for states
    #[arg(long)]
    plan_only: bool,

    /// The configuration [default: the installed one]
    #[arg(long, value_name = "FILE", env = "PORTPOOL_CONFIG")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, socket: Option<PathBuf>) -> Result<u8, Failure> {
    let (_, checked) = super::plan::checked(arguments.config.clone(), CONFIGURATION)?;
    let states = match arguments.plan_only {
        true => HashMap::new(),
        false => states(socket),
    };
    let map = Map::new(&checked.config, |name, instance, port| {
        states.get(&(name.to_owned(), instance, port)).cloned()
    });
    let text = match arguments.svg {
        true => svg::render(&map),
        false => terminal::render(&map, std::io::stdout().is_terminal()),
    };
    print(&text).map(|()| 0)
}

/// The state of each slot that an agent has: by name, instance and port. None where no agent answers.
fn states(socket: Option<PathBuf>) -> HashMap<(String, u16, u16), String> {
    let slots = super::connect(socket)
        .ok()
        .and_then(|client| client.list(&ListParameters::default()).ok());
    let slots = slots.unwrap_or_default().into_iter();
    slots
        .map(|slot| ((slot.pool, slot.instance, slot.port), slot.state))
        .collect()
}

//! `portpool check`: find what is wrong in a configuration.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;

use super::agent::configuration;
use super::failure::{FINDINGS, Failure, UNKNOWN, print};
use crate::config::{self, Diagnostic, Source};

/// Find what is wrong in a configuration.
///
/// Exit code 0 when it would be accepted (warnings may be printed), 1 when it would not, 2 when it
/// cannot be read.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The file [default: the installed configuration]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    /// Print every key with its default and its unit instead
    #[arg(long)]
    defaults: bool,

    /// Print them as docs/configuration.md has them
    #[arg(long, requires = "defaults")]
    markdown: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    if arguments.defaults {
        let text = match arguments.markdown {
            true => config::defaults_markdown(),
            false => config::defaults_text(),
        };
        return print(&text).map(|()| 0);
    }
    let sources = configuration(arguments.file.clone()).load();
    let sources = sources.map_err(|error| Failure::new(UNKNOWN, error))?;
    match config::parse(&sources, &crate::agent::facts()) {
        Ok(checked) => {
            for warning in &checked.warnings {
                print(&format!("{}\n\n", warning.render(&sources, is_terminal())))?;
            }
            let (pools, slots) = (checked.config.pools.len(), checked.plan.slots.len());
            let warnings = checked.warnings.len();
            print(&format!(
                "{pools} pools, {slots} slots held on this machine, {warnings} warnings\n"
            ))?;
            Ok(0)
        }
        Err(diagnostics) => {
            print(&format!("{}\n", rendered(&diagnostics, &sources)))?;
            Ok(FINDINGS)
        }
    }
}

/// All that is wrong, and how much it is.
pub(super) fn rendered(diagnostics: &[Diagnostic], sources: &[Source]) -> String {
    let render = |diagnostic: &Diagnostic| diagnostic.render(sources, is_terminal());
    let mut parts: Vec<String> = diagnostics.iter().map(render).collect();
    let count = diagnostics.len();
    parts.push(format!(
        "{count} {} found",
        if count == 1 { "error" } else { "errors" }
    ));
    parts.join("\n\n")
}

fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

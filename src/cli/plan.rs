//! `portpool plan`: the numbering plan as a table, a document, or what other programs read.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use clap::Args;

use super::failure::{CONFIGURATION, FINDINGS, Failure, UNKNOWN, USAGE, print};
use crate::config::{self, Checked, Source};
use crate::plan::Instance;
use crate::plan::document::{Format, View};
use crate::protocol::visible;

/// Show the numbering plan, as a table or as what other programs read.
///
/// It is made of the configuration alone: no agent is asked, and the same plan gives the same text on every
/// machine. Exit code of --check: 0 when the file is as the plan says, 1 when it is not, 2 when it cannot be
/// read.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only these pools
    #[arg(value_name = "POOL")]
    pools: Vec<String>,

    /// As what
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// As seen from this host of the plan: {host} is an address then, and rules are those of that host
    #[arg(long, value_name = "HOST")]
    on: Option<String>,

    /// The instance whose ports templates get
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    instance: u16,

    /// Compare with this file instead of writing
    #[arg(long, value_name = "FILE", conflicts_with = "into")]
    check: Option<PathBuf>,

    /// A file for each pool (env) or unit (systemd) in this folder, instead of all in one
    #[arg(long, value_name = "FOLDER")]
    into: Option<PathBuf>,

    /// The configuration [default: the installed one]
    #[arg(long, value_name = "FILE", env = "PORTPOOL_CONFIG")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    // To a check a plan that cannot be read is one that it cannot tell about.
    let code = match arguments.check {
        Some(_) => UNKNOWN,
        None => CONFIGURATION,
    };
    let (_, checked) = checked(arguments.config.clone(), code)?;
    let instance = Instance::new(arguments.instance).unwrap_or(Instance::FIRST);
    let on = arguments.on.as_deref();
    let view = View::new(&checked.config, on, instance, &arguments.pools)
        .map_err(|error| Failure::new(USAGE, error))?;
    if let Some(folder) = &arguments.into {
        return write_files(&view, arguments.format, folder);
    }
    let text = view.render(arguments.format);
    match &arguments.check {
        Some(file) => compare(file, &text),
        None => print(&text).map(|()| 0),
    }
}

/// The configuration that a verb reads, checked; else what is wrong, with an exit code.
pub(super) fn checked(file: Option<PathBuf>, code: u8) -> Result<(Vec<Source>, Checked), Failure> {
    let files = super::agent::configuration(file);
    let sources = files.load().map_err(|error| Failure::new(code, error))?;
    match config::parse(&sources, &crate::agent::facts()) {
        Ok(checked) => Ok((sources, checked)),
        Err(diagnostics) => {
            let text = super::check::rendered(&diagnostics, &sources);
            Err(Failure::new(code, text))
        }
    }
}

fn write_files(view: &View, format: Format, folder: &Path) -> Result<u8, Failure> {
    let Some(files) = view.files(format) else {
        return Err(Failure::new(
            USAGE,
            "--into is for --format env and systemd; the others are one file",
        ));
    };
    let failed = |path: &Path, error: std::io::Error| {
        Failure::new(
            FINDINGS,
            format_args!("cannot write {}: {error}", path.display()),
        )
    };
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    for file in files {
        let path = folder.join(&file.name);
        std::fs::write(&path, file.text).map_err(|error| failed(&path, error))?;
        print(&format!("{}\n", visible(&path.to_string_lossy())))?;
    }
    Ok(0)
}

/// The most lines of a difference that are shown.
const MOST_SHOWN: usize = 10;

/// Says which lines the file has that it should not have, and the other way round.
fn compare(file: &Path, expected: &str) -> Result<u8, Failure> {
    let read = config::load_files(&[file.to_owned()]);
    let sources = read.map_err(|error| {
        let text = format!("cannot read {}: {}", file.display(), error.source);
        Failure::new(UNKNOWN, text)
    })?;
    let found = sources.first().map_or("", |source| source.text.as_str());
    if found == expected {
        return Ok(0);
    }
    let place = file.display();
    let mut text = format!("{place} is not as the plan says:\n");
    let beyond = |lines: &str, others: &str, sign: char| -> Vec<String> {
        let others: HashSet<&str> = others.lines().collect();
        let lines = lines.lines().filter(|line| !others.contains(line));
        lines
            .map(|line| format!("{sign} {}\n", visible(line)))
            .collect()
    };
    let mut lines = beyond(found, expected, '-');
    lines.extend(beyond(expected, found, '+'));
    let more = lines.len().saturating_sub(MOST_SHOWN);
    lines.truncate(MOST_SHOWN);
    match (lines.is_empty(), more) {
        (true, _) => {
            lines.push("  its lines stand in another order, or end otherwise\n".to_owned())
        }
        (false, 0) => {}
        (false, more) => lines.push(format!("  and {more} more lines\n")),
    }
    text.extend(lines);
    text.push_str("write it again: the same command, without --check, into the file");
    Err(Failure::new(FINDINGS, text))
}

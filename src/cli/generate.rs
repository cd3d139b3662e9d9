//! `portpool completions` and `portpool man`: generated from the command line's own definition.

use std::path::PathBuf;

use clap::Args;

use super::failure::{FINDINGS, Failure, print};

/// Write a shell's completions to standard output.
#[derive(Debug, Args)]
pub(super) struct CompletionsArguments {
    /// For which shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Write the manual pages into a folder, or the main one to standard output.
#[derive(Debug, Args)]
pub(super) struct ManArguments {
    /// Write portpool.1 and a page for each verb into this folder
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

pub(super) fn completions(arguments: &CompletionsArguments) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut super::definition(),
        "portpool",
        &mut script,
    );
    print(&String::from_utf8_lossy(&script)).map(|()| 0)
}

pub(super) fn man(arguments: &ManArguments) -> Result<u8, Failure> {
    let failed = |error| Failure::new(FINDINGS, format_args!("cannot write the manual: {error}"));
    match &arguments.folder {
        Some(folder) => {
            std::fs::create_dir_all(folder).map_err(failed)?;
            clap_mangen::generate_to(super::definition(), folder).map_err(failed)?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(super::definition())
                .render(&mut page)
                .map_err(failed)?;
            print(&String::from_utf8_lossy(&page))?;
        }
    }
    Ok(0)
}

//! `portpool agent --upgrade`: have the running agent go over to the program that is installed now.

use std::path::{Path, PathBuf};

use super::failure::{Failure, print};

pub(super) fn run(config: Option<&Path>, socket: Option<PathBuf>) -> Result<u8, Failure> {
    let client = super::connect_to(config, socket)?;
    let before = client.status()?;
    let after = client.upgrade()?;
    print(&format!(
        "version {} is now version {}, in the same process {}: {} slots, {} leased\n",
        before.version, after.version, after.pid, after.slots, after.leased
    ))?;
    Ok(0)
}

//! Which files a configuration is, and reading them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Source;

/// The largest file that is read, in bytes.
pub const MAX_FILE: u64 = 1024 * 1024;

/// A file of the configuration could not be read. Its text says which and what to do.
#[derive(Debug)]
pub struct LoadError {
    /// The file or folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let next = match self.source.kind() {
            io::ErrorKind::NotFound => {
                "write it (docs/configuration.md has every key), or name another with --config"
            }
            io::ErrorKind::PermissionDenied => {
                "make it readable for the agent's user, or run as one who may read it"
            }
            io::ErrorKind::InvalidData => "save it as UTF-8 text",
            io::ErrorKind::FileTooLarge => "split it into files of conf.d",
            _ => "see that it is a readable file",
        };
        write!(
            f,
            "cannot read {}: {}; {next}",
            self.path.display(),
            self.source
        )
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Reads files whole, in the order given; the first that cannot be read ends it.
pub fn load_files(paths: &[PathBuf]) -> Result<Vec<Source>, LoadError> {
    let load = |path: &PathBuf| {
        let text = read(path).map_err(|source| LoadError {
            path: path.clone(),
            source,
        })?;
        Ok(Source {
            path: path.clone(),
            text,
        })
    };
    paths.iter().map(load).collect()
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)?;
    match u64::try_from(text.len()) {
        Ok(length) if length <= MAX_FILE => Ok(text),
        _ => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is larger than 1 MiB",
        )),
    }
}

/// The files of a folder such as /etc/portpool: portpool.toml, then conf.d/*.toml by name. Either may be
/// missing, but not both: then the error names portpool.toml.
pub fn system_files(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let main = folder.join("portpool.toml");
    let mut files = drop_ins(&folder.join("conf.d"))?;
    files.sort();
    let has_main = main.try_exists().map_err(|source| LoadError {
        path: main.clone(),
        source,
    })?;
    if !has_main && files.is_empty() {
        return Err(LoadError {
            path: main,
            source: io::ErrorKind::NotFound.into(),
        });
    }
    if has_main {
        files.insert(0, main);
    }
    Ok(files)
}

/// Hidden files are editors' and package managers' leftovers.
fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let failed = |source| LoadError {
        path: folder.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden
            && entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "toml")
        {
            files.push(entry.path());
        }
    }
    Ok(files)
}

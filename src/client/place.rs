//! Where the agent is, and which instance this process belongs to.

use std::env;
use std::path::PathBuf;

/// The system agent's socket.
pub fn system_socket() -> PathBuf {
    PathBuf::from("/run/portpool/portpool.sock")
}

/// The socket of an agent that a user runs; `None` without `$XDG_RUNTIME_DIR`.
pub fn user_socket() -> Option<PathBuf> {
    let folder = env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty())?;
    Some(PathBuf::from(folder).join("portpool/portpool.sock"))
}

/// Where an agent may be: `$PORTPOOL_SOCKET` alone if it is set, else the system's socket, then
/// the user's own.
pub fn socket_paths() -> Vec<PathBuf> {
    match env::var_os("PORTPOOL_SOCKET").filter(|path| !path.is_empty()) {
        Some(path) => vec![PathBuf::from(path)],
        None => std::iter::once(system_socket())
            .chain(user_socket())
            .collect(),
    }
}

/// `$PORTPOOL_INSTANCE`, which `portpool exec` sets for its children.
pub(super) fn instance_from_environment() -> Option<u16> {
    env::var("PORTPOOL_INSTANCE").ok()?.parse().ok()
}

//! The control socket: inherited from the service manager, or bound where it belongs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, flock};
use socket2::{Domain, SockAddr, Socket, Type};

use super::limits::CONTROL_BACKLOG;
use crate::sys::inspect::own_uid;

/// The socket on which clients reach the agent. Dropping it removes its file.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    socket: Option<Socket>,
    /// Where it is, if it is anywhere in the file system.
    address: Option<PathBuf>,
    /// What we bound, and so remove; `None` for an inherited socket.
    path: Option<PathBuf>,
    /// Locked as long as we live. The kernel forgets the lock with us, so it never is stale.
    lock: Option<File>,
}

/// The control socket, for the next program of this process.
#[derive(Debug)]
pub(crate) struct Reached {
    socket: OwnedFd,
    lock: Option<OwnedFd>,
}

impl Reached {
    /// By name.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub(crate) fn handed_over(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let mut handed = vec![(CONTROL.to_owned(), self.socket.try_clone()?)];
        if let Some(lock) = &self.lock {
            handed.push((CONTROL_LOCK.to_owned(), lock.try_clone()?));
        }
        Ok(handed)
    }
}

/// The name that it has where its unit does not say another.
const CONTROL: &str = "control";

/// The name of its lock, which only a program hands over to the next.
pub(crate) const CONTROL_LOCK: &str = "portpool-control-lock";

/// Why there is no control socket.
#[derive(Debug)]
pub(crate) enum ControlError {
    /// Another agent serves that path.
    Served(PathBuf),
    /// The system said no.
    Io(PathBuf, io::Error),
}

/// Whether everybody may connect, or only the agent's own user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// The policy decides who may do what.
    Everybody,
    /// An agent of one user.
    OwnUser,
}

impl ControlSocket {
    /// The socket that the service manager passed: sd_listen_fds(3). Or one that the program before this
    /// had bound, with its lock.
    pub(crate) fn inherited(socket: OwnedFd, lock: Option<OwnedFd>) -> ControlSocket {
        let socket = Socket::from(socket);
        let address = socket.local_addr().ok();
        let address = address.and_then(|address| address.as_pathname().map(Path::to_owned));
        ControlSocket {
            path: address.clone().filter(|_| lock.is_some()),
            address,
            socket: Some(socket),
            lock: lock.map(File::from),
        }
    }

    /// What the next program is to have of it.
    ///
    /// # Errors
    /// What fcntl(2) says; `NotConnected` once it listens.
    pub(crate) fn reached(&self) -> io::Result<Reached> {
        let socket = self.socket.as_ref().ok_or(ErrorKind::NotConnected)?;
        let lock = self.lock.as_ref().map(File::try_clone).transpose()?;
        Ok(Reached {
            socket: socket.try_clone()?.into(),
            lock: lock.map(OwnedFd::from),
        })
    }

    /// Binds the socket, but does not listen yet: a client that comes too early is refused.
    ///
    /// # Errors
    /// [`ControlError::Served`] when an agent has that path, else what the system says.
    pub(crate) fn bind(path: &Path, audience: Audience) -> Result<ControlSocket, ControlError> {
        let failed = |error| ControlError::Io(path.to_owned(), error);
        if let Some(folder) = path.parent() {
            make_folder(folder, audience).map_err(failed)?;
        }
        let lock = lock(path).map_err(failed)?;
        let lock = lock.ok_or_else(|| ControlError::Served(path.to_owned()))?;
        if UnixStream::connect(path).is_ok() {
            // Inherited sockets have no lock of ours.
            return Err(ControlError::Served(path.to_owned()));
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let bind = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
            let address = SockAddr::unix(path)?;
            // The mode must be right from the first moment on: no bind, then chmod.
            let mask = match audience {
                Audience::Everybody => Mode::from_raw_mode(0o111),
                Audience::OwnUser => Mode::from_raw_mode(0o177),
            };
            let before = rustix::process::umask(mask);
            let outcome = socket.bind(&address);
            rustix::process::umask(before);
            outcome.map(|()| socket)
        };
        let socket = bind().map_err(failed)?;
        Ok(ControlSocket {
            socket: Some(socket),
            address: Some(path.to_owned()),
            path: Some(path.to_owned()),
            lock: Some(lock),
        })
    }

    /// Where clients reach it.
    pub(crate) fn path(&self) -> &Path {
        self.address.as_deref().unwrap_or(Path::new(""))
    }

    /// Begins to let clients in.
    ///
    /// # Errors
    /// What listen(2) says; `NotConnected` the second time.
    pub(crate) fn listen(&mut self) -> io::Result<UnixListener> {
        let socket = self.socket.take().ok_or(ErrorKind::NotConnected)?;
        socket.listen(CONTROL_BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Whoever cannot connect to it finds nothing behind it either way.
            drop(fs::remove_file(path));
        }
    }
}

fn make_folder(folder: &Path, audience: Audience) -> io::Result<()> {
    let mode = match audience {
        Audience::Everybody => 0o755,
        Audience::OwnUser => 0o700,
    };
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(folder);
    made.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot make the folder {}: {error}", folder.display()),
        )
    })?;
    let owner = fs::metadata(folder)?.uid();
    if audience == Audience::OwnUser && owner != own_uid() {
        let text = format!(
            "the folder {} belongs to user {owner}, not to you",
            folder.display()
        );
        return Err(io::Error::new(ErrorKind::PermissionDenied, text));
    }
    Ok(())
}

/// Locks the file beside the socket; `None` when somebody else has the lock.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(name)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

//! The service manager, as sd_listen_fds(3) and sd_notify(3) describe it: what it hands down, and what
//! it is told. It is never waited for longer than said: it may hang, and the agent may not.
// UNSAFETY: descriptors by number.
#![expect(unsafe_code)]

use std::ffi::OsString;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};

use super::fd_passing;

/// The first descriptor that is handed down: `SD_LISTEN_FDS_START`.
const FIRST: RawFd = 3;

/// The most descriptors that are taken of what the environment says.
const MOST: usize = 1 << 16;

/// Names descriptors and their numbers, `NAME=NUMBER` with a colon between, for the next program of a
/// process that goes over to another.
const HANDED_OVER: &str = "PORTPOOL_HANDED_OVER";

/// What was handed down to this process, with the names of `LISTEN_FDNAMES` (`unknown` for one without),
/// or handed over by its program before. All of it closes on exec from now on. To be called once,
/// before anything else is opened.
///
/// # Errors
/// `InvalidData` when the environment is no such thing; what fcntl(2) says of a descriptor that is
/// not open.
pub(crate) fn handed_down() -> Result<Vec<(String, OwnedFd)>> {
    let wrong = |text: &str| Error::new(ErrorKind::InvalidData, text.to_owned());
    let numbered = match std::env::var(HANDED_OVER) {
        Ok(text) => handed_over(&text).ok_or_else(|| wrong("PORTPOOL_HANDED_OVER is damaged"))?,
        Err(_) => listed().ok_or_else(|| wrong("LISTEN_FDS is no number of descriptors"))?,
    };
    let mut handed: Vec<(String, OwnedFd)> = Vec::with_capacity(numbered.len());
    for (name, fd) in numbered {
        let is_twice = handed.iter().any(|(_, known)| known.as_raw_fd() == fd);
        if is_twice {
            return Err(wrong("a descriptor is handed over twice"));
        }
        // SAFETY: only a flag is set; whether it is open is what we ask.
        fcntl_setfd(unsafe { BorrowedFd::borrow_raw(fd) }, FdFlags::CLOEXEC)?;
        // SAFETY: it is open, and was handed down to be ours: sd_listen_fds(3). Nobody else takes it,
        // as this is called once, and none is there twice.
        handed.push((name, unsafe { OwnedFd::from_raw_fd(fd) }));
    }
    Ok(handed)
}

fn listed() -> Option<Vec<(String, RawFd)>> {
    let number = |name| {
        let value = std::env::var(name).ok()?;
        value.parse::<usize>().ok()
    };
    if number("LISTEN_PID") != usize::try_from(std::process::id()).ok() {
        return Some(Vec::new());
    }
    let count = number("LISTEN_FDS").filter(|count| *count <= MOST)?;
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned);
    let names = names.chain(std::iter::repeat("unknown".to_owned()));
    Some(names.zip(FIRST..).take(count).collect())
}

fn handed_over(text: &str) -> Option<Vec<(String, RawFd)>> {
    let one = |word: &str| {
        let (name, number) = word.split_once('=')?;
        let number = number.parse().ok().filter(|number| *number >= FIRST)?;
        Some((name.to_owned(), number))
    };
    text.split(':').take(MOST).map(one).collect()
}

/// Has a command's process inherit these descriptors, and know them by their names. So does every other
/// program that this process begins before they close on exec again.
///
/// # Errors
/// What fcntl(2) says.
pub(crate) fn hand_over(command: &mut Command, handed: &[(String, OwnedFd)]) -> Result<()> {
    let mut words = Vec::with_capacity(handed.len());
    for (name, fd) in handed {
        fcntl_setfd(fd, FdFlags::empty())?;
        words.push(format!("{name}={}", fd.as_raw_fd()));
    }
    for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
    command.env(HANDED_OVER, words.join(":"));
    Ok(())
}

/// The way to the service manager.
#[derive(Debug)]
pub(crate) struct Manager(UnixDatagram);

impl Manager {
    /// `None` where `NOTIFY_SOCKET` is not set: nobody wants to know.
    ///
    /// # Errors
    /// What socket(2) and connect(2) say.
    pub(crate) fn find() -> Result<Option<Manager>> {
        let Some(place) = std::env::var_os("NOTIFY_SOCKET") else {
            return Ok(None);
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address(&place)?)?;
        socket.set_nonblocking(true)?;
        Ok(Some(Manager(socket)))
    }

    /// Tells it variables, one a line, with descriptors for its store.
    ///
    /// # Errors
    /// `TimedOut` when it takes in nothing for so long, else what sendmsg(2) says.
    pub(crate) fn tell(&self, text: &str, fds: &[BorrowedFd], patience: Duration) -> Result<()> {
        loop {
            match fd_passing::send(self.0.as_fd(), text.as_bytes(), fds) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                outcome => return outcome.map(drop),
            }
            await_event(self.0.as_fd(), PollFlags::OUT, patience)?;
        }
    }

    /// Waits until it has worked on all it was told: `BARRIER` of sd_notify(3).
    ///
    /// # Errors
    /// `TimedOut`, else what pipe(2) and sendmsg(2) say.
    pub(crate) fn finish(&self, patience: Duration) -> Result<()> {
        let (ours, its) = pipe_with(PipeFlags::CLOEXEC)?;
        self.tell("BARRIER=1", &[its.as_fd()], patience)?;
        drop(its);
        await_event(ours.as_fd(), PollFlags::empty(), patience)
    }
}

fn await_event(fd: BorrowedFd, wanted: PollFlags, patience: Duration) -> Result<()> {
    let mut fds = [PollFd::new(&fd, wanted)];
    let patience = Timespec::try_from(patience).map_err(|_| ErrorKind::InvalidInput)?;
    let outcome = loop {
        match poll(&mut fds, Some(&patience)) {
            Err(rustix::io::Errno::INTR) => {}
            outcome => break outcome,
        }
    };
    match outcome {
        Ok(0) => Err(Error::new(
            ErrorKind::TimedOut,
            "the service manager does not answer",
        )),
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn address(place: &OsString) -> Result<SocketAddr> {
    match place.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(place),
        _ => Err(Error::new(
            ErrorKind::InvalidInput,
            "NOTIFY_SOCKET is no path of a Unix socket",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_handed_over_is_read_by_name_and_number() {
        let handed = handed_over("control=3:portpool-ledger-7=12").unwrap();
        let expected = [
            ("control".to_owned(), 3),
            ("portpool-ledger-7".to_owned(), 12),
        ];
        assert_eq!(handed, expected);
        for wrong in [
            "",
            "control",
            "control=",
            "control=2",
            "control=-1",
            "a=3:b",
        ] {
            assert_eq!(handed_over(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_service_manager_is_found_by_path_or_by_abstract_name() {
        let path = address(&"/run/notify".into()).unwrap();
        assert_eq!(path.as_pathname().unwrap().to_str(), Some("/run/notify"));
        assert!(
            address(&"@notify".into())
                .unwrap()
                .as_abstract_name()
                .is_some()
        );
        assert!(address(&"vsock:2:3".into()).is_err());
    }
}

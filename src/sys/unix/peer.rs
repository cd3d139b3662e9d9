//! Who is at the other end of a Unix socket: the kernel's word, never the peer's own.
// UNSAFETY: nix has no name for SO_PEERGROUPS.
#![expect(unsafe_code)]

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{getsockopt, sockopt};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The process that connected.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its process id in our pid namespace.
    pub(crate) pid: u32,
    /// The effective user id it connected with.
    pub(crate) uid: u32,
    /// The effective group id it connected with.
    pub(crate) gid: u32,
    /// The process itself: readable once it has ended.
    pub(crate) pidfd: OwnedFd,
    /// Which process this is; see [`Identity`].
    pub(crate) identity: Identity,
}

/// Tells one process from every other of this boot, also after its pid was given to another.
///
/// The pidfd's inode where the kernel has pidfs (Linux 6.9), else the start time of
/// `/proc/PID/stat`; with the pid in both cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Identity(u32, u64);

impl Identity {
    /// The process of this pid, if it is the one that this number was found for.
    pub(crate) fn new(pid: u32, number: u64) -> Identity {
        Identity(pid, number)
    }

    /// What tells it from others of its pid.
    pub(crate) fn number(self) -> u64 {
        self.1
    }

    /// The process itself, if it still is there: its pidfd.
    ///
    /// # Errors
    /// `NotFound` when it has ended, else what pidfd_open(2) says.
    pub(crate) fn open(self) -> Result<OwnedFd> {
        let pid = i32::try_from(self.0).ok().and_then(Pid::from_raw);
        let pidfd = pidfd_open(pid.ok_or(ErrorKind::NotFound)?, PidfdFlags::empty());
        let pidfd = match pidfd {
            Err(rustix::io::Errno::SRCH) => return Err(ErrorKind::NotFound.into()),
            outcome => outcome?,
        };
        match identity(self.0, pidfd.as_fd())? == self {
            true => Ok(pidfd),
            false => Err(ErrorKind::NotFound.into()),
        }
    }
}

/// Asks the kernel who connected: `SO_PEERCRED`, `SO_PEERPIDFD` (Linux 6.5) of unix(7).
///
/// Before Linux 6.5 the pidfd is opened by pid. The process could have ended and its pid be
/// another's by then, so its start time must lie before the question was asked twice the same.
///
/// # Errors
/// `NotFound` when the process has ended and was reaped (only before Linux 6.5), else what
/// getsockopt(2) and pidfd_open(2) say.
pub(crate) fn peer(socket: BorrowedFd) -> Result<Peer> {
    let credentials = getsockopt(&socket, sockopt::PeerCredentials)?;
    let pid = u32::try_from(credentials.pid()).unwrap_or(0);
    let pidfd = match getsockopt(&socket, sockopt::PeerPidfd) {
        Ok(pidfd) => pidfd,
        Err(nix::errno::Errno::ENOPROTOOPT) => pidfd_by_pid(pid)?,
        Err(error) => return Err(error.into()),
    };
    let identity = identity(pid, pidfd.as_fd())?;
    Ok(Peer {
        pid,
        uid: credentials.uid(),
        gid: credentials.gid(),
        pidfd,
        identity,
    })
}

/// The process of that pid, as it is now.
///
/// # Errors
/// `NotFound` when there is none, else what pidfd_open(2) says.
pub(crate) fn of_pid(pid: u32) -> Result<Peer> {
    let pidfd = pidfd_by_pid(pid)?;
    let identity = identity(pid, pidfd.as_fd())?;
    let uid = super::process::uid(pid).ok_or(ErrorKind::NotFound)?;
    Ok(Peer {
        pid,
        uid,
        gid: 0,
        pidfd,
        identity,
    })
}

fn pidfd_by_pid(pid: u32) -> Result<OwnedFd> {
    let id = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(ErrorKind::NotFound)?;
    let before = super::process::start_time(pid);
    let pidfd = pidfd_open(id, PidfdFlags::empty())?;
    match (before, super::process::start_time(pid)) {
        (Some(before), Some(after)) if before == after => Ok(pidfd),
        _ => Err(Error::from(ErrorKind::NotFound)),
    }
}

fn identity(pid: u32, pidfd: BorrowedFd) -> Result<Identity> {
    const PID_FS_MAGIC: u64 = 0x5049_4446; // the kernel's include/uapi/linux/magic.h
    let kind = u64::try_from(rustix::fs::fstatfs(pidfd)?.f_type).unwrap_or(0);
    let number = match kind == PID_FS_MAGIC {
        true => rustix::fs::fstat(pidfd)?.st_ino,
        false => super::process::start_time(pid).unwrap_or(0),
    };
    Ok(Identity(pid, number))
}

/// The supplementary groups the peer had when it connected: `SO_PEERGROUPS` of unix(7).
///
/// # Errors
/// What getsockopt(2) says.
pub(crate) fn supplementary_groups(socket: BorrowedFd) -> Result<Vec<u32>> {
    // The kernel's NGROUPS_MAX bounds the list; ERANGE says how many there are.
    let mut groups = vec![0u32; 64];
    loop {
        let room = groups.len() * size_of::<u32>();
        let mut length = libc::socklen_t::try_from(room).map_err(|_| ErrorKind::InvalidInput)?;
        // SAFETY: the kernel writes at most `length` bytes to `groups`, which has that many, and
        // the length to `length`; both outlive the call.
        let outcome = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = usize::try_from(length).unwrap_or(0) / size_of::<u32>();
        if outcome == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_peer_of_a_pair_is_this_very_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = peer(ours.as_fd()).unwrap();
        assert_eq!(peer.pid, std::process::id());
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        let own = pidfd_by_pid(peer.pid).unwrap();
        assert_eq!(identity(peer.pid, own.as_fd()).unwrap(), peer.identity);
        let again = Identity::new(peer.pid, peer.identity.number());
        again.open().unwrap();
        let another = Identity::new(peer.pid, peer.identity.number() + 1);
        assert_eq!(another.open().unwrap_err().kind(), ErrorKind::NotFound);
        supplementary_groups(ours.as_fd()).unwrap();
    }
}

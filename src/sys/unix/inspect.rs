//! What a file descriptor that came from somebody else really is.
// UNSAFETY: rustix takes the pid of a peer in another pid namespace, which is 0, for impossible.
#![expect(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io::Result;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use linux_raw_sys::net::{SO_PEERCRED, SOL_SOCKET};
use rustix::net::{AddressFamily, SocketType, sockopt};

/// An internet socket as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inspected {
    /// A stream (TCP) and not a datagram (UDP) socket.
    pub(crate) is_stream: bool,
    /// It is listening.
    pub(crate) is_listening: bool,
    /// What it is bound to.
    pub(crate) address: SocketAddr,
}

/// Describes an internet socket; `None` for whatever else the descriptor is.
///
/// # Errors
/// What getsockopt(2) and getsockname(2) say.
pub(crate) fn inspect(socket: BorrowedFd) -> Result<Option<Inspected>> {
    let kind = match sockopt::socket_type(socket) {
        Ok(kind) => kind,
        Err(rustix::io::Errno::NOTSOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let family = sockopt::socket_domain(socket)?;
    if family != AddressFamily::INET && family != AddressFamily::INET6 {
        return Ok(None);
    }
    let Ok(address) = SocketAddr::try_from(rustix::net::getsockname(socket)?) else {
        return Ok(None);
    };
    Ok(Some(Inspected {
        is_stream: kind == SocketType::STREAM,
        is_listening: sockopt::socket_acceptconn(socket)?,
        address,
    }))
}

/// What an internet socket of our own is bound to; `None` for a socket of another family.
///
/// # Errors
/// What getsockname(2) says.
#[cfg(feature = "agent")]
pub(crate) fn bound_to(socket: BorrowedFd) -> Result<Option<SocketAddr>> {
    Ok(SocketAddr::try_from(rustix::net::getsockname(socket)?).ok())
}

/// The user id and the process id of who is at the other end of a connected Unix socket, of who
/// connected or of who listens: `SO_PEERCRED` of unix(7). The process id is 0 for a process that is
/// not in our pid namespace.
///
/// # Errors
/// What getsockopt(2) says.
pub(crate) fn credentials(socket: BorrowedFd) -> Result<(u32, u32)> {
    let mut peer = PeerCredentials::default();
    let mut length = u32::try_from(size_of::<PeerCredentials>()).map_err(std::io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes to `peer`, which has that many and may hold
    // any numbers, and the length to `length`; both outlive the call.
    let outcome = unsafe {
        getsockopt(
            socket.as_raw_fd(),
            SOL_SOCKET as c_int,
            SO_PEERCRED as c_int,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    match outcome {
        0 => Ok((peer.uid, u32::try_from(peer.pid).unwrap_or(0))),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// `struct ucred` of unix(7).
#[repr(C)]
#[derive(Default)]
struct PeerCredentials {
    pid: i32,
    uid: u32,
    gid: u32,
}

unsafe extern "C" {
    /// getsockopt(2) of the C library, which std links anyway: the library alone needs no crate for it.
    fn getsockopt(
        socket: c_int,
        level: c_int,
        option: c_int,
        value: *mut c_void,
        length: *mut u32,
    ) -> c_int;
}

/// This process's user id.
pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The inode of a socket: what tells it from every other, also in sock_diag(7) and proc(5).
///
/// # Errors
/// What fstat(2) says.
#[cfg(feature = "agent")]
pub(crate) fn inode(socket: BorrowedFd) -> Result<u64> {
    Ok(rustix::fs::fstat(socket)?.st_ino)
}

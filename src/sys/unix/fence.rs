//! Without steering: which of two listeners at one endpoint gets the connections.
//!
//! Both are in one SO_REUSEPORT group, in which a filter says which member gets a packet:
//! SO_ATTACH_REUSEPORT_CBPF of socket(7). The members are counted in the order in which they came
//! (`reuseport_add_sock` of the kernel's `net/core/sock_reuseport.c`). Once the elder is shut, it is
//! no member any more, and the younger is alone with whatever the filter says.
// UNSAFETY: socket2 has no name for SO_ATTACH_REUSEPORT_CBPF.
#![expect(unsafe_code)]

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::SockRef;

/// A member of a group of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Member {
    /// Who was there first.
    Elder = 0,
    /// Who came to it.
    Younger = 1,
}

/// `BPF_RET | BPF_K` of the kernel's `include/uapi/linux/bpf_common.h`: return a constant.
const RETURN_CONSTANT: u16 = 0x06;

/// Sends all new connections of a group to one member; `of` is any of them. What half-open
/// handshakes and queues have stays where it is.
///
/// # Errors
/// What setsockopt(2) says: EINVAL for a socket that never had SO_REUSEPORT.
pub(crate) fn favour(of: BorrowedFd, member: Member) -> Result<()> {
    let mut answer = libc::sock_filter {
        code: RETURN_CONSTANT,
        jt: 0,
        jf: 0,
        k: member as u32,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &raw mut answer,
    };
    // SAFETY: the kernel reads one sock_fprog, and through it one instruction; both outlive the
    // call.
    let outcome = unsafe {
        libc::setsockopt(
            of.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap_or(0),
        )
    };
    match outcome {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// A listener that listens again shares its port with another, as it did before.
///
/// # Errors
/// What setsockopt(2) says.
pub(crate) fn share(listener: BorrowedFd) -> Result<()> {
    SockRef::from(&listener).set_reuse_port(true)
}

/// A listener that shared its port with another does so no longer.
///
/// # Errors
/// What setsockopt(2) says.
pub(crate) fn part(listener: BorrowedFd) -> Result<()> {
    SockRef::from(&listener).set_reuse_port(false)
}

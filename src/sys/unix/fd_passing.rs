//! Bytes and file descriptors over a Unix stream socket: unix(7), `SCM_RIGHTS`.

#[cfg(feature = "agent")]
use std::io::IoSlice;
use std::io::{Error, ErrorKind, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};
#[cfg(feature = "agent")]
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// The most file descriptors in one message: `SCM_MAX_FD` of the kernel's `include/net/scm.h`.
const MAX_FDS: usize = 253;

/// Room for the control message that carries them.
const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_FDS));

/// Sends bytes, with file descriptors on the first of them; gives how many bytes went out.
///
/// The caller keeps its descriptors. After a partial send they are on their way already: do not
/// send them again.
///
/// # Errors
/// `InvalidInput` beyond 253 descriptors, `WouldBlock` where the socket does not block, and what
/// sendmsg(2) says. No `SIGPIPE`.
#[cfg(feature = "agent")]
pub(crate) fn send(socket: BorrowedFd, bytes: &[u8], fds: &[BorrowedFd]) -> Result<usize> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Error::from(ErrorKind::InvalidInput));
    }
    let bytes = [IoSlice::new(bytes)];
    Ok(rustix::net::sendmsg(
        socket,
        &bytes,
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

/// Receives bytes, and adds the file descriptors that came with them to `fds`, close-on-exec;
/// gives how many bytes came, 0 at the end of the stream.
///
/// # Errors
/// `InvalidData` when descriptors were lost on the way (`MSG_CTRUNC`: there were too many, or this
/// process has no room for them); those that did arrive are closed. Else what recvmsg(2) says.
pub(crate) fn receive(
    socket: BorrowedFd,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<usize> {
    receive_with(socket, buffer, fds, RecvFlags::CMSG_CLOEXEC)
}

/// The same without taking anything out of the queue: `MSG_PEEK` of recv(2) gives copies of the
/// descriptors, too (`unix_peek_fds` of the kernel's `net/unix/af_unix.c`).
///
/// # Errors
/// Those of [`receive`].
#[cfg(feature = "agent")]
pub(crate) fn peek(socket: BorrowedFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize> {
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::PEEK;
    receive_with(socket, buffer, fds, flags)
}

fn receive_with(
    socket: BorrowedFd,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    flags: RecvFlags,
) -> Result<usize> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(buffer)];
    let message = rustix::net::recvmsg(socket, &mut buffers, &mut control, flags)?;
    let mut arrived = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            arrived.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Error::new(
            ErrorKind::InvalidData,
            "file descriptors were lost on the way",
        ));
    }
    fds.append(&mut arrived);
    Ok(message.bytes)
}

/// Receives bytes only; gives how many came, 0 at the end of the stream.
///
/// # Errors
/// `InvalidData` when file descriptors came with them: there is no room for any, so the kernel
/// closed them. Else what recvmsg(2) says.
#[cfg(feature = "agent")]
pub(crate) fn receive_bytes(socket: BorrowedFd, buffer: &mut [u8]) -> Result<usize> {
    let mut control = RecvAncillaryBuffer::default();
    let mut buffers = [IoSliceMut::new(buffer)];
    let message =
        rustix::net::recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Error::new(
            ErrorKind::InvalidData,
            "file descriptors came with a call",
        ));
    }
    Ok(message.bytes)
}

/// How much of what was sent on a Unix stream socket the peer has not read yet, in bytes of
/// kernel memory: `SIOCOUTQ`, unix(7). 0 means that the peer has read everything.
///
/// # Errors
/// What ioctl(2) says.
#[cfg(feature = "agent")]
pub(crate) fn unread(socket: BorrowedFd) -> Result<u32> {
    outq::unread(socket)
}

#[cfg(feature = "agent")]
mod outq {
    // UNSAFETY: rustix has no name for this ioctl.
    #![expect(unsafe_code)]

    use std::io::Result;
    use std::os::fd::BorrowedFd;

    use rustix::ioctl::{Getter, Opcode, ioctl};

    pub(super) fn unread(socket: BorrowedFd) -> Result<u32> {
        /// `SIOCOUTQ` of the kernel's `include/uapi/linux/sockios.h`, which is `TIOCOUTQ`.
        const SIOCOUTQ: Opcode = 0x5411;
        // SAFETY: SIOCOUTQ stores one int through its pointer and does nothing else: unix_ioctl
        // of the kernel's net/unix/af_unix.c.
        let getter = unsafe { Getter::<SIOCOUTQ, libc::c_int>::new() };
        // SAFETY: the operation and the type fit, as said above.
        let unread = unsafe { ioctl(socket, getter) }?;
        Ok(u32::try_from(unread).unwrap_or(0))
    }
}

#[cfg(all(test, feature = "agent"))]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_in_order_and_close_on_exec() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let zero = std::fs::File::open("/dev/zero").unwrap();
        send(ours.as_fd(), b"x", &[file.as_fd(), zero.as_fd()]).unwrap();
        let mut fds = Vec::new();
        let count = receive(theirs.as_fd(), &mut [0; 8], &mut fds).unwrap();
        assert_eq!((count, fds.len()), (1, 2));
        let inode = |fd: BorrowedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(inode(fds[0].as_fd()), inode(file.as_fd()));
        assert_eq!(inode(fds[1].as_fd()), inode(zero.as_fd()));
        let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn a_receiver_of_bytes_notices_descriptors_and_keeps_none() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(ours.as_fd(), b"x", &[file.as_fd()]).unwrap();
        let failure = receive_bytes(theirs.as_fd(), &mut [0; 8]).unwrap_err();
        assert_eq!(failure.kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn more_descriptors_than_a_message_carries_are_refused() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let fds = vec![file.as_fd(); MAX_FDS + 1];
        assert_eq!(
            send(ours.as_fd(), b"x", &fds).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    }

    #[test]
    fn what_the_peer_has_not_read_is_seen() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert_eq!(unread(ours.as_fd()).unwrap(), 0);
        send(ours.as_fd(), b"hello", &[]).unwrap();
        assert_ne!(unread(ours.as_fd()).unwrap(), 0);
        receive_bytes(theirs.as_fd(), &mut [0; 8]).unwrap();
        assert_eq!(unread(ours.as_fd()).unwrap(), 0);
    }
}

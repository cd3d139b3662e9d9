//! A client that knows its calls by heart: portpool's own messages, sent and received without
//! making or reading any JSON. With it agent and floor are asked the same by the same code.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::Outcome;

/// Replies are far shorter.
const ROOM: usize = 4096;

/// What a reply to `Acquire` begins with; the lease's number follows.
pub(crate) const GRANTED: &[u8] = br#"{"parameters":{"leases":[{"leaseId":"#;

/// A connection on which one pool's only slot is asked for.
#[derive(Debug)]
pub(crate) struct Caller {
    stream: UnixStream,
    acquire: Vec<u8>,
}

/// What was granted: the lease's number, and its listener.
pub(crate) type Granted = (u64, OwnedFd);

impl Caller {
    /// `more` is what stands beside the pools: `,"wait":-1`.
    pub(crate) fn new(stream: UnixStream, pool: &str, more: &str) -> Caller {
        let acquire = format!(
            r#"{{"method":"org.portpool.Agent.Acquire","parameters":{{"pools":[{{"pool":"{pool}"}}]{more}}}}}"#
        );
        Caller {
            stream,
            acquire: with_nul(&acquire),
        }
    }

    /// # Errors
    /// Anything but a lease with its socket.
    pub(crate) fn acquire(&self) -> Outcome<Granted> {
        self.ask()?;
        self.granted()
    }

    /// Acquires and releases: whoever comes next, of another process, gets a new generation.
    pub(crate) fn come_and_go(&self) -> Outcome {
        let (lease, _listener) = self.acquire()?;
        self.release(lease)
    }

    /// The first half of an acquire.
    pub(crate) fn ask(&self) -> Outcome {
        send(self.stream.as_fd(), &self.acquire, None)
    }

    /// The second half.
    pub(crate) fn granted(&self) -> Outcome<Granted> {
        let mut room = [0; ROOM];
        let (reply, fd) = receive(self.stream.as_fd(), &mut room)?;
        match (reply.strip_prefix(GRANTED).map(number), fd) {
            (Some(lease), Some(fd)) => Ok((lease, fd)),
            _ => Err(unexpected(reply)),
        }
    }

    /// Ends a lease.
    pub(crate) fn release(&self, lease: u64) -> Outcome {
        self.call("Release", lease)
    }

    /// Says that the successor is ready.
    pub(crate) fn ready(&self, lease: u64) -> Outcome {
        self.call("Ready", lease)
    }

    fn call(&self, method: &str, lease: u64) -> Outcome {
        let call = format!(
            r#"{{"method":"org.portpool.Agent.{method}","parameters":{{"leaseId":{lease}}}}}"#
        );
        send(self.stream.as_fd(), &with_nul(&call), None)?;
        let mut room = [0; ROOM];
        match receive(self.stream.as_fd(), &mut room)? {
            (DONE, None) => Ok(()),
            (reply, _) => Err(unexpected(reply)),
        }
    }
}

/// The reply of a method that has nothing to say.
pub(crate) const DONE: &[u8] = b"{\"parameters\":{}}\0";

fn with_nul(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn unexpected(reply: &[u8]) -> Box<dyn std::error::Error + Send + Sync> {
    format!("unexpected: {}", String::from_utf8_lossy(reply)).into()
}

/// The digits that a text begins with.
pub(crate) fn number(text: &[u8]) -> u64 {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

/// One system call, with a descriptor or without.
pub(crate) fn send(socket: BorrowedFd, bytes: &[u8], fd: Option<BorrowedFd>) -> Outcome {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fd) = &fd {
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
    }
    sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// One system call: what has arrived, nothing at the end of the stream. Nobody here sends more
/// than a message before its answer, so it is a whole one.
pub(crate) fn receive<'a>(
    socket: BorrowedFd,
    room: &'a mut [u8],
) -> Outcome<(&'a [u8], Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(room)];
    let message = recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fd = None;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fd = rights.last();
        }
    }
    Ok((&room[..message.bytes], fd))
}

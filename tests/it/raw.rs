//! The wire by hand, for what no client library would send. The roles have it too.

use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde_json::Value;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to an agent.
pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
    bytes: Vec<u8>,
    /// Descriptors that came with what was read.
    pub(crate) fds: Vec<OwnedFd>,
}

impl Raw {
    pub(crate) fn connect(socket: &Path) -> Result<Raw> {
        Raw::over(UnixStream::connect(socket)?)
    }

    pub(crate) fn over(stream: UnixStream) -> Result<Raw> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Raw {
            stream,
            bytes: Vec::new(),
            fds: Vec::new(),
        })
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a call of the agent's interface.
    pub(crate) fn call(&mut self, method: &str, parameters: &str) -> Result<()> {
        self.send(&call(method, parameters, ""))
    }

    /// Sends bytes with descriptors on the first of them.
    pub(crate) fn send_with_fds(&mut self, bytes: &[u8], fds: &[BorrowedFd]) -> Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        let bytes = [IoSlice::new(bytes)];
        Ok(sendmsg(
            &self.stream,
            &bytes,
            &mut control,
            SendFlags::NOSIGNAL,
        )?)
    }

    /// The next reply; `UnexpectedEof` at the end of the stream.
    pub(crate) fn reply(&mut self) -> Result<Value> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == 0) {
                let message: Vec<u8> = self.bytes.drain(..=end).collect();
                return serde_json::from_slice(&message[..end]).map_err(Error::other);
            }
            if self.read()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The error that the next reply is; "" for a success.
    pub(crate) fn error(&mut self) -> Result<String> {
        let reply = self.reply()?;
        Ok(reply["error"].as_str().unwrap_or("").to_owned())
    }

    /// Whether the agent has closed the connection, once everything was read.
    pub(crate) fn ends(&mut self) -> bool {
        loop {
            match self.read() {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => {
                    return matches!(
                        error.kind(),
                        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
                    );
                }
            }
        }
    }

    /// Waits until something can be read, and reads nothing.
    pub(crate) fn wait_for_reply(&self) {
        let mut waits = [rustix::event::PollFd::new(
            &self.stream,
            rustix::event::PollFlags::IN,
        )];
        let limit = rustix::event::Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        assert_eq!(rustix::event::poll(&mut waits, Some(&limit)), Ok(1));
    }

    /// Sends nothing more; can still read.
    pub(crate) fn shut_writing(&self) -> Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    fn read(&mut self) -> Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [0; 16 * 1024];
        let message = recvmsg(
            self.stream.as_fd(),
            &mut [IoSliceMut::new(&mut buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part {
                self.fds.extend(fds);
            }
        }
        self.bytes.extend_from_slice(&buffer[..message.bytes]);
        Ok(message.bytes)
    }
}

/// A call of the agent's interface as it goes over the wire; `flags` are further members.
pub(crate) fn call(method: &str, parameters: &str, flags: &str) -> Vec<u8> {
    let mut text =
        format!(r#"{{"method":"org.portpool.Agent.{method}","parameters":{parameters}{flags}}}"#);
    text.push('\0');
    text.into_bytes()
}

/// What `Acquire` takes for so many slots of a pool.
pub(crate) fn slots(pool: &str, count: u16) -> String {
    format!(r#"{{"pools":[{{"pool":"{pool}","count":{count}}}]}}"#)
}

//! One connection: a call out, its replies in, and the file descriptors that came with them.

use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::to_raw_value;

use super::Error;
use super::trust::is_trusted;
use crate::protocol::{Call, Fault, INTERFACE_NAME, Inbox, Reply, framed};
use crate::sys::{fd_passing, inspect};

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    inbox: Inbox,
    /// Who listens; 0 for a process that is not in our pid namespace.
    pub(super) server_pid: u32,
    /// A call went wrong in the middle: the next reply may be an older call's.
    is_broken: bool,
}

impl Connection {
    pub(super) fn open(path: &Path) -> Result<Connection, Error> {
        Connection::over(UnixStream::connect(path)?, path)
    }

    /// A stream that is connected to an agent, which listens at the path.
    pub(super) fn over(stream: UnixStream, path: &Path) -> Result<Connection, Error> {
        let (uid, server_pid) = inspect::credentials(stream.as_fd())?;
        if !is_trusted(uid, path) {
            return Err(Error::Untrusted {
                path: path.to_owned(),
                uid,
            });
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection {
            stream,
            inbox: Inbox::default(),
            server_pid,
            is_broken: false,
        })
    }

    /// Calls a method that answers once and passes no descriptors.
    pub(super) fn call<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
    ) -> Result<T, Error> {
        self.call_for_fds(method, parameters, &mut Vec::new())
    }

    /// Calls a method that answers once; adds the descriptors that came to `fds`.
    pub(super) fn call_for_fds<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<T, Error> {
        self.send(method, parameters, false)?;
        Ok(self.receive(fds, &mut buffer())?.parameters)
    }

    /// The same, however long the answer takes.
    pub(super) fn await_fds<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<T, Error> {
        self.stream.set_read_timeout(None)?;
        self.call_for_fds(method, parameters, fds)
    }

    /// Calls a method that goes on answering, and takes its first answer; [`Connection::next`] has
    /// the others, and waits for them however long it takes.
    pub(super) fn subscribe<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
    ) -> Result<Reply<T>, Error> {
        self.send(method, parameters, true)?;
        // Byte by byte: whatever comes after it is to stay where poll(2) sees it.
        let first = self.receive(&mut Vec::new(), &mut [0; 1])?;
        self.stream.set_read_timeout(None)?;
        Ok(first)
    }

    /// The next answer to a call that goes on answering.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> Result<Reply<T>, Error> {
        self.receive(&mut Vec::new(), &mut buffer())
    }

    /// The connected socket.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Calls a method that answers several times.
    pub(super) fn call_for_more<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
        mut each: impl FnMut(T),
    ) -> Result<(), Error> {
        self.send(method, parameters, true)?;
        loop {
            let reply = match self.next() {
                Ok(reply) => reply,
                Err(fault @ Error::Refused(_)) => return Err(fault),
                Err(error) => {
                    // Further replies to this call may follow.
                    self.give_up();
                    return Err(error);
                }
            };
            each(reply.parameters);
            if !reply.continues {
                return Ok(());
            }
        }
    }

    /// Closes a connection on which the next reply may be an older call's, so that no call takes
    /// it for its own. The agent then ends the leases whose sockets were on their way.
    fn give_up(&mut self) {
        self.is_broken = true;
        drop(self.stream.shutdown(std::net::Shutdown::Both));
    }

    fn send(&mut self, method: &str, parameters: &impl Serialize, more: bool) -> Result<(), Error> {
        if self.is_broken {
            return Err(Error::Io(ErrorKind::NotConnected.into()));
        }
        let not_json = |_| Error::Protocol("the parameters have no JSON form");
        let parameters = to_raw_value(parameters).map_err(not_json)?;
        let method = format!("{INTERFACE_NAME}.{method}").into();
        let call = Call {
            method,
            parameters: Some(&parameters),
            more,
            oneway: false,
            upgrade: false,
        };
        let bytes = framed(&call).map_err(|_| Error::Protocol("the call is too large"))?;
        match self.stream.write_all(&bytes) {
            // An agent that sends us away says why before it closes.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    fn receive<T: DeserializeOwned>(
        &mut self,
        fds: &mut Vec<OwnedFd>,
        buffer: &mut [u8],
    ) -> Result<Reply<T>, Error> {
        loop {
            let arrived = match self.inbox.next_message() {
                Ok(Some(message)) => return parse(message),
                Ok(None) => self.read(fds, buffer),
                Err(_) => Err(Error::Protocol("a reply is too large")),
            };
            if let Err(error) = arrived {
                self.give_up();
                return Err(error);
            }
        }
    }

    fn read(&mut self, fds: &mut Vec<OwnedFd>, buffer: &mut [u8]) -> Result<(), Error> {
        match fd_passing::receive(self.stream.as_fd(), buffer, fds) {
            Ok(0) => Err(Error::Io(ErrorKind::UnexpectedEof.into())),
            Ok(length) => {
                self.inbox.push(&buffer[..length]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Room for what one read may bring.
fn buffer() -> [u8; 16 * 1024] {
    [0; 16 * 1024]
}

fn parse<T: DeserializeOwned>(message: &[u8]) -> Result<Reply<T>, Error> {
    /// A reply, unless it has an error: what a fault carries may look like what a reply does.
    #[derive(serde::Deserialize)]
    struct Received<T> {
        error: Option<serde::de::IgnoredAny>,
        parameters: T,
        #[serde(default)]
        continues: bool,
    }
    if let Ok(Received {
        error: None,
        parameters,
        continues,
    }) = serde_json::from_slice(message)
    {
        return Ok(Reply {
            parameters,
            continues,
        });
    }
    match serde_json::from_slice::<Fault>(message) {
        Ok(fault) => Err(fault.into()),
        Err(_) => Err(Error::Protocol("a reply is not understood")),
    }
}

//! What can go wrong for a client.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::protocol::Fault;

/// Why a call did not do what it was to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// No agent answers at any of these places.
    NoAgent {
        /// Each place, and what the system said.
        tried: Vec<(PathBuf, io::Error)>,
    },
    /// What answers is run by a user who has no business to.
    Untrusted {
        /// Where.
        path: PathBuf,
        /// Who.
        uid: u32,
    },
    /// The agent says no, and why.
    Refused(Box<Fault>),
    /// The agent does not keep to the protocol.
    Protocol(&'static str),
    /// A socket is not what the reply says.
    WrongSocket {
        /// The socket's name.
        name: String,
        /// What it is instead.
        what: String,
    },
    /// The pool is of UDP ports.
    NotTcp,
    /// The connection to the agent broke.
    Io(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::NoAgent { tried } => {
                write!(f, "no agent answers")?;
                for (path, error) in tried {
                    write!(f, "\n  {}: {error}", path.display())?;
                }
                write!(
                    f,
                    "\nstart one (portpool agent), or use one of your own: portpool exec --config FILE"
                )
            }
            Error::Untrusted { path, uid } => write!(
                f,
                "the agent at {} is run by user {uid}, who is neither root, nor portpool, nor you: not trusted. In a \
                 container it is where its socket lies in a folder that is root's, as all above it, and nobody \
                 else's to write to: mount /run/portpool of the machine",
                path.display()
            ),
            Error::Refused(fault) => fault.fmt(f),
            Error::Protocol(what) => write!(f, "the agent does not keep to the protocol: {what}"),
            Error::WrongSocket { name, what } => {
                write!(
                    f,
                    "the socket {name} that the agent sent is not what it says: {what}"
                )
            }
            Error::NotTcp => write!(f, "the pool is of UDP ports: use acquire_all"),
            Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock => {
                write!(f, "the agent does not answer")
            }
            Error::Io(error) => write!(f, "the connection to the agent broke: {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(error) => Some(error),
            _ => None,
        }
    }
}

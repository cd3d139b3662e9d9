//! The floor: the fewest system calls that pass one descriptor between two processes.
//!
//! A byte asks, a byte with a descriptor answers. No buffers are made, nothing is parsed, nobody
//! is asked who he is. rustix makes its system calls itself, without libc in between, so this is
//! what a C program would do, without any `unsafe` here.

use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::epoll;

use crate::Outcome;
use crate::caller::{receive, send};
use crate::map::Map;
use crate::place::Process;
use crate::slot::Slot;

/// What the argument of a process that is a server begins with.
pub(crate) const ROLE: &str = "--floor";

/// What a server does beside answering.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Also {
    /// Nothing: it always passes the same listener.
    Nothing,
    /// As the agent must, it asks for the pidfd of who connects, and waits for its end.
    Watch,
    /// As the agent must, it makes a listener for who asks and ends it when it is given back.
    Listen,
}

impl Also {
    fn role(self) -> &'static str {
        match self {
            Also::Nothing => ROLE,
            Also::Watch => "--floor-that-watches",
            Also::Listen => "--floor-that-listens",
        }
    }
}

const ASK: &[u8] = b"a";
const GIVE_BACK: &[u8] = b"r";

/// A server process.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) process: Process,
    socket: PathBuf,
}

impl Server {
    pub(crate) fn start(socket: PathBuf, also: Also) -> Outcome<Server> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(also.role()).arg(&socket);
        let process = Process::start(command)?;
        Ok(Server { process, socket })
    }

    pub(crate) fn connect(&self) -> Outcome<UnixStream> {
        Ok(UnixStream::connect(&self.socket)?)
    }
}

/// A round trip that brings a descriptor.
pub(crate) fn ask(stream: &UnixStream) -> Outcome<OwnedFd> {
    send(stream.as_fd(), ASK, None)?;
    receive(stream.as_fd(), &mut [0])?
        .1
        .ok_or_else(|| "no descriptor came".into())
}

/// A round trip without one.
pub(crate) fn give_back(stream: &UnixStream) -> Outcome {
    send(stream.as_fd(), GIVE_BACK, None)?;
    receive(stream.as_fd(), &mut [0])?;
    Ok(())
}

/// Times a piece of work.
pub(crate) fn timed<T>(work: impl FnOnce() -> Outcome<T>) -> Outcome<(Duration, T)> {
    let begun = Instant::now();
    let outcome = work()?;
    Ok((begun.elapsed(), outcome))
}

/// The server process: one client at a time, until it is killed.
pub(crate) fn serve(role: &str, socket: &Path) -> Outcome {
    let handed = TcpListener::bind("127.0.0.1:0")?;
    let slot = match role == Also::Listen.role() {
        true => (7101..).find_map(|port| Slot::reserve(port, Map::new().ok().map(Rc::new)).ok()),
        false => None,
    };
    let listener = UnixListener::bind(socket)?;
    let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    println!("ready");
    loop {
        let (client, _) = listener.accept()?;
        let mut _watched = None;
        if role == Also::Watch.role() {
            let process = getsockopt(&client, sockopt::PeerPidfd)?;
            let data = epoll::EventData::new_u64(0);
            epoll::add(&events, &process, data, epoll::EventFlags::IN)?;
            _watched = Some(process);
        }
        let mut made = None;
        loop {
            let mut byte = [0];
            match receive(client.as_fd(), &mut byte)?.0 {
                ASK => {
                    made = slot.as_ref().map(Slot::listen).transpose()?;
                    let fd = made.as_ref().map_or(handed.as_fd(), |made| made.as_fd());
                    send(client.as_fd(), b"x", Some(fd))?;
                }
                GIVE_BACK => {
                    if let (Some(slot), Some(made)) = (&slot, made.take()) {
                        slot.end(made)?;
                    }
                    send(client.as_fd(), b"k", None)?;
                }
                _ => break,
            }
        }
    }
}

//! The floor for many clients: one epoll loop that answers portpool's own messages with messages
//! of the same size, by direct system calls, and neither reads nor writes any JSON.
//!
//! It does what a holder of sockets cannot do without: it waits for the end of who connected, makes
//! a listener or steers to it, passes it on, and gives what a dead holder had to who waits.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::epoll;
use socket2::Socket;

use crate::Outcome;
use crate::caller::{DONE, GRANTED, number, receive, send};
use crate::map::Map;
use crate::place::Process;
use crate::slot::Slot;

/// What the argument of a process that is such a server begins with.
pub(crate) const ROLE: &str = "--crowd";

/// How many slots it has: pools `p00` and so on.
pub(crate) const SLOTS: u16 = 64;

/// What stands in a call before the pool's number, and before the lease's.
const BEFORE_POOL: &[u8] =
    br#"{"method":"org.portpool.Agent.Acquire","parameters":{"pools":[{"pool":"p"#;
const BEFORE_LEASE: &[u8] = br#"{"method":"org.portpool.Agent.Release","parameters":{"leaseId":"#;
const BEFORE_READY_LEASE: &[u8] =
    br#"{"method":"org.portpool.Agent.Ready","parameters":{"leaseId":"#;

/// What it does with a slot's listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duty {
    /// Passes the same one again and again, and leaves it as it is.
    Pass,
    /// The same, and connections go to it while it is given away only.
    Steer,
    /// Makes one each time, and ends it.
    Listen,
    /// Makes one beside that of the holder, whoever asks.
    Replace,
}

impl Duty {
    fn role(self) -> &'static str {
        match self {
            Duty::Pass => ROLE,
            Duty::Steer => "--crowd-that-steers",
            Duty::Listen => "--crowd-that-listens",
            Duty::Replace => "--crowd-that-replaces",
        }
    }
}

/// A server process.
#[derive(Debug)]
pub(crate) struct Crowd {
    pub(crate) process: Process,
    socket: PathBuf,
}

impl Crowd {
    pub(crate) fn start(socket: PathBuf, duty: Duty) -> Outcome<Crowd> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(duty.role()).arg(&socket);
        Ok(Crowd {
            process: Process::start(command)?,
            socket,
        })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

/// A client, known by the number of its connection's descriptor.
type ClientId = u64;

/// Marks an event of a client's process, rather than of its connection.
const PROCESS: u64 = 1 << 32;

/// The event of a new client.
const NEW: u64 = u64::MAX;

struct Server {
    duty: Duty,
    slots: Vec<Given>,
    clients: HashMap<ClientId, Client>,
    epoll: OwnedFd,
}

struct Client {
    stream: UnixStream,
    _process: OwnedFd,
}

/// A slot, and to whom it is given.
struct Given {
    slot: Slot,
    listener: Option<Socket>,
    /// That of the holder before, who still lives.
    former: Option<Socket>,
    holder: Option<ClientId>,
    waiter: Option<ClientId>,
    /// The reply that gives it.
    reply: Vec<u8>,
}

/// The server process, until it is killed.
pub(crate) fn serve(role: &str, socket: &Path) -> Outcome {
    let duties = [Duty::Pass, Duty::Steer, Duty::Listen, Duty::Replace];
    let duty = duties.into_iter().find(|duty| duty.role() == role);
    let duty = duty.ok_or("no such duty")?;
    let mut server = Server {
        duty,
        slots: slots(duty)?,
        clients: HashMap::new(),
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
    };
    let control = UnixListener::bind(socket)?;
    server.watch(&control, NEW)?;
    println!("ready");
    let mut events = Vec::with_capacity(1024);
    loop {
        events.clear();
        epoll::wait(
            &server.epoll,
            rustix::buffer::spare_capacity(&mut events),
            None,
        )?;
        for event in &events {
            let event: &epoll::Event = event;
            match event.data.u64() {
                NEW => server.let_in(control.accept()?.0)?,
                process if process & PROCESS != 0 => server.died(process & !PROCESS)?,
                client => server.answer(client)?,
            }
        }
    }
}

fn slots(duty: Duty) -> Outcome<Vec<Given>> {
    let map = Map::new().ok().map(Rc::new);
    let mut slots = Vec::new();
    for port in 7300.. {
        let number = slots.len();
        if number == usize::from(SLOTS) {
            break;
        }
        // Where another floor has it, take the next.
        let Ok(slot) = Slot::reserve(port, map.clone()) else {
            continue;
        };
        let listener = match duty {
            Duty::Listen | Duty::Replace => None,
            Duty::Pass | Duty::Steer => Some(slot.listen()?),
        };
        let rest = format!(
            r#"{number},"pool":"p{number:02}","instance":1,"port":{port},"protocol":"tcp","generation":12345,"sockets":[{{"fileDescriptor":0,"name":"p{number:02}","port":{port},"address":"127.0.0.1"}}]}}]}}}}"#
        );
        slots.push(Given {
            slot,
            listener,
            former: None,
            holder: None,
            waiter: None,
            reply: [GRANTED, rest.as_bytes(), b"\0"].concat(),
        });
    }
    Ok(slots)
}

impl Server {
    fn watch(&self, fd: &impl AsFd, data: u64) -> Outcome {
        let data = epoll::EventData::new_u64(data);
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?)
    }

    fn let_in(&mut self, stream: UnixStream) -> Outcome {
        let id = u64::try_from(stream.as_raw_fd())?;
        let process = getsockopt(&stream, sockopt::PeerPidfd)?;
        self.watch(&process, id | PROCESS)?;
        self.watch(&stream, id)?;
        self.clients.insert(
            id,
            Client {
                stream,
                _process: process,
            },
        );
        Ok(())
    }

    fn answer(&mut self, id: ClientId) -> Outcome {
        let Some(client) = self.clients.get(&id) else {
            return Ok(());
        };
        let mut room = [0; 4096];
        let (call, _) = receive(client.stream.as_fd(), &mut room)?;
        if call.is_empty() {
            // What it had ends with its process.
            return Ok(epoll::delete(&self.epoll, &client.stream)?);
        }
        if let Some(rest) = call.strip_prefix(BEFORE_LEASE) {
            self.end(usize::try_from(number(rest))?)?;
            return self.done(id);
        }
        if let Some(rest) = call.strip_prefix(BEFORE_READY_LEASE) {
            let given = &self.slots[usize::try_from(number(rest))?];
            given
                .listener
                .iter()
                .try_for_each(|listener| given.slot.steer(listener))?;
            return self.done(id);
        }
        let rest = call.get(BEFORE_POOL.len()..).ok_or("a short call")?;
        let slot = usize::try_from(number(rest))?;
        match self.slots[slot].holder {
            None => self.give(slot, id),
            Some(_) if self.duty == Duty::Replace => self.give(slot, id),
            Some(_) => {
                self.slots[slot].waiter = Some(id);
                Ok(())
            }
        }
    }

    fn done(&self, id: ClientId) -> Outcome {
        send(self.clients[&id].stream.as_fd(), DONE, None)
    }

    fn give(&mut self, slot: usize, id: ClientId) -> Outcome {
        let given = &mut self.slots[slot];
        given.holder = Some(id);
        match (self.duty, &given.listener) {
            (Duty::Steer, Some(listener)) => given.slot.steer(listener)?,
            (Duty::Listen, _) => given.listener = Some(given.slot.listen()?),
            (Duty::Replace, _) => {
                given.former = given.listener.take();
                given.listener = Some(match &given.former {
                    Some(elder) => given.slot.listen_beside(elder)?,
                    None => given.slot.listen()?,
                });
            }
            (Duty::Pass | Duty::Steer, _) => {}
        }
        let listener = given.listener.as_ref().map(AsFd::as_fd);
        send(self.clients[&id].stream.as_fd(), &given.reply, listener)
    }

    fn end(&mut self, slot: usize) -> Outcome {
        let given = &mut self.slots[slot];
        given.holder = None;
        match self.duty {
            Duty::Pass => Ok(()),
            Duty::Steer => given.slot.park(),
            Duty::Listen | Duty::Replace => match given.listener.take() {
                Some(listener) => given.slot.end(listener),
                None => Ok(()),
            },
        }
    }

    fn died(&mut self, id: ClientId) -> Outcome {
        for slot in 0..self.slots.len() {
            if self.slots[slot].holder == Some(id) {
                self.end(slot)?;
                if let Some(waiter) = self.slots[slot].waiter.take() {
                    self.give(slot, waiter)?;
                }
            }
        }
        self.clients.remove(&id);
        Ok(())
    }
}

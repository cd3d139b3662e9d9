//! What the agent has in the kernel: one reservation a slot, the listeners of its generation, and
//! the steering that decides which of them gets connections.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use crate::ledger::{Obstacle, SlotId};
use crate::plan::{Protocol, Slot};
use crate::sys::hold::{self, Endpoint, Transport};
use crate::sys::inspect::inode;
use crate::sys::steer::{Steering, aside};

/// Every slot's sockets, by the slot's place in the plan.
#[derive(Debug)]
pub(crate) struct Kernel {
    slots: Vec<Held>,
    /// Decides who gets a port's connections, where the agent may.
    steering: Option<Steering>,
}

#[derive(Debug)]
struct Held {
    endpoints: Box<[Endpoint]>,
    backlog: i32,
    reservation: Option<OwnedFd>,
    generation: u64,
    /// One per endpoint while there is a generation. Shared with replies that are on their way.
    listeners: Option<Listeners>,
}

/// The listeners of one generation, in the order of the slot's addresses.
pub(crate) type Listeners = Rc<[OwnedFd]>;

/// Why a slot cannot be held, or cannot listen.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// What kind of trouble.
    pub(crate) obstacle: Obstacle,
    /// What the kernel said.
    pub(crate) error: io::Error,
}

impl Trouble {
    /// The machine, or this process, has no descriptor or no memory for another socket.
    pub(crate) fn is_want_of_means(&self) -> bool {
        let want = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS];
        let code = self.error.raw_os_error();
        code.is_some_and(|code| want.contains(&code))
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        let obstacle = match error.kind() {
            io::ErrorKind::AddrInUse => Obstacle::Conflict,
            _ => Obstacle::Unavailable,
        };
        Trouble { obstacle, error }
    }
}

/// Which addresses the machine has, asked once each. Short-lived: addresses come and go.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    known: HashMap<IpAddr, bool>,
}

impl Addresses {
    fn exists(&mut self, address: IpAddr) -> io::Result<bool> {
        if address.is_unspecified() {
            return Ok(true);
        }
        if let Some(known) = self.known.get(&address) {
            return Ok(*known);
        }
        let exists = hold::address_exists(address)?;
        self.known.insert(address, exists);
        Ok(exists)
    }
}

impl Kernel {
    /// Nothing is held yet.
    pub(crate) fn new(slots: &[Slot], steering: Option<Steering>) -> Kernel {
        Kernel {
            slots: slots.iter().map(Held::new).collect(),
            steering,
        }
    }

    /// Holds a slot: reserves its port and sees that its addresses can be listened on. What was
    /// reserved before stays so, whatever the outcome.
    ///
    /// # Errors
    /// What is in the way.
    pub(crate) fn hold(&mut self, slot: SlotId, addresses: &mut Addresses) -> Result<(), Trouble> {
        let held = &mut self.slots[slot.0 as usize];
        let Some(first) = held.endpoints.first() else {
            return Ok(());
        };
        match &held.reservation {
            None => {
                let reservation = hold::reserve(first.address.port(), first.transport)?;
                held.reservation = Some(reservation);
            }
            // Reserved, and yet there was trouble: see whether it is over.
            Some(reservation) => {
                for endpoint in &held.endpoints {
                    match hold::can_listen(reservation.as_fd(), endpoint) {
                        // Steering goes round a former holder's copy; see `listen`. Only one on all
                        // addresses has none beside it.
                        Err(error)
                            if error.kind() == io::ErrorKind::AddrInUse
                                && self.steering.is_some()
                                && !endpoint.address.ip().is_unspecified() => {}
                        outcome => outcome?,
                    }
                }
            }
        }
        for endpoint in &held.endpoints {
            if !addresses.exists(endpoint.address.ip())? {
                return Err(io::Error::from(io::ErrorKind::AddrNotAvailable).into());
            }
        }
        if let Some(steering) = &self.steering {
            // Not before it is held: whoever had the port first keeps its connections.
            steering.own(first.address.port(), first.transport)?;
        }
        Ok(())
    }

    /// Makes the listeners of a new generation.
    ///
    /// # Errors
    /// What is in the way of any of them; none is left then.
    pub(crate) fn listen(&mut self, slot: SlotId, generation: u64) -> Result<(), Trouble> {
        let held = &mut self.slots[slot.0 as usize];
        let Some(reservation) = &held.reservation else {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        };
        let mut listeners = Vec::with_capacity(held.endpoints.len());
        for endpoint in &held.endpoints {
            let listener = hold::listen(reservation.as_fd(), endpoint, held.backlog);
            listeners.push(match (listener, &self.steering) {
                // A former holder's copy is in the way. It gets nothing there, so go round it.
                (Err(error), Some(_)) if error.kind() == io::ErrorKind::AddrInUse => {
                    let aside = aside(endpoint.address.ip(), generation);
                    hold::listen_aside(reservation.as_fd(), endpoint, aside, held.backlog)?
                }
                (outcome, _) => outcome?,
            });
        }
        if let Some(steering) = &self.steering {
            for (endpoint, listener) in held.endpoints.iter().zip(&listeners) {
                steering.steer(endpoint, listener.as_fd())?;
            }
        }
        held.listeners = Some(listeners.into());
        held.generation = generation;
        Ok(())
    }

    /// Ends a generation; one that has ended already, or never began, is nothing to do.
    pub(crate) fn end(&mut self, slot: SlotId, generation: u64) {
        let held = &mut self.slots[slot.0 as usize];
        if held.generation != generation {
            return;
        }
        let Some(listeners) = held.listeners.take() else {
            return;
        };
        for (listener, endpoint) in listeners.iter().zip(&held.endpoints) {
            if let Some(steering) = &self.steering
                && let Err(error) = steering.park(endpoint)
            {
                // Shut below, it is out of the map all the same.
                tracing::error!(address = %endpoint.address, %error, "cannot steer away from a socket");
            }
            hold::end(listener.as_fd(), endpoint.transport);
        }
    }

    /// The listeners of the slot's generation, ready for a new user.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub(crate) fn listeners(&self, slot: SlotId) -> io::Result<Option<Listeners>> {
        let Some(listeners) = &self.slots[slot.0 as usize].listeners else {
            return Ok(None);
        };
        for listener in listeners.iter() {
            hold::set_blocking(listener.as_fd())?;
        }
        Ok(Some(Rc::clone(listeners)))
    }

    /// How many connections wait at the slot's listeners, and how many may.
    pub(crate) fn queue(&self, slot: SlotId) -> Option<(u32, u32)> {
        let listeners = self.slots[slot.0 as usize].listeners.as_ref()?;
        let queues = listeners
            .iter()
            .filter_map(|listener| hold::accept_queue(listener.as_fd()));
        queues.reduce(|(length, limit), (more, other)| (length + more, limit + other))
    }

    /// How many sockets a hand-off of the slot passes on.
    pub(crate) fn socket_count(&self, slot: SlotId) -> usize {
        self.slots[slot.0 as usize].endpoints.len()
    }

    /// The port and what it speaks.
    pub(crate) fn port(&self, slot: SlotId) -> Option<(u16, Transport)> {
        let first = self.slots[slot.0 as usize].endpoints.first()?;
        Some((first.address.port(), first.transport))
    }

    /// The inode of the slot's reservation: what is not an intruder.
    pub(crate) fn own_inodes(&self, slot: SlotId) -> Vec<u64> {
        let held = &self.slots[slot.0 as usize];
        let listeners = held.listeners.iter().flat_map(|listeners| listeners.iter());
        let sockets = held.reservation.iter().chain(listeners);
        sockets
            .filter_map(|socket| inode(socket.as_fd()).ok())
            .collect()
    }
}

impl Held {
    fn new(slot: &Slot) -> Held {
        let transport = match slot.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        };
        let endpoint = |address: &crate::plan::ListenAddress| Endpoint {
            address: SocketAddr::new(address.ip, slot.port.get()),
            v6_only: address.v6_only,
            transport,
        };
        Held {
            endpoints: slot.addresses.iter().map(endpoint).collect(),
            backlog: i32::try_from(slot.backlog).unwrap_or(i32::MAX),
            reservation: None,
            generation: 0,
            listeners: None,
        }
    }
}

//! One slot's sockets: its reservation and the listeners of its generations.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use crate::ledger::{HolderId, SlotId};
use crate::plan::{Protocol, Slot};
use crate::sys::fence::{self, Member};
use crate::sys::hold::{self, Endpoint, Transport};
use crate::sys::inspect::inode;
use crate::sys::shelf::Kept;
use crate::sys::shut::Shut;

/// What is held of a slot.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) endpoints: Box<[Endpoint]>,
    pub(super) backlog: i32,
    pub(super) reservation: Option<OwnedFd>,
    /// That it outlives the agent.
    pub(super) reservation_kept: Option<Kept>,
    /// The oldest first: those that are over, one that drains its queue, the one that gets the
    /// connections, one that waits to.
    pub(super) generations: Vec<Generation>,
    /// The number of the generation that gets the connections.
    pub(super) current: Option<u64>,
}

/// One listener per address, made together and ended together.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) number: u64,
    /// One per endpoint. Shared with replies that are on their way. None once they are over, where
    /// a copy of them is of no use.
    pub(super) listeners: Listeners,
    /// What they are to be known by once they are over.
    pub(super) inodes: Vec<u64>,
    /// Who lives and drains what waits there, after another has taken the slot over.
    pub(super) drained_by: Option<HolderId>,
    /// They were shut for good.
    pub(super) is_over: bool,
    /// That they outlive the agent.
    pub(super) kept: Option<Kept>,
}

/// The listeners of one generation, in the order of the slot's addresses.
pub(crate) type Listeners = Rc<[OwnedFd]>;

impl Generation {
    /// As [`super::Kernel::shut`] knows it. Two generations of one slot that live have different ones.
    pub(super) fn number_in(&self, slot: SlotId) -> u64 {
        (u64::from(slot.0) << 32) | (self.number & u64::from(u32::MAX))
    }

    pub(super) fn watch(
        &self,
        slot: SlotId,
        endpoints: &[Endpoint],
        shut: &Shut,
    ) -> io::Result<()> {
        for (listener, endpoint) in self.listeners.iter().zip(endpoints) {
            if endpoint.is_tcp() {
                shut.watch(listener.as_fd(), self.number_in(slot))?;
            }
        }
        Ok(())
    }

    /// Whether nobody waits in its queues.
    pub(super) fn is_drained(&self) -> bool {
        let mut queues = self
            .listeners
            .iter()
            .map(|known| hold::accept_queue(known.as_fd()));
        queues.all(|queue| queue.is_none_or(|(length, _)| length == 0))
    }

    /// Datagrams find none of these sockets until [`Generation::show`].
    pub(super) fn hide(&self, endpoints: &[Endpoint]) -> io::Result<()> {
        let sockets = self.listeners.iter().zip(endpoints);
        let mut datagrams = sockets.filter(|(_, endpoint)| !endpoint.is_tcp());
        datagrams.try_for_each(|(socket, endpoint)| hold::hide(socket.as_fd(), endpoint))
    }

    pub(super) fn show(&self, endpoints: &[Endpoint]) -> io::Result<()> {
        let sockets = self.listeners.iter().zip(endpoints);
        let mut datagrams = sockets.filter(|(_, endpoint)| !endpoint.is_tcp());
        datagrams.try_for_each(|(socket, _)| hold::show(socket.as_fd()))
    }

    /// Shuts it for good. With our copy, one that an ex-holder has can be made to let another
    /// listener in beside it, and be shut again. Of TCP's, nobody needs that with steering.
    pub(super) fn end(&mut self, endpoints: &[Endpoint], shut: &Shut, is_steered: bool) {
        self.is_over = true;
        self.inodes = inodes(self.listeners.iter());
        for (listener, endpoint) in self.listeners.iter().zip(endpoints) {
            shut.forget(listener.as_fd());
            hold::end(listener.as_fd(), endpoint);
        }
        let is_tcp = endpoints
            .iter()
            .all(|endpoint| endpoint.transport == Transport::Tcp);
        if is_steered && is_tcp {
            self.let_go();
        }
    }

    /// Lets go of our copies, and of what would outlive us.
    pub(super) fn let_go(&mut self) {
        self.listeners = Rc::new([]);
        self.kept = None;
    }
}

impl Held {
    pub(super) fn new(slot: &Slot) -> Held {
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
            backlog: Held::backlog(slot),
            reservation: None,
            reservation_kept: None,
            generations: Vec::new(),
            current: None,
        }
    }

    pub(super) fn is_tcp(&self) -> bool {
        self.endpoints.iter().all(Endpoint::is_tcp)
    }

    pub(super) fn backlog(slot: &Slot) -> i32 {
        i32::try_from(slot.backlog).unwrap_or(i32::MAX)
    }

    pub(super) fn generation(&self, number: u64) -> Option<&Generation> {
        self.generations.iter().find(|known| known.number == number)
    }

    pub(super) fn listener(&self, number: u64, index: usize) -> Option<BorrowedFd<'_>> {
        let known = self.generation(number)?;
        known.listeners.get(index).map(AsFd::as_fd)
    }

    /// Our copies of an endpoint's listeners, over or not, but for those of two generations.
    pub(super) fn beside(&self, index: usize, but: [Option<u64>; 2]) -> Vec<BorrowedFd<'_>> {
        let generations = self.generations.iter();
        let others = generations.filter(|known| !but.contains(&Some(known.number)));
        others
            .filter_map(|known| known.listeners.get(index))
            .map(AsFd::as_fd)
            .collect()
    }

    /// Without steering: sends what comes to the second generation, no longer to the first.
    pub(super) fn favour(&self, old: u64, new: u64) -> io::Result<()> {
        let (Some(old), Some(new)) = (self.generation(old), self.generation(new)) else {
            return Ok(());
        };
        if !self.is_tcp() {
            new.show(&self.endpoints)?;
            return old.hide(&self.endpoints);
        }
        for listener in new.listeners.iter() {
            fence::favour(listener.as_fd(), Member::Younger)?;
        }
        Ok(())
    }

    /// Without steering: a listener that was shut and listens again is the younger of two, whichever
    /// it was before.
    pub(super) fn share_again(&self, index: usize, number: u64) -> io::Result<()> {
        let live = self.generations.iter().filter(|known| !known.is_over);
        let listeners: Vec<_> = live
            .filter_map(|known| known.listeners.get(index))
            .collect();
        if listeners.len() < 2 {
            return Ok(());
        }
        let favoured = match self.current == Some(number) {
            true => Member::Younger,
            false => Member::Elder,
        };
        for listener in listeners {
            fence::share(listener.as_fd())?;
            fence::favour(listener.as_fd(), favoured)?;
        }
        Ok(())
    }

    /// The current generation shares its ports with no other any more.
    pub(super) fn part_current(&self) {
        let current = self.current.and_then(|number| self.generation(number));
        for listener in current.iter().flat_map(|known| known.listeners.iter()) {
            if let Err(error) = fence::part(listener.as_fd()) {
                tracing::error!(%error, "cannot close a port to its own user's sockets again");
            }
        }
    }
}

/// What tells sockets from all others.
pub(super) fn inodes<'a>(sockets: impl Iterator<Item = &'a OwnedFd>) -> Vec<u64> {
    sockets
        .filter_map(|socket| inode(socket.as_fd()).ok())
        .collect()
}

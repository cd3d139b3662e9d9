//! What the agent has in the kernel: one reservation a slot, the listeners of its generations, and
//! the steering that decides which of them gets connections.

mod adopt;
mod held;
mod outlive;
mod trouble;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::rc::Rc;

pub(crate) use self::adopt::{Adopted, Sockets};
pub(crate) use self::held::Listeners;
use self::held::{Generation, Held, inodes};
pub(crate) use self::outlive::{Label, Shelves};
pub(crate) use self::trouble::Trouble;
use crate::ledger::{HolderId, SlotId};
use crate::plan::Slot;
use crate::sys::hold::{self, Company, Endpoint, Transport};
use crate::sys::shut::Shut;
use crate::sys::steer::{Steering, aside};

/// How many generations of a slot that are over are remembered, to find who still has them.
const MAX_FORMER: usize = 64;

/// The same where so many slots have any: somebody collects them.
const MAX_FORMER_OF_MANY: usize = 4;

/// See [`MAX_FORMER_OF_MANY`].
const MANY: usize = 64;

/// How many generations of a slot drain their queues at a time, after as many takeovers; more, as long
/// as somebody waits there.
const DRAINING: usize = 8;

/// The most of them, whoever waits.
const MAX_DRAINING: usize = 256;

/// Every slot's sockets, by the slot's place in the plan.
#[derive(Debug)]
pub(crate) struct Kernel {
    slots: Vec<Held>,
    /// Decides who gets a port's connections, where the agent may.
    steering: Option<Steering>,
    /// The listeners that may get connections, to notice when somebody shuts them.
    shut: Shut,
    /// The slots that have generations which are over.
    with_former: BTreeSet<SlotId>,
    /// Where sockets outlive the agent, if there is such a place.
    shelves: Option<Shelves>,
    /// The slots whose reservations are to go there.
    to_be_kept: Vec<SlotId>,
    has_given_up: bool,
}

/// Who has a slot's connections while another listener is made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Elder {
    /// An earlier life of who is to have the new listener, or nobody.
    SameIdentity,
    /// Somebody else.
    Stranger,
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
    ///
    /// # Errors
    /// What epoll_create1(2) says.
    pub(crate) fn new(slots: &[Slot], steering: Option<Steering>) -> io::Result<Kernel> {
        Ok(Kernel {
            slots: slots.iter().map(Held::new).collect(),
            steering,
            shut: Shut::new()?,
            with_former: BTreeSet::new(),
            shelves: None,
            to_be_kept: Vec::new(),
            has_given_up: false,
        })
    }

    /// Another slot, of which nothing is held yet.
    pub(crate) fn add(&mut self, slot: &Slot) {
        self.slots.push(Held::new(slot));
    }

    /// Changes what queue the next listeners of a slot have.
    pub(crate) fn set_backlog(&mut self, slot: SlotId, planned: &Slot) {
        self.slots[slot.0 as usize].backlog = Held::backlog(planned);
    }

    /// How many listeners can be steered to at a time; `None`: there is no steering, and no bound.
    pub(crate) fn room(&self) -> Option<usize> {
        self.steering.as_ref().map(Steering::room)
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
                self.to_be_kept.push(slot);
            }
            // Steering goes round a former holder's copy; see `listen`.
            Some(_) if self.steering.is_some() => {}
            // Reserved, and yet there was trouble: see whether it is over.
            Some(reservation) => {
                for (index, endpoint) in held.endpoints.iter().enumerate() {
                    let copies = held.beside(index, [None, None]);
                    let company = Company {
                        copies: &copies,
                        elder: None,
                    };
                    hold::can_listen(reservation.as_fd(), company, endpoint)?;
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

    /// Whether the port is reserved: then nobody but a former holder can be in the way.
    pub(crate) fn is_reserved(&self, slot: SlotId) -> bool {
        self.slots[slot.0 as usize].reservation.is_some()
    }

    /// Holds a slot no longer, and ends whatever generation it has.
    pub(crate) fn give_up(&mut self, slot: SlotId) {
        let held = &mut self.slots[slot.0 as usize];
        for generation in &mut held.generations {
            generation.end(&held.endpoints, &self.shut, self.steering.is_some());
        }
        held.generations.clear();
        self.with_former.remove(&slot);
        self.park(slot);
        let held = &mut self.slots[slot.0 as usize];
        if let (Some(steering), Some(first)) = (&self.steering, held.endpoints.first())
            && let Err(error) = steering.disown(first.address.port(), first.transport)
        {
            tracing::error!(address = %first.address, %error, "cannot leave a port to others");
        }
        held.reservation = None;
        held.reservation_kept = None;
        self.has_given_up = true;
    }

    /// Makes the listeners of a new generation, which get no connection yet. Those of the current
    /// one, of which `elder` says who has them, go on.
    ///
    /// # Errors
    /// What is in the way of any of them; none is left then.
    pub(crate) fn listen(
        &mut self,
        slot: SlotId,
        number: u64,
        elder: Elder,
    ) -> Result<(), Trouble> {
        self.make_room(slot);
        let held = &self.slots[slot.0 as usize];
        let Some(reservation) = &held.reservation else {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        };
        let current = held.current.and_then(|number| held.generation(number));
        // In one group with a stranger's, the kernel could move a queue of TCP's to it.
        let keeps_apart = current.is_some() && elder == Elder::Stranger && held.is_tcp();
        if keeps_apart && self.steering.is_none() {
            return Err(Trouble::no_stranger());
        }
        let mut listeners = Vec::with_capacity(held.endpoints.len());
        for (index, endpoint) in held.endpoints.iter().enumerate() {
            let shares = self.steering.is_none() && endpoint.is_tcp();
            let elder = current.filter(|_| shares).map(|known| known.number);
            let copies = held.beside(index, [Some(number), elder]);
            let company = Company {
                copies: &copies,
                elder: elder.and_then(|number| held.listener(number, index)),
            };
            let go_round = || {
                let aside = aside(endpoint, number);
                hold::listen_aside(reservation.as_fd(), endpoint, aside, held.backlog)
            };
            let outcome = match keeps_apart {
                true => go_round(),
                false => hold::listen(reservation.as_fd(), company, endpoint, held.backlog),
            };
            listeners.push(match (outcome, &self.steering) {
                // A former holder's copy is in the way. It gets nothing there, so go round it.
                (Err(error), Some(_)) if error.kind() == io::ErrorKind::AddrInUse => go_round()?,
                (Err(error), None) => {
                    held.part_current();
                    return Err(error.into());
                }
                (outcome, _) => outcome?,
            });
        }
        let mut made = Generation {
            number,
            listeners: listeners.into(),
            inodes: Vec::new(),
            drained_by: None,
            is_over: false,
            kept: None,
        };
        let waits = current.is_some() && self.steering.is_none();
        let made_ready = made
            .watch(slot, &held.endpoints, &self.shut)
            .and_then(|()| match waits {
                true => made.hide(&held.endpoints),
                false => Ok(()),
            });
        if let Err(error) = made_ready {
            held.part_current();
            return Err(error.into());
        }
        made.kept = self.keep(slot, &made);
        self.slots[slot.0 as usize].generations.push(made);
        Ok(())
    }

    /// Makes a generation's listeners that were shut listen again.
    ///
    /// # Errors
    /// What is in the way.
    pub(crate) fn relisten(&mut self, slot: SlotId, number: u64) -> Result<(), Trouble> {
        if self.steering.is_none() && self.slots[slot.0 as usize].current == Some(number) {
            // One that still drains is the only one left, and would get everything.
            self.shut_those(slot, |known| known.number < number);
        }
        let held = &self.slots[slot.0 as usize];
        let (Some(reservation), Some(generation)) = (&held.reservation, held.generation(number))
        else {
            return Ok(());
        };
        let endpoints = held.endpoints.iter().enumerate();
        for (listener, (index, endpoint)) in generation.listeners.iter().zip(endpoints) {
            let listener = listener.as_fd();
            if !endpoint.is_tcp() || hold::accept_queue(listener).is_some() {
                continue;
            }
            let copies = held.beside(index, [None, None]);
            hold::relisten(
                reservation.as_fd(),
                listener,
                &copies,
                endpoint,
                held.backlog,
            )?;
            if self.steering.is_none() {
                held.share_again(index, number)?;
            }
        }
        match held.current == Some(number) {
            // The kernel took what was shut out of the map.
            true => Ok(self.steer(slot, number)?),
            false => Ok(()),
        }
    }

    /// A slot's connections go to this generation from now on. None had them before.
    ///
    /// # Errors
    /// What bpf(2) says of a listener that does not listen.
    pub(crate) fn steer(&mut self, slot: SlotId, number: u64) -> io::Result<()> {
        let held = &mut self.slots[slot.0 as usize];
        held.current = Some(number);
        let (Some(steering), Some(generation)) = (&self.steering, held.generation(number)) else {
            return Ok(());
        };
        for (endpoint, listener) in held.endpoints.iter().zip(generation.listeners.iter()) {
            steering.steer(endpoint, listener.as_fd())?;
        }
        Ok(())
    }

    /// A slot's connections go to a second generation from now on, no longer to the first. What
    /// waits at the first stays there if a living process drains it; else the first is shut, and the
    /// kernel moves what waits there where it may: net.ipv4.tcp_migrate_req of its
    /// `Documentation/networking/ip-sysctl.rst`, and both in one SO_REUSEPORT group.
    ///
    /// # Errors
    /// Those of [`Kernel::steer`].
    pub(crate) fn succeed(
        &mut self,
        slot: SlotId,
        old: u64,
        new: u64,
        drained_by: Option<HolderId>,
    ) -> io::Result<()> {
        let outcome = self.steer(slot, new);
        let held = &self.slots[slot.0 as usize];
        if self.steering.is_none() {
            held.favour(old, new)?;
        }
        let mut generations = self.slots[slot.0 as usize].generations.iter_mut();
        match (generations.find(|known| known.number == old), drained_by) {
            (Some(old), Some(_)) => {
                old.drained_by = drained_by;
                self.with_former.insert(slot);
            }
            _ => self.shut_those(slot, |known| known.number <= old),
        }
        outcome
    }

    /// A slot's connections are refused from now on, while its listeners go on listening: only
    /// steering can do that.
    pub(crate) fn rest(&mut self, slot: SlotId, number: u64) {
        if self.slots[slot.0 as usize].current == Some(number) {
            self.shut_those(slot, |known| known.number < number);
            self.park(slot);
        }
    }

    fn park(&mut self, slot: SlotId) {
        let held = &mut self.slots[slot.0 as usize];
        held.current = None;
        let Some(steering) = &self.steering else {
            return;
        };
        for endpoint in &held.endpoints {
            if let Err(error) = steering.park(endpoint) {
                // Mostly its listener is shut next, and is out of the map all the same.
                tracing::error!(address = %endpoint.address, %error, "cannot steer away from a socket");
            }
        }
    }

    /// Ends a generation, and with it those before it that were still draining; one that has ended
    /// already, or never began, is nothing to do.
    pub(crate) fn end(&mut self, slot: SlotId, number: u64) {
        let held = &mut self.slots[slot.0 as usize];
        if held.current == Some(number) {
            self.park(slot);
            self.shut_those(slot, |known| known.number <= number);
        } else {
            self.shut_those(slot, |known| known.number == number);
        }
    }

    /// Shuts what the process that has ended was still draining.
    pub(crate) fn shut_what_it_drained(&mut self, slot: SlotId, ended: HolderId) {
        self.shut_those(slot, |known| known.drained_by == Some(ended));
    }

    /// Shuts what still drains a queue, but for the latest few where they are in nobody's way.
    fn make_room(&mut self, slot: SlotId) {
        let held = &self.slots[slot.0 as usize];
        let Some(current) = held.current else {
            return;
        };
        let draining = |known: &&Generation| known.number < current && !known.is_over;
        let latest_first = held.generations.iter().rev().filter(draining);
        let has_had_its_time = |(nth, known): &(usize, &Generation)| match self.steering {
            Some(_) => *nth >= MAX_DRAINING || *nth >= DRAINING && known.is_drained(),
            // Without steering, two members are all that a filter tells apart.
            None => true,
        };
        let its_time = latest_first.enumerate().filter(has_had_its_time);
        let numbers: Vec<u64> = its_time.map(|(_, known)| known.number).collect();
        if !numbers.is_empty() {
            self.shut_those(slot, |known| numbers.contains(&known.number));
        }
    }

    fn shut_those(&mut self, slot: SlotId, are_meant: impl Fn(&Generation) -> bool) {
        let held = &mut self.slots[slot.0 as usize];
        let mut any = false;
        for generation in &mut held.generations {
            if !generation.is_over && are_meant(generation) {
                generation.end(&held.endpoints, &self.shut, self.steering.is_some());
                any = true;
            }
        }
        if any {
            held.part_current();
            self.trim(slot);
        }
    }

    fn trim(&mut self, slot: SlotId) {
        let held = &mut self.slots[slot.0 as usize];
        let over = held.generations.iter().filter(|known| known.is_over);
        let most = match self.with_former.len() < MANY {
            true => MAX_FORMER,
            false => MAX_FORMER_OF_MANY,
        };
        let mut too_many = over.count().saturating_sub(most);
        held.generations.retain(|known| {
            let goes = known.is_over && too_many > 0;
            too_many -= usize::from(goes);
            !goes
        });
        self.with_former.insert(slot);
    }

    /// The listeners of a slot's generation, ready for a new user.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub(crate) fn listeners(&self, slot: SlotId, number: u64) -> io::Result<Option<Listeners>> {
        let Some(generation) = self.slots[slot.0 as usize].generation(number) else {
            return Ok(None);
        };
        for listener in generation.listeners.iter() {
            hold::set_blocking(listener.as_fd())?;
        }
        Ok(Some(Rc::clone(&generation.listeners)))
    }

    /// How many connections wait at the slot's listeners, and how many may.
    pub(crate) fn queue(&self, slot: SlotId) -> Option<(u32, u32)> {
        let held = &self.slots[slot.0 as usize];
        let generation = held.generation(held.current?)?;
        let queues = generation
            .listeners
            .iter()
            .filter_map(|listener| hold::accept_queue(listener.as_fd()));
        queues.reduce(|(length, limit), (more, other)| (length + more, limit + other))
    }

    /// How many sockets a hand-off of the slot passes on.
    pub(crate) fn socket_count(&self, slot: SlotId) -> usize {
        self.slots[slot.0 as usize].endpoints.len()
    }

    /// Where the slot's listeners are to be, one each.
    pub(crate) fn endpoints(&self, slot: SlotId) -> &[Endpoint] {
        &self.slots[slot.0 as usize].endpoints
    }

    /// The port and what it speaks.
    pub(crate) fn port(&self, slot: SlotId) -> Option<(u16, Transport)> {
        let first = self.slots[slot.0 as usize].endpoints.first()?;
        Some((first.address.port(), first.transport))
    }

    /// The inodes of the slot's sockets that are in nobody's way: its reservation and the listeners
    /// that are not over.
    pub(crate) fn own_inodes(&self, slot: SlotId) -> Vec<u64> {
        let held = &self.slots[slot.0 as usize];
        let live = held.generations.iter().filter(|known| !known.is_over);
        let listeners = live.flat_map(|known| known.listeners.iter());
        inodes(held.reservation.iter().chain(listeners))
    }

    /// The generations that are over, or drain their queues, and their listeners' inodes.
    pub(crate) fn former(&self) -> Vec<(SlotId, u64, Vec<u64>)> {
        let of_slot = |slot: &SlotId| {
            let generations = &self.slots[slot.0 as usize].generations;
            let former = |known: &&Generation| known.is_over || known.drained_by.is_some();
            let of = |known: &Generation| {
                let inodes = match known.is_over {
                    true => known.inodes.clone(),
                    false => inodes(known.listeners.iter()),
                };
                (*slot, known.number, inodes)
            };
            generations
                .iter()
                .filter(former)
                .map(of)
                .collect::<Vec<_>>()
        };
        self.with_former.iter().flat_map(of_slot).collect()
    }

    /// The inodes of the listeners that get a slot's connections.
    pub(crate) fn current_inodes(&self, slot: SlotId) -> Vec<u64> {
        let held = &self.slots[slot.0 as usize];
        let current = held.current.and_then(|number| held.generation(number));
        current.map_or(Vec::new(), |known| inodes(known.listeners.iter()))
    }

    /// The inodes of a generation's listeners.
    pub(crate) fn inodes(&self, slot: SlotId, number: u64) -> Vec<u64> {
        let generation = self.slots[slot.0 as usize].generation(number);
        generation.map_or(Vec::new(), |known| inodes(known.listeners.iter()))
    }

    /// Lets go of a generation that is over: nobody else has it any more.
    pub(crate) fn forget(&mut self, slot: SlotId, number: u64) {
        let generations = &mut self.slots[slot.0 as usize].generations;
        generations.retain(|known| known.number != number || !known.is_over);
        let is_former = |known: &Generation| known.is_over || known.drained_by.is_some();
        if !generations.iter().any(is_former) {
            self.with_former.remove(&slot);
        }
    }

    /// Shuts those generations again that are over, and that somebody made listen: without steering
    /// nothing else keeps connections from them.
    pub(crate) fn shut_what_came_back(&self) {
        for slot in &self.with_former {
            let held = &self.slots[slot.0 as usize];
            for known in held.generations.iter().filter(|known| known.is_over) {
                for (listener, endpoint) in known.listeners.iter().zip(&held.endpoints) {
                    if hold::accept_queue(listener.as_fd()).is_some() {
                        tracing::warn!(address = %endpoint.address, "a former holder listened again; shut");
                        hold::end(listener.as_fd(), endpoint);
                    }
                }
            }
        }
    }

    /// The listeners that are watched for being shut.
    pub(crate) fn shut(&self) -> &Shut {
        &self.shut
    }

    /// The generation that a number of [`Kernel::shut`] stands for.
    pub(crate) fn generation_of(&self, number: u64) -> Option<(SlotId, u64)> {
        let slot = SlotId(u32::try_from(number >> 32).ok()?);
        let generations = &self.slots.get(slot.0 as usize)?.generations;
        let known = generations
            .iter()
            .find(|known| known.number_in(slot) == number)?;
        Some((slot, known.number))
    }
}

//! What is done so that a slot's sockets outlive the agent: each lies on a shelf, too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::Kernel;
use super::held::Generation;
use crate::ledger::SlotId;
use crate::sys::hold::Transport;
use crate::sys::shelf::{Kept, Shelf};

/// Where sockets outlive the agent. Two places, because the one is changed with every lease, and
/// the other hardly ever.
#[derive(Debug)]
pub(crate) struct Shelves {
    pub(crate) reservations: Shelf,
    pub(crate) listeners: Shelf,
}

impl Shelves {
    /// Empty ones.
    ///
    /// # Errors
    /// What socketpair(2) says.
    pub(crate) fn new() -> io::Result<Shelves> {
        Ok(Shelves {
            reservations: Shelf::new()?,
            listeners: Shelf::new()?,
        })
    }
}

/// What a socket on a shelf is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Label {
    /// The slot it is of, in the plan of its time.
    pub(crate) slot: SlotId,
    pub(crate) port: u16,
    pub(crate) transport: Transport,
    /// 0 for a reservation.
    pub(crate) generation: u64,
}

impl Label {
    const LENGTH: usize = 15;

    fn bytes(self) -> [u8; Label::LENGTH] {
        let mut bytes = [0; Label::LENGTH];
        bytes[..4].copy_from_slice(&self.slot.0.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.port.to_ne_bytes());
        bytes[6] = u8::from(self.transport == Transport::Udp);
        bytes[7..].copy_from_slice(&self.generation.to_ne_bytes());
        bytes
    }

    /// `None` for what is no label.
    pub(crate) fn read(bytes: &[u8]) -> Option<Label> {
        let (slot, rest) = bytes.split_first_chunk()?;
        let (port, rest) = rest.split_first_chunk()?;
        let (udp, rest) = rest.split_first()?;
        let (generation, rest) = rest.split_first_chunk()?;
        rest.is_empty().then(|| Label {
            slot: SlotId(u32::from_ne_bytes(*slot)),
            port: u16::from_ne_bytes(*port),
            transport: match *udp {
                0 => Transport::Tcp,
                _ => Transport::Udp,
            },
            generation: u64::from_ne_bytes(*generation),
        })
    }
}

impl Kernel {
    /// From now on all sockets outlive the agent, those that there are included, as far as there is
    /// room.
    pub(crate) fn outlive(&mut self, shelves: Shelves) {
        self.shelves = Some(shelves);
        for index in 0..self.slots.len() {
            let slot = SlotId(u32::try_from(index).unwrap_or(u32::MAX));
            self.to_be_kept.push(slot);
            for nth in 0..self.slots[index].generations.len() {
                let known = &self.slots[index].generations[nth];
                if known.kept.is_none() && !known.listeners.is_empty() {
                    let kept = self.keep(slot, known);
                    self.slots[index].generations[nth].kept = kept;
                }
            }
        }
        self.keep_reservations();
    }

    /// Leaves the ports that were given up to others: what kept their sockets closes them.
    pub(crate) fn leave_given_up(&mut self) {
        if std::mem::take(&mut self.has_given_up) {
            self.settle_shelves();
        }
    }

    /// What is nobody's any more is closed from now on, and not before: an agent that does not come as
    /// far as serving leaves everything to the next.
    pub(crate) fn take_shelves(&self) {
        for shelf in self.each_shelf() {
            shelf.take();
        }
        self.settle_shelves();
    }

    /// The agent ends, and the next is to find everything.
    pub(crate) fn leave_shelves(&self) {
        self.each_shelf().for_each(Shelf::leave);
    }

    fn each_shelf(&self) -> impl Iterator<Item = &Shelf> {
        let shelves = self.shelves.iter();
        shelves.flat_map(|shelves| [&shelves.reservations, &shelves.listeners])
    }

    /// Whether all that is held lies on a shelf.
    pub(crate) fn is_all_kept(&self) -> bool {
        self.slots.iter().all(|held| {
            let is_kept = held.reservation.is_none() || held.reservation_kept.is_some();
            let mut living = held.generations.iter().filter(|known| !known.is_over);
            is_kept && living.all(|known| known.kept.is_some())
        })
    }

    /// Closes what is on the shelves and nobody's any more.
    pub(crate) fn settle_shelves(&self) {
        for shelf in self.each_shelf() {
            if let Err(error) = shelf.settle() {
                tracing::error!(%error, "a port that was given up stays held");
            }
        }
    }

    /// From now on sockets end with the agent: nobody would keep them.
    pub(crate) fn end_with_the_agent(&mut self) {
        for held in &mut self.slots {
            held.reservation_kept = None;
            for generation in &mut held.generations {
                generation.kept = None;
            }
        }
        self.shelves = None;
    }

    /// Where sockets outlive the agent.
    pub(crate) fn shelves(&self) -> Option<&Shelves> {
        self.shelves.as_ref()
    }

    fn label(&self, slot: SlotId, generation: u64) -> Option<Label> {
        let (port, transport) = self.port(slot)?;
        Some(Label {
            slot,
            port,
            transport,
            generation,
        })
    }

    pub(super) fn keep(&self, slot: SlotId, made: &Generation) -> Option<Kept> {
        let shelves = self.shelves.as_ref()?;
        let label = self.label(slot, made.number)?;
        let sockets: Vec<BorrowedFd> = made.listeners.iter().map(AsFd::as_fd).collect();
        let outcome = shelves.listeners.put(&label.bytes(), &sockets);
        outcome
            .inspect_err(|error| {
                tracing::warn!(port = label.port, %error, "a listener would not outlive the agent");
            })
            .ok()
    }

    /// Puts the reservations made since the last time where they outlive the agent: many at a time
    /// take little.
    pub(crate) fn keep_reservations(&mut self) {
        let mut slots = std::mem::take(&mut self.to_be_kept);
        let Some(shelves) = &self.shelves else {
            return;
        };
        slots.sort_unstable();
        slots.dedup();
        let labelled = slots.iter().filter_map(|slot| {
            let held = &self.slots[slot.0 as usize];
            let reservation = held
                .reservation
                .as_ref()
                .filter(|_| held.reservation_kept.is_none())?;
            Some((*slot, self.label(*slot, 0)?.bytes(), [reservation.as_fd()]))
        });
        let labelled: Vec<_> = labelled.collect();
        let things: Vec<(&[u8], &[BorrowedFd])> = labelled
            .iter()
            .map(|(_, label, fds)| (&label[..], &fds[..]))
            .collect();
        match shelves.reservations.put_all(&things) {
            Ok(kept) => {
                let slots: Vec<SlotId> = labelled.iter().map(|(slot, ..)| *slot).collect();
                for (slot, kept) in slots.into_iter().zip(kept) {
                    self.slots[slot.0 as usize].reservation_kept = Some(kept);
                }
            }
            Err(error) => {
                tracing::error!(%error, "ports would not stay held if the agent ended");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_read_as_it_was_written() {
        let label = Label {
            slot: SlotId(70_000),
            port: 65_535,
            transport: Transport::Udp,
            generation: u64::MAX - 1,
        };
        assert_eq!(Label::read(&label.bytes()), Some(label));
        assert_eq!(Label::read(&label.bytes()[1..]), None);
        assert_eq!(Label::read(&[0; 16]), None);
    }
}

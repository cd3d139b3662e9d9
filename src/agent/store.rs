//! What outlives the agent, and who keeps it: the service manager, or this very process when it goes
//! over to another program.
//!
//! The ledger is memory that is written in place ([`cells`]), so that no lease needs a word to the
//! manager. Sockets lie on two shelves (`sys/unix/shelf.rs`), of which the manager has the ends. It has
//! a dozen descriptors in all, however many slots there are.

mod cells;
mod past;
pub(crate) mod record;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::Serialize;

use self::cells::Cells;
pub(crate) use self::past::{Inheritance, Past, PastLedger};
use self::record::{ClaimRecord, Description, SlotRecord};
use super::core::Agent;
use crate::ledger::{LeaseId, SlotId};
use crate::sys::manager::Manager;
use crate::sys::steer::Parts;

/// What the names of our descriptors begin with.
const PREFIX: &str = "portpool-";

/// The names they have in the manager's store. Each ledger has a number, so that the next can be
/// stored before the one before is removed.
pub(crate) mod name {
    pub(super) const LEDGER: &str = "ledger-";
    pub(super) const LINK: &str = "steering-link";
    pub(super) const PORTS: &str = "steering-ports";
    pub(super) const SOCKETS: &str = "steering-sockets";
    pub(crate) const STEERING: [&str; 3] = [LINK, PORTS, SOCKETS];
    pub(super) const RESERVATIONS: [&str; 2] = ["reservations-in", "reservations-out"];
    pub(super) const LISTENERS: [&str; 2] = ["listeners-in", "listeners-out"];
    pub(super) const ALL: [&str; 7] = [
        LINK,
        PORTS,
        SOCKETS,
        RESERVATIONS[0],
        RESERVATIONS[1],
        LISTENERS[0],
        LISTENERS[1],
    ];
}

/// The ledger as it outlives the agent.
#[derive(Debug)]
pub(crate) struct Store {
    cells: Cells,
    slots: usize,
    number: u64,
}

impl Store {
    /// A ledger in which nothing is written yet.
    ///
    /// # Errors
    /// What memfd_create(2) and its kin say.
    pub(crate) fn new(
        description: &Description,
        number: u64,
        secret: [u64; 2],
    ) -> io::Result<Store> {
        let text = serde_json::to_vec(description)?;
        let slots = description.slots.len();
        let count = slots + usize::from(description.instances);
        Ok(Store {
            cells: Cells::new(&text, count, secret)?,
            slots,
            number,
        })
    }

    /// What tells it from the ledgers before and after it.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The number of the ledger that follows this one.
    pub(crate) fn next_number(&self) -> u64 {
        self.number + 1
    }

    /// Writes slots and claims down: all of it or, if the agent ends now, none. What is not of this
    /// ledger's plan is left out.
    pub(crate) fn write(
        &mut self,
        slots: Vec<(SlotId, SlotRecord)>,
        claims: Vec<(u16, Option<ClaimRecord>)>,
        next_lease: LeaseId,
    ) {
        self.cells.set_counter(next_lease.0);
        let slots = slots.into_iter().filter_map(|(slot, record)| {
            let cell = slot.0 as usize;
            (cell < self.slots).then(|| Some((cell, fitting(record)?)))?
        });
        let claims = claims.into_iter().filter_map(|(instance, claim)| {
            let cell = self.slots + usize::from(instance).checked_sub(1)?;
            Some((cell, text(&claim)?))
        });
        let changes: Vec<_> = slots.chain(claims).collect();
        let fits = |(cell, _): &(usize, Vec<u8>)| *cell < self.cells.len();
        let changes: Vec<_> = changes.into_iter().filter(fits).collect();
        self.cells.write(&changes);
    }

    /// A lease of the slot was sent to its holder.
    pub(crate) fn sent(&mut self, slot: SlotId, lease: LeaseId) {
        let cell = slot.0 as usize;
        if cell < self.slots && self.cells.word(cell) < lease.0 {
            self.cells.set_word(cell, lease.0);
        }
    }

    /// All of it is written.
    pub(crate) fn complete(&mut self) {
        self.cells.complete();
    }

    /// Another takes its place: nobody is to go on with this one.
    pub(crate) fn retire(&mut self) {
        self.cells.retire();
    }

    pub(crate) fn name(&self) -> String {
        format!("{PREFIX}{}{}", name::LEDGER, self.number)
    }
}

/// Whether a descriptor of that name is a ledger.
pub(crate) fn is_ledger(full_name: &str) -> bool {
    let name = full_name.strip_prefix(PREFIX);
    name.is_some_and(|name| name.starts_with(name::LEDGER))
}

fn text(record: &impl Serialize) -> Option<Vec<u8>> {
    serde_json::to_vec(record)
        .inspect_err(|error| tracing::error!(%error, "a record cannot be written"))
        .ok()
}

/// Without what its holders call themselves where that is too long.
fn fitting(mut record: SlotRecord) -> Option<Vec<u8>> {
    let whole = text(&record)?;
    if whole.len() <= cells::MAX_TEXT {
        return Some(whole);
    }
    let standby = record.standby.as_mut().map(|(lease, _)| lease);
    for lease in record.lease.as_mut().into_iter().chain(standby) {
        lease.called = None;
        lease.on_revoke = None;
    }
    text(&record)
}

impl Agent {
    /// Everything that is to outlive this process, by name.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub(crate) fn estate(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let mut estate = Vec::new();
        let mut add = |name: &str, fd: OwnedFd| estate.push((format!("{PREFIX}{name}"), fd));
        let copy = |fd: BorrowedFd| fd.try_clone_to_owned();
        if let Some(steering) = self.kernel.steering() {
            let Parts {
                link,
                ports,
                sockets,
            } = steering.parts();
            add(name::LINK, copy(link)?);
            add(name::PORTS, copy(ports)?);
            add(name::SOCKETS, copy(sockets)?);
        }
        if let Some(shelves) = self.kernel.shelves() {
            for (names, shelf) in [
                (name::RESERVATIONS, &shelves.reservations),
                (name::LISTENERS, &shelves.listeners),
            ] {
                let (entrance, exit) = shelf.ends()?;
                add(names[0], entrance);
                add(names[1], exit);
            }
        }
        if let Some(store) = &self.store {
            // The last: whoever has it has all the rest.
            estate.push((store.name(), store.cells.as_fd().try_clone_to_owned()?));
        }
        Ok(estate)
    }
}

/// Gives the service manager all that is to outlive this process, and has it forget what is of no use.
///
/// # Errors
/// What sd_notify(3) may meet; `TimedOut` where the manager does not answer.
pub(crate) fn give(
    manager: &Manager,
    estate: &[(String, OwnedFd)],
    forget: &[String],
    patience: Duration,
) -> io::Result<()> {
    let remove = |name: &str| {
        let text = format!("FDSTOREREMOVE=1\nFDNAME={name}");
        manager.tell(&text, &[], patience)
    };
    let is_ours = |name: &&String| estate.iter().any(|(known, _)| known == *name);
    // It removes all of that name.
    for name in forget.iter().filter(is_ours) {
        remove(name)?;
    }
    for (name, fd) in estate {
        // FDPOLL: a socket that does not listen hangs up all the time, and would be dropped.
        let text = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        manager.tell(&text, &[fd.as_fd()], patience)?;
    }
    manager.finish(patience)?;
    for name in forget.iter().filter(|name| !is_ours(name)) {
        remove(name)?;
    }
    Ok(())
}

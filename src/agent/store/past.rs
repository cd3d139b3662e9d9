//! What an earlier agent left: found by the names of descriptors, and not trusted.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, sockopt};

use super::cells::Cells;
use super::record::{ClaimRecord, Description, SlotRecord};
use super::{PREFIX, Store, name};
use crate::agent::control::CONTROL_LOCK;
use crate::agent::core::Agent;
use crate::agent::kernel::{Label, Shelves};
use crate::sys::shelf::{Found, Shelf};
use crate::sys::steer::Parts;

/// What was handed down to this process, sorted.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    /// The control socket, from the service manager.
    pub(crate) control: Option<OwnedFd>,
    /// Its lock, from this process's program before.
    pub(crate) control_lock: Option<OwnedFd>,
    /// An earlier agent's steering.
    pub(crate) steering: Option<Parts<OwnedFd>>,
    ledgers: Vec<(u64, OwnedFd)>,
    /// Where its sockets lie, by name.
    sockets: HashMap<String, OwnedFd>,
    /// An earlier agent left something.
    is_of_an_agent: bool,
    /// What the manager is to forget: it is no use to anybody.
    pub(crate) useless: Vec<String>,
}

/// What an earlier agent left.
#[derive(Debug)]
pub(crate) struct Past {
    /// Its ledger; `None` where it cannot be read. Then the sockets are known by their ports.
    pub(crate) ledger: Option<PastLedger>,
    /// What its sockets lie on.
    pub(crate) shelves: Shelves,
    /// What reserves the ports.
    pub(crate) reservations: Vec<(Label, Found)>,
    /// Its listeners.
    pub(crate) listeners: Vec<(Label, Found)>,
}

/// What an earlier agent knew.
#[derive(Debug)]
pub(crate) struct PastLedger {
    /// Its plan.
    pub(crate) description: Description,
    /// Each slot of it; `None` for one whose record is damaged.
    pub(crate) slots: Vec<Option<SlotRecord>>,
    /// The latest lease of each slot that was sent to its holder.
    pub(crate) sent: Vec<u64>,
    /// Who claimed which instance.
    pub(crate) claims: Vec<(u16, ClaimRecord)>,
    /// The first lease there never was.
    pub(crate) next_lease: u64,
    /// The secret of its numbers.
    pub(crate) secret: [u64; 2],
    /// It, to go on with.
    pub(crate) store: Store,
}

impl Inheritance {
    /// Sorts what was handed down. What is not known is closed.
    pub(crate) fn of(handed: Vec<(String, OwnedFd)>) -> Inheritance {
        let mut inheritance = Inheritance::default();
        let mut ours: HashMap<String, OwnedFd> = HashMap::new();
        for (full_name, fd) in handed {
            if full_name == CONTROL_LOCK {
                inheritance.control_lock = Some(fd);
                continue;
            }
            let Some(name) = full_name.strip_prefix(PREFIX) else {
                match is_control(&fd) && inheritance.control.is_none() {
                    true => inheritance.control = Some(fd),
                    false => inheritance.useless.push(full_name),
                }
                continue;
            };
            inheritance.is_of_an_agent = true;
            let number = name.strip_prefix(name::LEDGER).map(str::parse);
            match number {
                Some(Ok(number)) => inheritance.ledgers.push((number, fd)),
                None if name::ALL.contains(&name) && !ours.contains_key(name) => {
                    ours.insert(name.to_owned(), fd);
                }
                _ => inheritance.useless.push(full_name),
            }
        }
        let steering = [name::LINK, name::PORTS, name::SOCKETS].map(|name| ours.remove(name));
        if let [Some(link), Some(ports), Some(sockets)] = steering {
            inheritance.steering = Some(Parts {
                link,
                ports,
                sockets,
            });
        }
        inheritance.sockets = ours;
        // The latest first.
        inheritance
            .ledgers
            .sort_by_key(|(number, _)| std::cmp::Reverse(*number));
        inheritance
    }

    /// Whether this agent could go on from the ledger that was handed over: only to look.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn look(self) -> Result<PastLedger, String> {
        let Some((number, fd)) = self.ledgers.into_iter().next() else {
            return Err("no ledger was handed over".to_owned());
        };
        let cells = Cells::look(fd);
        let ledger = cells.and_then(|cells| understand(cells, number));
        let ledger = ledger.map_err(|error| format!("its ledger: {error}"))?;
        match ledger.slots.iter().all(Option::is_some) {
            true => Ok(ledger),
            false => Err("its ledger has records that are not understood".to_owned()),
        }
    }

    /// What an earlier agent left, if it left anything.
    ///
    /// # Errors
    /// What socketpair(2) says.
    pub(crate) fn past(&mut self) -> io::Result<Option<Past>> {
        let ledger = self.ledger();
        let (reservations, held) = self.unpack(name::RESERVATIONS)?;
        let (listeners, made) = self.unpack(name::LISTENERS)?;
        if ledger.is_none() && held.is_empty() && made.is_empty() {
            return Ok(None);
        }
        Ok(Some(Past {
            ledger,
            shelves: Shelves {
                reservations,
                listeners,
            },
            reservations: held,
            listeners: made,
        }))
    }

    /// The latest ledger that can be read. All others are no use any more.
    fn ledger(&mut self) -> Option<PastLedger> {
        let mut chosen = None;
        for (number, fd) in std::mem::take(&mut self.ledgers) {
            if chosen.is_none() {
                chosen = read(fd, number)
                    .and_then(PastLedger::checked)
                    .inspect_err(|error| {
                        tracing::error!(number, %error, "a stored ledger cannot be read");
                    })
                    .ok();
            }
            self.useless
                .push(format!("{PREFIX}{}{number}", name::LEDGER));
        }
        chosen
    }

    /// A shelf, and what is on it by its labels; an empty one where there is none that can be read.
    fn unpack(&mut self, names: [&str; 2]) -> io::Result<(Shelf, Vec<(Label, Found)>)> {
        let ends = names.map(|name| self.sockets.remove(name));
        let (shelf, things) = match ends {
            [Some(entrance), Some(exit)] => match Shelf::found(entrance, exit) {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(%error, "stored sockets cannot be read");
                    self.useless(&names);
                    (Shelf::new()?, Vec::new())
                }
            },
            _ => {
                self.useless(&names);
                (Shelf::new()?, Vec::new())
            }
        };
        let labelled = things
            .into_iter()
            .filter_map(|found| match Label::read(&found.label) {
                Some(label) => Some((label, found)),
                None => {
                    tracing::warn!("a stored socket has no label of ours; closed");
                    None
                }
            });
        Ok((shelf, labelled.collect()))
    }

    /// Whether something was handed down instead of a control socket.
    pub(crate) fn is_wrong(&self) -> bool {
        self.control.is_none() && !self.useless.is_empty() && !self.is_of_an_agent
    }

    /// What is stored by these names is no use, or is there more than once.
    pub(crate) fn useless(&mut self, names: &[&str]) {
        if !self.is_of_an_agent {
            return;
        }
        let names = names.iter().map(|name| format!("{PREFIX}{name}"));
        self.useless.extend(names);
    }
}

/// How many agents may end while they go on from one ledger.
const MOST_ATTEMPTS: u64 = 5;

/// That an agent goes on from a ledger is counted there.
pub(crate) struct Attempt;

impl Past {
    /// Counts that an agent goes on from here. See [`Agent::end_attempt`].
    pub(crate) fn begin(&mut self) -> Attempt {
        if let Some(ledger) = &mut self.ledger {
            ledger.store.cells.attempt();
        }
        Attempt
    }
}

impl Agent {
    /// It has gone on from there: that does not count any more.
    pub(crate) fn end_attempt(&mut self, _: Attempt) {
        if let Some(store) = &mut self.store {
            store.cells.forget_attempts();
        }
    }
}

impl PastLedger {
    /// Not one at which an agent after the other has ended: something in it is more than they can bear.
    fn checked(self) -> io::Result<PastLedger> {
        match self.store.cells.attempts() < MOST_ATTEMPTS {
            true => Ok(self),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "agents that went on from it have ended before they served anybody, again and again",
            )),
        }
    }
}

fn read(fd: OwnedFd, number: u64) -> io::Result<PastLedger> {
    understand(Cells::found(fd)?, number)
}

fn understand(cells: Cells, number: u64) -> io::Result<PastLedger> {
    let description: Description = serde_json::from_slice(&cells.description())?;
    let count = description.slots.len() + usize::from(description.instances);
    let is_plan = description.slots.iter().all(|slot| slot.slot().is_some());
    if count != cells.len() || !is_plan {
        let text = "its plan is damaged";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let slots = 0..description.slots.len();
    let record = |cell| {
        let record = cells.text(cell).and_then(|text| match text.is_empty() {
            true => Ok(SlotRecord::untouched()),
            false => Ok(serde_json::from_slice(&text)?),
        });
        record
            .inspect_err(|error| tracing::error!(cell, %error, "the record of a slot is damaged"))
            .ok()
    };
    let claim = |instance: u16| {
        let cell = description.slots.len() + usize::from(instance) - 1;
        let claim: Option<ClaimRecord> = serde_json::from_slice(&cells.text(cell).ok()?).ok()?;
        Some((instance, claim?))
    };
    Ok(PastLedger {
        slots: slots.clone().map(record).collect(),
        sent: slots.map(|cell| cells.word(cell)).collect(),
        claims: (1..=description.instances).filter_map(claim).collect(),
        next_lease: cells.counter(),
        secret: cells.secret(),
        store: Store {
            slots: description.slots.len(),
            cells,
            number,
        },
        description,
    })
}

fn is_control(fd: &OwnedFd) -> bool {
    let family = sockopt::socket_domain(fd.as_fd());
    family == Ok(AddressFamily::UNIX) && sockopt::socket_acceptconn(fd.as_fd()) == Ok(true)
}

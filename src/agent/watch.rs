//! Every change of a slot, as it happens: into the log, and to those who watch.

use std::rc::Rc;

use tokio::sync::broadcast;

use super::core::Agent;
use crate::ledger::{Change, Moment, Reason, SlotId, State};
use crate::protocol::Process;
use crate::sys::clock::since_boot;

/// How many transitions a watcher may be behind; beyond that the oldest are lost to it, which it is
/// told.
pub(crate) const MAX_TRANSITIONS_BEHIND: usize = 4096;

/// A slot's change, as those who watch see it.
#[derive(Debug)]
pub(crate) struct Transition {
    /// Which slot.
    pub(crate) slot: SlotId,
    /// What it was.
    pub(crate) from: State,
    /// What it is now.
    pub(crate) to: State,
    /// Why.
    pub(crate) reason: Reason,
    /// The generation that new connections go to; the latest one where they go to none.
    pub(crate) generation: u64,
    /// The process concerned, but for its user's name.
    pub(crate) holder: Option<Process>,
    /// When.
    pub(crate) at: Moment,
}

/// What a watcher receives.
pub(crate) type Transitions = broadcast::Receiver<Rc<Transition>>;

/// Those who watch.
#[derive(Debug)]
pub(super) struct Watchers(broadcast::Sender<Rc<Transition>>);

impl Default for Watchers {
    fn default() -> Watchers {
        Watchers(broadcast::Sender::new(MAX_TRANSITIONS_BEHIND))
    }
}

impl Agent {
    /// Every transition from now on.
    pub(crate) fn watch(&self) -> Transitions {
        self.watchers.0.subscribe()
    }

    /// Tells of a change: once to the log, once to each watcher.
    pub(super) fn tell(&self, change: Change) {
        self.log(change);
        if self.watchers.0.receiver_count() == 0 {
            return;
        }
        let Change {
            slot,
            from,
            to,
            holder,
            reason,
        } = change;
        let since = match to {
            State::Leased(lease) => self.ledger.lease(lease).map(|lease| lease.since),
            _ => None,
        };
        let transition = Transition {
            slot,
            from,
            to,
            reason,
            generation: self.ledger.generation(slot),
            holder: holder.and_then(|holder| self.describe_process(holder, since)),
            at: since_boot(),
        };
        // Nobody is left to hear it: as well.
        drop(self.watchers.0.send(Rc::new(transition)));
    }
}

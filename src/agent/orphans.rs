//! Who still has a slot's listener although its lease is over: children of the dead, and processes
//! that lost it alive.
//!
//! Nothing tells how many copies of a socket there are; so all processes are looked through, on
//! another thread, when a lease has ended and from time to time while somebody has one.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::core::{Agent, Shared};
use super::inspector;
use crate::ledger::{Event, SlotId, State};

/// Between two looks, at least; and so many times as long as the last one took.
const MIN_PAUSE: Duration = Duration::from_millis(250);

/// See [`MIN_PAUSE`]: what looking may cost, as one part in so many of a processor.
const SHARE: u32 = 50;

/// The longest pause while somebody has a listener that is over.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// How many processes a slot's list names.
const MAX_NAMED: usize = 16;

/// The processes that were found, by slot.
#[derive(Debug, Default)]
pub(crate) struct Orphans(HashMap<SlotId, Vec<u32>>);

impl Orphans {
    /// Processes that have a listener of the slot that is over; as of the last look.
    pub(crate) fn of(&self, slot: SlotId) -> &[u32] {
        self.0.get(&slot).map_or(&[], Vec::as_slice)
    }
}

/// What is looked for: a generation, and its listeners.
struct Question {
    slot: SlotId,
    /// `None`: the one that is kept for the next life of a service.
    over: Option<u64>,
    inodes: Vec<u64>,
}

/// Looks for such processes whenever there may be some. Never returns.
pub(crate) async fn keep_looking(agent: Shared) {
    let wake = Rc::clone(&agent.borrow().may_have_orphans);
    let mut pause = MAX_PAUSE;
    loop {
        let woken = match agent.borrow().questions().is_empty() {
            true => None,
            false => Some(pause),
        };
        let is_new = match woken {
            None => {
                wake.notified().await;
                true
            }
            Some(pause) => tokio::select! {
                () = wake.notified() => true,
                () = sleep(pause) => false,
            },
        };
        let took = look(&agent).await;
        let least = MIN_PAUSE.max(took * SHARE);
        sleep(least).await;
        pause = match is_new {
            true => least,
            false => (pause * 2).min(MAX_PAUSE).max(least),
        };
    }
}

async fn look(agent: &Shared) -> Duration {
    let questions = agent.borrow().questions();
    if questions.is_empty() {
        agent.borrow_mut().orphans.0.clear();
        return Duration::ZERO;
    }
    let inodes: HashSet<u64> = questions
        .iter()
        .flat_map(|question| question.inodes.iter().copied())
        .collect();
    let begun = Instant::now();
    let found = tokio::task::spawn_blocking(move || inspector::owners(&inodes)).await;
    // Without an answer nobody is forgotten.
    if let Ok(Some(found)) = found {
        agent.borrow_mut().found(&questions, &found);
    }
    begun.elapsed()
}

impl Agent {
    fn questions(&self) -> Vec<Question> {
        let former = self.kernel.former().into_iter();
        let former = former.map(|(slot, generation, inodes)| Question {
            slot,
            over: Some(generation),
            inodes,
        });
        let restarting = self
            .ledger
            .slots()
            .filter(|slot| matches!(self.ledger.state(*slot), State::Restarting { .. }));
        let kept = restarting.map(|slot| Question {
            slot,
            over: None,
            inodes: self.kernel.current_inodes(slot),
        });
        former.chain(kept).collect()
    }

    fn found(&mut self, questions: &[Question], found: &HashMap<u64, Vec<u32>>) {
        self.orphans.0.clear();
        for Question { slot, over, inodes } in questions {
            let mut pids: Vec<u32> = inodes
                .iter()
                .filter_map(|inode| found.get(inode))
                .flatten()
                .copied()
                .collect();
            pids.sort_unstable();
            pids.dedup();
            match (over, pids.is_empty()) {
                (Some(generation), true) => self.kernel.forget(*slot, *generation),
                (None, true) => {}
                (Some(_), false) => self.note_orphans(*slot, pids),
                (None, false) => {
                    // A lease may have begun meanwhile: then the listener is its holder's.
                    if matches!(self.ledger.state(*slot), State::Restarting { .. })
                        && self.kernel.current_inodes(*slot) == *inodes
                    {
                        self.note_orphans(*slot, pids);
                        self.take_in(Event::Orphaned(*slot));
                    }
                }
            }
        }
        self.kernel.shut_what_came_back();
    }

    fn note_orphans(&mut self, slot: SlotId, mut pids: Vec<u32>) {
        pids.truncate(MAX_NAMED);
        let planned = &self.slots[slot.0 as usize];
        let known = self.orphans.0.entry(slot).or_default();
        for pid in pids {
            if !known.contains(&pid) {
                let (name, port) = (planned.name(), planned.port.get());
                tracing::debug!(slot = name, port, pid, "still has a listener of it");
                known.push(pid);
            }
        }
    }
}

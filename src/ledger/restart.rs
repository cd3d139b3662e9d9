//! The time between two lives of a service: its slot goes on listening, for the next life alone.

use super::{Asker, Effect, Lease, Ledger, Obstacle, Reason, SlotId, State};

impl Ledger {
    pub(super) fn keeps_for_successor(&self, slot: SlotId) -> bool {
        let window = self.rules(self.place(slot).pool).restart_window;
        !window.is_zero() && self.wants_held(slot)
    }

    /// Leaves the listener of a lease that ended to the holder's next life.
    pub(super) fn keep_for_successor(&mut self, ended: &Lease, reason: Reason) {
        let window = self.rules(self.place(ended.slot).pool).restart_window;
        let restarting = State::Restarting {
            until: self.now.saturating_add(window),
            successor: ended.kin,
        };
        for member in self.group(ended.slot) {
            self.slot_mut(member).former_label = ended.label;
            self.change(member, restarting, Some(ended.holder), reason);
        }
    }

    /// The slot that was kept for this process: of several the one whose label fits, then the
    /// first in the order of ports.
    pub(super) fn kept_for(&self, asker: &Asker, slots: &[SlotId]) -> Option<SlotId> {
        let is_kept = |slot: &&SlotId| {
            self.whole_group(**slot, |member| {
                let kept = matches!(member.state, State::Restarting { successor, .. } if successor == asker.kin);
                kept && member.is_settled()
            })
        };
        let kept = slots.iter().filter(is_kept).copied();
        kept.min_by_key(|slot| self.slot(*slot).former_label != asker.label)
    }

    /// Nobody came: what waits in the queue is reset, and others may have the slot.
    pub(super) fn end_windows(&mut self) {
        while let Some((until, slot)) = self.windows.first().copied()
            && until <= self.now
        {
            self.windows.remove(&(until, slot));
            // One that is promised to its successor is no longer anybody else's.
            if self.slot(slot).promised.is_none() {
                self.vacate(slot, None, Reason::WindowOver);
            }
        }
    }

    /// Somebody has a copy of a listener that should be the agent's alone: a new one takes its
    /// place, with what is queued.
    pub(super) fn orphaned(&mut self, slot: SlotId) {
        let is_ours = matches!(self.state(slot), State::Queueing | State::Restarting { .. });
        if is_ours && self.slot(slot).is_settled() {
            self.make_generation(slot);
        }
    }

    pub(super) fn renewed(&mut self, slot: SlotId, generation: u64) {
        let Some(old) = self.slot_mut(slot).steered.replace(generation) else {
            return;
        };
        self.forget_shuts(slot);
        self.effects
            .push(Effect::Succeed(slot, old, generation, None));
        self.remark(slot, None, Reason::Orphaned);
        if self.state(slot) == State::Queueing && !self.queues(slot) {
            // The rules changed meanwhile.
            self.vacate(slot, None, Reason::Reloaded);
        }
    }

    /// Without a listener of its own the slot cannot queue: rather nobody gets the connections
    /// than the wrong one.
    pub(super) fn not_renewed(&mut self, slot: SlotId, obstacle: Obstacle) {
        if matches!(self.state(slot), State::Restarting { .. }) {
            for member in self.group(self.main(slot)) {
                self.vacate(member, None, Reason::Orphaned);
            }
        } else {
            self.vacate(slot, None, Reason::Orphaned);
        }
        if self.wants_held(slot) {
            self.change(slot, State::Unheld(obstacle), None, Reason::Obstructed);
        }
    }
}

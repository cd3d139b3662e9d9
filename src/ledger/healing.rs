//! A listener that somebody shut down listens again: whoever has a copy can do that to it.

use super::{Effect, Ledger, Moment, Reason, SlotId};

/// How often a listener is healed at once within [`HEAL_PAUSE`]; from then on, once in it. So a
/// holder that shuts its listener down in a loop costs next to nothing.
pub(super) const HEALS_AT_ONCE: u32 = 8;

/// See [`HEALS_AT_ONCE`].
pub(super) const HEAL_PAUSE: Moment = Moment::from_secs(1);

/// What somebody has done to a slot's listener lately.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shuts {
    since: Moment,
    count: u32,
    /// The generation that is being made to listen again.
    healing: Option<u64>,
    /// The generation that has to wait until then.
    due: Option<(Moment, u64)>,
}

impl Shuts {
    /// Whether the slot's listener is known not to listen.
    pub(super) fn is_open(&self) -> bool {
        self.healing.is_some() || self.due.is_some()
    }
}

impl Ledger {
    pub(super) fn shut(&mut self, slot: SlotId, generation: u64) {
        let shuts = self.slot(slot).shuts;
        if !self.is_alive(slot, generation) || shuts.healing.is_some() || shuts.due.is_some() {
            return;
        }
        let pause_ends = shuts.since.saturating_add(HEAL_PAUSE);
        if shuts.count > 0 && self.now < pause_ends && shuts.count >= HEALS_AT_ONCE {
            self.heal_at(slot, generation, pause_ends);
            return;
        }
        let is_first = shuts.count == 0 || self.now >= pause_ends;
        let shuts = &mut self.slots[slot.0 as usize].shuts;
        if is_first {
            (shuts.since, shuts.count) = (self.now, 0);
        }
        shuts.count += 1;
        self.heal(slot, generation);
    }

    pub(super) fn healed(&mut self, slot: SlotId, generation: u64) {
        if self.slot(slot).shuts.healing == Some(generation) {
            self.slot_mut(slot).shuts.healing = None;
            self.remark(slot, None, Reason::Healed);
        }
    }

    pub(super) fn not_healed(&mut self, slot: SlotId, generation: u64) {
        if self.slot(slot).shuts.healing == Some(generation) {
            self.slot_mut(slot).shuts.healing = None;
            self.heal_at(slot, generation, self.now.saturating_add(HEAL_PAUSE));
        }
    }

    pub(super) fn heal_what_is_due(&mut self) {
        while let Some((at, slot)) = self.heals.first().copied()
            && at <= self.now
        {
            self.heals.remove(&(at, slot));
            let Some((_, generation)) = self.slot_mut(slot).shuts.due.take() else {
                continue;
            };
            if self.is_alive(slot, generation) {
                let now = self.now;
                let shuts = &mut self.slot_mut(slot).shuts;
                (shuts.since, shuts.count) = (now, HEALS_AT_ONCE);
                self.heal(slot, generation);
            }
        }
    }

    /// The listener that was shut is not the slot's any more.
    pub(super) fn forget_shuts(&mut self, slot: SlotId) {
        let shuts = std::mem::take(&mut self.slot_mut(slot).shuts);
        if let Some((at, _)) = shuts.due {
            self.heals.remove(&(at, slot));
        }
    }

    fn heal(&mut self, slot: SlotId, generation: u64) {
        self.slot_mut(slot).shuts.healing = Some(generation);
        self.effects.push(Effect::Relisten(slot, generation));
    }

    fn heal_at(&mut self, slot: SlotId, generation: u64, at: Moment) {
        self.slot_mut(slot).shuts.due = Some((at, generation));
        self.heals.insert((at, slot));
    }

    fn is_alive(&self, slot: SlotId, generation: u64) -> bool {
        let known = self.slot(slot);
        let standby = known.standby.map(|standby| standby.generation);
        known.steered == Some(generation) || standby == Some(generation)
    }
}

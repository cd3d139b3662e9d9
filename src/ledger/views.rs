//! What can be asked of the ledger at any time.

use super::{HolderId, Lease, LeaseId, Ledger, Place, PoolId, SlotId, State};

impl Ledger {
    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether the plan has no slot at all.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Every slot.
    pub fn slots(&self) -> impl Iterator<Item = SlotId> + use<> {
        let count = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        (0..count).map(SlotId)
    }

    /// What a slot is.
    pub fn state(&self, slot: SlotId) -> State {
        self.slot(slot).state
    }

    /// The generation that new connections go to; the latest one where they go to none, 0 before
    /// the first.
    pub fn generation(&self, slot: SlotId) -> u64 {
        let slot = self.slot(slot);
        slot.steered.unwrap_or(slot.generation)
    }

    /// The generation of a slot that belongs to this lease, also while its takeover is not ready.
    pub fn generation_of(&self, lease: LeaseId, slot: SlotId) -> Option<u64> {
        let known = self.slot(slot);
        match (known.state, known.standby) {
            (_, Some(standby)) if standby.lease == lease => Some(standby.generation),
            (State::Leased(current), _) if current == lease => known.steered,
            _ => None,
        }
    }

    /// The successor's lease, while a takeover of the slot waits for it to be ready.
    pub fn successor(&self, slot: SlotId) -> Option<LeaseId> {
        self.slot(slot).standby.map(|standby| standby.lease)
    }

    /// Where the slot belongs.
    pub fn place(&self, slot: SlotId) -> Place {
        self.slot(slot).place
    }

    /// Whether the slot is to be held now: it is in the plan, and its instance is held from the
    /// start or claimed.
    pub fn wants_held(&self, slot: SlotId) -> bool {
        let Place {
            dormant, instance, ..
        } = self.place(slot);
        !self.is_draining(slot) && (!dormant || self.claims.contains_key(&instance))
    }

    /// The slots of a pool in an instance that can be asked for, in the order of their ports.
    pub fn slots_of(&self, pool: PoolId, instance: u16) -> impl Iterator<Item = SlotId> + '_ {
        self.rotation
            .get(&(pool, instance))
            .into_iter()
            .flatten()
            .copied()
    }

    /// The slots that go with this one.
    pub fn companions(&self, slot: SlotId) -> &[SlotId] {
        &self.slot(slot).companions
    }

    /// A lease, while it lasts.
    pub fn lease(&self, lease: LeaseId) -> Option<&Lease> {
        self.leases.get(&lease)
    }

    /// Whether the process has a lease.
    pub fn holds_anything(&self, holder: HolderId) -> bool {
        self.holders.contains_key(&holder)
    }

    /// Whether the end of the process would change anything: it has a lease, a claim or a place
    /// in a queue, or lost a lease and may still have its listener.
    pub fn must_watch(&self, holder: HolderId) -> bool {
        self.holds_anything(holder)
            || self.ex_holders.contains_key(&holder)
            || self.claims.values().any(|claim| claim.holder == holder)
            || self.has_request(holder)
    }

    /// Living processes that lost a lease of the slot and may still have its listener.
    pub fn ex_holders(&self, slot: SlotId) -> impl Iterator<Item = HolderId> + '_ {
        let had_it = move |slots: &&std::collections::BTreeSet<SlotId>| slots.contains(&slot);
        self.ex_holders
            .iter()
            .filter(move |(_, slots)| had_it(slots))
            .map(|(holder, _)| *holder)
    }

    /// The slots of which a living process lost a lease, and may still have listeners.
    pub fn formerly_held_by(&self, holder: HolderId) -> Vec<SlotId> {
        let slots = self.ex_holders.get(&holder);
        slots.map_or(Vec::new(), |slots| slots.iter().copied().collect())
    }

    /// Whether the listener that is being made for a slot is for the same identity as the one that
    /// has the slot's connections now: then what waits there may move.
    pub fn continues(&self, slot: SlotId) -> bool {
        let request = self
            .slot(slot)
            .promised
            .and_then(|request| self.pending.get(&request));
        match (self.state(slot), request) {
            (State::Leased(lease), Some(pending)) => self
                .lease(lease)
                .is_some_and(|lease| lease.kin == pending.request.asker.kin),
            (State::Queueing | State::Restarting { .. }, None) => true,
            _ => false,
        }
    }

    /// Who has claimed an instance.
    pub fn claimed_by(&self, instance: u16) -> Option<HolderId> {
        self.claims.get(&instance).map(|claim| claim.holder)
    }

    /// How many leases there are.
    pub fn lease_count(&self) -> usize {
        self.leases.len()
    }

    /// How many requests wait for slots.
    pub fn waiting(&self) -> usize {
        self.queue
            .values()
            .filter(|request| request.waiting)
            .count()
    }

    /// How many requests wait for slots of the pool.
    pub fn waiting_for(&self, pool: PoolId) -> usize {
        let wants_it = |wants: &[super::Want]| wants.iter().any(|want| want.pool == pool);
        self.queue
            .values()
            .filter(|request| request.waiting && wants_it(&request.wants))
            .count()
    }
}

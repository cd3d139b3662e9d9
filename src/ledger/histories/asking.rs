//! Short ways to ask the model world for something, and to see what came of it.

use super::super::*;
use super::world::World;

pub(super) const ONE: Instance = Instance::Number(1);
pub(super) const NOW: Option<Takeover> = Some(Takeover {
    when: When::Now,
    whom: Whom::Kin,
});
pub(super) const READY: Option<Takeover> = Some(Takeover {
    when: When::Ready,
    whom: Whom::Kin,
});

impl World {
    pub(super) fn take(&mut self, nth: u64, pool: u32) -> RequestId {
        self.acquire(self.asker(nth), ONE, &[(pool, 1)], Wait::No, None)
    }

    pub(super) fn wait(&mut self, nth: u64, wants: &[(u32, u16)]) -> RequestId {
        self.acquire(self.asker(nth), ONE, wants, Wait::Forever, None)
    }

    pub(super) fn take_over(&mut self, nth: u64, pool: u32, how: Option<Takeover>) -> RequestId {
        self.acquire(self.asker(nth), ONE, &[(pool, 1)], Wait::No, how)
    }

    pub(super) fn auto(&mut self, nth: u64) -> RequestId {
        self.acquire(self.asker(nth), Instance::Auto, &[(0, 1)], Wait::No, None)
    }

    pub(super) fn lease(&self, request: RequestId) -> LeaseId {
        self.granted[&request][0]
    }

    /// The slot that the request got.
    pub(super) fn got(&self, request: RequestId) -> Option<SlotId> {
        let lease = self.ledger.lease(*self.granted.get(&request)?.first()?)?;
        Some(lease.slot)
    }

    pub(super) fn waits(&self, request: RequestId) -> bool {
        self.outstanding.contains_key(&request)
    }

    pub(super) fn is_exhausted(&self, request: RequestId) -> bool {
        matches!(self.refused.get(&request), Some(Refusal::Exhausted(..)))
    }

    pub(super) fn steered(&self, slot: u32) -> Option<u64> {
        self.ports[&SlotId(slot)].steered
    }

    pub(super) fn queue(&self, slot: u32) -> Vec<Option<Kin>> {
        let port = &self.ports[&SlotId(slot)];
        let listener = port.steered.map(|steered| &port.listeners[&steered]);
        listener
            .into_iter()
            .flat_map(|listener| listener.queued_for.iter().copied())
            .collect()
    }

    pub(super) fn state(&self, slot: u32) -> State {
        self.ledger.state(SlotId(slot))
    }
}

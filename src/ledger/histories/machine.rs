//! The model kernel: carries out what the ledger says, and answers.

use super::super::*;
use super::world::{Listener, Outstanding, Port, World};

impl World {
    pub(super) fn hold(&mut self, slot: SlotId) -> Event {
        match self.failures.pop_front() {
            // Holding knows no lack of descriptors of its own.
            Some(Obstacle::Untried) => Event::Obstructed(slot, Obstacle::Unavailable),
            Some(obstacle) => Event::Obstructed(slot, obstacle),
            None => {
                self.port(slot).held = true;
                Event::Held(slot)
            }
        }
    }

    pub(super) fn make(&mut self, slot: SlotId, generation: u64) -> Event {
        match self.failures.pop_front() {
            // This fault stands for a lack of descriptors.
            Some(Obstacle::Untried) => return Event::NoMeans(slot, generation),
            Some(obstacle) => return Event::NotListening(slot, generation, obstacle),
            None => {}
        }
        let port = self.port(slot);
        assert!(port.held, "{slot:?} listens unheld");
        port.listeners.insert(generation, Listener::default());
        assert!(port.listeners.len() <= 2, "{slot:?}: three generations");
        Event::Listening(slot, generation)
    }

    pub(super) fn carry_out(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Hold(slot) => return Some(self.hold(slot)),
            Effect::Drop(slot) => {
                let port = self.port(slot);
                assert!(port.listeners.is_empty(), "{slot:?} dropped, and listens");
                port.held = false;
            }
            Effect::Listen(slot, generation) => {
                let port = self.port(slot);
                assert!(generation > port.latest, "a generation twice");
                port.latest = generation;
                if self.delays > 0 {
                    self.delays -= 1;
                    self.delayed.push_back((slot, generation));
                    return None;
                }
                return Some(self.make(slot, generation));
            }
            Effect::Relisten(slot, generation) => {
                match self.failures.pop_front() {
                    Some(Obstacle::Untried) => return Some(Event::NoMeans(slot, generation)),
                    Some(obstacle) => {
                        return Some(Event::NotListening(slot, generation, obstacle));
                    }
                    None => {}
                }
                let listener = self.port(slot).listeners.get_mut(&generation);
                listener.expect("there is one to heal").shut = false;
                return Some(Event::Listening(slot, generation));
            }
            Effect::Steer(slot, generation) => {
                let port = self.port(slot);
                assert!(port.listeners.contains_key(&generation));
                let before = port.steered.replace(generation);
                assert_eq!(before, None, "{slot:?} was steered elsewhere");
            }
            Effect::Succeed(slot, old, new, drained_by)
            | Effect::Replace(slot, old, new, drained_by) => {
                assert!(drained_by.is_none_or(|holder| !self.dead.contains(&holder)));
                let port = self.port(slot);
                assert_eq!(port.steered, Some(old));
                let former = port.listeners.remove(&old).expect("what is succeeded");
                port.steered = Some(new);
                let successor = port.listeners.get_mut(&new).expect("a successor");
                if matches!(effect, Effect::Succeed(..)) && drained_by.is_none() {
                    successor.queued_for.extend(former.queued_for);
                }
            }
            Effect::Rest(slot, generation) => {
                let port = self.port(slot);
                assert_eq!(port.steered.take(), Some(generation));
            }
            Effect::End(slot, generation) => {
                let port = self.port(slot);
                port.listeners.remove(&generation);
                if port.steered == Some(generation) {
                    port.steered = None;
                }
            }
            Effect::Grant(request, leases) => self.granted(request, leases),
            Effect::Refuse(request, refusal) => {
                self.answered(request);
                self.refused.insert(request, refusal);
            }
            Effect::Done(request) => drop(self.answered(request)),
            Effect::Notify(holder, slot, notice) => {
                assert!(!self.dead.contains(&holder), "a dead process was told");
                self.notices.push((holder, slot, notice));
            }
            Effect::Changed(change) => {
                let before = self.seen.insert(change.slot, change.to);
                assert_eq!(before, Some(change.from));
                self.reasons.push((change.slot, change.reason));
            }
        }
        None
    }

    fn port(&mut self, slot: SlotId) -> &mut Port {
        self.ports.get_mut(&slot).expect("a slot")
    }

    fn answered(&mut self, request: RequestId) -> Outstanding {
        let known = self.outstanding.remove(&request);
        known.expect("one answer a request")
    }

    fn granted(&mut self, request: RequestId, leases: Vec<LeaseId>) {
        let asked = self.answered(request);
        let slots: Vec<(PoolId, u16)> = leases
            .iter()
            .map(|lease| {
                let place = self.ledger.place(self.ledger.leases[lease].slot);
                assert_eq!(place.companion_of, None);
                (place.pool, place.instance)
            })
            .collect();
        let instance = slots[0].1;
        let wanted = asked
            .wants
            .iter()
            .flat_map(|want| std::iter::repeat_n((want.pool, instance), usize::from(want.count)));
        assert_eq!(slots, wanted.collect::<Vec<_>>(), "not what was asked for");
        if let Some(claim) = self.ledger.claims.get(&instance) {
            let admitted = self.ledger.may_enter(&asked.asker, instance, &asked.wants);
            assert!(admitted.is_ok(), "{:?} got into {claim:?}", asked.asker);
        }
        for lease in &leases {
            let known = &self.ledger.leases[lease];
            assert_eq!(known.holder, asked.asker.holder);
            assert!(!self.dead.contains(&known.holder), "to a dead holder");
            assert_eq!(known.since, self.clock);
            let pool = self.ledger.place(known.slot).pool;
            let is_rival = |other: &&Outstanding| {
                let wants_it = other.wants.iter().any(|want| want.pool == pool);
                other.order < asked.order && other.instance == Some(instance) && wants_it
            };
            let rival = self.outstanding.values().find(is_rival);
            assert!(
                known.resumed || rival.is_none(),
                "{rival:?} was overtaken by {asked:?}"
            );
            assert_eq!(self.leases.insert(*lease, known.holder), None, "twice");
        }
        self.granted.insert(request, leases);
    }

    /// Clients connect wherever new connections go.
    pub(super) fn clients_come(&mut self) {
        for (slot, port) in &mut self.ports {
            let whose = match self.ledger.state(*slot) {
                State::Leased(lease) => Some(self.ledger.leases[&lease].kin),
                State::Restarting { successor, .. } => Some(successor),
                _ => None,
            };
            if let Some(listener) = port.steered.and_then(|to| port.listeners.get_mut(&to))
                && !listener.shut
            {
                listener.queued_for.insert(whose);
            }
        }
    }
}

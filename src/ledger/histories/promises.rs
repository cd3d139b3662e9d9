//! What must hold after every step, between the ledger, the model kernel and what outsiders saw.

use std::collections::{BTreeMap, BTreeSet};

use super::super::*;
use super::PROCESSES;
use super::world::{QUOTAS, World};

impl World {
    pub(super) fn check(&mut self) {
        self.leases
            .retain(|lease, _| self.ledger.leases.contains_key(lease));
        assert_eq!(self.leases.len(), self.ledger.lease_count());
        for slot in self.ledger.slots() {
            self.check_slot(slot);
        }
        for (id, lease) in &self.ledger.leases {
            for member in self.ledger.group(lease.slot) {
                let is_its = match lease.standby {
                    true => self.ledger.successor(member) == Some(*id),
                    false => self.ledger.state(member) == State::Leased(*id),
                };
                assert!(is_its, "{id:?} without its slot");
                assert!(self.ledger.generation_of(*id, member).is_some());
            }
        }
        let exempt = self.asker(0).holder.0 % PROCESSES;
        let mut leases_of: BTreeMap<UserId, (usize, bool)> = BTreeMap::new();
        for lease in self.ledger.leases.values() {
            let (count, has_exempt) = leases_of.entry(lease.user).or_default();
            *count += 1;
            *has_exempt |= lease.holder.0 % PROCESSES == exempt;
        }
        assert_eq!(leases_of.len(), self.ledger.leases_of_users.len());
        for (user, (count, has_exempt)) in leases_of {
            assert_eq!(self.ledger.leases_of_users[&user], count);
            assert!(
                has_exempt || count <= QUOTAS.leases_per_user,
                "{user:?} has {count}"
            );
        }
        for holder in &self.dead {
            assert!(!self.ledger.must_watch(*holder), "a dead one has something");
        }
        let claimers: BTreeSet<_> = self.ledger.claims.values().map(|c| c.holder).collect();
        assert_eq!(
            claimers.len(),
            self.ledger.claims.len(),
            "two claims of one"
        );
        assert!(self.ledger.next_deadline().is_none_or(|at| at > self.clock));
        if self.ledger.pending.is_empty() && self.delayed.is_empty() {
            self.check_waiters();
        }
    }

    fn check_slot(&self, slot: SlotId) {
        let state = self.ledger.state(slot);
        let known = self.ledger.slot(slot);
        let port = &self.ports[&slot];
        assert_eq!(self.seen[&slot], state, "Changed did not tell of {slot:?}");
        assert_eq!(known.steered, port.steered, "{slot:?} is steered elsewhere");
        if self.delayed.is_empty() {
            assert!(known.is_settled() && !known.holding, "{slot:?} hangs");
        }

        let listens = matches!(
            state,
            State::Leased(_) | State::Queueing | State::Restarting { .. }
        );
        assert_eq!(port.steered.is_some(), listens, "{slot:?} is {state:?}");
        assert!(listens || !known.shuts.is_open(), "{slot:?} is healed");
        if let State::Restarting { until, .. } = state {
            let is_over = until <= self.clock;
            assert!(!is_over || known.promised.is_some(), "{slot:?} is kept");
        }
        let standby = known.standby.map(|standby| standby.generation);
        let mut expected: BTreeSet<u64> = port.steered.into_iter().chain(standby).collect();
        if let Some(rest) = known.rest {
            assert_eq!(state, State::Parked, "{slot:?} rests");
            assert!(!self.dead.contains(&rest.holder), "kept for a dead one");
            expected.insert(rest.generation);
        }
        if !known.is_settled() {
            // Made for a request whose other listeners are not.
            let latest = Some(known.generation).filter(|it| port.listeners.contains_key(it));
            expected.extend(latest);
        }
        let there: BTreeSet<u64> = port.listeners.keys().copied().collect();
        assert_eq!(there, expected, "{slot:?} is {state:?}");
        for listener in port.listeners.values() {
            assert!(!listener.shut || known.shuts.is_open(), "{slot:?} is shut");
        }

        let whose = match state {
            State::Leased(lease) => Some(self.ledger.leases[&lease].kin),
            State::Restarting { successor, .. } => Some(successor),
            _ => None,
        };
        let queued = port
            .steered
            .map(|steered| &port.listeners[&steered].queued_for);
        for client in queued.into_iter().flatten() {
            assert!(
                client.is_none() || *client == whose,
                "{client:?} to {whose:?}"
            );
        }
        if state == State::Unheld(Obstacle::Untried) {
            assert!(!port.held, "{slot:?} is held for nobody");
        }
        if !self.ledger.wants_held(slot) && known.is_settled() {
            let may_be = matches!(
                state,
                State::Leased(_) | State::Restarting { .. } | State::Unheld(Obstacle::Untried)
            );
            assert!(may_be, "{slot:?} is {state:?} for nobody");
        }
        let queues = self.ledger.rules(known.place.pool).unleased == Unleased::Queue;
        if self.delayed.is_empty() && queues {
            assert_ne!(state, State::Parked, "{slot:?} does not queue");
        }
        if self.delayed.is_empty() && !queues {
            assert_ne!(state, State::Queueing, "{slot:?} queues");
        }
    }

    fn check_waiters(&self) {
        assert_eq!(self.outstanding.len(), self.ledger.queue.len());
        let mut earlier = BTreeSet::new();
        for request in self.ledger.queue.values() {
            assert_ne!(request.wait, Wait::No, "left waiting");
            assert_eq!(self.outstanding[&request.id].wait, request.wait);
            let pools: BTreeSet<_> = request
                .wants
                .iter()
                .map(|want| (want.pool, request.instance))
                .collect();
            let has_enough = |(pool, instance): &(PoolId, u16)| {
                let of_pool = request.wants.iter().filter(|want| want.pool == *pool);
                let wanted: u16 = of_pool.map(|want| want.count).sum();
                let is_free = |slot: &SlotId| {
                    self.ledger.group(*slot).iter().all(|member| {
                        matches!(self.ledger.state(*member), State::Parked | State::Queueing)
                    })
                };
                let slots = self.ledger.slots_of(*pool, *instance);
                slots.filter(is_free).count() >= usize::from(wanted)
            };
            assert!(
                !pools.is_disjoint(&earlier) || !pools.iter().all(has_enough),
                "{request:?} could be granted"
            );
            earlier.extend(pools);
        }
    }
}

//! How slots look from outside.

use std::time::SystemTime;

use super::core::Agent;
use crate::ledger::{HolderId, LeaseId, Moment, Obstacle, PoolId, SlotId, State};
use crate::protocol::{ListParameters, Process, Queue, Slot, StatusReply};
use crate::sys::clock::wall_clock;
use crate::sys::process;

impl Agent {
    /// A slot as `List` and `PoolExhausted` show it, but for the users' names.
    pub(crate) fn describe(&self, slot: SlotId) -> Slot {
        let planned = &self.slots[slot.0 as usize];
        let pool = self.plan.pool(planned.pool.as_str());
        let state = self.ledger.state(slot);
        let lease = match state {
            State::Leased(lease) => Some(lease),
            _ => None,
        };
        Slot {
            pool: planned.name(),
            instance: planned.instance.get(),
            port: planned.port.get(),
            protocol: planned.protocol.to_string(),
            addresses: planned.addresses.iter().map(ToString::to_string).collect(),
            category: pool.and_then(|pool| pool.category.clone()),
            state: match self.ledger.drains(slot) {
                true => "draining",
                false => word(state),
            }
            .to_owned(),
            generation: self.ledger.generation(slot),
            lease_id: lease.map(|lease| lease.0),
            holder: lease.and_then(|lease| self.describe_holder(lease)),
            queue: self
                .kernel
                .queue(slot)
                .map(|(length, limit)| Queue { length, limit }),
            conflict: self.describe_intruder(slot),
            orphans: self.describe_orphans(slot),
            restarting_until: match state {
                State::Restarting { until, .. } => Some(rfc3339(until)),
                _ => None,
            },
            successor: self
                .ledger
                .successor(slot)
                .and_then(|lease| self.describe_holder(lease)),
        }
    }

    fn describe_holder(&self, lease: LeaseId) -> Option<Process> {
        let lease = self.ledger.lease(lease)?;
        self.describe_process(lease.holder, Some(lease.since))
    }

    /// A process that is watched, but for its user's name.
    pub(crate) fn describe_process(
        &self,
        holder: HolderId,
        since: Option<Moment>,
    ) -> Option<Process> {
        let holder = self.holders.get(holder)?;
        Some(Process {
            pid: holder.pid,
            uid: holder.uid,
            user: None,
            // Read now: `portpool exec` becomes the service after it took the lease.
            program: process::program(holder.pid),
            unit: process::system_unit(holder.pid),
            label: holder.label.clone(),
            since: since.map(rfc3339),
        })
    }

    /// Living processes that may still have a listener of the slot although their lease, or that of
    /// who they have it from, is over.
    fn describe_orphans(&self, slot: SlotId) -> Vec<Process> {
        let ex_holders: Vec<Process> = self
            .ledger
            .ex_holders(slot)
            .filter_map(|holder| self.describe_process(holder, None))
            .collect();
        let describe = |pid: &u32| {
            let ex_holder = ex_holders.iter().find(|known| known.pid == *pid).cloned();
            ex_holder.unwrap_or_else(|| Process {
                pid: *pid,
                uid: process::uid(*pid).unwrap_or(0),
                program: process::program(*pid),
                unit: process::system_unit(*pid),
                ..Process::default()
            })
        };
        self.orphans.of(slot).iter().map(describe).collect()
    }

    fn describe_intruder(&self, slot: SlotId) -> Option<Process> {
        let (intruder, since) = self.conflicts.intruder(slot)?;
        Some(Process {
            pid: intruder.pid.unwrap_or(0),
            uid: intruder.uid,
            user: None,
            program: intruder.program.clone(),
            unit: intruder.unit.clone(),
            label: None,
            since: Some(rfc3339(since)),
        })
    }

    /// The slots that `List` was asked for.
    pub(crate) fn listed(&self, wanted: &ListParameters) -> Vec<SlotId> {
        let is_wanted = |slot: &SlotId| {
            let planned = &self.slots[slot.0 as usize];
            let instance = planned.instance.get();
            wanted
                .pool
                .as_ref()
                .is_none_or(|pool| planned.pool.as_str() == pool)
                && wanted.instance.is_none_or(|wanted| wanted == instance)
        };
        let mut slots: Vec<SlotId> = self.visible().filter(is_wanted).collect();
        let place = |slot: &SlotId| {
            let place = self.ledger.place(*slot);
            (place.pool, place.instance)
        };
        // Those of claimed instances come after all others in the ledger.
        slots.sort_by_key(place);
        slots
    }

    /// The slots that are held or are to be: not those of instances that nobody has claimed.
    fn visible(&self) -> impl Iterator<Item = SlotId> + '_ {
        let is_visible = |slot: &SlotId| {
            self.ledger.wants_held(*slot)
                || self.ledger.state(*slot) != State::Unheld(Obstacle::Untried)
        };
        self.ledger.slots().filter(is_visible)
    }

    /// How many instances of a pool are held.
    pub(crate) fn instances_of(&self, pool: PoolId) -> u16 {
        let slots = self
            .visible()
            .filter(|slot| self.ledger.place(*slot).pool == pool);
        slots
            .map(|slot| self.ledger.place(slot).instance)
            .max()
            .unwrap_or(0)
    }

    /// A pool's name.
    pub(crate) fn pool_name(&self, pool: PoolId) -> String {
        let slot = self
            .ledger
            .slots()
            .find(|slot| self.ledger.place(*slot).pool == pool);
        let planned = slot.and_then(|slot| self.slots.get(slot.0 as usize));
        planned
            .map(|slot| slot.pool.to_string())
            .unwrap_or_default()
    }

    /// What `Status` answers.
    pub(crate) fn status(&self) -> StatusReply {
        let count = |wanted: fn(State) -> bool| {
            let fitting = self
                .visible()
                .filter(|slot| wanted(self.ledger.state(*slot)));
            u32::try_from(fitting.count()).unwrap_or(u32::MAX)
        };
        StatusReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            plan: self.about.plan.clone(),
            level: self.about.level.word().to_owned(),
            level_reason: self.about.level_reason.clone(),
            pid: std::process::id(),
            uid: self.about.uid,
            since: rfc3339(self.about.since),
            configuration: self.about.configuration.clone(),
            configuration_digest: self.about.digest.clone(),
            slots: count(|_| true),
            leased: count(|state| matches!(state, State::Leased(_))),
            parked: count(|state| state == State::Parked),
            conflicts: count(|state| state == State::Unheld(Obstacle::Conflict)),
            unavailable: count(|state| {
                matches!(
                    state,
                    State::Unheld(Obstacle::Unavailable | Obstacle::Untried)
                )
            }),
            waiting: u32::try_from(self.ledger.waiting()).unwrap_or(u32::MAX),
            connections: u32::try_from(self.connections).unwrap_or(u32::MAX),
        }
    }
}

pub(crate) fn word(state: State) -> &'static str {
    match state {
        State::Unheld(Obstacle::Conflict) => "conflict",
        State::Unheld(Obstacle::Unavailable | Obstacle::Untried) => "unavailable",
        State::Parked => "parked",
        State::Queueing => "queueing",
        State::Leased(_) => "leased",
        State::Restarting { .. } => "restarting",
        State::Hostage => "hostage",
    }
}

pub(crate) fn rfc3339(moment: Moment) -> String {
    let time = wall_clock(moment).max(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// The same to the millisecond, for what happens one after the other.
pub(crate) fn rfc3339_millis(moment: Moment) -> String {
    let time = wall_clock(moment).max(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_millis(time).to_string()
}

//! What is written down of slots and claims, at every change: whoever comes after this agent goes on
//! from there.

use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::core::{Agent, Shared};
use super::kernel::Shelves;
use super::report::word;
use super::store::record::{
    ClaimRecord, Description, LeaseRecord, Planned, ProcessRecord, SlotRecord, Text, nanoseconds,
};
use super::store::{Store, give};
use crate::config::OnRevoke;
use crate::ledger::{Effect, HolderId, LeaseId, Obstacle, SlotId, State};
use crate::sys::clock::{self, since_boot};

/// How long the service manager may take over anything.
const PATIENCE: Duration = Duration::from_secs(2);

/// The same while others wait to be served.
const SHORT_PATIENCE: Duration = Duration::from_millis(20);

/// Between two tries to give it what it has not taken.
const GIVE_PAUSE: Duration = Duration::from_secs(2);

/// Between two words about how the slots stand.
const STATUS_PAUSE: Duration = Duration::from_millis(500);

impl Agent {
    /// Writes down what these effects are about, before they are carried out.
    pub(super) fn write_down(&mut self, effects: &[Effect]) {
        if self.store.is_none() {
            return;
        }
        let slots: BTreeSet<SlotId> = effects.iter().filter_map(Effect::slot).collect();
        let changes = self.ledger.claim_changes();
        if slots.is_empty() && changes == self.claims_written {
            return;
        }
        let claims = match changes == self.claims_written {
            true => Vec::new(),
            false => self.claim_records(),
        };
        self.claims_written = changes;
        let records = slots.into_iter().map(|slot| (slot, self.record(slot)));
        let records = records.collect();
        let next_lease = self.ledger.next_lease();
        if let Some(store) = &mut self.store {
            store.write(records, claims, next_lease);
        }
    }

    /// Writes down that leases were sent to their holder.
    pub(crate) fn sent(&mut self, leases: &[LeaseId]) {
        let Some(store) = &mut self.store else {
            return;
        };
        for id in leases {
            if let Some(lease) = self.ledger.lease(*id) {
                store.sent(lease.slot, *id);
            }
        }
    }

    /// A new ledger to be kept, with all that is known now.
    ///
    /// # Errors
    /// What memfd_create(2) and its kin say.
    pub(super) fn new_store(&self) -> io::Result<Store> {
        // Unlike any before, also of an agent that ended before it could tell of it.
        let now = u64::try_from(since_boot().as_nanos()).unwrap_or(u64::MAX);
        let number = self
            .store
            .as_ref()
            .map_or(now, |store| store.next_number().max(now));
        let text = |source: &crate::config::Source| Text {
            path: source.path.display().to_string(),
            text: source.text.clone(),
        };
        let slots = || self.ledger.slots();
        let instance = |slot| self.ledger.place(slot).instance;
        let planned = |slot: SlotId| {
            let is_dormant = self.ledger.place(slot).dormant;
            Planned::new(&self.slots[slot.0 as usize], is_dormant)
        };
        let description = Description {
            sources: self.sources.iter().map(text).collect(),
            slots: slots().map(planned).collect(),
            instances: slots().map(instance).max().unwrap_or(0),
        };
        let mut store = Store::new(&description, number, self.numbers.secret())?;
        let records = slots().map(|slot| (slot, self.record(slot)));
        // A page of memory that is never written costs nothing.
        let touched = records.filter(|(_, record)| *record != SlotRecord::untouched());
        store.write(
            touched.collect(),
            self.claim_records(),
            self.ledger.next_lease(),
        );
        for slot in slots() {
            let standby = self.ledger.kept(slot).standby.map(|(lease, _)| lease);
            let leased = match self.ledger.state(slot) {
                State::Leased(lease) => Some(lease),
                _ => None,
            };
            let certain = |id: &LeaseId| self.ledger.lease(*id).is_some_and(|l| !l.is_uncertain);
            for lease in leased.into_iter().chain(standby).filter(certain) {
                store.sent(slot, lease);
            }
        }
        store.complete();
        Ok(store)
    }

    /// From now on everything outlives the agent, if there is a service manager to keep it; with what
    /// that is to forget.
    pub(super) fn begin_to_outlive(&mut self, forget: Vec<String>) {
        if self.manager.is_none() {
            self.kernel.end_with_the_agent();
            self.store = None;
            return;
        }
        if self.kernel.shelves().is_none() {
            match Shelves::new() {
                Ok(shelves) => self.kernel.outlive(shelves),
                Err(error) => {
                    tracing::error!(%error, "no socket would outlive the agent");
                    return;
                }
            }
        }
        self.kernel.take_shelves();
        self.renew_store(forget);
    }

    /// The agent ends: what the service manager keeps stays as it is.
    pub(super) fn leave(&self) {
        if self.manager.is_some() {
            self.kernel.leave_shelves();
        }
    }

    /// Tells the service manager, if there is one.
    pub(crate) fn tell_manager(&self, text: &str) {
        if let Some(manager) = &self.manager
            && let Err(error) = manager.tell(text, &[], Duration::ZERO)
        {
            tracing::warn!(%error, "cannot tell the service manager how things stand");
        }
    }

    /// Tells it that the agent's one thread is not stuck, as often as it wants to know: `WatchdogSec` of
    /// systemd.service(5). Never returns.
    pub(super) async fn keep_alive(agent: Shared) {
        let Some(limit) = watchdog() else {
            return std::future::pending().await;
        };
        loop {
            agent.borrow().tell_manager("WATCHDOG=1");
            tokio::time::sleep(limit / 3).await;
        }
    }

    /// How the slots stand, in a line.
    pub(super) fn status_text(&self) -> String {
        let status = self.status();
        let kept = match self.not_given {
            Some(_) => "; NOT KEPT by the service manager, trying again",
            None => "",
        };
        format!(
            "{} of {} slots held, {} leased, {} in conflict, {} unavailable{kept}",
            status.slots - status.conflicts - status.unavailable,
            status.slots,
            status.leased,
            status.conflicts,
            status.unavailable
        )
    }

    /// Tells it how the slots stand, some time after they changed. Never returns.
    pub(super) async fn tell_status(agent: Shared) {
        let changed = Rc::clone(&agent.borrow().status_changed);
        let mut told = String::new();
        loop {
            changed.notified().await;
            tokio::time::sleep(STATUS_PAUSE).await;
            let agent = agent.borrow();
            let text = agent.status_text();
            if text != told {
                agent.tell_manager(&format!("STATUS={text}"));
                told = text;
            }
        }
    }

    /// Tells it that the agent is about to be another.
    pub(super) fn tell_manager_of_reload(&self) {
        let now = clock::monotonic().as_micros();
        self.tell_manager(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    }

    /// Goes over to another ledger, because the plan is another one, and has the service manager keep
    /// it with all the rest, and forget what is no use any more.
    pub(super) fn renew_store(&mut self, mut forget: Vec<String>) {
        let store = match self.new_store() {
            Ok(store) => store,
            Err(error) => {
                tracing::error!(%error, "the leases of added slots would not outlive the agent");
                return;
            }
        };
        // Nothing changes until it is kept: the agent may end at any moment between the two.
        self.claims_written = self.ledger.claim_changes();
        let mut before = self.store.replace(store);
        if let Some(before) = &before {
            forget.retain(|name| *name != before.name());
            forget.push(before.name());
        }
        if let Some(error) = self.give(&forget, PATIENCE) {
            tracing::error!(%error, "the service manager does not keep what is to outlive the agent; trying again");
            forget.extend(self.not_given.take().unwrap_or_default());
            self.not_given = Some(forget);
        } else {
            self.not_given = None;
        }
        if let Some(before) = &mut before {
            // What is in it is not true any more from the next change on.
            before.retire();
        }
    }

    /// Has the service manager, if there is one, keep everything and forget those names.
    fn give(&self, forget: &[String], patience: Duration) -> Option<io::Error> {
        let manager = self.manager.as_ref()?;
        let estate = self.estate();
        let outcome = estate.and_then(|estate| give(manager, &estate, forget, patience));
        outcome.err()
    }

    /// Tries again what the service manager had no time for. Never returns.
    pub(super) async fn keep_giving(agent: Shared) {
        loop {
            tokio::time::sleep(GIVE_PAUSE).await;
            let mut agent = agent.borrow_mut();
            let Some(forget) = agent.not_given.take() else {
                continue;
            };
            match agent.give(&forget, SHORT_PATIENCE) {
                Some(_) => agent.not_given = Some(forget),
                None => tracing::info!("the service manager keeps what is to outlive the agent"),
            }
        }
    }

    fn claim_records(&self) -> Vec<(u16, Option<ClaimRecord>)> {
        let highest = self
            .ledger
            .slots()
            .map(|slot| self.ledger.place(slot).instance)
            .max();
        let mut records: Vec<_> = (1..=highest.unwrap_or(0)).map(|n| (n, None)).collect();
        for claim in self.ledger.kept_claims() {
            let record = self.process_record(claim.holder).map(|holder| ClaimRecord {
                holder,
                unit: claim.unit.map(|unit| unit.0),
            });
            if let Some((_, known)) = records.iter_mut().find(|(n, _)| *n == claim.instance) {
                *known = record;
            }
        }
        records
    }

    fn record(&self, slot: SlotId) -> SlotRecord {
        let kept = self.ledger.kept(slot);
        let (until, successor) = match kept.state {
            State::Restarting { until, successor } => (Some(nanoseconds(until)), Some(successor.0)),
            _ => (None, None),
        };
        let lease = match kept.state {
            State::Leased(lease) => self.lease_record(lease),
            _ => None,
        };
        let standby = kept
            .standby
            .and_then(|(lease, generation)| Some((self.lease_record(lease)?, generation)));
        SlotRecord {
            state: word(kept.state).to_owned(),
            generation: kept.generation,
            steered: kept.steered,
            lease,
            standby,
            until,
            successor,
            former_label: kept.former_label.map(|label| label.0),
            draining: kept.draining,
            gone: kept.draining && kept.state == State::Unheld(Obstacle::Untried),
        }
    }

    fn lease_record(&self, id: LeaseId) -> Option<LeaseRecord> {
        let lease = self.ledger.lease(id)?;
        let holder = self.holders.get(lease.holder);
        Some(LeaseRecord {
            id: id.0,
            holder: self.process_record(lease.holder)?,
            kin: lease.kin.0,
            label: lease.label.map(|label| label.0),
            since: nanoseconds(lease.since),
            called: holder.and_then(|holder| holder.label.clone()),
            on_revoke: holder
                .and_then(|holder| holder.on_revoke)
                .map(|wanted| match wanted {
                    OnRevoke::Signal(signal) => signal.name().to_owned(),
                    OnRevoke::None => "none".to_owned(),
                }),
        })
    }

    fn process_record(&self, holder: HolderId) -> Option<ProcessRecord> {
        let holder = self.holders.get(holder)?;
        Some(ProcessRecord {
            pid: holder.pid,
            number: holder.identity().number(),
            uid: holder.uid,
        })
    }
}

/// How long it may be silent: sd_watchdog_enabled(3). The variable that says for whom is this process's
/// also after it went over to another program.
fn watchdog() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let is_for_us = match std::env::var_os("WATCHDOG_PID") {
        Some(_) => number("WATCHDOG_PID") == Some(std::process::id().into()),
        None => true,
    };
    let limit = number("WATCHDOG_USEC").filter(|limit| is_for_us && *limit > 0)?;
    Some(Duration::from_micros(limit))
}

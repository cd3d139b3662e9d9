//! Why a request gets nothing, as the client is told.

use super::list::{describe, fitting, most_bytes};
use crate::agent::connection::Connection;
use crate::agent::limits::SLOTS_PER_REPLY;
use crate::agent::names::name;
use crate::ledger::{LeaseId, MAX_WAITERS_PER_POOL, Obstacle, Refusal};
use crate::protocol::Fault;

/// A refusal in the protocol's words.
pub(super) async fn fault(connection: &Connection, refusal: Refusal) -> Fault {
    match refusal {
        Refusal::Exhausted(pool, instance, slots) => {
            let pool = connection.agent.borrow().pool_name(pool);
            let shown = &slots[..slots.len().min(SLOTS_PER_REPLY)];
            let slots = fitting(describe(connection, shown).await, most_bytes);
            let slots = slots.into_iter().next().unwrap_or_default();
            Fault::PoolExhausted {
                pool,
                instance,
                slots,
            }
        }
        Refusal::UnknownInstance(pool, instance) => {
            let agent = connection.agent.borrow();
            let instances = agent.instances_of(pool);
            Fault::UnknownInstance {
                pool: agent.pool_name(pool),
                instance,
                instances,
            }
        }
        Refusal::Claimed(instance, holder) => {
            let mut holder = connection.agent.borrow().describe_process(holder, None);
            name(&connection.agent, holder.iter_mut().collect()).await;
            let holder = holder.map(Box::new);
            Fault::Claimed { instance, holder }
        }
        Refusal::NoInstance => {
            let agent = connection.agent.borrow();
            let slots = agent.ledger.slots();
            let instances = slots.map(|slot| agent.ledger.place(slot).instance).max();
            Fault::NoInstance {
                instances: instances.unwrap_or(0),
            }
        }
        Refusal::TakeoverUnderWay(slot) => {
            let planned = &connection.agent.borrow().slots[slot.0 as usize];
            Fault::TakeoverUnderWay {
                pool: planned.name(),
                instance: planned.instance.get(),
                port: planned.port.get(),
            }
        }
        Refusal::CannotListen(slot, obstacle) => {
            let agent = connection.agent.borrow();
            let planned = &agent.slots[slot.0 as usize];
            let what = match obstacle {
                Obstacle::Conflict => "another socket is in the way",
                Obstacle::Unavailable | Obstacle::Untried => "the machine cannot give it",
            };
            let error = agent.conflicts.error(slot);
            Fault::CannotListen {
                pool: planned.name(),
                instance: planned.instance.get(),
                port: planned.port.get(),
                reason: error.map_or(what.to_owned(), |error| format!("{what}: {error}")),
            }
        }
        Refusal::Draining(pool) => Fault::Draining {
            pool: connection.agent.borrow().pool_name(pool),
        },
        Refusal::Busy(pool) => busy(format!(
            "{MAX_WAITERS_PER_POOL} processes wait for {} already",
            connection.agent.borrow().pool_name(pool)
        )),
        Refusal::TooManyLeases(most) => busy(format!(
            "your user may have {most} leases: leases_per_user in [access]"
        )),
        Refusal::TooManyWaiters(most) => busy(format!(
            "{most} of your user's processes wait already: waiters_per_user in [access]"
        )),
        Refusal::UnknownLease(LeaseId(lease_id)) => Fault::UnknownLease { lease_id },
        Refusal::NoMeans => busy("descriptors, or memory, of the agent".to_owned()),
        Refusal::HolderGone => busy("your process has ended".to_owned()),
        // Nobody is there to read it.
        Refusal::Cancelled => busy("the request was cancelled".to_owned()),
    }
}

fn busy(limit: String) -> Fault {
    Fault::Busy { limit }
}

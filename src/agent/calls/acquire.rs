//! `Acquire`: from what is asked for to leases and their sockets, or to the reason why not.

use std::io::ErrorKind;
use std::os::fd::AsFd;

use serde_json::value::RawValue;

use super::list::{describe, fitting};
use super::{known_pool, parameters};
use crate::agent::asking::{Answer, Demand};
use crate::agent::connection::{Connection, Gone};
use crate::agent::core::Agent;
use crate::agent::kernel::Listeners;
use crate::agent::limits::SLOTS_PER_REPLY;
use crate::ledger::{Instance, LeaseId, PoolId, Refusal, SlotId, Wait, Want};
use crate::plan::ListenAddress;
use crate::policy::{Denial, Peer};
use crate::protocol::{
    AcquireParameters, AcquireReply, Call, Fault, Lease, MAX_FDS, MAX_LABEL, MAX_WANTS, Reply,
    Socket,
};
use crate::sys::inspect::inspect;
use crate::sys::{peer, process};

pub(super) async fn acquire(connection: &mut Connection, call: &Call<'_>) -> Result<(), Gone> {
    if call.oneway {
        // Nobody would be there to take the sockets.
        return Ok(());
    }
    // Before anything is taken: a client that does not read must not keep slots from others.
    connection.until_read().await?;
    match take(connection, call.parameters).await {
        Ok((leases, sockets)) => {
            let ids = leases.iter().map(|lease| LeaseId(lease.lease_id)).collect();
            let reply = Reply {
                parameters: AcquireReply { leases },
                continues: false,
            };
            connection.hand_over(&reply, &sockets, ids).await
        }
        Err(fault) => connection.reply(&fault).await,
    }
}

/// Takes what was asked for: the leases as the reply tells of them, and their sockets in order.
async fn take(
    connection: &mut Connection,
    raw: Option<&RawValue>,
) -> Result<(Vec<Lease>, Vec<Listeners>), Fault> {
    let asked: AcquireParameters = parameters(raw)?;
    let instance = asked.instance.unwrap_or(1);
    let wants = wanted(connection, &asked)?;
    may_acquire(connection, &asked)?;
    let sockets = socket_count(connection, &wants, instance)?;
    if sockets > MAX_FDS {
        return Err(Fault::TooManySockets {
            sockets,
            limit: MAX_FDS,
        });
    }
    if !connection
        .agent
        .borrow_mut()
        .in_flight
        .has_room(connection.uid, sockets)
    {
        let limit = "file descriptors on their way to your user's processes".to_owned();
        return Err(Fault::Busy { limit });
    }
    let holder = connection.holder()?;
    let demand = Demand {
        instance: Instance::Number(instance),
        wants,
        wait: Wait::No,
        takeover: None,
        label: asked.label,
        program: None,
        on_revoke: None,
    };
    let (_, answer) = connection.agent.borrow_mut().acquire(holder, demand);
    match answer.await {
        Ok(Answer::Granted(leases)) => granted(connection, &leases),
        Ok(Answer::Refused(refusal)) => Err(refused(connection, refusal).await),
        Ok(Answer::Done) | Err(_) => Err(Fault::Busy {
            limit: "the agent is stopping".into(),
        }),
    }
}

fn wanted(connection: &Connection, asked: &AcquireParameters) -> Result<Vec<Want>, Fault> {
    let invalid = |parameter: &str| Fault::InvalidParameter {
        parameter: parameter.to_owned(),
    };
    if asked.pools.is_empty() || asked.pools.len() > MAX_WANTS {
        return Err(invalid("pools: from 1 to 253 of them"));
    }
    if asked
        .label
        .as_ref()
        .is_some_and(|label| label.len() > MAX_LABEL)
    {
        return Err(invalid("label: at most 128 bytes"));
    }
    let mut wants = Vec::with_capacity(asked.pools.len());
    let mut slots = 0;
    for want in &asked.pools {
        let count = want.count.unwrap_or(1);
        if count == 0 || usize::from(count) > MAX_WANTS {
            return Err(invalid("count: from 1 to 253"));
        }
        slots += usize::from(count);
        wants.push(Want {
            pool: known_pool(connection, &want.pool)?,
            count,
        });
    }
    // A slot has at least one socket: no need to count them.
    if slots > MAX_FDS {
        return Err(Fault::TooManySockets {
            sockets: slots,
            limit: MAX_FDS,
        });
    }
    Ok(wants)
}

fn may_acquire(connection: &Connection, asked: &AcquireParameters) -> Result<(), Fault> {
    let uid = connection.uid;
    let agent = connection.agent.borrow();
    let needs_more = asked
        .pools
        .iter()
        .any(|w| agent.policy.needs_more_than_uid(&w.pool, uid));
    let (groups, unit) = match needs_more {
        true => facts(connection)?,
        false => (Vec::new(), None),
    };
    for want in &asked.pools {
        let peer = Peer {
            uid,
            groups: &groups,
            unit: unit.as_deref(),
        };
        if let Err(Denial { rule, fix }) = agent.policy.may_acquire(&want.pool, peer) {
            return Err(Fault::PermissionDenied {
                pool: want.pool.clone(),
                uid,
                rule,
                fix,
            });
        }
    }
    Ok(())
}

/// The groups and the unit of the process that connected.
fn facts(connection: &Connection) -> Result<(Vec<u32>, Option<String>), Fault> {
    let unknown = |error: std::io::Error| Fault::Busy {
        limit: format!("the agent cannot find out who you are: {error}"),
    };
    let peer = peer::peer(connection.socket()).map_err(unknown)?;
    let mut groups = peer::supplementary_groups(connection.socket()).map_err(unknown)?;
    groups.push(peer.gid);
    let unit = process::system_unit(peer.pid);
    // The pid meant that process only if the process still lives.
    match process::is_alive(peer.pidfd.as_fd()) {
        true => Ok((groups, unit)),
        false => Err(unknown(ErrorKind::NotFound.into())),
    }
}

/// How many sockets the first slots asked for have; slots of one pool have equally many, but for
/// companions.
fn socket_count(connection: &Connection, wants: &[Want], instance: u16) -> Result<usize, Fault> {
    let agent = connection.agent.borrow();
    let mut sockets = 0;
    let mut counted: Vec<(PoolId, usize)> = Vec::new();
    for want in wants {
        let known = counted.iter().find(|(pool, _)| *pool == want.pool);
        if let Some((_, largest)) = known {
            sockets += largest * usize::from(want.count);
            continue;
        }
        let group = |slot: SlotId| {
            let members =
                std::iter::once(slot).chain(agent.ledger.companions(slot).iter().copied());
            members
                .map(|member| agent.kernel.socket_count(member))
                .sum::<usize>()
        };
        let largest = agent
            .ledger
            .slots_of(want.pool, instance)
            .map(group)
            .max()
            .unwrap_or(0);
        counted.push((want.pool, largest));
        sockets += largest * usize::from(want.count);
    }
    Ok(sockets)
}

fn granted(
    connection: &Connection,
    leases: &[LeaseId],
) -> Result<(Vec<Lease>, Vec<Listeners>), Fault> {
    let mut agent = connection.agent.borrow_mut();
    let described = agent.hand_out(leases);
    described.map_err(|error| {
        agent.take_in(crate::ledger::Event::Undelivered(leases.to_vec()));
        Fault::Busy {
            limit: format!("the agent cannot ready a socket: {error}"),
        }
    })
}

impl Agent {
    /// Leases as a reply tells of them, and their sockets in order.
    fn hand_out(&self, leases: &[LeaseId]) -> std::io::Result<(Vec<Lease>, Vec<Listeners>)> {
        let mut described = Vec::with_capacity(leases.len());
        let mut handed = Vec::with_capacity(leases.len());
        let mut file_descriptor = 0;
        for id in leases {
            let Some(lease) = self.ledger.lease(*id) else {
                continue;
            };
            let mut sockets = Vec::new();
            let companions = self.ledger.companions(lease.slot).iter().copied();
            for slot in std::iter::once(lease.slot).chain(companions) {
                let planned = &self.plan.slots[slot.0 as usize];
                let Some(generation) = self.ledger.generation_of(*id, slot) else {
                    continue;
                };
                let Some(listeners) = self.kernel.listeners(slot, generation)? else {
                    continue;
                };
                for (planned_address, listener) in planned.addresses.iter().zip(listeners.iter()) {
                    // One that is steered to past a former holder's copy is bound elsewhere.
                    let bound = inspect(listener.as_fd())?.map(|found| found.address.ip());
                    let address = match bound {
                        Some(ip) => ListenAddress {
                            ip,
                            ..*planned_address
                        },
                        None => *planned_address,
                    };
                    sockets.push(Socket {
                        file_descriptor,
                        name: planned.name(),
                        port: planned.port.get(),
                        address: address.to_string(),
                    });
                    file_descriptor += 1;
                }
                handed.push(listeners);
            }
            let planned = &self.plan.slots[lease.slot.0 as usize];
            described.push(Lease {
                lease_id: id.0,
                pool: planned.pool.to_string(),
                instance: planned.instance.get(),
                port: planned.port.get(),
                protocol: planned.protocol.to_string(),
                generation: self.ledger.generation_of(*id, lease.slot).unwrap_or(0),
                sockets,
            });
        }
        Ok((described, handed))
    }
}

async fn refused(connection: &Connection, refusal: Refusal) -> Fault {
    match refusal {
        Refusal::Exhausted(pool, instance, slots) => {
            let pool = connection.agent.borrow().pool_name(pool);
            let shown = &slots[..slots.len().min(SLOTS_PER_REPLY)];
            Fault::PoolExhausted {
                pool,
                instance,
                slots: fitting(describe(connection, shown).await)
                    .into_iter()
                    .next()
                    .unwrap_or_default(),
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
        Refusal::UnknownLease(LeaseId(lease_id)) => Fault::UnknownLease { lease_id },
        Refusal::NoMeans => Fault::Busy {
            limit: "descriptors, or memory, of the agent".into(),
        },
        Refusal::HolderGone => Fault::Busy {
            limit: "your process has ended".into(),
        },
        // The answers to what no call asks for yet: claims, waiting, takeovers, a reload.
        Refusal::Claimed(..)
        | Refusal::NoInstance
        | Refusal::Busy(_)
        | Refusal::Draining(_)
        | Refusal::TakeoverUnderWay(_)
        | Refusal::CannotListen(..)
        | Refusal::Cancelled => Fault::Busy {
            limit: "this agent's version".into(),
        },
    }
}

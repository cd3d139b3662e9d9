//! `Acquire`: from what is asked for to leases and their sockets, or to the reason why not.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};

use super::demand::demand;
use super::parameters;
use super::permission::may_acquire;
use super::refusal::fault;
use crate::agent::asking::{Answer, Answers};
use crate::agent::connection::{Connection, Gone};
use crate::agent::core::Agent;
use crate::agent::kernel::Listeners;
use crate::agent::limits::{MAX_PAUSE, REPLY_TIMEOUT};
use crate::ledger::{Event, Instance, LeaseId, PoolId, RequestId, SlotId, Want};
use crate::plan::ListenAddress;
use crate::protocol::{
    AcquireParameters, AcquireReply, Call, Fault, Lease, MAX_FDS, Reply, Socket,
};
use crate::sys::inspect::bound_to;

pub(super) async fn acquire(connection: &mut Connection, call: &Call<'_>) -> Result<(), Gone> {
    if call.oneway {
        // Nobody would be there to take the sockets.
        return Ok(());
    }
    // Before anything is taken: a client that does not read must not keep slots from others.
    connection.until_read().await?;
    let answer = match ask(connection, call.parameters) {
        Ok((request, answers)) => wait(connection, request, answers).await?,
        Err(fault) => return connection.reply(&fault).await,
    };
    let leases = match answer {
        Some(Answer::Granted(leases)) => leases,
        Some(Answer::Refused(refusal)) => {
            let fault = fault(connection, refusal).await;
            return connection.reply(&fault).await;
        }
        Some(Answer::Done) | None => {
            let limit = "the agent is stopping".to_owned();
            return connection.reply(&Fault::Busy { limit }).await;
        }
    };
    match described(connection, &leases).await {
        Ok((described, sockets)) => {
            let reply = Reply {
                parameters: AcquireReply { leases: described },
                continues: false,
            };
            connection.hand_over(&reply, &sockets, leases).await
        }
        Err(fault) => {
            undeliver(connection, leases);
            connection.reply(&fault).await
        }
    }
}

/// Asks for what the call asks for, if it may.
fn ask(connection: &mut Connection, raw: Option<&RawValue>) -> Result<(RequestId, Answers), Fault> {
    let asked: AcquireParameters = parameters(raw)?;
    let demand = demand(connection, &asked)?;
    may_acquire(connection, &asked)?;
    let sockets = socket_count(connection, &demand.wants, demand.instance);
    if sockets > MAX_FDS {
        return Err(Fault::TooManySockets {
            sockets,
            limit: MAX_FDS,
        });
    }
    if !has_room(connection, sockets) {
        return Err(no_room());
    }
    let holder = connection.holder()?;
    Ok(connection.agent.borrow_mut().acquire(holder, demand))
}

/// Waits for the answer, which comes at once but for a request that waits; `None` when the agent
/// is ending. Of a client that goes away meanwhile nothing is left.
async fn wait(
    connection: &mut Connection,
    request: RequestId,
    mut answers: Answers,
) -> Result<Option<Answer>, Gone> {
    match connection.unless_it_goes(&mut answers).await {
        Ok(answer) => Ok(answer.ok()),
        Err(Gone) => {
            connection.agent.borrow_mut().cancel(request);
            if let Ok(Answer::Granted(leases)) = answers.try_recv() {
                undeliver(connection, leases);
            }
            Err(Gone)
        }
    }
}

fn undeliver(connection: &Connection, leases: Vec<LeaseId>) {
    let mut agent = connection.agent.borrow_mut();
    agent.take_in(Event::Undelivered(leases));
}

fn has_room(connection: &Connection, sockets: usize) -> bool {
    let mut agent = connection.agent.borrow_mut();
    agent.in_flight.has_room(connection.uid, sockets)
}

fn no_room() -> Fault {
    let limit = "file descriptors on their way to your user's processes".to_owned();
    Fault::Busy { limit }
}

/// The leases as the reply tells of them, and their sockets in order, once there is room to send
/// these: others may have taken it while the request waited.
async fn described(
    connection: &Connection,
    leases: &[LeaseId],
) -> Result<(Vec<Lease>, Vec<Listeners>), Fault> {
    let described = connection.agent.borrow().hand_out(leases);
    let (described, sockets) = described.map_err(|error| Fault::Busy {
        limit: format!("the agent cannot ready a socket: {error}"),
    })?;
    let count = sockets.iter().map(|sockets| sockets.len()).sum();
    let deadline = Instant::now() + REPLY_TIMEOUT;
    while !has_room(connection, count) {
        if Instant::now() >= deadline {
            return Err(no_room());
        }
        sleep(MAX_PAUSE).await;
    }
    Ok((described, sockets))
}

/// How many sockets the first slots asked for have; slots of one pool have equally many, but for
/// companions.
fn socket_count(connection: &Connection, wants: &[Want], instance: Instance) -> usize {
    // Every instance has as many as the first.
    let instance = match instance {
        Instance::Number(number) => number,
        Instance::Unsaid | Instance::Auto => 1,
    };
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
    sockets
}

impl Agent {
    /// Leases as a reply tells of them, and their sockets in order.
    fn hand_out(&self, leases: &[LeaseId]) -> std::io::Result<(Vec<Lease>, Vec<Listeners>)> {
        let mut described = Vec::with_capacity(leases.len());
        let mut handed = Vec::with_capacity(leases.len());
        let mut file_descriptor = 0;
        for id in leases {
            let Some(lease) = self.ledger.lease(*id) else {
                // All or none: it was taken back between the grant and this reply.
                return Err(std::io::Error::other(
                    "a lease ended before it was handed over",
                ));
            };
            let mut sockets = Vec::new();
            let companions = self.ledger.companions(lease.slot).iter().copied();
            for slot in std::iter::once(lease.slot).chain(companions) {
                let planned = &self.slots[slot.0 as usize];
                let Some(generation) = self.ledger.generation_of(*id, slot) else {
                    continue;
                };
                let Some(listeners) = self.kernel.listeners(slot, generation)? else {
                    continue;
                };
                for (planned_address, listener) in planned.addresses.iter().zip(listeners.iter()) {
                    // One that is steered to past a former holder's copy is bound elsewhere.
                    let planned_place = SocketAddr::new(planned_address.ip, planned.port.get());
                    let bound = bound_to(listener.as_fd())?.unwrap_or(planned_place);
                    let address = ListenAddress {
                        ip: bound.ip(),
                        ..*planned_address
                    };
                    sockets.push(Socket {
                        file_descriptor,
                        name: planned.name(),
                        port: planned.port.get(),
                        bound_port: Some(bound.port()).filter(|port| *port != planned.port.get()),
                        address: address.to_string(),
                    });
                    file_descriptor += 1;
                }
                handed.push(listeners);
            }
            let planned = &self.slots[lease.slot.0 as usize];
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

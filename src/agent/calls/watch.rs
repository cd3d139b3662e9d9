//! `Watch`: every change from now on.

use std::rc::Rc;

use tokio::sync::broadcast::error::RecvError;

use super::list::{fitting, most_bytes_of_process};
use super::{known_pool, parameters, refuse};
use crate::agent::connection::{Connection, Gone};
use crate::agent::core::Agent;
use crate::agent::limits::TRANSITIONS_PER_REPLY;
use crate::agent::names::name;
use crate::agent::report::{rfc3339_millis, word};
use crate::agent::watch::Transition;
use crate::ledger::{LeaseId, Reason, SlotId, State};
use crate::protocol::{self, Call, Fault, Reply, WatchParameters, WatchReply};

/// What is watched.
struct Wanted {
    pool: Option<String>,
    lease: Option<(LeaseId, Option<SlotId>)>,
}

pub(super) async fn watch(connection: &mut Connection, call: &Call<'_>) -> Result<(), Gone> {
    let wanted = match wanted(connection, call) {
        Ok(wanted) => wanted,
        Err(fault) => return refuse(connection, call, fault).await,
    };
    if call.oneway {
        return Ok(());
    }
    let mut transitions = connection.agent.borrow().watch();
    let mut is_over = wanted.is_over(&connection.agent.borrow());
    tell(connection, Vec::new(), !is_over).await?;
    while !is_over {
        let mut arrived = match connection.unless_it_goes(transitions.recv()).await? {
            Ok(first) => vec![first],
            Err(RecvError::Lagged(missed)) => {
                return connection.reply(&Fault::Lagged { missed }).await;
            }
            Err(RecvError::Closed) => return Err(Gone),
        };
        while arrived.len() < TRANSITIONS_PER_REPLY
            && let Ok(next) = transitions.try_recv()
        {
            arrived.push(next);
        }
        let mut described: Vec<protocol::Transition> = {
            let agent = connection.agent.borrow();
            // What ended it must have come before that can be said.
            is_over = transitions.is_empty() && wanted.is_over(&agent);
            let wanted = arrived.iter().filter(|one| wanted.includes(&agent, one));
            wanted.map(|one| agent.describe_transition(one)).collect()
        };
        if described.is_empty() && !is_over {
            continue;
        }
        let processes = described.iter_mut().filter_map(|one| one.holder.as_mut());
        name(&connection.agent, processes.collect()).await;
        let mut parts = fitting(described, most_bytes).into_iter().peekable();
        while let Some(part) = parts.next() {
            let continues = parts.peek().is_some() || !is_over;
            tell(connection, part, continues).await?;
        }
    }
    Ok(())
}

fn wanted(connection: &Connection, call: &Call<'_>) -> Result<Wanted, Fault> {
    let WatchParameters { pool, lease_id } = parameters(call.parameters)?;
    if let Some(pool) = &pool {
        known_pool(connection, pool)?;
    }
    if !call.more {
        return Err(Fault::ExpectedMore {});
    }
    let agent = connection.agent.borrow();
    let slot_of = |lease| agent.ledger.lease(lease).map(|lease| lease.slot);
    let lease = lease_id.map(LeaseId);
    Ok(Wanted {
        pool,
        lease: lease.map(|lease| (lease, slot_of(lease))),
    })
}

async fn tell(
    connection: &mut Connection,
    transitions: Vec<protocol::Transition>,
    continues: bool,
) -> Result<(), Gone> {
    let parameters = WatchReply { transitions };
    let reply = Reply {
        parameters,
        continues,
    };
    connection.reply(&reply).await
}

impl Wanted {
    fn is_over(&self, agent: &Agent) -> bool {
        self.lease
            .is_some_and(|(lease, _)| agent.ledger.lease(lease).is_none())
    }

    fn includes(&self, agent: &Agent, transition: &Rc<Transition>) -> bool {
        let pool = &agent.slots[transition.slot.0 as usize].pool;
        let is_of_lease = |(lease, slot)| {
            let is_its = |state| state == State::Leased(lease);
            // A takeover that fails leaves the slot with the lease that it had.
            let fails =
                transition.reason == Reason::TakeoverFailed && slot == Some(transition.slot);
            is_its(transition.from) || is_its(transition.to) || fails
        };
        self.pool
            .as_ref()
            .is_none_or(|wanted| pool.as_str() == wanted)
            && self.lease.is_none_or(is_of_lease)
    }
}

impl Agent {
    /// A transition as `Watch` tells of it, but for the user's name.
    fn describe_transition(&self, transition: &Transition) -> protocol::Transition {
        let planned = &self.slots[transition.slot.0 as usize];
        let lease = match (transition.from, transition.to) {
            (_, State::Leased(lease)) | (State::Leased(lease), _) => Some(lease.0),
            _ => None,
        };
        protocol::Transition {
            pool: planned.name(),
            instance: planned.instance.get(),
            port: planned.port.get(),
            protocol: planned.protocol.to_string(),
            from: word(transition.from).to_owned(),
            to: word(transition.to).to_owned(),
            reason: transition.reason.word().to_owned(),
            generation: transition.generation,
            lease_id: lease,
            holder: transition.holder.clone(),
            time: rfc3339_millis(transition.at),
        }
    }
}

/// At least as many bytes as the transition's JSON has.
fn most_bytes(transition: &protocol::Transition) -> usize {
    /// All names of members and all numbers.
    const REST: usize = 400;
    let process = transition.holder.as_ref().map_or(0, most_bytes_of_process);
    REST + transition.pool.len() + process
}

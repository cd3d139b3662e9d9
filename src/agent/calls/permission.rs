//! What the policy says of a client's wishes, asked with what the kernel says of the client.

use std::io::ErrorKind;
use std::os::fd::AsFd;

use crate::agent::connection::Connection;
use crate::ledger::LeaseId;
use crate::policy::{Denial, Peer};
use crate::protocol::{AcquireParameters, Fault};
use crate::sys::{peer, process};

/// Whether the client may take slots of all these pools.
pub(super) fn may_acquire(connection: &Connection, asked: &AcquireParameters) -> Result<(), Fault> {
    let uid = connection.uid;
    let agent = connection.agent.borrow();
    let needs_more = asked
        .pools
        .iter()
        .any(|w| agent.policy.needs_more_than_uid(&w.pool, uid));
    let facts = facts(connection, needs_more)?;
    for want in &asked.pools {
        let outcome = agent.policy.may_acquire(&want.pool, facts.peer(uid));
        outcome.map_err(|denial| denied(want.pool.clone(), uid, denial))?;
    }
    Ok(())
}

/// Whether the client may take back a lease of that user's process.
pub(super) fn may_revoke(connection: &Connection, lease: LeaseId) -> Result<(), Fault> {
    let uid = connection.uid;
    let agent = connection.agent.borrow();
    let known = agent.ledger.lease(lease);
    let holder = known.and_then(|known| agent.holders.get(known.holder));
    let (Some(known), Some(holder)) = (known, holder) else {
        // Everybody may know which there are: List is for all.
        return Err(Fault::UnknownLease { lease_id: lease.0 });
    };
    let facts = facts(connection, agent.policy.admin_needs_more_than_uid(uid))?;
    let outcome = agent.policy.may_revoke(holder.uid, facts.peer(uid));
    let pool = &agent.slots[known.slot.0 as usize].pool;
    outcome.map_err(|denial| denied(pool.to_string(), uid, denial))
}

/// Whether the client is an administrator.
pub(super) fn is_administrator(connection: &Connection) -> Result<bool, Fault> {
    let uid = connection.uid;
    let policy = &connection.agent.borrow().policy;
    let facts = facts(connection, policy.admin_needs_more_than_uid(uid))?;
    Ok(policy.is_administrator(facts.peer(uid)))
}

/// Whether the client may do what is for administrators.
pub(super) fn may_administer(connection: &Connection, what: &str) -> Result<(), Fault> {
    let uid = connection.uid;
    let policy = &connection.agent.borrow().policy;
    let facts = facts(connection, policy.admin_needs_more_than_uid(uid))?;
    let outcome = policy.may_administer(what, facts.peer(uid));
    outcome.map_err(|denial| denied(String::new(), uid, denial))
}

fn denied(pool: String, uid: u32, Denial { rule, fix }: Denial) -> Fault {
    Fault::PermissionDenied {
        pool,
        uid,
        rule,
        fix,
    }
}

/// The groups and the unit of the process that connected, where a rule asks for them.
#[derive(Default)]
struct Facts {
    groups: Vec<u32>,
    unit: Option<String>,
}

impl Facts {
    fn peer(&self, uid: u32) -> Peer<'_> {
        Peer {
            uid,
            groups: &self.groups,
            unit: self.unit.as_deref(),
        }
    }
}

fn facts(connection: &Connection, are_needed: bool) -> Result<Facts, Fault> {
    if !are_needed {
        return Ok(Facts::default());
    }
    let unknown = |error: std::io::Error| Fault::Busy {
        limit: format!("the agent cannot find out who you are: {error}"),
    };
    let peer = peer::peer(connection.socket()).map_err(unknown)?;
    let mut groups = peer::supplementary_groups(connection.socket()).map_err(unknown)?;
    groups.push(peer.gid);
    let unit = process::system_unit(peer.pid);
    // The pid meant that process only if the process still lives.
    match process::is_alive(peer.pidfd.as_fd()) {
        true => Ok(Facts { groups, unit }),
        false => Err(unknown(ErrorKind::NotFound.into())),
    }
}

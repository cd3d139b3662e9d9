//! `Revoke`: a lease is taken back, and its connections with it where that is wanted.

use std::io;

use serde_json::value::RawValue;

use super::permission::{may_administer, may_revoke};
use super::{Nothing, done, parameters};
use crate::agent::connection::Connection;
use crate::agent::core::Agent;
use crate::ledger::LeaseId;
use crate::protocol::{Fault, RevokeParameters};
use crate::sys::sock_diag;

pub(super) async fn revoke(
    connection: &mut Connection,
    raw: Option<&RawValue>,
) -> Result<Nothing, Fault> {
    let asked: RevokeParameters = parameters(raw)?;
    let lease = LeaseId(asked.lease_id);
    may_revoke(connection, lease)?;
    if asked.kill_connections.unwrap_or(false) {
        // Those of who had the port before end with them.
        may_administer(connection, "end established connections")?;
    }
    let (answers, connections) = {
        let mut agent = connection.agent.borrow_mut();
        let ports = match asked.kill_connections.unwrap_or(false) {
            true => agent.ports_of(lease),
            false => Vec::new(),
        };
        let answers = agent.revoke(lease);
        // At once: whoever has the port next has accepted nothing yet.
        (answers, Agent::connections_at(&ports))
    };
    let nothing = done(answers, lease).await?;
    let remain = |error: &io::Error| Fault::ConnectionsRemain {
        lease_id: lease.0,
        reason: match error.kind() {
            io::ErrorKind::PermissionDenied => "the agent lacks CAP_NET_ADMIN".to_owned(),
            _ => error.to_string(),
        },
    };
    let connections = connections.map_err(|error| remain(&error))?;
    if !connections.is_empty() {
        // There may be thousands: not on the thread that serves.
        let ended = tokio::task::spawn_blocking(move || sock_diag::destroy(&connections)).await;
        let ended = ended.unwrap_or_else(|error| Err(io::Error::other(error)));
        ended.map_err(|error| remain(&error))?;
    }
    Ok(nothing)
}

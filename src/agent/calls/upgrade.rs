//! `Upgrade`: the agent goes over to another program.

use serde_json::value::RawValue;

use super::permission::may_administer;
use super::{Nothing, parameters};
use crate::agent::connection::Connection;
use crate::agent::upgrade::upgrade as go_over;
use crate::protocol::Fault;

/// Why it does not; if it does, nobody is there any more to answer.
pub(super) async fn upgrade(connection: &Connection, raw: Option<&RawValue>) -> Fault {
    let asked =
        parameters(raw).and_then(|Nothing {}| may_administer(connection, "upgrade the agent"));
    if let Err(fault) = asked {
        return fault;
    }
    let Err(error) = go_over(&connection.agent).await;
    Fault::UpgradeRefused {
        reason: error.to_string(),
    }
}

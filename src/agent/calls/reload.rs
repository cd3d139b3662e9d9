//! `Reload`: the agent reads its configuration again.

use serde_json::value::RawValue;

use super::permission::may_administer;
use super::{Nothing, parameters};
use crate::agent::connection::Connection;
use crate::agent::reload::reload_and_tell;
use crate::protocol::{Fault, ReloadReply};

pub(super) fn reload(
    connection: &Connection,
    raw: Option<&RawValue>,
) -> Result<ReloadReply, Fault> {
    let Nothing {} = parameters(raw)?;
    may_administer(connection, "reload the configuration")?;
    match reload_and_tell(&connection.agent) {
        Ok(done) => Ok(ReloadReply {
            added: done.added,
            removed: done.removed,
            draining: done.draining,
            unchanged: done.unchanged,
        }),
        Err(error) => Err(Fault::ReloadRefused {
            reason: error.to_string(),
        }),
    }
}

//! What `Acquire` asks for, understood: every parameter of it is right, or named.

use std::time::Duration;

use super::known_pool;
use super::permission::is_administrator;
use crate::agent::asking::Demand;
use crate::agent::connection::Connection;
use crate::config::OnRevoke;
use crate::ledger::{Instance, Takeover, Wait, Want, When, Whom};
use crate::protocol::{
    self, AcquireParameters, Fault, MAX_FDS, MAX_LABEL, MAX_WANTS, WAIT_FOR_EVER,
};
use crate::sys::clock::since_boot;

/// What a call asks for.
pub(super) fn demand(connection: &Connection, asked: &AcquireParameters) -> Result<Demand, Fault> {
    let text = |text: &Option<String>, wrong: &str| match text {
        Some(text) if text.len() > MAX_LABEL => Err(invalid(wrong)),
        text => Ok(text.clone()),
    };
    Ok(Demand {
        instance: instance(asked)?,
        wants: wanted(connection, asked)?,
        wait: wait(asked)?,
        takeover: takeover(connection, asked)?,
        label: text(&asked.label, "label: at most 128 bytes")?,
        program: text(&asked.program, "program: at most 128 bytes")?,
        on_revoke: on_revoke(asked)?,
    })
}

fn invalid(parameter: &str) -> Fault {
    Fault::InvalidParameter {
        parameter: parameter.to_owned(),
    }
}

fn instance(asked: &AcquireParameters) -> Result<Instance, Fault> {
    match (asked.instance, asked.auto.unwrap_or(false)) {
        (Some(_), true) => Err(invalid("auto: not together with instance")),
        (Some(number), false) => Ok(Instance::Number(number)),
        (None, true) => Ok(Instance::Auto),
        (None, false) => Ok(Instance::Unsaid),
    }
}

fn wait(asked: &AcquireParameters) -> Result<Wait, Fault> {
    match asked.wait {
        None | Some(0) => Ok(Wait::No),
        Some(WAIT_FOR_EVER) => Ok(Wait::Forever),
        Some(milliseconds) => match u64::try_from(milliseconds) {
            Ok(milliseconds) => {
                let wait = Duration::from_millis(milliseconds);
                Ok(Wait::Until(since_boot() + wait))
            }
            Err(_) => Err(invalid("wait: milliseconds, or -1 for ever")),
        },
    }
}

/// An administrator may replace anybody; others what is their service's other life.
fn takeover(connection: &Connection, asked: &AcquireParameters) -> Result<Option<Takeover>, Fault> {
    let when = match asked.takeover {
        None => return Ok(None),
        Some(protocol::Takeover::Now) => When::Now,
        Some(protocol::Takeover::Ready) => When::Ready,
    };
    let whom = match is_administrator(connection)? {
        true => Whom::Anyone,
        false => Whom::User,
    };
    Ok(Some(Takeover { when, whom }))
}

fn on_revoke(asked: &AcquireParameters) -> Result<Option<OnRevoke>, Fault> {
    let Some(text) = &asked.on_revoke else {
        return Ok(None);
    };
    let known = text
        .parse()
        .map_err(|error| format!("onRevoke: {error}, none"));
    known.map(Some).map_err(|wrong: String| invalid(&wrong))
}

fn wanted(connection: &Connection, asked: &AcquireParameters) -> Result<Vec<Want>, Fault> {
    if asked.pools.is_empty() || asked.pools.len() > MAX_WANTS {
        return Err(invalid("pools: from 1 to 253 of them"));
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

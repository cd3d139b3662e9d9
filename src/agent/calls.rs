//! The methods: from a call's JSON to the reply.

mod acquire;
mod demand;
mod list;
mod permission;
mod refusal;
mod reload;
mod revoke;
mod upgrade;
mod watch;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use self::acquire::acquire;
use self::list::list;
use self::reload::reload;
use self::revoke::revoke;
use self::upgrade::upgrade;
use self::watch::watch;
use super::asking::{Answer, Answers};
use super::connection::{Connection, Gone};
use super::limits::MAX_QUOTED;
use crate::ledger::{LeaseId, PoolId};
use crate::protocol::{
    Call, Fault, INTERFACE, INTERFACE_NAME, MAX_LABEL, ReadyParameters, ReleaseParameters, Reply,
    SERVICE_INTERFACE, SERVICE_INTERFACE_NAME,
};

/// What a method without parameters, or without results, carries.
#[derive(Debug, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Debug, Serialize)]
struct Info {
    vendor: &'static str,
    product: &'static str,
    version: &'static str,
    url: &'static str,
    interfaces: [&'static str; 2],
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct DescriptionParameters {
    interface: String,
}

#[derive(Debug, Serialize)]
struct Description {
    description: &'static str,
}

/// Answers one call.
///
/// # Errors
/// When the connection is to be closed: the client is gone, does not read, or broke the protocol.
pub(crate) async fn answer(connection: &mut Connection, message: &[u8]) -> Result<(), Gone> {
    let call: Call = match serde_json::from_slice(message) {
        Ok(call) => call,
        Err(error) => {
            let reason = quoted(&format!("a call is a JSON object with a method: {error}"));
            connection.reply(&Fault::ProtocolError { reason }).await?;
            return Err(Gone);
        }
    };
    if call.upgrade {
        let parameter = "upgrade: this service speaks no other protocol".to_owned();
        return refuse(connection, &call, Fault::InvalidParameter { parameter }).await;
    }
    let outcome = match &*call.method {
        "org.portpool.Agent.Acquire" => return acquire(connection, &call).await,
        "org.portpool.Agent.List" => return list(connection, &call).await,
        "org.portpool.Agent.Watch" => return watch(connection, &call).await,
        "org.portpool.Agent.Ready" => ready(connection, call.parameters).await,
        "org.portpool.Agent.Release" => release(connection, call.parameters).await,
        "org.portpool.Agent.Revoke" => revoke(connection, call.parameters).await,
        "org.portpool.Agent.Reload" => match reload(connection, call.parameters) {
            Ok(reply) => return succeed(connection, &call, reply).await,
            Err(fault) => Err(fault),
        },
        "org.portpool.Agent.Upgrade" => Err(upgrade(connection, call.parameters).await),
        "org.portpool.Agent.Status" => match parameters(call.parameters) {
            Ok(Nothing {}) => {
                let status = connection.agent.borrow().status();
                return succeed(connection, &call, status).await;
            }
            Err(fault) => Err(fault),
        },
        "org.varlink.service.GetInfo" => match parameters(call.parameters) {
            Ok(Nothing {}) => return succeed(connection, &call, info()).await,
            Err(fault) => Err(fault),
        },
        "org.varlink.service.GetInterfaceDescription" => match description(call.parameters) {
            Ok(description) => return succeed(connection, &call, description).await,
            Err(fault) => Err(fault),
        },
        unknown => Err(unknown_method(unknown)),
    };
    match outcome {
        Ok(nothing) => succeed(connection, &call, nothing).await,
        Err(fault) => refuse(connection, &call, fault).await,
    }
}

async fn succeed(
    connection: &mut Connection,
    call: &Call<'_>,
    parameters: impl Serialize,
) -> Result<(), Gone> {
    match call.oneway {
        true => Ok(()),
        false => {
            connection
                .reply(&Reply {
                    parameters,
                    continues: false,
                })
                .await
        }
    }
}

async fn refuse(connection: &mut Connection, call: &Call<'_>, fault: Fault) -> Result<(), Gone> {
    match call.oneway {
        true => Ok(()),
        false => connection.reply(&fault).await,
    }
}

fn unknown_method(method: &str) -> Fault {
    match method.rsplit_once('.') {
        Some((INTERFACE_NAME | SERVICE_INTERFACE_NAME, _)) => Fault::MethodNotFound {
            method: quoted(method),
        },
        Some((interface, _)) => Fault::InterfaceNotFound {
            interface: quoted(interface),
        },
        None => Fault::InterfaceNotFound {
            interface: quoted(method),
        },
    }
}

/// As much of a client's words as an error repeats. All of them could make the error larger than
/// a message may be: JSON writes some characters as six.
fn quoted(text: &str) -> String {
    text.chars().take(MAX_QUOTED).collect()
}

fn parameters<T: DeserializeOwned>(raw: Option<&RawValue>) -> Result<T, Fault> {
    let text = raw.map_or("{}", RawValue::get);
    serde_json::from_str(text).map_err(|error| Fault::InvalidParameter {
        parameter: quoted(&error.to_string()),
    })
}

fn info() -> Info {
    Info {
        vendor: "portpool",
        product: "portpool agent",
        version: env!("CARGO_PKG_VERSION"),
        url: "",
        interfaces: [SERVICE_INTERFACE_NAME, INTERFACE_NAME],
    }
}

fn description(raw: Option<&RawValue>) -> Result<Description, Fault> {
    let DescriptionParameters { interface } = parameters(raw)?;
    match interface.as_str() {
        INTERFACE_NAME => Ok(Description {
            description: INTERFACE,
        }),
        SERVICE_INTERFACE_NAME => Ok(Description {
            description: SERVICE_INTERFACE,
        }),
        unknown => Err(Fault::InterfaceNotFound {
            interface: quoted(unknown),
        }),
    }
}

async fn ready(connection: &mut Connection, raw: Option<&RawValue>) -> Result<Nothing, Fault> {
    let ReadyParameters { lease_id } = parameters(raw)?;
    let holder = connection.holder()?;
    let lease = LeaseId(lease_id);
    let answers = connection.agent.borrow_mut().ready(holder, lease);
    done(answers, lease).await
}

async fn release(connection: &mut Connection, raw: Option<&RawValue>) -> Result<Nothing, Fault> {
    let ReleaseParameters { lease_id } = parameters(raw)?;
    let holder = connection.holder()?;
    let lease = LeaseId(lease_id);
    let answers = connection.agent.borrow_mut().release(holder, lease);
    done(answers, lease).await
}

async fn done(answers: Answers, lease: LeaseId) -> Result<Nothing, Fault> {
    match answers.await {
        Ok(Answer::Done) => Ok(Nothing {}),
        _ => Err(Fault::UnknownLease { lease_id: lease.0 }),
    }
}

fn known_pool(connection: &Connection, pool: &str) -> Result<PoolId, Fault> {
    let agent = connection.agent.borrow();
    agent.pool_id(pool).ok_or_else(|| Fault::UnknownPool {
        pool: quoted(pool),
        // Comparing takes the product of both lengths: not for what is no pool's name anyway.
        nearest: match pool.len() <= MAX_LABEL {
            true => agent.plan.nearest_pool(pool).map(ToString::to_string),
            false => None,
        },
    })
}

//! The methods: from a call's JSON to the reply.

use std::io::ErrorKind;
use std::os::fd::AsFd;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::connection::{Connection, Gone};
use super::core::Answer;
use super::kernel::Listeners;
use super::limits::{MAX_QUOTED, SLOT_BYTES_PER_REPLY, SLOTS_PER_REPLY};
use super::names::name_users;
use crate::ledger::{LeaseId, PoolId, Refusal, SlotId, Want};
use crate::plan::ListenAddress;
use crate::policy::{Denial, Peer};
use crate::protocol::{
    AcquireParameters, AcquireReply, Call, Fault, INTERFACE, INTERFACE_NAME, Lease, ListParameters,
    ListReply, MAX_FDS, MAX_LABEL, MAX_WANTS, ReleaseParameters, Reply, SERVICE_INTERFACE,
    SERVICE_INTERFACE_NAME, Socket,
};
use crate::sys::inspect::inspect;
use crate::sys::{peer, process};

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
        "org.portpool.Agent.Release" => release(connection, call.parameters).await,
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

async fn release(connection: &mut Connection, raw: Option<&RawValue>) -> Result<Nothing, Fault> {
    let ReleaseParameters { lease_id } = parameters(raw)?;
    let holder = connection.holder()?;
    let answer = connection
        .agent
        .borrow_mut()
        .release(holder, LeaseId(lease_id));
    match answer.await {
        Ok(Answer::Released) => Ok(Nothing {}),
        _ => Err(Fault::UnknownLease { lease_id }),
    }
}

async fn list(connection: &mut Connection, call: &Call<'_>) -> Result<(), Gone> {
    let wanted: ListParameters = match parameters(call.parameters) {
        Ok(wanted) => wanted,
        Err(fault) => return refuse(connection, call, fault).await,
    };
    if let Some(pool) = &wanted.pool
        && let Err(fault) = known_pool(connection, pool)
    {
        return refuse(connection, call, fault).await;
    }
    let slots = connection.agent.borrow().listed(&wanted);
    if !call.more && slots.len() > SLOTS_PER_REPLY {
        return refuse(connection, call, Fault::ExpectedMore {}).await;
    }
    if call.oneway {
        return Ok(());
    }
    let mut batches = slots.chunks(SLOTS_PER_REPLY).peekable();
    if batches.peek().is_none() {
        return succeed(connection, call, ListReply { slots: Vec::new() }).await;
    }
    while let Some(batch) = batches.next() {
        let mut parts = fitting(describe(connection, batch).await)
            .into_iter()
            .peekable();
        while let Some(slots) = parts.next() {
            let continues = batches.peek().is_some() || parts.peek().is_some();
            if continues && !call.more {
                return refuse(connection, call, Fault::ExpectedMore {}).await;
            }
            let parameters = ListReply { slots };
            connection
                .reply(&Reply {
                    parameters,
                    continues,
                })
                .await?;
        }
        if batches.peek().is_some() {
            // A long list is nobody else's wait.
            connection.turn().await;
        }
    }
    Ok(())
}

/// Slots, parted so that each part fits into one reply.
fn fitting(slots: Vec<crate::protocol::Slot>) -> Vec<Vec<crate::protocol::Slot>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for slot in slots {
        let size = most_bytes(&slot);
        let is_begun = parts.last().is_some_and(|part| !part.is_empty());
        if is_begun && bytes + size > SLOT_BYTES_PER_REPLY {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.push(slot);
        }
    }
    parts
}

/// At least as many bytes as the slot's JSON has, without writing it.
fn most_bytes(slot: &crate::protocol::Slot) -> usize {
    // All names of members, all numbers, and what is around a process.
    const REST: usize = 640;
    let addresses: usize = slot.addresses.iter().map(|address| address.len() + 3).sum();
    let ours = slot.pool.len() + addresses + slot.category.as_ref().map_or(0, String::len);
    let processes = slot
        .holder
        .iter()
        .chain(&slot.conflict)
        .chain(&slot.orphans);
    let theirs = processes.map(|process| {
        let words = [
            &process.user,
            &process.program,
            &process.unit,
            &process.label,
        ];
        let length: usize = words.into_iter().flatten().map(String::len).sum();
        // JSON writes a control character as six.
        6 * length + REST / 4
    });
    REST + ours + theirs.sum::<usize>()
}

async fn describe(connection: &Connection, slots: &[SlotId]) -> Vec<crate::protocol::Slot> {
    let mut described: Vec<_> = {
        let agent = connection.agent.borrow();
        slots.iter().map(|slot| agent.describe(*slot)).collect()
    };
    name_users(&connection.agent, &mut described).await;
    described
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

async fn acquire(connection: &mut Connection, call: &Call<'_>) -> Result<(), Gone> {
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
    let answer = {
        let mut agent = connection.agent.borrow_mut();
        if let Some(label) = asked.label {
            agent.holders.set_label(holder, label);
        }
        agent.acquire(holder, instance, wants)
    };
    match answer.await {
        Ok(Answer::Granted(leases)) => granted(connection, &leases),
        Ok(Answer::Refused(refusal)) => Err(refused(connection, refusal).await),
        Ok(Answer::Released) | Err(_) => Err(Fault::Busy {
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

impl super::core::Agent {
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
                let Some(listeners) = self.kernel.listeners(slot)? else {
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
                generation: self.ledger.generation(lease.slot),
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
    }
}

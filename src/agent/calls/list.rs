//! `List`: slots as they look from outside, in replies that each fit a message.

use super::{known_pool, parameters, refuse, succeed};
use crate::agent::connection::{Connection, Gone};
use crate::agent::limits::{BYTES_PER_REPLY, SLOTS_PER_REPLY};
use crate::agent::names::name_users;
use crate::ledger::SlotId;
use crate::protocol::{Call, Fault, ListParameters, ListReply, Process, Reply, Slot};

pub(super) async fn list(connection: &mut Connection, call: &Call<'_>) -> Result<(), Gone> {
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
        let mut parts = fitting(describe(connection, batch).await, most_bytes)
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

/// Things, parted so that each part fits into one reply; never no part at all.
pub(super) fn fitting<T>(things: Vec<T>, most_bytes: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for thing in things {
        let size = most_bytes(&thing);
        let is_begun = parts.last().is_some_and(|part| !part.is_empty());
        if is_begun && bytes + size > BYTES_PER_REPLY {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.push(thing);
        }
    }
    parts
}

/// At least as many bytes as the slot's JSON has, without writing it.
pub(super) fn most_bytes(slot: &Slot) -> usize {
    /// All names of members and all numbers.
    const REST: usize = 720;
    let addresses: usize = slot.addresses.iter().map(|address| address.len() + 3).sum();
    let ours = slot.pool.len() + addresses + slot.category.as_ref().map_or(0, String::len);
    let processes = slot
        .holder
        .iter()
        .chain(&slot.conflict)
        .chain(&slot.successor)
        .chain(&slot.orphans);
    REST + ours + processes.map(most_bytes_of_process).sum::<usize>()
}

/// The same for a process.
pub(super) fn most_bytes_of_process(process: &Process) -> usize {
    const REST: usize = 160;
    let words = [
        &process.user,
        &process.program,
        &process.unit,
        &process.label,
    ];
    let length: usize = words.into_iter().flatten().map(String::len).sum();
    // JSON writes a control character as six.
    6 * length + REST
}

pub(super) async fn describe(connection: &Connection, slots: &[SlotId]) -> Vec<Slot> {
    let mut described: Vec<_> = {
        let agent = connection.agent.borrow();
        slots.iter().map(|slot| agent.describe(*slot)).collect()
    };
    name_users(&connection.agent, &mut described).await;
    described
}

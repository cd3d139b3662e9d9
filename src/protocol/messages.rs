//! The messages of `org.portpool.Agent`, as `org.portpool.Agent.varlink` declares them.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// A method call; its parameters are read once the method is known.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call<'a> {
    /// Interface and method, `org.portpool.Agent.Acquire`.
    #[serde(borrow)]
    pub method: Cow<'a, str>,
    /// The method's parameters, an object.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<&'a RawValue>,
    /// The caller takes several replies.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// The caller takes no reply.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oneway: bool,
    /// The caller wants to go on with another protocol, which this service does not do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub upgrade: bool,
}

/// A successful reply; an error reply is a [`Fault`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply<T> {
    /// What the method carries.
    pub parameters: T,
    /// More replies to the same call follow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
}

/// So many slots of one pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Want {
    /// The pool's name.
    pub pool: String,
    /// How many of its slots; 1 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u16>,
}

/// What `Acquire` takes.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcquireParameters {
    /// What is asked for: all of it, or nothing.
    pub pools: Vec<Want>,
    /// The instance; 1 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<u16>,
    /// What the holder calls itself, shown beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// One handed-over socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Socket {
    /// Index into the file descriptors that came with the reply.
    pub file_descriptor: usize,
    /// The name for `LISTEN_FDNAMES`: the pool's, or `pool.companion`.
    pub name: String,
    /// The port the socket is bound to.
    pub port: u16,
    /// The address the socket is bound to, `127.0.0.1` or `[::]`.
    pub address: String,
}

/// The exclusive right to one slot, with the slot's sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// Names the lease in `Release`. Never used twice by one agent.
    pub lease_id: u64,
    /// The pool's name.
    pub pool: String,
    /// The instance, from 1.
    pub instance: u16,
    /// The slot's port.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The slot's generation: it grows by one with every new holder.
    pub generation: u64,
    /// The slot's sockets, one per address, then those of its companions.
    pub sockets: Vec<Socket>,
}

/// What `Acquire` answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct AcquireReply {
    /// One per slot, in the order of the pools asked for, then of ports.
    pub leases: Vec<Lease>,
}

/// What `Release` takes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReleaseParameters {
    /// The lease to end.
    pub lease_id: u64,
}

/// What `List` takes.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListParameters {
    /// Only this pool's slots, its companions' included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Only this instance's slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<u16>,
}

/// What `List` answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct ListReply {
    /// Slots in the plan's order.
    pub slots: Vec<Slot>,
}

/// A process as the kernel describes it; `program` and `label` are its own word.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id in the agent's pid namespace; 0 where it is not known.
    pub pid: u32,
    /// Its user id.
    pub uid: u32,
    /// The user's name, where the machine knows one.
    pub user: Option<String>,
    /// The name in `/proc/PID/comm`.
    pub program: Option<String>,
    /// The systemd unit of its cgroup.
    pub unit: Option<String>,
    /// What it called itself when it took the lease.
    pub label: Option<String>,
    /// Since when it has the slot, or is seen to have it: RFC 3339 in UTC.
    pub since: Option<String>,
}

/// The accept queue of a slot's listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Connections that wait to be accepted.
    pub length: u32,
    /// How many may wait.
    pub limit: u32,
}

/// One port of one pool of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Slot {
    /// The pool's name, or `pool.companion`.
    pub pool: String,
    /// The instance, from 1.
    pub instance: u16,
    /// The port.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The addresses it is held on.
    pub addresses: Vec<String>,
    /// The pool's category.
    pub category: Option<String>,
    /// `parked`, `leased`, `conflict` and so on.
    pub state: String,
    /// The generation of the slot's socket; 0 before the first holder.
    pub generation: u64,
    /// The lease it is under.
    pub lease_id: Option<u64>,
    /// Who has it.
    pub holder: Option<Process>,
    /// The listener's queue, while there is a listener.
    pub queue: Option<Queue>,
    /// Who had the port first.
    pub conflict: Option<Process>,
    /// Who still has a listener of a lease that is over.
    pub orphans: Vec<Process>,
}

/// What `Status` answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusReply {
    /// The agent's version.
    pub version: String,
    /// The plan's name.
    pub plan: Option<String>,
    /// `enforced`, `held` or `shared-uid`.
    pub level: String,
    /// Why it is that level and not the next better one.
    pub level_reason: String,
    /// The agent's process id.
    pub pid: u32,
    /// The agent's user id.
    pub uid: u32,
    /// When it started, RFC 3339 in UTC.
    pub since: String,
    /// The configuration files it read.
    pub configuration: Vec<String>,
    /// Changes with any byte of those files.
    pub configuration_digest: String,
    /// How many slots there are.
    pub slots: u32,
    /// How many are leased.
    pub leased: u32,
    /// How many are parked.
    pub parked: u32,
    /// How many somebody else had first.
    pub conflicts: u32,
    /// How many wait for an address to appear.
    pub unavailable: u32,
    /// How many clients are connected.
    pub connections: u32,
}

/// Every error the agent answers with, as the interface definitions declare them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "error", content = "parameters")]
pub enum Fault {
    /// No pool of that name.
    #[serde(rename = "org.portpool.Agent.UnknownPool")]
    UnknownPool {
        /// The name asked for.
        pool: String,
        /// The closest name there is.
        nearest: Option<String>,
    },
    /// That pool has no such instance.
    #[serde(rename = "org.portpool.Agent.UnknownInstance")]
    UnknownInstance {
        /// The pool.
        pool: String,
        /// The instance asked for.
        instance: u16,
        /// How many it has.
        instances: u16,
    },
    /// Every slot of the pool in that instance is taken.
    #[serde(rename = "org.portpool.Agent.PoolExhausted")]
    PoolExhausted {
        /// The pool.
        pool: String,
        /// The instance.
        instance: u16,
        /// Its slots and who has them.
        slots: Vec<Slot>,
    },
    /// The policy says no.
    #[serde(rename = "org.portpool.Agent.PermissionDenied")]
    PermissionDenied {
        /// The pool.
        pool: String,
        /// Who asked.
        uid: u32,
        /// The rule that decided.
        rule: String,
        /// The configuration line that would allow it.
        fix: String,
    },
    /// More sockets than one message can carry.
    #[serde(rename = "org.portpool.Agent.TooManySockets")]
    TooManySockets {
        /// How many it would be.
        sockets: usize,
        /// How many it can be.
        limit: usize,
    },
    /// No such lease of the caller's.
    #[serde(rename = "org.portpool.Agent.UnknownLease")]
    UnknownLease {
        /// The lease named.
        #[serde(rename = "leaseId")]
        lease_id: u64,
    },
    /// A limit is reached.
    #[serde(rename = "org.portpool.Agent.Busy")]
    Busy {
        /// Which.
        limit: String,
    },
    /// The message broke the protocol.
    #[serde(rename = "org.portpool.Agent.ProtocolError")]
    ProtocolError {
        /// How.
        reason: String,
    },
    /// No such interface.
    #[serde(rename = "org.varlink.service.InterfaceNotFound")]
    InterfaceNotFound {
        /// The interface named.
        interface: String,
    },
    /// No such method.
    #[serde(rename = "org.varlink.service.MethodNotFound")]
    MethodNotFound {
        /// The method named.
        method: String,
    },
    /// A parameter is missing or wrong.
    #[serde(rename = "org.varlink.service.InvalidParameter")]
    InvalidParameter {
        /// Which, and why.
        parameter: String,
    },
    /// The call needs `more`.
    #[serde(rename = "org.varlink.service.ExpectedMore")]
    ExpectedMore {},
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{INTERFACE, SERVICE_INTERFACE};

    #[test]
    fn a_fault_is_an_error_reply_on_the_wire() {
        let fault = Fault::UnknownLease { lease_id: 7 };
        let text = serde_json::to_string(&fault).unwrap();
        assert_eq!(
            text,
            r#"{"error":"org.portpool.Agent.UnknownLease","parameters":{"leaseId":7}}"#
        );
        assert_eq!(serde_json::from_str::<Fault>(&text).unwrap(), fault);
        assert!(serde_json::from_str::<Reply<ListReply>>(&text).is_err());
    }

    #[test]
    fn every_error_the_code_knows_is_declared_in_an_interface() {
        let source = include_str!("messages.rs");
        let mut seen = 0;
        for line in source
            .lines()
            .filter_map(|line| line.trim().strip_prefix("#[serde(rename = \"org."))
        {
            let full = line.trim_end_matches("\")]");
            let (interface, name) = full.rsplit_once('.').unwrap();
            let text = if interface == "portpool.Agent" {
                INTERFACE
            } else {
                SERVICE_INTERFACE
            };
            assert!(
                text.contains(&format!("error {name} (")),
                "{full} is not declared"
            );
            seen += 1;
        }
        assert_eq!(seen, 12);
    }
}

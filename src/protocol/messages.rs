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

/// A successful reply; an error reply is a [`super::Fault`].
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcquireParameters {
    /// What is asked for: all of it, or nothing.
    pub pools: Vec<Want>,
    /// The instance. Where it is left out: the one that the process has claimed, else 1, unless
    /// another process has claimed that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<u16>,
    /// Claim the lowest instance that is nobody's, for the life of the process; not together with
    /// `instance`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto: Option<bool>,
    /// What the holder calls itself, shown beside it; at most [`MAX_LABEL`](super::MAX_LABEL) bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// What the process is about to become: together with its user, where it has no unit, it makes
    /// two lives of a service one. At most [`MAX_LABEL`](super::MAX_LABEL) bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// For how many milliseconds to wait for what is taken; [`WAIT_FOR_EVER`]; not at all where it
    /// is left out or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<i64>,
    /// Take the slot from the living holder that it succeeds, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeover: Option<Takeover>,
    /// The signal that the process gets when it loses one of these leases, `TERM`, or `none`;
    /// the pool's `on_revoke` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_revoke: Option<String>,
}

/// In [`AcquireParameters::wait`]: for as long as it takes.
pub const WAIT_FOR_EVER: i64 = -1;

/// From which moment a successor gets the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Takeover {
    /// With the reply.
    Now,
    /// With its `Ready`; until then nothing has changed for anybody.
    Ready,
}

/// One handed-over socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Socket {
    /// Index into the file descriptors that came with the reply.
    pub file_descriptor: usize,
    /// The name for `LISTEN_FDNAMES`: the pool's, or `pool.companion`.
    pub name: String,
    /// The slot's port.
    pub port: u16,
    /// The port it is bound to, where that is another one: steering brings it the slot's clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_port: Option<u16>,
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

/// What `Ready` takes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReadyParameters {
    /// The lease whose takeover is complete.
    pub lease_id: u64,
}

/// What `Revoke` takes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevokeParameters {
    /// The lease to end.
    pub lease_id: u64,
    /// End the slot's established connections, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_connections: Option<bool>,
}

/// What `Reload` came to, in slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReloadReply {
    /// New ones.
    pub added: usize,
    /// Those that went at once.
    pub removed: usize,
    /// Those that go with the end of their lease.
    pub draining: usize,
    /// Those that stay.
    pub unchanged: usize,
}

/// What `Watch` takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WatchParameters {
    /// Only changes of this pool's slots, its companions' included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Only changes of this lease, until it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_id: Option<u64>,
}

/// What `Watch` answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct WatchReply {
    /// In the order in which they happened.
    pub transitions: Vec<Transition>,
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
    /// Until when a restarting slot is kept for its former holder's successor: RFC 3339 in UTC.
    #[serde(default)]
    pub restarting_until: Option<String>,
    /// Who prepares to take the slot over from its holder.
    #[serde(default)]
    pub successor: Option<Process>,
}

/// A slot's way from one state to another, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transition {
    /// The pool's name, or `pool.companion`.
    pub pool: String,
    /// The instance, from 1.
    pub instance: u16,
    /// The port.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The state it was in, one of [`Slot::state`].
    pub from: String,
    /// The state it is in; the same where a listener was healed or a takeover begun or given up.
    pub to: String,
    /// Why: `acquired`, `holder-died`, `revoked` and so on.
    pub reason: String,
    /// The slot's generation afterwards.
    pub generation: u64,
    /// The lease that begins, goes on or ends by it.
    pub lease_id: Option<u64>,
    /// The process concerned, where there is one.
    pub holder: Option<Process>,
    /// When, RFC 3339 in UTC.
    pub time: String,
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
    /// How many processes wait for slots.
    #[serde(default)]
    pub waiting: u32,
    /// How many clients are connected.
    pub connections: u32,
}

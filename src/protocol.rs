//! The wire: Varlink, as <https://varlink.org/Method-Call> defines it, and the types of
//! `org.portpool.Agent`. Nothing here reads or writes a socket.
//!
//! A message is one JSON object and a NUL byte. File descriptors travel with the first byte of
//! their message; the JSON refers to them by index. Client and agent share these types, so the
//! two cannot drift apart; strangers read [`INTERFACE`], which introspection returns verbatim.

mod faults;
mod frame;
mod messages;
mod text;

pub use faults::Fault;
pub use frame::{FrameError, Inbox, framed};
pub use messages::{
    AcquireParameters, AcquireReply, Call, Lease, ListParameters, ListReply, Process, Queue,
    ReadyParameters, ReleaseParameters, ReloadReply, Reply, RevokeParameters, Slot, Socket,
    StatusReply, Takeover, Transition, WAIT_FOR_EVER, Want, WatchParameters, WatchReply,
};
#[cfg(feature = "cli")]
pub(crate) use text::visible;
pub use text::{describe_conflict, describe_transition, printable, program_and_pid, user};

/// The name of the agent's interface.
pub const INTERFACE_NAME: &str = "org.portpool.Agent";

/// The agent's interface in Varlink's definition language.
pub const INTERFACE: &str = include_str!("protocol/org.portpool.Agent.varlink");

/// The name of the interface that every Varlink service has.
pub const SERVICE_INTERFACE_NAME: &str = "org.varlink.service";

/// `org.varlink.service`, as <https://varlink.org/Service> prescribes it.
pub const SERVICE_INTERFACE: &str = include_str!("protocol/org.varlink.service.varlink");

/// The largest message either side accepts, in bytes, its NUL byte included.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// The most file descriptors the kernel passes in one message: `SCM_MAX_FD` of
/// `include/net/scm.h`.
pub const MAX_FDS: usize = 253;

/// The most pools one `Acquire` may name, and the most slots it may ask of one pool.
pub const MAX_WANTS: usize = MAX_FDS;

/// The longest label or program that a holder may give itself, in bytes.
pub const MAX_LABEL: usize = 128;

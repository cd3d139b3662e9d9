//! Every limit of the agent, so that no client and no number of clients can take it down.

use std::time::Duration;

/// The most clients connected at a time; fewer where the process may not have the descriptors.
pub(crate) const MAX_CONNECTIONS: usize = 4096;

/// Of these, kept for root and the agent's own user: one part in so many.
pub(crate) const SHARE_OF_ADMINISTRATORS: usize = 16;

/// The most of them of one user; at most half of all.
pub(crate) const MAX_CONNECTIONS_PER_USER: usize = 2048;

/// The most of them of one process; at most a quarter of all.
pub(crate) const MAX_CONNECTIONS_PER_PROCESS: usize = 256;

/// Descriptors kept free of clients, for the agent's own needs.
pub(crate) const SPARE_FDS: usize = 64;

/// Queue of the control socket, listen(2): this many clients may wait to be accepted.
pub(crate) const CONTROL_BACKLOG: i32 = 1024;

/// From a call's first byte to its last.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a reply may wait for its reader; after that its leases end and the connection too.
pub(crate) const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest pause between two looks at whether a reply was read: the kernel tells of no event.
pub(crate) const MAX_PAUSE: Duration = Duration::from_millis(20);

/// The same, for a client whose connection is over.
pub(crate) const MAX_PAUSE_FOR_THE_LATE: Duration = Duration::from_millis(500);

/// The buffer for replies to one client, socket(7) SO_SNDBUF: what a client that never reads may
/// cost in the kernel is twice this.
pub(crate) const REPLY_BUFFER: usize = 32 * 1024;

/// File descriptors sent and not read yet, in total; at most half of what this process may have
/// open. The kernel stops everybody's at
/// RLIMIT_NOFILE (`too_many_unix_fds` of its `net/core/scm.c`).
pub(crate) const MAX_FDS_IN_FLIGHT: usize = 4096;

/// Those of one user; at most a quarter of those in total, but one full message.
pub(crate) const MAX_FDS_IN_FLIGHT_PER_USER: usize = 1024;

/// Slots in one reply of `List`.
pub(crate) const SLOTS_PER_REPLY: usize = 48;

/// Transitions in one reply of `Watch`.
pub(crate) const TRANSITIONS_PER_REPLY: usize = 48;

/// The most bytes that the slots or transitions of one reply have, which leaves the rest of a
/// message's for what is around them. 48 of long names, labels and many addresses may have more.
pub(crate) const BYTES_PER_REPLY: usize = 60 * 1024;

/// The longest text of a client's that an error repeats, in characters.
pub(crate) const MAX_QUOTED: usize = 256;

/// A user with more connections than this waits its turn: one call of such a user at a time,
/// whatever their number.
pub(crate) const CONNECTIONS_WITHOUT_TURNS: usize = 8;

/// Between two tries to hold what is not held: half of what is promised.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_millis(40);

/// For how long slots are tried again in one go, so that others are served meanwhile. Mostly a try
/// takes 5 µs; where somebody shares a port it asks for the kernel's socket tables, which takes long.
pub(crate) const RETRY_STRETCH: Duration = Duration::from_millis(2);

/// Between two looks at who is in the way.
pub(crate) const IDENTIFY_INTERVAL: Duration = Duration::from_secs(2);

/// How long accepting pauses when there is no descriptor, or no memory, for another client.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Threads for what may block: user names, and the walk over /proc.
pub(crate) const BLOCKING_THREADS: usize = 2;

//! Linux.

pub(crate) mod fd_passing;
pub(crate) mod inspect;

#[cfg(feature = "cli")]
pub(crate) mod activation;
#[cfg(feature = "agent")]
pub(crate) mod clock;
#[cfg(feature = "agent")]
pub(crate) mod ended;
#[cfg(feature = "agent")]
pub(crate) mod fence;
#[cfg(feature = "agent")]
pub(crate) mod hold;
#[cfg(feature = "agent")]
pub(crate) mod limits;
#[cfg(feature = "agent")]
pub(crate) mod manager;
#[cfg(feature = "agent")]
pub(crate) mod memory;
#[cfg(feature = "agent")]
pub(crate) mod packets;
#[cfg(feature = "agent")]
pub(crate) mod peer;
#[cfg(feature = "agent")]
pub(crate) mod process;
#[cfg(feature = "agent")]
pub(crate) mod shelf;
#[cfg(feature = "agent")]
pub(crate) mod shut;
#[cfg(feature = "agent")]
pub(crate) mod sock_diag;
#[cfg(feature = "agent")]
pub(crate) mod steer;
#[cfg(feature = "agent")]
pub(crate) mod stream;

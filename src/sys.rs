//! What the operating system does for us: the only unsafe code and the only platform code.
//!
//! Each file of `sys/unix` has one subject and one shape; a twin for another platform goes into a
//! folder beside it and is chosen here. Nothing in `sys` imports anything of ours.

#[cfg(unix)]
mod unix;

#[cfg(unix)]
pub(crate) use unix::*;

#[cfg(not(unix))]
compile_error!("portpool has no back end for this platform yet");

//! The map entry that steers a port's connections, as `src/sys/unix/steer.rs` sets and clears it.
//!
//! The one place of the benchmarks that needs `unsafe`: no crate has a safe name for bpf(2).
#![expect(unsafe_code)]

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_TYPE_SOCKHASH: u32 = 18;

/// As large as the agent's keys.
type Key = [u8; 24];

const KEY: Key = [7; 24];

#[repr(C)]
struct CreateMap {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
struct ChangeElement {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A map from endpoints to sockets, with room for one.
#[derive(Debug)]
pub(crate) struct Map(OwnedFd);

impl Map {
    /// # Errors
    /// What bpf(2) says: it needs `CAP_BPF` and `CAP_NET_ADMIN`.
    pub(crate) fn new() -> Result<Map> {
        let attributes = CreateMap {
            kind: MAP_TYPE_SOCKHASH,
            key_size: 24,
            value_size: 8,
            max_entries: 1024,
            flags: 0,
        };
        // SAFETY: nothing in there is an address.
        let fd = unsafe { bpf(MAP_CREATE, &attributes) }?;
        // SAFETY: the kernel has just made it, and nobody else knows it.
        Ok(Map(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Steers to a socket.
    pub(crate) fn steer(&self, socket: BorrowedFd) -> Result<()> {
        let value = u64::try_from(socket.as_raw_fd()).map_err(Error::other)?;
        self.change(MAP_UPDATE_ELEM, &value)
    }

    /// Steers to nothing.
    pub(crate) fn park(&self) -> Result<()> {
        self.change(MAP_DELETE_ELEM, &0)
    }

    fn change(&self, command: libc::c_int, value: &u64) -> Result<()> {
        let attributes = ChangeElement {
            map: u32::try_from(self.0.as_raw_fd()).map_err(Error::other)?,
            padding: 0,
            key: std::ptr::from_ref(&KEY).expose_provenance() as u64,
            // Deleting takes none.
            value: match command {
                MAP_UPDATE_ELEM => std::ptr::from_ref(value).expose_provenance() as u64,
                _ => 0,
            },
            flags: 0,
        };
        // SAFETY: key and value have the map's sizes and outlive the call.
        unsafe { bpf(command, &attributes) }.map(drop)
    }
}

/// # Safety
/// Every address in the attributes must be good for what the command does with it.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> Result<RawFd> {
    // SAFETY: the kernel reads as many bytes as said; the caller answers for the addresses.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    match RawFd::try_from(outcome) {
        Ok(outcome) if outcome >= 0 => Ok(outcome),
        _ => Err(Error::last_os_error()),
    }
}

//! The map entries that steer ports' connections, as `src/sys/unix/steer.rs` sets and clears them,
//! and the least program that the kernel would ask about each connection.
//!
//! The one place of the benchmarks that needs `unsafe`: no crate has a safe name for bpf(2).
#![expect(unsafe_code)]

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const MAP_TYPE_SOCKHASH: u32 = 18;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_TYPE_SK_LOOKUP: u32 = 36;

/// As large as the agent's keys.
type Key = [u8; 24];

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

#[repr(C)]
#[derive(Default)]
struct LoadProgram {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    /// Of a log, the kernel's version, flags and a name: none.
    unused: [u64; 5],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct CreateLink {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// A program that passes on everything it is asked about, attached to this network namespace as
/// long as this value lives: what any steering at all must cost.
#[derive(Debug)]
pub(crate) struct LeastProgram(#[expect(dead_code, reason = "held")] OwnedFd);

impl LeastProgram {
    /// # Errors
    /// As for [`Map::new`].
    pub(crate) fn attach() -> Result<LeastProgram> {
        /// `r0 = SK_PASS`, then return: the kernel's `include/uapi/linux/bpf.h`.
        const CODE: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let load = LoadProgram {
            kind: PROG_TYPE_SK_LOOKUP,
            instruction_count: 2,
            instructions: CODE.as_ptr().expose_provenance() as u64,
            license: c"MIT".as_ptr().expose_provenance() as u64,
            attach_type: ATTACH_TYPE_SK_LOOKUP,
            ..LoadProgram::default()
        };
        // SAFETY: there are two instructions, and a license that ends with a NUL byte.
        let program = unsafe { new_fd(PROG_LOAD, &load) }?;
        let namespace = File::open("/proc/thread-self/ns/net")?;
        let number = |fd: RawFd| u32::try_from(fd).map_err(Error::other);
        let link = CreateLink {
            program: number(program.as_raw_fd())?,
            target: number(namespace.as_raw_fd())?,
            attach_type: ATTACH_TYPE_SK_LOOKUP,
            flags: 0,
        };
        // SAFETY: nothing in there is an address.
        Ok(LeastProgram(unsafe { new_fd(LINK_CREATE, &link) }?))
    }
}

/// A map from ports to sockets.
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
        Ok(Map(unsafe { new_fd(MAP_CREATE, &attributes) }?))
    }

    /// Steers a port to a socket.
    pub(crate) fn steer(&self, port: u16, socket: BorrowedFd) -> Result<()> {
        let value = u64::try_from(socket.as_raw_fd()).map_err(Error::other)?;
        self.change(MAP_UPDATE_ELEM, port, &value)
    }

    /// Steers a port to nothing; nothing is to do where it is.
    pub(crate) fn park(&self, port: u16) -> Result<()> {
        match self.change(MAP_DELETE_ELEM, port, &0) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    fn change(&self, command: libc::c_int, port: u16, value: &u64) -> Result<()> {
        let mut key: Key = [0; size_of::<Key>()];
        key[..2].copy_from_slice(&port.to_ne_bytes());
        let attributes = ChangeElement {
            map: u32::try_from(self.0.as_raw_fd()).map_err(Error::other)?,
            padding: 0,
            key: std::ptr::from_ref(&key).expose_provenance() as u64,
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
/// As for [`bpf`]; and the command must be one that gives a new descriptor.
unsafe fn new_fd<T>(command: libc::c_int, attributes: &T) -> Result<OwnedFd> {
    // SAFETY: as promised by the caller.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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

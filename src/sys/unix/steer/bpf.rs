//! The bpf(2) system call, as far as steering needs it.
// UNSAFETY: it has no wrapper in libc, nor a crate that needs no compiler for BPF.
#![expect(unsafe_code)]

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::program::Instruction;

const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;

pub(super) const MAP_TYPE_ARRAY: u32 = 2;
pub(super) const MAP_TYPE_SOCKHASH: u32 = 18;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_TYPE_SK_LOOKUP: u32 = 36;

/// The parts of `union bpf_attr` that are used here, as the kernel lays them out.
#[repr(C)]
#[derive(Default)]
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
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
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

#[repr(C)]
struct UpdateLink {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
struct GetInfo {
    fd: u32,
    length: u32,
    info: u64,
}

/// The first members of `struct bpf_map_info`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct MapInfo {
    pub(super) kind: u32,
    id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
}

/// What map a descriptor is.
///
/// The kernel tells as much as there is room for (`bpf_map_get_info_by_fd` of its
/// `kernel/bpf/syscall.c`). Of a program or a link it tells something else in the same place: their
/// first word is no type of map that is used here.
pub(super) fn map_info(map: &OwnedFd) -> Result<MapInfo> {
    let mut info = MapInfo::default();
    let fd = u32::try_from(map.as_raw_fd()).map_err(|_| ErrorKind::InvalidInput)?;
    let asked = GetInfo {
        fd,
        length: u32::try_from(size_of::<MapInfo>()).map_err(|_| ErrorKind::InvalidInput)?,
        info: (&raw mut info).expose_provenance() as u64,
    };
    // SAFETY: the kernel writes at most `length` bytes to `info`, which has that many, may hold any
    // numbers, and outlives the call.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &asked) }?;
    Ok(info)
}

/// Puts another program in the place of the link's own, in one step.
pub(super) fn update_link(link: &OwnedFd, program: &OwnedFd) -> Result<()> {
    let number = |fd: &OwnedFd| u32::try_from(fd.as_raw_fd()).map_err(|_| ErrorKind::InvalidInput);
    let update = UpdateLink {
        link: number(link)?,
        program: number(program)?,
        flags: 0,
        old_program: 0,
    };
    // SAFETY: nothing in there is an address.
    unsafe { bpf(LINK_UPDATE, &update) }.map(drop)
}

pub(super) fn create_map(
    kind: u32,
    key_size: usize,
    value_size: usize,
    max_entries: u32,
) -> Result<OwnedFd> {
    let size = |size: usize| u32::try_from(size).map_err(|_| Error::from(ErrorKind::InvalidInput));
    let (key_size, value_size) = (size(key_size)?, size(value_size)?);
    // SAFETY: nothing in there is an address.
    unsafe {
        new_fd(
            MAP_CREATE,
            &CreateMap {
                kind,
                key_size,
                value_size,
                max_entries,
                flags: 0,
            },
        )
    }
}

pub(super) fn load(code: &[Instruction]) -> Result<OwnedFd> {
    let instruction_count = u32::try_from(code.len()).map_err(|_| ErrorKind::InvalidInput)?;
    let attributes = LoadProgram {
        kind: PROG_TYPE_SK_LOOKUP,
        instruction_count,
        instructions: address(code.as_ptr().cast()),
        // None of the helper functions it calls asks for the GPL.
        license: address(c"MIT OR Apache-2.0".as_ptr().cast()),
        name: *b"portpool_steer\0\0",
        attach_type: ATTACH_TYPE_SK_LOOKUP,
        ..LoadProgram::default()
    };
    // SAFETY: the kernel reads `instruction_count` instructions, of eight bytes as theirs are,
    // and the license up to its NUL; both outlive the call.
    unsafe { new_fd(PROG_LOAD, &attributes) }
}

pub(super) fn attach(program: &OwnedFd, namespace: &File) -> Result<OwnedFd> {
    let number = |fd: RawFd| u32::try_from(fd).map_err(|_| Error::from(ErrorKind::InvalidInput));
    let program = number(program.as_raw_fd())?;
    let target = number(namespace.as_raw_fd())?;
    let link = CreateLink {
        program,
        target,
        attach_type: ATTACH_TYPE_SK_LOOKUP,
        flags: 0,
    };
    // SAFETY: nothing in there is an address.
    unsafe { new_fd(LINK_CREATE, &link) }
}

/// The sizes of key and value must be those that the map was made with.
pub(super) fn update(map: &OwnedFd, key: &[u8], value: &[u8]) -> Result<()> {
    let map = u32::try_from(map.as_raw_fd()).map_err(|_| ErrorKind::InvalidInput)?;
    let (key, value) = (address(key.as_ptr()), address(value.as_ptr()));
    let change = ChangeElement {
        map,
        padding: 0,
        key,
        value,
        flags: 0,
    };
    // SAFETY: the kernel reads a key and a value of the map's sizes; both outlive the call.
    unsafe { bpf(MAP_UPDATE_ELEM, &change) }.map(drop)
}

/// Reads an entry: the sizes of key and value must be those of [`map_info`].
pub(super) fn look_up(map: &OwnedFd, key: &[u8], value: &mut [u8]) -> Result<()> {
    let map = u32::try_from(map.as_raw_fd()).map_err(|_| ErrorKind::InvalidInput)?;
    let lookup = ChangeElement {
        map,
        padding: 0,
        key: address(key.as_ptr()),
        value: value.as_mut_ptr().expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads a key and writes a value of the map's sizes; both outlive the call.
    unsafe { bpf(MAP_LOOKUP_ELEM, &lookup) }.map(drop)
}

pub(super) fn delete(map: &OwnedFd, key: &[u8]) -> Result<()> {
    let map = u32::try_from(map.as_raw_fd()).map_err(|_| ErrorKind::InvalidInput)?;
    let change = ChangeElement {
        map,
        padding: 0,
        key: address(key.as_ptr()),
        value: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads a key of the map's size, which outlives the call.
    unsafe { bpf(MAP_DELETE_ELEM, &change) }.map(drop)
}

fn address(pointer: *const u8) -> u64 {
    pointer.expose_provenance() as u64
}

/// # Safety
/// As for [`bpf`]; and the command must be one that gives a new descriptor.
unsafe fn new_fd<T>(command: libc::c_int, attributes: &T) -> Result<OwnedFd> {
    // SAFETY: as promised by the caller.
    let fd = unsafe { bpf(command, attributes) }?;
    let fd = RawFd::try_from(fd).map_err(|_| ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just made it, close-on-exec, and nobody else knows it: bpf(2).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// Every address in the attributes must be good for what the command does with it.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> Result<libc::c_long> {
    // SAFETY: the kernel reads the attributes, of which there are as many bytes as said; the
    // addresses in them are good, as promised by the caller.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    match outcome {
        -1 => Err(Error::last_os_error()),
        outcome => Ok(outcome),
    }
}

//! Steering: which socket gets a port's new connections is one entry of a map.
//!
//! A program of type `BPF_PROG_TYPE_SK_LOOKUP` (Linux 5.9; `CAP_BPF` and `CAP_NET_ADMIN`; the
//! kernel's `Documentation/bpf/prog_sk_lookup.rst`) runs before the kernel looks for a listener.
//! For a port that is ours it takes the socket of the map and nobody else's, whoever is bound or
//! listening beside it; without an entry it refuses. For every other port it does nothing.
// UNSAFETY: bpf(2) has no wrapper in libc, nor a crate that needs no compiler for BPF.
#![expect(unsafe_code)]

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::hold::{Endpoint, Transport};

/// The program, attached to this network namespace as long as this value lives.
#[derive(Debug)]
pub(crate) struct Steering {
    /// The ports that are ours: [`port_key`] -> 1.
    ports: OwnedFd,
    /// Where their connections go: [`Key`] -> socket.
    sockets: OwnedFd,
    _link: OwnedFd,
}

/// Which connections an entry of the socket map is for. The program builds the same 24 bytes on
/// its stack, so their order is fixed by [`program`].
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Key {
    /// [`port_key`].
    port: u32,
    /// `AF_INET` or `AF_INET6`, of the connection and not of the socket.
    family: u32,
    /// The address that the client wants, as on the wire; IPv4 in the first four bytes. All zero:
    /// whatever address no other entry is for.
    address: [u8; 16],
}

/// A port with its protocol, as the program's map has it.
fn port_key(port: u16, transport: Transport) -> u32 {
    let protocol = match transport {
        Transport::Tcp => libc::IPPROTO_TCP,
        Transport::Udp => libc::IPPROTO_UDP,
    };
    (u32::try_from(protocol).unwrap_or(0) << 16) | u32::from(port)
}

impl Key {
    fn new(endpoint: &Endpoint, family: libc::c_int, address: [u8; 16]) -> Key {
        let port = port_key(endpoint.address.port(), endpoint.transport);
        Key {
            port,
            family: u32::try_from(family).unwrap_or(0),
            address,
        }
    }

    /// The entries of an endpoint: two where a socket of IPv6 takes connections of IPv4 too.
    fn of(endpoint: &Endpoint) -> Vec<Key> {
        let any = [0; 16];
        match endpoint.address.ip() {
            IpAddr::V4(address) => {
                let mut bytes = any;
                bytes[..4].copy_from_slice(&address.octets());
                vec![Key::new(endpoint, libc::AF_INET, bytes)]
            }
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) if !endpoint.v6_only => {
                vec![
                    Key::new(endpoint, libc::AF_INET6, any),
                    Key::new(endpoint, libc::AF_INET, any),
                ]
            }
            IpAddr::V6(address) => vec![Key::new(endpoint, libc::AF_INET6, address.octets())],
        }
    }
}

impl Steering {
    /// Loads the program and attaches it to this network namespace, with room for so many
    /// endpoints. No port is ours yet.
    ///
    /// # Errors
    /// `PermissionDenied` without the capabilities, else what bpf(2) says. Nothing is attached then.
    pub(crate) fn attach(endpoints: u32) -> Result<Steering> {
        let room = endpoints.saturating_mul(2).max(1024);
        let ports = create_map(MAP_TYPE_HASH, size_of::<u32>(), size_of::<u32>(), room)?;
        let sockets = create_map(MAP_TYPE_SOCKHASH, size_of::<Key>(), size_of::<u64>(), room)?;
        let program = load(&program(ports.as_raw_fd(), sockets.as_raw_fd()))?;
        let namespace = File::open("/proc/thread-self/ns/net")?;
        let link = attach(&program, &namespace)?;
        Ok(Steering {
            ports,
            sockets,
            _link: link,
        })
    }

    /// Makes a port ours: what comes to it goes where [`Steering::steer`] says, else nowhere.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub(crate) fn own(&self, port: u16, transport: Transport) -> Result<()> {
        let key = port_key(port, transport);
        update(&self.ports, &key.to_ne_bytes(), &1u32.to_ne_bytes())
    }

    /// Makes a socket the one that gets what comes to the endpoint from now on. One step: there is
    /// no moment in which nobody gets it.
    ///
    /// The socket may be bound elsewhere. The kernel drops the entry when the socket is closed or
    /// shut.
    ///
    /// # Errors
    /// What bpf(2) says; `AddrNotAvailable` for a socket that does not listen.
    pub(crate) fn steer(&self, endpoint: &Endpoint, socket: BorrowedFd) -> Result<()> {
        let socket = u64::try_from(socket.as_raw_fd()).map_err(|_| ErrorKind::InvalidInput)?;
        for key in Key::of(endpoint) {
            update(&self.sockets, key.bytes(), &socket.to_ne_bytes())?;
        }
        Ok(())
    }

    /// From now on what comes to the endpoint is refused.
    ///
    /// # Errors
    /// What bpf(2) says; that there is no entry is no error.
    pub(crate) fn park(&self, endpoint: &Endpoint) -> Result<()> {
        for key in Key::of(endpoint) {
            match delete(&self.sockets, key.bytes()) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }
}

impl Key {
    fn bytes(&self) -> &[u8; size_of::<Key>()] {
        // SAFETY: Key is repr(C) of u32, u32 and bytes: 24 bytes without padding, all initialised,
        // and an array of bytes needs no alignment.
        unsafe { &*std::ptr::from_ref(self).cast() }
    }
}

/// An address that no listener is at, for one that cannot have its own because a former holder's
/// copy of a socket is in the way: another for every generation, so that none can be in the way
/// of the next. IPv4: below 127.254/16; IPv6: of the discard prefix, RFC 6666.
pub(crate) fn aside(wanted: IpAddr, generation: u64) -> IpAddr {
    let bytes = generation.to_be_bytes();
    match wanted {
        // 254 values each, never .0 and .255: the host parts that mean something else.
        IpAddr::V4(_) => {
            let [high, low] = [(generation / 254) % 254, generation % 254];
            let part = |number: u64| u8::try_from(number + 1).unwrap_or(1);
            Ipv4Addr::new(127, 254, part(high), part(low)).into()
        }
        IpAddr::V6(_) => {
            let mut address = [0; 16];
            address[0] = 1;
            address[8..].copy_from_slice(&bytes);
            Ipv6Addr::from(address).into()
        }
    }
}

// The program.

/// An instruction of the kernel's `include/uapi/linux/bpf.h`: operation, registers, offset,
/// constant.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Instruction {
    operation: u8,
    /// The destination in the low, the source in the high four bits.
    registers: u8,
    offset: i16,
    constant: i32,
}

const fn instruction(operation: u8, to: u8, from: u8, offset: i16, constant: i32) -> Instruction {
    Instruction {
        operation,
        registers: (from << 4) | to,
        offset,
        constant,
    }
}

/// `to = from`.
const fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}
/// `to = constant`.
const fn set(to: u8, constant: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, constant)
}
/// `to += constant`.
const fn add(to: u8, constant: i32) -> Instruction {
    instruction(0x07, to, 0, 0, constant)
}
/// `to <<= constant`.
const fn shift_left(to: u8, constant: i32) -> Instruction {
    instruction(0x67, to, 0, 0, constant)
}
/// `to |= from`.
const fn or(to: u8, from: u8) -> Instruction {
    instruction(0x4f, to, from, 0, 0)
}
/// `to = *(u32 *)(from + offset)`.
const fn load_word(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x61, to, from, offset, 0)
}
/// `*(u32 *)(to + offset) = from`.
const fn store_word(to: u8, offset: i16, from: u8) -> Instruction {
    instruction(0x63, to, from, offset, 0)
}
/// `*(u32 *)(to + offset) = constant`.
const fn store_constant(to: u8, offset: i16, constant: i32) -> Instruction {
    instruction(0x62, to, 0, offset, constant)
}
/// `if register == constant, skip so many`.
const fn skip_if_equal(register: u8, constant: i32, skip: i16) -> Instruction {
    instruction(0x15, register, 0, skip, constant)
}
/// `if register != constant, skip so many`.
const fn skip_if_not_equal(register: u8, constant: i32, skip: i16) -> Instruction {
    instruction(0x55, register, 0, skip, constant)
}
/// Skip so many.
const fn skip(skip: i16) -> Instruction {
    instruction(0x05, 0, 0, skip, 0)
}
/// Call a helper function: arguments in r1 to r5, its result in r0, r1 to r5 lost.
const fn call(function: i32) -> Instruction {
    instruction(0x85, 0, 0, 0, function)
}
/// `return r0`.
const RETURN: Instruction = instruction(0x95, 0, 0, 0, 0);

/// `to = the map of this descriptor`: two instructions' room, `BPF_PSEUDO_MAP_FD`.
const fn load_map(to: u8, map: RawFd) -> [Instruction; 2] {
    [instruction(0x18, to, 1, 0, map), instruction(0, 0, 0, 0, 0)]
}

/// Helper functions, by their numbers in `include/uapi/linux/bpf.h`.
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

/// `BPF_SK_LOOKUP_F_REPLACE | BPF_SK_LOOKUP_F_NO_REUSEPORT`: whatever another program chose, and
/// none but this very socket. Without the second flag a former holder whose copy got into one
/// SO_REUSEPORT group with it would get a share.
const THIS_ONE: i32 = 1 | 2;

const SK_DROP: i32 = 0;
const SK_PASS: i32 = 1;

/// Offsets in `struct bpf_sk_lookup`.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;
const LOCAL_PORT: i16 = 60;

/// The key on the stack, below the frame pointer r10: [`Key`]'s fields.
const KEY: i16 = -24;
const KEY_FAMILY: i16 = KEY + 4;
const KEY_ADDRESS: i16 = KEY + 8;

fn program(ports: RawFd, sockets: RawFd) -> Vec<Instruction> {
    let mut code = vec![
        // r6 = what is looked up; kept over calls.
        copy(6, 1),
        // The key's first word: protocol << 16 | port.
        load_word(1, 6, PROTOCOL),
        shift_left(1, 16),
        load_word(2, 6, LOCAL_PORT),
        or(1, 2),
        store_word(10, KEY, 1),
    ];
    // r0 = ports[that word], or 0. The word alone is this map's key.
    code.extend(load_map(1, ports));
    code.extend([
        copy(2, 10),
        add(2, KEY as i32),
        call(MAP_LOOKUP_ELEM),
        // Not ours: go on as if we were not there.
        skip_if_not_equal(0, 0, 2),
        set(0, SK_PASS),
        RETURN,
        // The rest of the key: family and address.
        load_word(7, 6, FAMILY),
        store_word(10, KEY_FAMILY, 7),
        skip_if_equal(7, libc::AF_INET, 9),
        load_word(1, 6, LOCAL_IP6),
        store_word(10, KEY_ADDRESS, 1),
        load_word(1, 6, LOCAL_IP6 + 4),
        store_word(10, KEY_ADDRESS + 4, 1),
        load_word(1, 6, LOCAL_IP6 + 8),
        store_word(10, KEY_ADDRESS + 8, 1),
        load_word(1, 6, LOCAL_IP6 + 12),
        store_word(10, KEY_ADDRESS + 12, 1),
        skip(5),
        load_word(1, 6, LOCAL_IP4),
        store_word(10, KEY_ADDRESS, 1),
        store_constant(10, KEY_ADDRESS + 4, 0),
        store_constant(10, KEY_ADDRESS + 8, 0),
        store_constant(10, KEY_ADDRESS + 12, 0),
    ]);
    // r0 = the socket for exactly this address, or 0.
    code.extend(load_map(1, sockets));
    code.extend([
        copy(2, 10),
        add(2, KEY as i32),
        call(MAP_LOOKUP_ELEM),
        skip_if_not_equal(0, 0, 12),
        // Else r0 = the socket for all other addresses.
        store_constant(10, KEY_ADDRESS, 0),
        store_constant(10, KEY_ADDRESS + 4, 0),
        store_constant(10, KEY_ADDRESS + 8, 0),
        store_constant(10, KEY_ADDRESS + 12, 0),
    ]);
    code.extend(load_map(1, sockets));
    code.extend([
        copy(2, 10),
        add(2, KEY as i32),
        call(MAP_LOOKUP_ELEM),
        skip_if_not_equal(0, 0, 2),
        // Ours and parked: the client is refused.
        set(0, SK_DROP),
        RETURN,
        // r7 = the socket, of which the look-up gave us a reference.
        copy(7, 0),
        copy(1, 6),
        copy(2, 7),
        set(3, THIS_ONE),
        call(SK_ASSIGN),
        // r8 = whether that failed.
        copy(8, 0),
        copy(1, 7),
        call(SK_RELEASE),
        set(0, SK_PASS),
        skip_if_equal(8, 0, 1),
        // A socket that cannot take it must not leave it to whoever else is bound.
        set(0, SK_DROP),
        RETURN,
    ]);
    code
}

// The system call.

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;

const MAP_TYPE_HASH: u32 = 1;
const MAP_TYPE_SOCKHASH: u32 = 18;
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

fn create_map(kind: u32, key_size: usize, value_size: usize, max_entries: u32) -> Result<OwnedFd> {
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

fn load(code: &[Instruction]) -> Result<OwnedFd> {
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

fn attach(program: &OwnedFd, namespace: &File) -> Result<OwnedFd> {
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
fn update(map: &OwnedFd, key: &[u8], value: &[u8]) -> Result<()> {
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

fn delete(map: &OwnedFd, key: &[u8]) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    /// The tests of `tests/it` try it on hosts of their own; this one runs where it may.
    #[test]
    fn a_port_of_ours_goes_to_the_socket_of_the_map_or_nowhere() {
        let steering = match Steering::attach(1) {
            Ok(steering) => steering,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                eprintln!("SKIPPED: steering needs CAP_BPF and CAP_NET_ADMIN");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let bystander = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = bystander.local_addr().unwrap();
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint {
            address,
            v6_only: false,
            transport: Transport::Tcp,
        };
        assert!(
            TcpStream::connect(address).is_ok(),
            "a port that is not ours is left alone"
        );
        bystander.accept().unwrap();

        steering.own(address.port(), Transport::Tcp).unwrap();
        let refused = TcpStream::connect(address).unwrap_err();
        assert_eq!(
            refused.kind(),
            ErrorKind::ConnectionRefused,
            "parked, whoever listens there"
        );

        steering.steer(&endpoint, elsewhere.as_fd()).unwrap();
        let client = TcpStream::connect(address).unwrap();
        let (served, peer) = elsewhere.accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        assert_eq!(
            served.local_addr().unwrap(),
            address,
            "the connection's own address is right"
        );

        steering.park(&endpoint).unwrap();
        steering.park(&endpoint).unwrap();
        assert!(TcpStream::connect(address).is_err());
        let _: SocketAddr = address;
    }

    #[test]
    fn addresses_aside_differ_from_generation_to_generation() {
        let any = IpAddr::from([0, 0, 0, 0]);
        assert_eq!(aside(any, 0).to_string(), "127.254.1.1");
        assert_eq!(aside(any, 253).to_string(), "127.254.1.254");
        assert_eq!(aside(any, 254).to_string(), "127.254.2.1");
        assert_ne!(
            aside(IpAddr::V6(Ipv6Addr::LOCALHOST), 1),
            aside(IpAddr::V6(Ipv6Addr::LOCALHOST), 2)
        );
    }
}

//! The steering program, in the kernel's instructions.

use std::os::fd::RawFd;

use super::ports::{BITS_OF_PORT_IN_ENTRY, BITS_OF_PORT_IN_KEY, PROTOCOL_MASK};

/// An instruction of the kernel's `include/uapi/linux/bpf.h`: operation, registers, offset,
/// constant.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Instruction {
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
/// `to >>= constant`.
const fn shift_right(to: u8, constant: i32) -> Instruction {
    instruction(0x77, to, 0, 0, constant)
}
/// `to >>= from`.
const fn shift_right_by(to: u8, from: u8) -> Instruction {
    instruction(0x7f, to, from, 0, 0)
}
/// `to &= constant`.
const fn and(to: u8, constant: i32) -> Instruction {
    instruction(0x57, to, 0, 0, constant)
}
/// `to |= from`.
const fn or(to: u8, from: u8) -> Instruction {
    instruction(0x4f, to, from, 0, 0)
}
/// `to = *(u32 *)(from + offset)`.
const fn load_word(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x61, to, from, offset, 0)
}
/// `to = *(u64 *)(from + offset)`.
const fn load_double_word(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x79, to, from, offset, 0)
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

/// How many bytes the socket map's key has: port and protocol, family, address.
pub(super) const KEY_SIZE: usize = 4 + 4 + 16;

/// The key on the stack, below the frame pointer r10.
const KEY: i16 = -24;
const KEY_FAMILY: i16 = KEY + 4;
const KEY_ADDRESS: i16 = KEY + 8;

/// The program over two maps: the ports that are ours, and where their connections go.
pub(super) fn program(ports: RawFd, sockets: RawFd) -> Vec<Instruction> {
    let mut code = vec![
        // r6 = what is looked up; kept over calls.
        copy(6, 1),
        // The key of the port's entry: protocol & 1, then the upper bits of the port.
        load_word(8, 6, PROTOCOL),
        load_word(7, 6, LOCAL_PORT),
        copy(1, 8),
        and(1, PROTOCOL_MASK),
        shift_left(1, BITS_OF_PORT_IN_KEY),
        copy(2, 7),
        shift_right(2, BITS_OF_PORT_IN_ENTRY),
        or(1, 2),
        store_word(10, KEY, 1),
    ];
    // r0 = the entry, of which there is one for every port.
    code.extend(load_map(1, ports));
    code.extend([
        copy(2, 10),
        add(2, KEY as i32),
        call(MAP_LOOKUP_ELEM),
        skip_if_equal(0, 0, 5),
        load_double_word(0, 0, 0),
        // r0 = the port's bit in it, which its lower bits tell.
        copy(1, 7),
        and(1, (1 << BITS_OF_PORT_IN_ENTRY) - 1),
        shift_right_by(0, 1),
        and(0, 1),
        // Not ours: go on as if we were not there.
        skip_if_not_equal(0, 0, 2),
        set(0, SK_PASS),
        RETURN,
        // The socket map's key. Its first word: protocol << 16 | port.
        shift_left(8, 16),
        or(8, 7),
        store_word(10, KEY, 8),
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

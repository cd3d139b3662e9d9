//! Which ports are ours: a bit for each port of each protocol, in a map that the program reads.
//!
//! The program runs for everybody's connections and datagrams, and leaves at this map for all that
//! are not ours. An array is looked up by a few of the program's own instructions, where a hash
//! would be a call (`array_map_gen_lookup` of the kernel's `kernel/bpf/arraymap.c`), and is small
//! enough to stay in a processor's cache.

use std::cell::Cell;
use std::io::Result;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::bpf;
use crate::sys::hold::Transport;

/// How many bits an entry has, as a power of two.
pub(super) const BITS_OF_PORT_IN_ENTRY: i32 = 6;

/// Entries for the ports of one protocol, as a power of two.
pub(super) const BITS_OF_PORT_IN_KEY: i32 = 16 - BITS_OF_PORT_IN_ENTRY;

/// What is left of a protocol's number tells the two apart: 6 and 17.
pub(super) const PROTOCOL_MASK: i32 = 1;

/// The entries of both protocols.
const ENTRIES: u32 = 2 << BITS_OF_PORT_IN_KEY;

/// The set of ports.
#[derive(Debug)]
pub(super) struct Ports {
    map: OwnedFd,
    /// What the map has.
    entries: Box<[Cell<u64>]>,
}

impl Ports {
    /// None is ours.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub(super) fn new() -> Result<Ports> {
        let (key, entry) = (size_of::<u32>(), size_of::<u64>());
        Ok(Ports {
            map: bpf::create_map(bpf::MAP_TYPE_ARRAY, key, entry, ENTRIES)?,
            entries: (0..ENTRIES).map(|_| Cell::new(0)).collect(),
        })
    }

    /// Those of an earlier agent: what was ours is.
    ///
    /// # Errors
    /// `InvalidData` for another map; what bpf(2) says.
    pub(super) fn found(map: OwnedFd) -> Result<Ports> {
        let info = bpf::map_info(&map)?;
        let is_right = info.kind == bpf::MAP_TYPE_ARRAY
            && (info.key_size, info.value_size, info.max_entries) == (4, 8, ENTRIES);
        if !is_right {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let mut entries = Vec::with_capacity(ENTRIES as usize);
        for key in 0..ENTRIES {
            let mut entry = [0; 8];
            bpf::look_up(&map, &key.to_ne_bytes(), &mut entry)?;
            entries.push(Cell::new(u64::from_ne_bytes(entry)));
        }
        Ok(Ports {
            map,
            entries: entries.into(),
        })
    }

    /// The map itself, for who is to keep it.
    pub(super) fn map(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// Those that are ours and not of these are no longer.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub(super) fn retain(&self, ours: impl Iterator<Item = (u16, Transport)>) -> Result<()> {
        let mut wanted = vec![0u64; ENTRIES as usize];
        for (port, transport) in ours {
            let (key, bit) = place(port, transport);
            wanted[key as usize] |= bit;
        }
        for (key, (entry, wanted)) in (0u32..).zip(self.entries.iter().zip(wanted)) {
            let rest = entry.get() & wanted;
            if rest != entry.get() {
                bpf::update(&self.map, &key.to_ne_bytes(), &rest.to_ne_bytes())?;
                entry.set(rest);
            }
        }
        Ok(())
    }

    /// The map, as the program knows it.
    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.map.as_raw_fd()
    }

    /// Makes a port ours, or leaves it to others.
    ///
    /// # Errors
    /// What bpf(2) says; nothing has changed then.
    pub(super) fn set(&self, port: u16, transport: Transport, is_ours: bool) -> Result<()> {
        let (key, bit) = place(port, transport);
        let entry = &self.entries[key as usize];
        let wanted = match is_ours {
            true => entry.get() | bit,
            false => entry.get() & !bit,
        };
        bpf::update(&self.map, &key.to_ne_bytes(), &wanted.to_ne_bytes())?;
        entry.set(wanted);
        Ok(())
    }
}

/// Where a port's bit is: the entry, and the bit in it. The program computes the same.
fn place(port: u16, transport: Transport) -> (u32, u64) {
    let protocol = match transport {
        Transport::Tcp => libc::IPPROTO_TCP,
        Transport::Udp => libc::IPPROTO_UDP,
    };
    let of_protocol = u32::from(protocol & PROTOCOL_MASK != 0) << BITS_OF_PORT_IN_KEY;
    let key = of_protocol | u32::from(port) >> BITS_OF_PORT_IN_ENTRY;
    (key, 1 << (port % (1 << BITS_OF_PORT_IN_ENTRY)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_of_both_protocols_has_a_bit_of_its_own() {
        let mut seen = [0u64; ENTRIES as usize];
        for transport in [Transport::Tcp, Transport::Udp] {
            for port in 0..=u16::MAX {
                let (key, bit) = place(port, transport);
                assert_eq!(seen[key as usize] & bit, 0, "{port} {transport:?}");
                seen[key as usize] |= bit;
            }
        }
        assert!(seen.iter().all(|entry| *entry == u64::MAX));
    }
}

//! Memory that outlives this process as long as anybody has its descriptor: memfd_create(2).
// UNSAFETY: a mapping of a file, and atomic words in it.
#![expect(unsafe_code)]

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapMut, MmapOptions};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};

/// The most that is mapped of what somebody else gives us.
const MOST: u64 = 1 << 30;

/// A file of a fixed size that exists in memory only, mapped: what is written is there for the next
/// process as soon as it is written, however this one ends.
#[derive(Debug)]
pub(crate) struct Memory {
    file: File,
    map: MmapMut,
}

impl Memory {
    /// So many bytes, all zero. Those that are never written cost nothing.
    ///
    /// # Errors
    /// What memfd_create(2), ftruncate(2) and mmap(2) say.
    pub(crate) fn new(name: &str, size: usize) -> Result<Memory> {
        let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let file = File::from(fd);
        file.set_len(u64::try_from(size).map_err(|_| ErrorKind::InvalidInput)?)?;
        // Nobody can make it shorter than it is mapped: to touch what is gone would be SIGBUS.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Memory::map(file)
    }

    /// The memory of an earlier process.
    ///
    /// # Errors
    /// `InvalidData` for a descriptor of anything but such memory; else what fcntl(2) and mmap(2)
    /// say.
    pub(crate) fn found(fd: OwnedFd) -> Result<Memory> {
        let file = Memory::checked(fd)?;
        Memory::map(file)
    }

    /// The same as it is now, without changing it: what is written is seen here only.
    ///
    /// # Errors
    /// Those of [`Memory::found`].
    pub(crate) fn copied(fd: OwnedFd) -> Result<Memory> {
        let file = Memory::checked(fd)?;
        // SAFETY: as in `map`.
        let map = unsafe { MmapOptions::new().map_copy(&file) }?;
        Ok(Memory { file, map })
    }

    fn checked(fd: OwnedFd) -> Result<File> {
        // Only a memfd has seals, and one that is not sealed might shrink under us.
        let sealed = fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        let file = File::from(fd);
        match sealed && file.metadata()?.len() <= MOST {
            true => Ok(file),
            false => Err(Error::new(
                ErrorKind::InvalidData,
                "no memory of a portpool agent",
            )),
        }
    }

    fn map(file: File) -> Result<Memory> {
        // SAFETY: others that have the file (an agent before us that still ends, whoever keeps it for
        // us) may write to it. All that is read is copied first, and checked then; the size is sealed.
        let map = unsafe { MmapOptions::new().map_mut(&file) }?;
        Ok(Memory { file, map })
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// A copy of these bytes; fewer where the memory ends before.
    pub(crate) fn read(&self, from: usize, length: usize) -> Vec<u8> {
        let bytes = self.map.get(from..).unwrap_or_default();
        bytes[..length.min(bytes.len())].to_vec()
    }

    /// Writes bytes; what would lie beyond the end is left out.
    pub(crate) fn write(&mut self, from: usize, bytes: &[u8]) {
        let place = self.map.get_mut(from..).unwrap_or_default();
        let length = bytes.len().min(place.len());
        place[..length].copy_from_slice(&bytes[..length]);
    }

    /// A word of eight bytes; 0 where there is none.
    pub(crate) fn word(&self, at: usize) -> u64 {
        self.atomic(at)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Writes a word in one step, after all that was written before it.
    pub(crate) fn set_word(&mut self, at: usize, value: u64) {
        if let Some(word) = self.atomic(at) {
            word.store(value, Ordering::Release);
        }
    }

    fn atomic(&self, at: usize) -> Option<&AtomicU64> {
        if !at.is_multiple_of(align_of::<AtomicU64>()) || self.map.get(at..at + 8).is_none() {
            return None;
        }
        // SAFETY: these eight bytes are mapped as long as `self` is borrowed, and aligned, because a
        // mapping begins at a page. We have one thread; other processes that write there do so to
        // shared memory, which an atomic is for.
        Some(unsafe { &*self.map.as_ptr().add(at).cast::<AtomicU64>() })
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_reads_what_was_written() {
        let mut memory = Memory::new("test", 100).unwrap();
        memory.write(10, b"kept");
        memory.set_word(16, 7);
        memory.write(98, b"too long");
        memory.set_word(96, 1);
        memory.set_word(3, 1);
        let next = Memory::found(memory.as_fd().try_clone_to_owned().unwrap()).unwrap();
        drop(memory);
        assert_eq!(next.read(10, 4), b"kept");
        assert_eq!(next.read(98, 9), b"to");
        assert_eq!(next.read(200, 9), b"");
        assert_eq!((next.word(16), next.word(96), next.word(3)), (7, 0, 0));
        assert_eq!(next.len(), 100);
    }

    #[test]
    fn what_could_shrink_under_us_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Memory::found(file.into()).is_err());
        let bare = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(Memory::found(bare).is_err());
    }
}

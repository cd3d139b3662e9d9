//! Records in memory that outlives the agent: a description that never changes, and cells of a fixed
//! size that do.
//!
//! Changes that belong together are written to a journal first. The agent may end at any instruction:
//! whoever comes next finds all of them or none.

use std::hash::Hasher;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use siphasher::sip::SipHasher13;

use crate::sys::memory::Memory;

/// What says that it is ours.
const MAGIC: u64 = u64::from_le_bytes(*b"portpool");

/// How it is laid out. What is in the cells is JSON, which a newer agent may say more in.
const VERSION: u64 = 1;

/// Where the words of the header are, in bytes.
mod at {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 8;
    /// Not 0 once it is whole.
    pub(super) const IS_WHOLE: usize = 16;
    pub(super) const CELLS: usize = 24;
    pub(super) const DESCRIPTION: usize = 32;
    pub(super) const SECRET: [usize; 2] = [40, 48];
    /// So many entries of the journal are to be copied into their cells.
    pub(super) const JOURNAL: usize = 56;
    pub(super) const COUNTER: usize = 64;
    /// How many agents have begun to go on from here.
    pub(super) const ATTEMPTS: usize = 72;
}

const HEADER: usize = 512;

/// A cell: a word that changes alone, the checksum, the length, the text.
const CELL: usize = 640;
const WORD: usize = 8;
const TEXT: usize = 3 * WORD;

/// The longest text of a cell.
pub(super) const MAX_TEXT: usize = CELL - TEXT;

/// The most changes that happen all or none.
const JOURNAL: usize = 256;
const ENTRY: usize = CELL;

/// The most cells.
const MAX_CELLS: usize = 1 << 20;

/// Cells, a description, a counter.
#[derive(Debug)]
pub(super) struct Cells {
    memory: Memory,
    secret: [u64; 2],
    count: usize,
    journal: usize,
    first: usize,
}

impl Cells {
    /// So many empty cells.
    ///
    /// # Errors
    /// What memfd_create(2) and its kin say; `InvalidInput` for too many.
    pub(super) fn new(description: &[u8], count: usize, secret: [u64; 2]) -> Result<Cells> {
        if count > MAX_CELLS {
            return Err(ErrorKind::InvalidInput.into());
        }
        let (journal, first, size) = places(description.len(), count);
        let mut memory = Memory::new("portpool-ledger", size)?;
        let word = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        memory.write(HEADER, description);
        memory.set_word(at::MAGIC, MAGIC);
        memory.set_word(at::VERSION, VERSION);
        memory.set_word(at::CELLS, word(count));
        memory.set_word(at::DESCRIPTION, word(description.len()));
        for (place, part) in at::SECRET.into_iter().zip(secret) {
            memory.set_word(place, part);
        }
        Ok(Cells {
            memory,
            secret,
            count,
            journal,
            first,
        })
    }

    /// Those of an earlier agent.
    ///
    /// # Errors
    /// `InvalidData` when it is anything else, laid out in another way, or never was whole.
    pub(super) fn found(fd: OwnedFd) -> Result<Cells> {
        Cells::of(Memory::found(fd)?)
    }

    /// Those of an agent that goes on: what is changed here changes nothing there.
    ///
    /// # Errors
    /// Those of [`Cells::found`].
    pub(super) fn look(fd: OwnedFd) -> Result<Cells> {
        Cells::of(Memory::copied(fd)?)
    }

    fn of(memory: Memory) -> Result<Cells> {
        let wrong = |text: &str| Err(Error::new(ErrorKind::InvalidData, text.to_owned()));
        if memory.word(at::MAGIC) != MAGIC {
            return wrong("it is no ledger of a portpool agent");
        }
        if memory.word(at::VERSION) != VERSION {
            return wrong("it is laid out as another version of portpool has it");
        }
        let number = |at| usize::try_from(memory.word(at)).unwrap_or(usize::MAX);
        let (count, description) = (number(at::CELLS), number(at::DESCRIPTION));
        if count > MAX_CELLS || description > memory.len() {
            return wrong("it is damaged");
        }
        let (journal, first, size) = places(description, count);
        if memory.word(at::IS_WHOLE) == 0 || size != memory.len() {
            return wrong("it is not whole");
        }
        let secret = at::SECRET.map(|place| memory.word(place));
        let mut cells = Cells {
            memory,
            secret,
            count,
            journal,
            first,
        };
        cells.finish();
        Ok(cells)
    }

    /// It is whole from now on.
    pub(super) fn complete(&mut self) {
        self.memory.set_word(at::IS_WHOLE, 1);
    }

    /// Counts an agent that goes on from here.
    pub(super) fn attempt(&mut self) {
        let before = self.attempts();
        self.memory.set_word(at::ATTEMPTS, before.saturating_add(1));
    }

    /// How many have, and ended over it.
    pub(super) fn attempts(&self) -> u64 {
        self.memory.word(at::ATTEMPTS)
    }

    /// None has.
    pub(super) fn forget_attempts(&mut self) {
        self.memory.set_word(at::ATTEMPTS, 0);
    }

    /// It is of no use from now on.
    pub(super) fn retire(&mut self) {
        self.memory.set_word(at::IS_WHOLE, 0);
    }

    pub(super) fn secret(&self) -> [u64; 2] {
        self.secret
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn description(&self) -> Vec<u8> {
        let length = usize::try_from(self.memory.word(at::DESCRIPTION)).unwrap_or(0);
        self.memory.read(HEADER, length)
    }

    pub(super) fn counter(&self) -> u64 {
        self.memory.word(at::COUNTER)
    }

    pub(super) fn set_counter(&mut self, value: u64) {
        self.memory.set_word(at::COUNTER, value);
    }

    /// A cell's own word, which changes alone.
    pub(super) fn word(&self, cell: usize) -> u64 {
        self.memory.word(self.first + cell * CELL)
    }

    pub(super) fn set_word(&mut self, cell: usize, value: u64) {
        if cell < self.count {
            self.memory.set_word(self.first + cell * CELL, value);
        }
    }

    /// What a cell says; empty for one that was never written.
    ///
    /// # Errors
    /// `InvalidData` when it does not say what was written.
    pub(super) fn text(&self, cell: usize) -> Result<Vec<u8>> {
        let start = self.first + cell * CELL;
        let length = self.memory.word(start + 2 * WORD);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let text = self.memory.read(start + TEXT, length.min(MAX_TEXT));
        let is_right = self.memory.word(start + WORD) == self.checksum(&text);
        match length {
            0 => Ok(Vec::new()),
            _ if length <= MAX_TEXT && is_right => Ok(text),
            _ => Err(Error::new(ErrorKind::InvalidData, "a record is damaged")),
        }
    }

    /// Writes what these cells say: all or none of them, up to [`JOURNAL`]. A text that is too long
    /// is left out.
    pub(super) fn write(&mut self, changes: &[(usize, Vec<u8>)]) {
        for changes in changes.chunks(JOURNAL) {
            let mut count = 0;
            for (cell, text) in changes {
                if *cell >= self.count || text.len() > MAX_TEXT {
                    tracing::error!(cell, length = text.len(), "a record does not fit; left out");
                    continue;
                }
                let mut entry = Vec::with_capacity(ENTRY);
                let word = |number: usize| u64::try_from(number).unwrap_or(0).to_ne_bytes();
                entry.extend(word(*cell));
                entry.extend(self.checksum(text).to_ne_bytes());
                entry.extend(word(text.len()));
                entry.extend_from_slice(text);
                self.memory.write(self.journal + count * ENTRY, &entry);
                count += 1;
            }
            self.memory
                .set_word(at::JOURNAL, u64::try_from(count).unwrap_or(0));
            self.finish();
        }
    }

    /// Copies the journal into the cells.
    fn finish(&mut self) {
        let count = usize::try_from(self.memory.word(at::JOURNAL)).unwrap_or(0);
        for entry in 0..count.min(JOURNAL) {
            let from = self.journal + entry * ENTRY;
            let cell = usize::try_from(self.memory.word(from)).unwrap_or(usize::MAX);
            let length = usize::try_from(self.memory.word(from + 2 * WORD)).unwrap_or(usize::MAX);
            if cell < self.count && length <= MAX_TEXT {
                let content = self.memory.read(from + WORD, 2 * WORD + length);
                self.memory.write(self.first + cell * CELL + WORD, &content);
            }
        }
        self.memory.set_word(at::JOURNAL, 0);
    }

    fn checksum(&self, text: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.secret[0], self.secret[1]);
        hasher.write(text);
        hasher.finish()
    }
}

impl AsFd for Cells {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

/// Where the journal and the first cell begin, and how long all of it is.
fn places(description: usize, count: usize) -> (usize, usize, usize) {
    let journal = (HEADER + description).next_multiple_of(CELL);
    let first = journal + JOURNAL * ENTRY;
    (journal, first, first + count * CELL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(cells: &Cells) -> Result<Cells> {
        Cells::found(cells.as_fd().try_clone_to_owned()?)
    }

    #[test]
    fn the_next_agent_reads_what_this_one_wrote() {
        let mut cells = Cells::new(b"a plan", 3, [1, 2]).unwrap();
        assert!(next(&cells).is_err(), "not whole yet");
        cells.write(&[(0, b"zero".to_vec()), (2, b"two".to_vec())]);
        cells.set_word(2, 9);
        cells.set_counter(5);
        cells.complete();
        let next = next(&cells).unwrap();
        assert_eq!(next.description(), b"a plan");
        assert_eq!((next.len(), next.counter(), next.secret()), (3, 5, [1, 2]));
        let texts = [0, 1, 2].map(|cell| next.text(cell).unwrap());
        assert_eq!(texts, [b"zero".to_vec(), vec![], b"two".to_vec()]);
        assert_eq!([next.word(0), next.word(2)], [0, 9]);
    }

    #[test]
    fn changes_that_were_half_copied_are_copied_by_the_next_agent() {
        let mut cells = Cells::new(b"", 2, [1, 2]).unwrap();
        cells.complete();
        cells.write(&[(0, b"old".to_vec()), (1, b"old".to_vec())]);
        cells.write(&[(0, b"new".to_vec()), (1, b"newer".to_vec())]);
        // As if it had ended after the first byte of the first cell.
        let first = cells.first;
        cells.memory.write(first + TEXT, b"?");
        cells.memory.set_word(at::JOURNAL, 2);
        assert!(cells.text(0).is_err());
        let next = next(&cells).unwrap();
        assert_eq!(next.text(0).unwrap(), b"new");
        assert_eq!(next.text(1).unwrap(), b"newer");
    }

    #[test]
    fn what_is_damaged_says_so_and_never_reads_beyond_its_end() {
        let mut cells = Cells::new(b"", 2, [1, 2]).unwrap();
        cells.complete();
        cells.write(&[(1, b"text".to_vec())]);
        let first = cells.first;
        cells.memory.write(first + CELL + TEXT, b"T");
        assert!(next(&cells).unwrap().text(1).is_err());
        cells.memory.set_word(first + CELL + 2 * WORD, u64::MAX);
        assert!(next(&cells).unwrap().text(1).is_err());
        cells.memory.set_word(at::JOURNAL, u64::MAX);
        assert!(next(&cells).is_ok());
        for (word, value) in [
            (at::MAGIC, 1),
            (at::VERSION, 2),
            (at::CELLS, 3),
            (at::CELLS, u64::MAX),
            (at::DESCRIPTION, u64::MAX),
            (at::IS_WHOLE, 0),
        ] {
            let before = cells.memory.word(word);
            cells.memory.set_word(word, value);
            assert!(next(&cells).is_err(), "{word}: {value}");
            cells.memory.set_word(word, before);
        }
        assert!(next(&cells).is_ok());
    }

    #[test]
    fn a_text_that_is_too_long_and_a_cell_that_is_not_are_left_out() {
        let mut cells = Cells::new(b"", 1, [1, 2]).unwrap();
        cells.write(&[(0, vec![b'x'; MAX_TEXT])]);
        cells.write(&[(0, vec![b'y'; MAX_TEXT + 1]), (1, vec![])]);
        assert_eq!(cells.text(0).unwrap(), vec![b'x'; MAX_TEXT]);
    }
}

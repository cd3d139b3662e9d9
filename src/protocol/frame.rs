//! Messages out of a stream of bytes and back: the NUL byte ends each.

use serde::Serialize;

use super::MAX_MESSAGE;

/// Collects what arrives on one connection and gives it out message by message.
///
/// Holds at most [`MAX_MESSAGE`] bytes beyond the messages that are complete.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    /// How much of `bytes` was given out already.
    taken: usize,
    /// How much of `bytes` is known to hold no NUL byte; it is not searched again.
    searched: usize,
}

/// The room that an empty inbox keeps for the next message, in bytes.
const KEPT: usize = 16 * 1024;

/// Why a stream of bytes, or a value, is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The message is larger than [`MAX_MESSAGE`].
    TooLarge,
    /// The value has no JSON form.
    NotJson,
}

impl Inbox {
    /// Adds bytes as they came from the socket.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.searched -= self.taken;
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next complete message, without its NUL byte; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] as soon as a message must be longer than [`MAX_MESSAGE`]. The
    /// stream cannot be understood after that: close it.
    pub fn next_message(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let unsearched = &self.bytes[self.searched..];
        match unsearched.iter().position(|byte| *byte == 0) {
            Some(length) => {
                let start = self.taken;
                let end = self.searched + length;
                if end - start >= MAX_MESSAGE {
                    return Err(FrameError::TooLarge);
                }
                self.taken = end + 1;
                self.searched = end + 1;
                Ok(Some(&self.bytes[start..end]))
            }
            None if self.bytes.len() - self.taken >= MAX_MESSAGE => Err(FrameError::TooLarge),
            None => {
                self.searched = self.bytes.len();
                if !self.is_partial() && self.bytes.capacity() > KEPT {
                    // A large message must not cost as much for as long as its sender stays.
                    *self = Inbox::default();
                }
                Ok(None)
            }
        }
    }

    /// Whether a message has begun and not ended.
    pub fn is_partial(&self) -> bool {
        self.taken < self.bytes.len()
    }
}

/// A value as a message: its JSON and a NUL byte.
///
/// # Errors
/// [`FrameError::TooLarge`] beyond [`MAX_MESSAGE`], [`FrameError::NotJson`] where serde cannot
/// write the value.
pub fn framed(value: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut bytes = serde_json::to_vec(value).map_err(|_| FrameError::NotJson)?;
    bytes.push(0);
    if bytes.len() > MAX_MESSAGE {
        return Err(FrameError::TooLarge);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_split_into_single_bytes_comes_out_whole() {
        let mut inbox = Inbox::default();
        for byte in b"{\"a\":1}" {
            inbox.push(&[*byte]);
            assert_eq!(inbox.next_message(), Ok(None));
        }
        assert!(inbox.is_partial());
        inbox.push(&[0]);
        assert_eq!(inbox.next_message(), Ok(Some(&b"{\"a\":1}"[..])));
        assert!(!inbox.is_partial());
    }

    #[test]
    fn several_messages_in_one_read_come_out_one_by_one() {
        let mut inbox = Inbox::default();
        inbox.push(b"one\0two\0thr");
        assert_eq!(inbox.next_message(), Ok(Some(&b"one"[..])));
        assert_eq!(inbox.next_message(), Ok(Some(&b"two"[..])));
        assert_eq!(inbox.next_message(), Ok(None));
        inbox.push(b"ee\0");
        assert_eq!(inbox.next_message(), Ok(Some(&b"three"[..])));
    }

    #[test]
    fn a_message_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
        let mut inbox = Inbox::default();
        inbox.push(&vec![b'x'; MAX_MESSAGE - 1]);
        inbox.push(&[0]);
        let length = inbox.next_message().map(|message| message.map(<[u8]>::len));
        assert_eq!(length, Ok(Some(MAX_MESSAGE - 1)));
        inbox.push(&vec![b'x'; MAX_MESSAGE - 1]);
        assert_eq!(inbox.next_message(), Ok(None));
        inbox.push(b"x");
        assert_eq!(inbox.next_message(), Err(FrameError::TooLarge));
    }
}

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

    /// How many bytes it holds that were not given out.
    pub fn kept(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// Whether a message has begun and not ended.
    pub fn is_partial(&self) -> bool {
        self.kept() > 0
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
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{
        AcquireParameters, Call, ListParameters, ReadyParameters, ReleaseParameters,
        RevokeParameters, WatchParameters,
    };

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

    #[test]
    fn a_large_message_leaves_no_room_behind() {
        let mut inbox = Inbox::default();
        inbox.push(&vec![b'x'; MAX_MESSAGE - 1]);
        inbox.push(&[0]);
        assert!(matches!(inbox.next_message(), Ok(Some(_))));
        assert_eq!(inbox.next_message(), Ok(None));
        assert!(inbox.bytes.capacity() <= KEPT);
    }

    /// Bytes of which many are NUL, in parts as a socket may give them; some parts are large.
    fn stream() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let byte = prop_oneof![1 => Just(0), 8 => any::<u8>()];
        let large = (MAX_MESSAGE - 20..MAX_MESSAGE + 20).prop_map(|length| vec![b'x'; length]);
        let part = prop_oneof![20 => vec(byte, 0..200), 1 => large, 1 => Just(vec![0])];
        vec(part, 0..40)
    }

    /// What the stream of bytes means, as one would say it; ends with what is too large.
    fn meaning(bytes: &[u8]) -> Vec<Result<Vec<u8>, FrameError>> {
        let mut messages = Vec::new();
        let mut parts = bytes.split(|byte| *byte == 0).peekable();
        while let Some(part) = parts.next() {
            let is_whole = parts.peek().is_some();
            if part.len() >= MAX_MESSAGE {
                messages.push(Err(FrameError::TooLarge));
                return messages;
            }
            if is_whole {
                messages.push(Ok(part.to_vec()));
            }
        }
        messages
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_parts_mean_the_same_as_in_one(parts in stream()) {
            let mut inbox = Inbox::default();
            let mut messages = Vec::new();
            'all: for part in &parts {
                inbox.push(part);
                loop {
                    match inbox.next_message() {
                        Ok(Some(message)) => messages.push(Ok(message.to_vec())),
                        Ok(None) => break,
                        Err(error) => {
                            messages.push(Err(error));
                            break 'all;
                        }
                    }
                }
                prop_assert!(inbox.bytes.len() - inbox.taken < MAX_MESSAGE);
            }
            prop_assert_eq!(messages, meaning(&parts.concat()));
        }

        #[test]
        fn any_bytes_are_a_call_or_an_error(bytes in vec(any::<u8>(), 0..300)) {
            drop(serde_json::from_slice::<Call>(&bytes));
        }

        #[test]
        fn anything_like_a_call_is_a_call_or_an_error(
            text in "\\{(\"(method|parameters|more|oneway|upgrade|x)\":([0-9eE.+-]{1,8}|\"[a-zA-Z.\\\\u0-9]{0,12}\"|true|null|\\[{0,300}|\\{\\}),?){0,6}\\}?"
        ) {
            if let Ok(call) = serde_json::from_str::<Call>(&text) {
                let again = framed(&call).expect("it has a form");
                let (_, json) = again.split_last().expect("the NUL byte");
                let again: Call = serde_json::from_slice(json).expect("and is a call");
                prop_assert_eq!(call.method, again.method);
                prop_assert_eq!(call.parameters.map(|p| p.get()), again.parameters.map(|p| p.get()));
                let parameters = again.parameters.map_or("{}", |raw| raw.get());
                drop(serde_json::from_str::<AcquireParameters>(parameters));
                drop(serde_json::from_str::<ListParameters>(parameters));
                drop(serde_json::from_str::<ReadyParameters>(parameters));
                drop(serde_json::from_str::<ReleaseParameters>(parameters));
                drop(serde_json::from_str::<RevokeParameters>(parameters));
                drop(serde_json::from_str::<WatchParameters>(parameters));
            }
        }
    }
}

//! The journal's own protocol, systemd.io/JOURNAL_NATIVE_PROTOCOL: a field a line, all of them in one
//! datagram. A journal that takes nothing in costs entries, and never the agent's time.

use std::fmt::{self, Write};
use std::io;
use std::os::unix::net::UnixDatagram;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Where it is reached.
const PATH: &str = "/run/systemd/journal/socket";

/// The journal.
#[derive(Debug)]
pub(super) struct Journal(UnixDatagram);

impl Journal {
    /// # Errors
    /// What socket(2) and connect(2) say.
    pub(super) fn open() -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(PATH)?;
        socket.set_nonblocking(true)?;
        Ok(Journal(socket))
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut entry = Entry::new(event.metadata());
        event.record(&mut entry);
        if let Err(error) = self.0.send(&entry.0)
            && [
                io::ErrorKind::ConnectionRefused,
                io::ErrorKind::NotConnected,
            ]
            .contains(&error.kind())
        {
            // The journal was begun anew, at the same place.
            let _still_gone = self.0.connect(PATH);
            let _lost = self.0.send(&entry.0);
        }
    }
}

/// One entry, as it is sent.
struct Entry(Vec<u8>);

impl Entry {
    fn new(metadata: &Metadata<'_>) -> Entry {
        let priority = match *metadata.level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            _ => "7",
        };
        let mut entry = Entry(Vec::with_capacity(512));
        entry.put("PRIORITY", priority);
        entry.put("SYSLOG_IDENTIFIER", "portpool");
        entry.put("TARGET", metadata.target());
        entry
    }

    /// A value of several lines is preceded by its length: whoever chose it cannot add fields.
    fn put(&mut self, name: &str, value: &str) {
        self.0.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            self.0.push(b'\n');
            let length = u64::try_from(value.len()).unwrap_or(0);
            self.0.extend_from_slice(&length.to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(&name(field), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        if write!(text, "{value:?}").is_ok() {
            self.put(&name(field), &text);
        }
    }
}

/// Capitals, digits and underscores only.
fn name(field: &Field) -> String {
    let character = |character: char| match character.is_ascii_alphanumeric() {
        true => character.to_ascii_uppercase(),
        false => '_',
    };
    field.name().chars().map(character).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_add_fields() {
        let mut entry = Entry(Vec::new());
        entry.put("A", "one");
        entry.put("B", "x\nC=evil");
        let expected = b"A=one\nB\n\x08\0\0\0\0\0\0\0x\nC=evil\n";
        assert_eq!(entry.0, expected);
    }
}

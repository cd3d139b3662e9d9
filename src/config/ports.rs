//! Sets of ports as they are written: `9000`, `9000-9002`, `6000, 6010-6012`.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::plan::Port;

/// Distinct ports in the order written. Its text is the shortest that reads back the same: `9000-9002, 9010`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortSet(Vec<Port>);

impl PortSet {
    /// How many ports.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none. No pool of a checked configuration is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The port at a position, from 0.
    pub fn get(&self, position: usize) -> Option<Port> {
        self.0.get(position).copied()
    }

    /// The first port, the one a service has when nobody else took it.
    pub fn first(&self) -> Option<Port> {
        self.get(0)
    }

    /// The ports in the order written.
    pub fn iter(&self) -> impl Iterator<Item = Port> + '_ {
        self.0.iter().copied()
    }

    /// Whether the port is one of these.
    pub fn contains(&self, port: Port) -> bool {
        self.0.contains(&port)
    }
}

impl FromIterator<Port> for PortSet {
    /// Keeps the first of equal ports.
    fn from_iter<T: IntoIterator<Item = Port>>(ports: T) -> Self {
        let mut seen = HashSet::new();
        Self(
            ports
                .into_iter()
                .filter(|port| seen.insert(*port))
                .collect(),
        )
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self
            .0
            .chunk_by(|a, b| a.get().checked_add(1) == Some(b.get()));
        for (index, run) in runs.enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            match run {
                [first, .., last] => write!(f, "{separator}{first}-{last}")?,
                _ => run
                    .iter()
                    .try_for_each(|port| write!(f, "{separator}{port}"))?,
            }
        }
        Ok(())
    }
}

/// Why a text is not a set of ports, and which bytes of it are to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortsError {
    /// What is wrong.
    pub kind: PortsErrorKind,
    /// The bytes of the text it is about.
    pub at: Range<usize>,
}

/// What can be wrong with a set of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortsErrorKind {
    /// There is none.
    Empty,
    /// Not a whole number.
    NotANumber(String),
    /// A number, but not within 1 to 65535.
    OutOfRange(String),
    /// The range runs downwards: first and last as written.
    Reversed(Port, Port),
    /// A port which is there twice.
    Twice(Port),
}

impl fmt::Display for PortsErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("there is no port in it"),
            Self::NotANumber(text) => write!(f, "`{text}` is not a port"),
            Self::OutOfRange(text) => write!(f, "{text} is not a port: ports are 1 to 65535"),
            Self::Reversed(first, last) => write!(f, "the range {first}-{last} runs downwards"),
            Self::Twice(port) => write!(f, "port {port} is in it twice"),
        }
    }
}

impl fmt::Display for PortsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl std::error::Error for PortsError {}

impl FromStr for PortSet {
    type Err = PortsError;

    /// Reads numbers and ranges separated by commas; blanks do not count.
    fn from_str(text: &str) -> Result<Self, PortsError> {
        let mut ports = Vec::new();
        let mut seen = HashSet::new();
        let mut start = 0;
        for part in text.split(',') {
            let at = trimmed(part, start);
            start += part.len() + 1;
            for port in parse_part(&text[at.clone()], at.start)? {
                if !seen.insert(port) {
                    return Err(PortsError {
                        kind: PortsErrorKind::Twice(port),
                        at,
                    });
                }
                ports.push(port);
            }
        }
        Ok(Self(ports))
    }
}

/// One number or one range; `offset` is where it starts in the whole text.
fn parse_part(part: &str, offset: usize) -> Result<Vec<Port>, PortsError> {
    let at = offset..offset + part.len();
    if part.is_empty() {
        return Err(PortsError {
            kind: PortsErrorKind::Empty,
            at,
        });
    }
    let Some((first, last)) = part.split_once('-') else {
        return Ok(vec![parse_port(part, offset)?]);
    };
    let last_offset = offset + first.len() + 1;
    let first = parse_port(first, offset)?;
    let last = parse_port(last, last_offset)?;
    if first > last {
        return Err(PortsError {
            kind: PortsErrorKind::Reversed(first, last),
            at,
        });
    }
    Ok((first.get()..=last.get()).filter_map(Port::new).collect())
}

fn parse_port(text: &str, offset: usize) -> Result<Port, PortsError> {
    let at = trimmed(text, offset);
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number {
        return Err(PortsError {
            kind: PortsErrorKind::NotANumber(text.to_owned()),
            at,
        });
    }
    let out_of_range = PortsErrorKind::OutOfRange(text.to_owned());
    text.parse().map_err(|_| PortsError {
        kind: out_of_range,
        at,
    })
}

/// Where the part without its blanks lies in the whole text.
fn trimmed(part: &str, offset: usize) -> Range<usize> {
    let start = offset + part.len() - part.trim_start().len();
    start..start + part.trim().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_are_written_as_ranges_and_order_is_kept() {
        let set: PortSet = "6000, 6001,6002 , 5000".parse().unwrap();
        assert_eq!(set.to_string(), "6000-6002, 5000");
    }

    #[test]
    fn an_error_points_at_its_own_bytes() {
        let text = "6000, 70000-70001";
        let error = text.parse::<PortSet>().unwrap_err();
        assert_eq!(&text[error.at], "70000");
    }

    #[test]
    fn a_number_with_a_sign_is_not_a_port() {
        assert!("+6000".parse::<PortSet>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(numbers in prop::collection::vec(1u16.., 1..40)) {
            let set: PortSet = numbers.into_iter().filter_map(Port::new).collect();
            prop_assert_eq!(set.to_string().parse::<PortSet>().unwrap(), set);
        }

        #[test]
        fn a_range_has_each_of_its_ports(first in 1u16..=65000, more in 0u16..500) {
            let set: PortSet = format!("{first}-{}", first + more).parse().unwrap();
            prop_assert_eq!(set.len(), usize::from(more) + 1);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9, \\-ä]{0,20}") {
            let _ = text.parse::<PortSet>();
        }
    }
}

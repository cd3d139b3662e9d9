//! What this agent is: fixed at its start, told by `Status`.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::config::Source;
use crate::ledger::Moment;

/// What its promises hold against; DESIGN's levels of guarantee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// Intruders of other users, and accidents of holders.
    Held,
    /// Accidents only: its services have its user.
    SharedUid,
}

impl Level {
    /// The word in `Status`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Level::Held => "held",
            Level::SharedUid => "shared-uid",
        }
    }

    /// Why it is this one and not the next better one.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Level::Held => {
                "intruders are kept out by the kernel; a lease that is over is shut down, which a \
                 hostile ex-holder can undo for a socket it kept"
            }
            Level::SharedUid => {
                "this agent runs as its services' user: it guards against accidents, not against \
                 a process of that user that means harm"
            }
        }
    }
}

/// What this agent is.
#[derive(Debug)]
pub(crate) struct About {
    /// The plan's name.
    pub(crate) plan: Option<String>,
    /// The user it runs as.
    pub(crate) uid: u32,
    /// What its promises hold against.
    pub(crate) level: Level,
    /// When it started.
    pub(crate) since: Moment,
    /// The configuration files it read.
    pub(crate) configuration: Vec<String>,
    /// Changes with any byte of them.
    pub(crate) digest: String,
}

/// A short text that changes with any byte of the files, or with their names.
pub(crate) fn digest(sources: &[Source]) -> String {
    let mut hasher = DefaultHasher::new();
    for source in sources {
        source.path.hash(&mut hasher);
        source.text.hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

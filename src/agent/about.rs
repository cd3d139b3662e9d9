//! What this agent is: fixed at its start, told by `Status`.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::config::Source;
use crate::ledger::Moment;

/// What its promises hold against; DESIGN's levels of guarantee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// Hostile holders, ex-holders and intruders of any user.
    Enforced,
    /// Intruders of other users, and accidents of holders.
    Held,
    /// Accidents only: its services have its user.
    SharedUid,
}

impl Level {
    /// The word in `Status`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Level::Enforced => "enforced",
            Level::Held => "held",
            Level::SharedUid => "shared-uid",
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
    /// Why it is that level and not the next better one.
    pub(crate) level_reason: String,
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

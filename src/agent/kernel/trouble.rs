//! Why the kernel did not give what was asked of it.

use std::io;

use crate::ledger::Obstacle;

/// Why a slot cannot be held, or cannot listen.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// What kind of trouble.
    pub(crate) obstacle: Obstacle,
    /// What the kernel said.
    pub(crate) error: io::Error,
}

impl Trouble {
    /// The machine, or this process, has no descriptor or no memory for another socket.
    pub(crate) fn is_want_of_means(&self) -> bool {
        let want = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS];
        let code = self.error.raw_os_error();
        code.is_some_and(|code| want.contains(&code))
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        let obstacle = match error.kind() {
            io::ErrorKind::AddrInUse => Obstacle::Conflict,
            _ => Obstacle::Unavailable,
        };
        Trouble { obstacle, error }
    }
}

impl Trouble {
    /// A takeover that the level below enforced cannot do.
    pub(super) fn no_stranger() -> Trouble {
        let what = "without steering, only another life of the same service can take a slot over \
                    from a living holder: revoke its lease first";
        Trouble {
            obstacle: Obstacle::Unavailable,
            error: io::Error::new(io::ErrorKind::Unsupported, what),
        }
    }
}

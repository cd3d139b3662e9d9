//! Going over to another program in place: same process, same sockets, same leases.
//!
//! What is to outlive this program is handed to the next as a service manager would hand it, but for
//! the numbers of the descriptors: those that a service manager uses are in use here, and this program
//! goes on if the other cannot be begun.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::core::{Agent, Shared};
use super::kernel::Shelves;
use super::store::Store;
use crate::sys::manager;

/// How long the other program may take to look at what it is to take over.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks at whether it has.
const PAUSE: Duration = Duration::from_millis(5);

/// The most of what it says that is repeated, in bytes.
const MOST_SAID: u64 = 4096;

/// The argument by which an agent only looks whether it could take over what it is handed.
pub(crate) const CHECK: &str = "--check-handover";

/// Why the agent goes on as it was.
#[derive(Debug)]
pub(crate) enum UpgradeError {
    /// Something that it takes is not to be had.
    System(&'static str, io::Error),
    /// The other program says that it cannot take over.
    Refused(String),
    /// It did not say anything in time.
    Silent,
    /// Another one has begun.
    UnderWay,
}

impl fmt::Display for UpgradeError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            UpgradeError::System(what, error) => write!(f, "{what}: {error}")?,
            UpgradeError::Refused(why) => write!(
                f,
                "the program that is installed now cannot take over:\n{}",
                why.trim_end()
            )?,
            UpgradeError::UnderWay => {
                return f.write_str("another upgrade is under way: see what comes of it");
            }
            UpgradeError::Silent => write!(
                f,
                "the program that is installed now did not say within {} s that it can take over",
                PATIENCE.as_secs()
            )?,
        }
        write!(f, "\nthe agent goes on as it was")
    }
}

/// Goes over to the program that is installed now where this one was begun from. Does not return if
/// that works: connections of clients end, everything else stays.
///
/// # Errors
/// Why it does not; nothing has changed then.
pub(crate) async fn upgrade(agent: &Shared) -> Result<std::convert::Infallible, UpgradeError> {
    if std::mem::replace(&mut agent.borrow_mut().is_upgrading, true) {
        return Err(UpgradeError::UnderWay);
    }
    let program = agent.borrow().program.clone();
    let handed = loop {
        let (number, outcome) = may_take_over(agent, &program).await;
        // The plan may be another one than when we began to wait, and its ledger with it.
        if agent.borrow().ledger_number() != number {
            continue;
        }
        let handed = outcome.and_then(|()| agent.borrow_mut().hand_over());
        match handed {
            Ok(handed) => break handed,
            Err(error) => return Err(agent.borrow_mut().stay(error)),
        }
    };
    agent.borrow().tell_manager_of_reload();
    tracing::info!(program = %program.display(), "going over to the program that is installed now");
    let mut next = Command::new(&program);
    next.args(std::env::args_os().skip(1));
    let error = manager::hand_over(&mut next, &handed).map_or_else(|error| error, |()| next.exec());
    for (_, fd) in &handed {
        let _closes_with_us = rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC);
    }
    super::say_ready(agent);
    let error = UpgradeError::System("cannot begin the program that is installed now", error);
    Err(agent.borrow_mut().stay(error))
}

/// Has the other program look at the ledger, of this number; and nothing else: who only looks must not
/// change a shelf.
async fn may_take_over(agent: &Shared, program: &Path) -> (Option<u64>, Result<(), UpgradeError>) {
    let handed = agent.borrow_mut().hand_over();
    let number = agent.borrow().ledger_number();
    let ledger = handed.map(|handed| {
        let ledger = handed.into_iter();
        ledger
            .filter(|(name, _)| super::store::is_ledger(name))
            .collect::<Vec<_>>()
    });
    let ledger = match ledger {
        Ok(ledger) => ledger,
        Err(error) => return (number, Err(error)),
    };
    let mut check = Command::new(program);
    check.args(std::env::args_os().skip(1)).arg(CHECK);
    let outcome = tokio::task::spawn_blocking(move || look(check, &ledger)).await;
    (number, outcome.unwrap_or(Err(UpgradeError::Silent)))
}

fn look(mut check: Command, handed: &[(String, OwnedFd)]) -> Result<(), UpgradeError> {
    let failed =
        |error| UpgradeError::System("cannot begin the program that is installed now", error);
    manager::hand_over(&mut check, handed).map_err(failed)?;
    let mut child = check
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::sleep(PAUSE),
            None => {
                let _already_gone = child.kill();
                let _reaped = child.wait();
                return Err(UpgradeError::Silent);
            }
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    if let Some(errors) = child.stderr.take() {
        let _as_much_as_there_is = errors.take(MOST_SAID).read_to_end(&mut said);
    }
    let said = String::from_utf8_lossy(&said).into_owned();
    Err(UpgradeError::Refused(match said.trim().is_empty() {
        true => status.to_string(),
        false => said,
    }))
}

impl Agent {
    /// Everything that the next program needs, by name.
    fn hand_over(&mut self) -> Result<Vec<(String, OwnedFd)>, UpgradeError> {
        let outcome = self.try_to_hand_over();
        let what = "cannot keep what is to be handed over";
        outcome.map_err(|error| UpgradeError::System(what, error))
    }

    fn ledger_number(&self) -> Option<u64> {
        self.store.as_ref().map(Store::number)
    }

    fn try_to_hand_over(&mut self) -> io::Result<Vec<(String, OwnedFd)>> {
        if self.kernel.shelves().is_none() {
            self.kernel.outlive(Shelves::new()?);
        }
        if !self.kernel.is_all_kept() {
            let why =
                "not every socket can be: see net.core.wmem_max, or give the agent CAP_NET_ADMIN";
            return Err(io::Error::other(why));
        }
        if self.store.is_none() {
            self.store = Some(self.new_store()?);
        }
        let mut handed = self.estate()?;
        if let Some(reached) = &self.reached {
            handed.extend(reached.handed_over()?);
        }
        // Out of the way of what the standard streams and others have.
        for (_, fd) in &mut handed {
            if fd.as_raw_fd() <= 2 {
                *fd = rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 3)?;
            }
        }
        Ok(handed)
    }

    /// The agent goes on. Without a service manager nobody keeps what was to be handed over.
    fn stay(&mut self, error: UpgradeError) -> UpgradeError {
        self.is_upgrading = false;
        if self.manager.is_none() {
            self.kernel.end_with_the_agent();
            self.store = None;
        }
        error
    }
}

//! What the agent may not do itself where it has an own user: see which processes have a socket, and
//! signal another user's process. A second program with those rights, and without any others, does it
//! when asked; `portpool inspect`, started by its socket.

use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sys::limits::{CAP_KILL, CAP_SYS_PTRACE, has_capability};
use crate::sys::manager::handed_down;
use crate::sys::packets::{Packets, listen};
use crate::sys::process;

/// Where it is asked.
const PATH: &str = "/run/portpool-inspect/socket";

/// How long an answer may take: the program is begun first.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long it stays without being asked.
const IDLE: Duration = Duration::from_secs(30);

/// The most sockets asked for at a time.
const MOST: usize = 1000;

/// The most processes named of each; more make no difference, and an answer has a bound.
const MOST_NAMED: usize = 8;

/// Process 1.
const SERVICE_MANAGER: u32 = 1;

/// What it is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Question {
    /// Which processes have these sockets.
    Owners(Vec<u64>),
    /// To send this signal to the process whose pidfd comes with it, which has a socket of the asker's.
    Signal(String),
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    /// The processes that have each socket.
    Owners(Vec<(u64, Vec<u32>)>),
    /// It was sent.
    Sent,
    /// It was not, and what the system said: an error number.
    Failed(i32),
}

/// The other processes that have these sockets open, by the sockets' inodes. As
/// [`process::processes_with_sockets`], but also where only the inspector may look; `None` where it is
/// there and does not answer. May take milliseconds: not for the thread that serves.
pub(crate) fn owners(inodes: &HashSet<u64>) -> Option<HashMap<u64, Vec<u32>>> {
    if inodes.is_empty() {
        return Some(HashMap::new());
    }
    if has_capability(CAP_SYS_PTRACE) || !std::path::Path::new(PATH).exists() {
        return Some(process::processes_with_sockets(inodes));
    }
    let all: Vec<u64> = inodes.iter().copied().collect();
    let mut owners = HashMap::new();
    for some in all.chunks(MOST) {
        match ask(&Question::Owners(some.to_vec()), None) {
            Ok(Answer::Owners(found)) => owners.extend(found),
            outcome => {
                tracing::debug!(?outcome, "the inspector does not say who has a socket");
                return None;
            }
        }
    }
    let own = std::process::id();
    owners.retain(|_, pids| {
        pids.retain(|pid| *pid != own);
        !pids.is_empty()
    });
    Some(owners)
}

/// Those of these sockets that a process has open.
///
/// # Errors
/// Those of [`process::those_of`], where the inspector does not know it either.
pub(crate) fn those_of(pid: u32, inodes: &HashSet<u64>) -> io::Result<HashSet<u64>> {
    match process::those_of(pid, inodes) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let some = inodes.iter().copied().take(MOST).collect();
            match ask(&Question::Owners(some), None) {
                Ok(Answer::Owners(found)) => {
                    let its = found.into_iter().filter(|(_, pids)| pids.contains(&pid));
                    Ok(its.map(|(inode, _)| inode).collect())
                }
                _ => Err(error),
            }
        }
        outcome => outcome,
    }
}

/// Sends a signal, by its name, to the process of a pidfd, where only the inspector may. Takes
/// milliseconds.
///
/// # Errors
/// What pidfd_send_signal(2) says, or what it takes to ask.
pub(crate) fn signal(pidfd: BorrowedFd, name: &str) -> io::Result<()> {
    match ask(&Question::Signal(name.to_owned()), Some(pidfd))? {
        Answer::Sent => Ok(()),
        Answer::Failed(number) => Err(io::Error::from_raw_os_error(number)),
        Answer::Owners(_) => Err(ErrorKind::InvalidData.into()),
    }
}

/// Whether the inspector could signal what this process may not.
pub(crate) fn could_signal() -> bool {
    !has_capability(CAP_KILL) && std::path::Path::new(PATH).exists()
}

fn ask(question: &Question, pidfd: Option<BorrowedFd>) -> io::Result<Answer> {
    let connection = Packets::connect(PATH.as_ref(), PATIENCE)?;
    let fds: Vec<BorrowedFd> = pidfd.into_iter().collect();
    connection.send(&serde_json::to_vec(question)?, &fds)?;
    let (answer, _) = connection.receive()?;
    Ok(serde_json::from_slice(&answer)?)
}

/// Answers until nobody has asked for a while, at the socket that the service manager passed. Only
/// whom the socket's mode lets in can ask: the agent's user.
///
/// # Errors
/// `NotFound` without a socket; what accept(2) says.
pub(crate) fn serve() -> io::Result<()> {
    let handed = handed_down()?.into_iter().next();
    let (_, socket) = handed.ok_or(ErrorKind::NotFound)?;
    listen(socket, IDLE, |connection| {
        // Whoever does not go on, or sends garbage, gets no answer.
        let _gone = answer(&connection);
    })
}

fn answer(connection: &Packets) -> io::Result<()> {
    connection.set_patience(PATIENCE)?;
    let (question, fds) = connection.receive()?;
    let answer = match serde_json::from_slice(&question)? {
        Question::Owners(inodes) if inodes.len() <= MOST => {
            let inodes: HashSet<u64> = inodes.into_iter().collect();
            let owners = process::processes_with_sockets(&inodes).into_iter();
            let few = |(inode, mut pids): (u64, Vec<u32>)| {
                pids.truncate(MOST_NAMED);
                (inode, pids)
            };
            Answer::Owners(owners.map(few).collect())
        }
        Question::Owners(_) => Answer::Failed(libc::E2BIG),
        Question::Signal(name) => send(&name, &fds, connection.user()?),
    };
    connection.send(&serde_json::to_vec(&answer)?, &[])
}

/// To those alone who have a socket that the asker's user made. The service manager keeps such sockets,
/// too, and is not to be told anything.
fn send(name: &str, fds: &[OwnedFd], user: u32) -> Answer {
    let [pidfd] = fds else {
        return Answer::Failed(libc::EBADF);
    };
    let is_holder = |pid| pid != SERVICE_MANAGER && process::has_socket_of(pid, user);
    match process::pid_of(pidfd.as_fd()) {
        None => return Answer::Failed(libc::ESRCH),
        Some(pid) if !is_holder(pid) => return Answer::Failed(libc::EPERM),
        // Another process may have its number by now, but gets nothing sent.
        Some(_) => {}
    }
    match process::signal(pidfd.as_fd(), name) {
        Ok(()) => Answer::Sent,
        Err(error) => Answer::Failed(error.raw_os_error().unwrap_or(libc::EINVAL)),
    }
}

//! What the kernel says of a process: proc(5).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{ErrorKind, Result};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_send_signal};

/// Whether the process behind a pidfd still lives: pidfd_open(2), "readable when it terminates".
pub(crate) fn is_alive(pidfd: BorrowedFd) -> bool {
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    loop {
        match poll(&mut fds, Some(&at_once)) {
            // A signal of our own says nothing of the process; poll(2) gives up for one even where it
            // is not to wait (`do_poll` of the kernel's fs/select.c).
            Err(rustix::io::Errno::INTR) => {}
            outcome => return outcome == Ok(0),
        }
    }
}

/// Sends a signal, by its name without `SIG`, to the process behind a pidfd, and to no other:
/// pidfd_send_signal(2).
///
/// # Errors
/// `InvalidInput` for a name that is no signal's; `PermissionDenied` for another user's process
/// without `CAP_KILL`; ESRCH when it has ended.
pub(crate) fn signal(pidfd: BorrowedFd, name: &str) -> Result<()> {
    let signal = match name {
        "TERM" => Signal::TERM,
        "INT" => Signal::INT,
        "HUP" => Signal::HUP,
        "QUIT" => Signal::QUIT,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "WINCH" => Signal::WINCH,
        "KILL" => Signal::KILL,
        _ => return Err(ErrorKind::InvalidInput.into()),
    };
    Ok(pidfd_send_signal(pidfd, signal)?)
}

/// The process's name, `/proc/PID/comm`: at most 15 bytes of whatever it likes to be called.
pub(crate) fn program(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(&bytes)).into_owned())
}

/// When the process started, in clock ticks since boot: field 22 of `/proc/PID/stat`.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name, is in parentheses and may hold anything, parentheses too.
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// The real user id of a process.
pub(crate) fn uid(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether the process is that user's by all four of its user ids: real, effective, saved, and that of
/// file systems.
pub(crate) fn is_all_of_user(pid: u32, uid: u32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"));
    let mut uids = line.unwrap_or_default().split_whitespace().map(str::parse);
    line.is_some() && uids.all(|known| known == Ok(uid))
}

/// The system manager's unit a process runs in, from its cgroup; cgroups(7).
///
/// `None` for a process outside of any system unit. The system manager puts its units into slices
/// and nothing else, so a name below anything else, such as `user@N.service` or a container's
/// folder, is somebody else's to choose.
pub(crate) fn system_unit(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    unit_of_cgroups(&text)
}

fn unit_of_cgroups(text: &str) -> Option<String> {
    let unified = text.lines().find_map(|line| line.strip_prefix("0::"));
    let named = || {
        text.lines()
            .find_map(|line| line.split_once(":name=systemd:").map(|(_, p)| p))
    };
    let path = unified.filter(|path| *path != "/").or_else(named)?;
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let unit = parts.find(|part| !part.ends_with(".slice"))?;
    let is_unit = unit.ends_with(".service") || unit.ends_with(".scope");
    (is_unit && !unit.starts_with("user@")).then(|| unit.to_owned())
}

/// The name of a user id, from the machine's user database: getpwuid_r(3). May block on the network.
pub(crate) fn user_name(uid: u32) -> Option<String> {
    nix::unistd::User::from_uid(uid.into())
        .ok()
        .flatten()
        .map(|user| user.name)
}

/// The other processes that have these sockets open, by the sockets' inodes, in the order of their
/// pids: one walk over `/proc/*/fd`, and over a thread's own where a process's first thread has
/// ended.
///
/// Processes are missing from the answer where the kernel does not let us look (another user's need
/// `CAP_SYS_PTRACE` and `CAP_DAC_READ_SEARCH`). Takes about 1 ms for 100 processes.
pub(crate) fn processes_with_sockets(inodes: &HashSet<u64>) -> HashMap<u64, Vec<u32>> {
    let mut owners: HashMap<u64, Vec<u32>> = HashMap::new();
    let mut pids = numbers_in("/proc");
    pids.sort_unstable();
    pids.retain(|pid| *pid != std::process::id());
    for pid in pids {
        let mut open = sockets_in(&format!("/proc/{pid}/fd"));
        if open.is_empty() {
            let mut threads = numbers_in(&format!("/proc/{pid}/task")).into_iter();
            if let Some(thread) = threads.find(|thread| *thread != pid) {
                open = sockets_in(&format!("/proc/{pid}/task/{thread}/fd"));
            }
        }
        for inode in open.into_iter().filter(|inode| inodes.contains(inode)) {
            let pids = owners.entry(inode).or_default();
            if pids.last() != Some(&pid) {
                pids.push(pid);
            }
        }
    }
    owners
}

/// Those of these sockets that the process has open, by their inodes.
///
/// # Errors
/// `PermissionDenied` where the kernel does not let us look, as above; `NotFound` when it has ended.
pub(crate) fn those_of(pid: u32, inodes: &HashSet<u64>) -> Result<HashSet<u64>> {
    let folder = format!("/proc/{pid}/fd");
    fs::read_dir(&folder)?;
    let open = sockets_in(&folder).into_iter();
    Ok(open.filter(|inode| inodes.contains(inode)).collect())
}

/// Whether the process has a socket that this user made, wherever that is now. Not where the kernel does
/// not let us look, as above.
pub(crate) fn has_socket_of(pid: u32, uid: u32) -> bool {
    let folder = format!("/proc/{pid}/task");
    // Threads have the same; but the first may have ended.
    let threads = numbers_in(&folder).into_iter();
    let mut files = threads.flat_map(|thread| {
        let entries = fs::read_dir(format!("{folder}/{thread}/fd"));
        entries.into_iter().flatten().flatten()
    });
    files.any(|file| {
        fs::metadata(file.path())
            .is_ok_and(|file| file.file_type().is_socket() && file.uid() == uid)
    })
}

/// The number of a pidfd's process; `None` when it has ended: pidfd_open(2), "Pid" in proc_pid_fdinfo(5).
pub(crate) fn pid_of(pidfd: BorrowedFd) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    line.trim().parse().ok()
}

/// The number that the process has a socket as, by its inode.
pub(crate) fn number_of(pid: u32, inode: u64) -> Option<i32> {
    let wanted = format!("socket:[{inode}]");
    let mut entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    entries.find_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        (target.to_str() == Some(&wanted)).then_some(number)
    })
}

/// A copy of what a living process has as this number: pidfd_getfd(2).
///
/// # Errors
/// `PermissionDenied` for a process that we may not trace, else what pidfd_getfd(2) says.
pub(crate) fn copy_out(pidfd: BorrowedFd, number: i32) -> Result<OwnedFd> {
    Ok(pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty())?)
}

/// What a process's program was told when it was begun: `/proc/PID/environ`, a variable each. Later it
/// may have changed it.
pub(crate) fn environment(pid: u32) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let variables = bytes.split(|byte| *byte == 0);
    Some(
        variables
            .map(|variable| String::from_utf8_lossy(variable).into_owned())
            .collect(),
    )
}

/// The groups of a process, its own and the supplementary ones.
pub(crate) fn groups(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| {
        line.strip_prefix("Groups:")
            .or_else(|| line.strip_prefix("Gid:"))
    });
    lines
        .flat_map(str::split_whitespace)
        .flat_map(str::parse)
        .collect()
}

fn numbers_in(folder: &str) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn sockets_in(folder: &str) -> Vec<u64> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let inode = |target: std::path::PathBuf| {
        target
            .to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?
            .parse()
            .ok()
    };
    entries
        .filter_map(|entry| inode(fs::read_link(entry.path()).ok()?))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_system_unit_is_read_from_the_unified_and_from_the_named_hierarchy() {
        let unit = |text: &str| unit_of_cgroups(text);
        assert_eq!(
            unit("0::/system.slice/nginx.service\n").as_deref(),
            Some("nginx.service")
        );
        let template = "0::/system.slice/system-api.slice/api@1.service/sub\n";
        assert_eq!(unit(template).as_deref(), Some("api@1.service"));
        let mixed = "3:cpu:/\n1:name=systemd:/system.slice/a.service\n0::/\n";
        assert_eq!(unit(mixed).as_deref(), Some("a.service"));
        assert_eq!(unit("0::/\n"), None);
    }

    #[test]
    fn a_users_own_manager_cannot_pretend_to_be_a_system_unit() {
        let text =
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/api-server@1.service";
        assert_eq!(unit_of_cgroups(text), None);
    }

    #[test]
    fn a_folder_that_is_named_like_a_unit_is_none_below_anything_but_slices() {
        for path in [
            "0::/lxc.payload.x/system.slice/api-server@1.service",
            "0::/kubepods/pod1/api-server@1.service",
            "0::/../system.slice/api-server@1.service",
        ] {
            assert_eq!(unit_of_cgroups(path), None, "{path}");
        }
    }

    #[test]
    fn a_socket_is_traced_to_every_other_process_that_has_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = rustix::fs::fstat(listener.as_fd()).unwrap().st_ino;
        let wanted = HashSet::from([inode]);
        assert!(processes_with_sockets(&wanted).is_empty());
        let mut other = std::process::Command::new("cat");
        other.stdin(std::process::Stdio::piped());
        let copy = std::os::fd::OwnedFd::from(listener.try_clone().unwrap());
        let mut other = other.stdout(copy).spawn().unwrap();
        let found = processes_with_sockets(&wanted);
        assert_eq!(found, HashMap::from([(inode, vec![other.id()])]));
        drop(other.stdin.take());
        other.wait().unwrap();
        assert!(processes_with_sockets(&wanted).is_empty());
    }

    #[test]
    fn what_another_process_has_of_a_user_is_known_by_who_made_it() {
        let own = rustix::process::getuid().as_raw();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let copy = std::os::fd::OwnedFd::from(socket.try_clone().unwrap());
        let mut other = std::process::Command::new("cat");
        other.stdin(std::process::Stdio::piped());
        let mut other = other.stdout(copy).spawn().unwrap();
        assert!(has_socket_of(other.id(), own));
        assert!(!has_socket_of(other.id(), own + 1));
        let pid = rustix::process::Pid::from_child(&other);
        let flags = rustix::process::PidfdFlags::empty();
        let pidfd = rustix::process::pidfd_open(pid, flags).unwrap();
        assert_eq!(pid_of(pidfd.as_fd()), Some(other.id()));
        drop(other.stdin.take());
        other.wait().unwrap();
        assert_eq!(pid_of(pidfd.as_fd()), None);
        assert!(!has_socket_of(other.id(), own));
    }

    #[test]
    fn this_process_is_known_and_alive() {
        let pid = std::process::id();
        assert!(program(pid).is_some());
        assert!(start_time(pid).is_some());
        assert_eq!(uid(pid), Some(rustix::process::getuid().as_raw()));
    }
}

//! Becoming a service that finds its sockets at file descriptor 3 and up: sd_listen_fds(3).
// UNSAFETY: descriptors by number, and close_range(2), which rustix does not have.
#![expect(unsafe_code)]

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

/// The first descriptor a service looks at: `SD_LISTEN_FDS_START`.
pub(crate) const FIRST: RawFd = 3;

/// Puts the sockets at [`FIRST`] and up, in order, and one more descriptor at a number above them;
/// all to be inherited. Whatever else is open there or above will be closed by execve(2).
///
/// # Errors
/// What fcntl(2), dup2(2) and close_range(2) say; the descriptors from [`FIRST`] on may be
/// overwritten by then, so give up.
pub(crate) fn place(sockets: Vec<OwnedFd>, other: Option<(RawFd, OwnedFd)>) -> Result<()> {
    let end = FIRST + RawFd::try_from(sockets.len()).unwrap_or(RawFd::MAX - FIRST);
    let free = other.as_ref().map_or(end, |(place, _)| end.max(place + 1));
    let other = other.into_iter();
    let places = (FIRST..).zip(sockets).chain(other);
    // First out of the way of each other's places.
    let mut moved = Vec::new();
    for (place, fd) in places {
        moved.push((place, fcntl_dupfd_cloexec(&fd, free)?));
    }
    close_on_exec_from(end)?;
    for (place, fd) in &moved {
        // SAFETY: nothing of this process that is still used lives at these numbers: standard
        // streams are below, our descriptors were moved above, and the caller is about to execve.
        if unsafe { libc::dup2(fd.as_raw_fd(), *place) } < 0 {
            return Err(Error::last_os_error());
        }
    }
    Ok(())
}

/// Keeps every descriptor but the standard streams from the programs this process starts.
///
/// # Errors
/// What close_range(2) and fcntl(2) say.
pub(crate) fn keep_from_children() -> Result<()> {
    close_on_exec_from(FIRST)
}

fn close_on_exec_from(first: RawFd) -> Result<()> {
    let first = libc::c_uint::try_from(first).unwrap_or(0);
    // SAFETY: close_range with this flag closes nothing, it only marks: close_range(2).
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    match outcome {
        0 => Ok(()),
        _ => close_on_exec_one_by_one(first),
    }
}

/// Before Linux 5.11 there is no such flag.
fn close_on_exec_one_by_one(first: u32) -> Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        if number < first {
            continue;
        }
        let Ok(number) = RawFd::try_from(number) else {
            continue;
        };
        // SAFETY: it was open a moment ago and only a flag is set on it; the folder's own
        // descriptor is open until the loop ends.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl_setfd(fd, FdFlags::CLOEXEC)?;
    }
    Ok(())
}

/// The inode of this process's pidfd, which systemd 259 and later pass as `LISTEN_PIDFDID`; `None`
/// where the kernel has no pidfs (before Linux 6.9).
pub(crate) fn own_pidfd_id() -> Option<u64> {
    const PID_FS_MAGIC: u64 = 0x5049_4446; // the kernel's include/uapi/linux/magic.h
    let pidfd = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    )
    .ok()?;
    let kind = u64::try_from(rustix::fs::fstatfs(&pidfd).ok()?.f_type).ok()?;
    (kind == PID_FS_MAGIC).then(|| rustix::fs::fstat(&pidfd).map(|stat| stat.st_ino).ok())?
}

//! Whether an agent is to be trusted: by who runs it, else by who can have put its socket where it is.
//!
//! In a container the agent's user may have another name, or none: there the place has to do, a folder
//! that was mounted from the machine.

use std::fs::metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::sys::inspect::own_uid;

/// The user that the packages run the system agent as.
const AGENT_USER: &str = "portpool";

/// The mode's bits by which others than a folder's owner may write to it.
const OTHERS_WRITE: u32 = 0o022;

/// The bit by which they may then change only what is theirs.
const STICKY: u32 = 0o1000;

/// Whether an agent of this user, which listens at this path, has business to.
pub(super) fn is_trusted(uid: u32, path: &Path) -> bool {
    uid == 0 || uid == own_uid() || Some(uid) == uid_of(AGENT_USER) || is_roots_place(path)
}

/// Whether nobody but root can have put a file there: the folder and all above it are root's.
fn is_roots_place(path: &Path) -> bool {
    let Some(Ok(folder)) = path.parent().map(Path::canonicalize) else {
        return false;
    };
    let outsider = outsider();
    folder.ancestors().enumerate().all(|(above, folder)| {
        metadata(folder).is_ok_and(|folder| {
            let is_roots = folder.uid() == 0 || Some(folder.uid()) == outsider;
            let is_shared = folder.mode() & OTHERS_WRITE != 0;
            // What lies in a shared one may be moved away by its owner only: root, further down.
            is_roots && (!is_shared || above > 0 && folder.mode() & STICKY != 0)
        })
    })
}

/// As whom a user namespace shows every user that is not in it, the machine's root among them:
/// user_namespaces(7), "Unmapped user and group IDs". `None` where all users are.
fn outsider() -> Option<u32> {
    let map = std::fs::read_to_string("/proc/self/uid_map").ok()?;
    let has_all = map.split_whitespace().eq(["0", "0", "4294967295"]);
    let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?;
    overflow.trim().parse().ok().filter(|_| !has_all)
}

/// A user's id as `/etc/passwd` has it: passwd(5).
fn uid_of(name: &str) -> Option<u32> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let of_user = text
        .lines()
        .map(fields)
        .find(|f| f.first().is_some_and(|user| user == name))?;
    of_user.get(2)?.parse().ok()
}

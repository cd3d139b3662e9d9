//! Processes that hand their connection to the agent on to others.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::{raw, say, wait_for_end_of_input};

/// `bequeath SOCKET POOL FILE UID (stays | leaves)`: connects, starts `heir` as that user with the
/// connection, says `bequeathed`, and stays until its input ends, or leaves.
#[expect(
    clippy::zombie_processes,
    reason = "the heir may be to outlive this process"
)]
pub(super) fn bequeath(arguments: &[String]) {
    let [socket, pool, file, uid, what] = arguments else {
        panic!("bequeath SOCKET POOL FILE UID (stays | leaves)")
    };
    let raw = raw::Raw::connect(socket.as_ref()).expect("an agent");
    let uid = uid.parse().expect("a uid");
    let heir = Command::new(std::env::current_exe().expect("this program"))
        .args(["heir", pool, file])
        .stdin(OwnedFd::from(raw.stream))
        .uid(uid)
        .spawn();
    let mut heir = heir.expect("a heir");
    say("bequeathed");
    if what == "stays" {
        wait_for_end_of_input();
        heir.wait().expect("it ends");
    }
}

/// `heir POOL FILE`: waits until there is such a file, then takes a slot over the connection that is
/// its standard input, says the error and how many sockets it got, and leaves.
pub(super) fn heir(arguments: &[String]) {
    let [pool, file] = arguments else {
        panic!("heir POOL FILE")
    };
    let stream = std::io::stdin().as_fd().try_clone_to_owned();
    let mut raw = raw::Raw::over(stream.expect("a copy").into()).expect("a connection");
    while !Path::new(file).exists() {
        std::thread::yield_now();
    }
    let call = raw.call("Acquire", &raw::slots(pool, 1));
    let answer = call.and_then(|()| raw.error());
    say(&format!("{answer:?} {}", raw.fds.len()));
}

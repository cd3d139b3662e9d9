//! Holders that do what a test tells them, and children that outlive them.

use std::io::{BufRead, ErrorKind, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use socket2::{SockRef, Socket, Type};

use super::{abuse, say};

/// Where a child finds its first socket.
const FIRST_OF_CHILD: i32 = 500;

/// Tells a child what its sockets are, a word `tcp` or `udp` for each.
const KINDS_OF_CHILD: &str = "TEST_CHILD_SOCKETS";

/// Connections that stay open as long as the process.
type Kept = Arc<Mutex<Vec<TcpStream>>>;

/// `obey [keep | udp | idle | idle-udp]`: serves the sockets of LISTEN_FDS (with `idle` it leaves their
/// clients in the queue), says `ready PID`, and does what its input says, a line each: `shutdown` its listeners, set them `nonblocking`, `block` their address for
/// others, say at descriptor 9 that it is `ready`, `exit`, `fork [MODE]` a child that has a copy of all its
/// sockets and says `child PID`; or a word of [`abuse::to`], which it says when it has done that. It ends
/// with its input.
///
/// A connection is answered with `PID PORT` and a line feed, and closed, but kept open with `keep`.
/// A datagram is answered with the same.
pub(super) fn obey(arguments: &[String]) {
    let mode = arguments.first().map(String::as_str);
    let mut fds = listenfd::ListenFd::from_env();
    let count = fds.len();
    let mut listeners = Vec::new();
    let mut sockets = Vec::new();
    for index in 0..count {
        if mode.is_some_and(|mode| mode.ends_with("udp")) {
            let socket = fds.take_udp_socket(index).expect("a UDP socket");
            sockets.push(Arc::new(socket.expect("a socket")));
        } else {
            let listener = fds.take_tcp_listener(index).expect("a TCP listener");
            listeners.push(Arc::new(listener.expect("a socket")));
        }
    }
    let kept = (mode == Some("keep")).then(Kept::default);
    if !mode.is_some_and(|mode| mode.starts_with("idle")) {
        serve(&listeners, &sockets, kept.as_ref());
    }
    say(&format!("ready {}", std::process::id()));

    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let shared = listeners.iter().map(AsFd::as_fd);
        let shared: Vec<BorrowedFd> = shared.chain(sockets.iter().map(AsFd::as_fd)).collect();
        let (word, fork_mode) = match line.split_once(' ') {
            Some((word, mode)) => (word, Some(mode)),
            None => (line.as_str(), None),
        };
        match word {
            "shutdown" => {
                for listener in &shared {
                    let outcome = SockRef::from(listener).shutdown(Shutdown::Both);
                    outcome.expect("it listens");
                }
                say("shut");
            }
            "nonblocking" => {
                for socket in &shared {
                    let outcome = SockRef::from(socket).set_nonblocking(true);
                    outcome.expect("a flag");
                }
                say("nonblocking");
            }
            "block" => {
                // One flag, and a copy of the socket keeps everybody else from its address.
                for listener in &listeners {
                    let outcome = SockRef::from(listener).set_reuse_address(false);
                    outcome.expect("a flag");
                }
                say("blocked");
            }
            "fork" => {
                let connections = kept.as_ref().map(|kept| kept.lock().expect("no panic"));
                let connections = connections.iter().flat_map(|kept| kept.iter());
                for connection in connections {
                    fcntl_setfd(connection, FdFlags::empty()).expect("a flag");
                }
                fork(&shared, fork_mode.or(mode), Stdio::inherit());
            }
            "ready" => {
                std::fs::write("/proc/self/fd/9", "READY=1\n").expect("somebody listens");
                say("said");
            }
            "exit" => return,
            other => {
                for socket in &shared {
                    let copy = socket.try_clone_to_owned().expect("a copy");
                    abuse::to(&Arc::new(Socket::from(copy)), other);
                }
                say(other);
            }
        }
    }
}

/// Starts a child that is left behind, with a copy of these sockets; gives its pid. It ends with the input
/// that it shares with this process.
pub(super) fn fork(sockets: &[BorrowedFd], mode: Option<&str>, output: Stdio) -> u32 {
    let mut copies: Vec<OwnedFd> = Vec::new();
    for (number, socket) in (FIRST_OF_CHILD..).zip(sockets) {
        // The lowest free number from there on, so the number itself.
        let copy = fcntl_dupfd_cloexec(socket, number).expect("a copy");
        assert_eq!(copy.as_raw_fd(), number);
        fcntl_setfd(&copy, FdFlags::empty()).expect("a flag");
        copies.push(copy);
    }
    let kind = |socket| match SockRef::from(socket).r#type() {
        Ok(Type::DGRAM) => "udp",
        _ => "tcp",
    };
    let kinds: Vec<&str> = copies.iter().map(kind).collect();
    let mut child = Command::new(std::env::current_exe().expect("a program"));
    child
        .arg("child")
        .args(mode)
        .env(KINDS_OF_CHILD, kinds.join(" "))
        .env("LISTEN_FDS", copies.len().to_string())
        .env("LISTEN_FDS_FIRST_FD", FIRST_OF_CHILD.to_string());
    child.stdout(output).spawn().expect("a child").id()
}

/// `child [rejoin | anything else]`: serves what it inherited as `obey` does (with `rejoin` it also tries
/// to listen again by every means a socket of its own gives it), says `child PID`, and says
/// `refused KIND` when a listener of its fails. It ends with its input.
pub(super) fn child(arguments: &[String]) {
    let kinds = std::env::var(KINDS_OF_CHILD).expect("a word for each socket");
    let mut fds = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    let mut sockets = Vec::new();
    for (index, kind) in kinds.split_whitespace().enumerate() {
        if kind == "udp" {
            let socket = fds.take_udp_socket(index).expect("a UDP socket");
            sockets.push(Arc::new(socket.expect("a socket")));
        } else {
            let listener = fds.take_tcp_listener(index).expect("a TCP listener");
            listeners.push(Arc::new(listener.expect("a socket")));
        }
    }
    say(&format!("child {}", std::process::id()));
    serve(&listeners, &sockets, None);
    if arguments.first().is_some_and(|mode| mode == "rejoin") {
        let shared = listeners.iter().map(AsFd::as_fd);
        for socket in shared.chain(sockets.iter().map(AsFd::as_fd)) {
            let copy = socket.try_clone_to_owned().expect("a copy");
            abuse::to(&Arc::new(Socket::from(copy)), "rejoin");
        }
    }
    // Its input is its parent's, too, and not to be read.
    let input = std::io::stdin();
    while let Err(Errno::INTR) = poll(&mut [PollFd::new(&input, PollFlags::empty())], None) {}
}

fn serve(listeners: &[Arc<TcpListener>], sockets: &[Arc<UdpSocket>], kept: Option<&Kept>) {
    for listener in listeners {
        let (listener, kept) = (Arc::clone(listener), kept.cloned());
        std::thread::spawn(move || accept(&listener, kept.as_ref()));
    }
    for socket in sockets {
        let socket = Arc::clone(socket);
        std::thread::spawn(move || receive(&socket));
    }
}

fn accept(listener: &TcpListener, kept: Option<&Kept>) {
    let error = loop {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => break error,
        };
        let port = stream.local_addr().expect("a local address").port();
        if let Some(kept) = kept {
            // Before its client knows of it.
            let copy = stream.try_clone().expect("a copy");
            kept.lock().expect("no panic").push(copy);
        }
        drop(writeln!(stream, "{} {port}", std::process::id()));
    };
    if error.kind() != ErrorKind::WouldBlock {
        say(&format!("refused {:?}", error.kind()));
    }
}

pub(super) fn receive(socket: &UdpSocket) {
    let port = socket.local_addr().expect("a local address").port();
    let mut buffer = [0; 64];
    while let Ok((_, sender)) = socket.recv_from(&mut buffer) {
        let answer = format!("{} {port}\n", std::process::id());
        drop(socket.send_to(answer.as_bytes(), sender));
    }
}

/// `heed`: says `ready PID`, and then the name of each signal it gets. It ends with SIGKILL alone.
pub(super) fn heed() {
    use nix::sys::signal::{SigSet, Signal};
    let mut heeded = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1] {
        heeded.add(signal);
    }
    heeded.thread_block().expect("a mask");
    say(&format!("ready {}", std::process::id()));
    loop {
        say(heeded.wait().expect("a signal").as_str());
    }
}

/// `leak PROGRAM ARGUMENT...`: becomes the program, with descriptors 3, 7 and 20 open for it that
/// it knows nothing of.
pub(super) fn leak(arguments: &[String]) {
    let nothing = std::fs::File::open("/dev/null").expect("/dev/null");
    let mut leaked = vec![std::os::fd::OwnedFd::from(nothing)];
    for number in [7, 20] {
        // The lowest free number from there on, so the number itself.
        leaked.push(fcntl_dupfd_cloexec(&leaked[0], number).expect("a copy"));
    }
    for fd in &leaked {
        fcntl_setfd(fd, FdFlags::empty()).expect("a flag");
    }
    let numbers: Vec<_> = leaked.iter().map(AsRawFd::as_raw_fd).collect();
    assert_eq!(numbers, [3, 7, 20], "other descriptors are open");
    let (program, rest) = arguments.split_first().expect("a program");
    let error = Command::new(program).args(rest).exec();
    panic!("{program}: {error}");
}

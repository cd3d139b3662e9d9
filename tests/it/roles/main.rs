//! The other processes of the tests: holders and intruders. `test_roles ROLE`, see [`main`].
//!
//! Each says on standard output when it has done something, so that a test waits for the event.
#![expect(
    clippy::expect_used,
    reason = "a program for tests says what it expects and dies of it"
)]

mod abuse;
mod attack;
mod churn;
mod exchange;
mod heirs;
mod holders;
mod manager;
mod press;
#[path = "../raw.rs"]
mod raw;
mod tenant;

use std::io::{BufRead, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(name) = std::env::var_os("TEST_ROLE_NAME") {
        // What a process is called is its own word: the kernel takes any bytes, at most 15.
        std::fs::write("/proc/self/comm", name.as_encoded_bytes()).expect("a new name");
    }
    match arguments.first().map(String::as_str) {
        Some("serve") => serve(),
        Some("show") => show(),
        Some("intrude") => intrude(),
        Some("squat") => squat(&arguments[1..]),
        Some("take") => take(&arguments[1]),
        Some("pretend") => pretend(&arguments[1]),
        Some("attack") => attack::attack(&arguments[1..]),
        Some("grab") => grab(&arguments[1..]),
        Some("leave") => leave(&arguments[1..]),
        Some("inherit") => inherit(&arguments[1..]),
        Some("obey") => holders::obey(&arguments[1..]),
        Some("child") => holders::child(&arguments[1..]),
        Some("heed") => holders::heed(),
        Some("bequeath") => heirs::bequeath(&arguments[1..]),
        Some("heir") => heirs::heir(&arguments[1..]),
        Some("exchange") => exchange::exchange(&arguments[1..]),
        Some("crash") => exchange::crash(&arguments[1]),
        Some("tenant") => tenant::tenant(&arguments[1]),
        Some("press") => press::press(&arguments[1..]),
        Some("leak") => holders::leak(&arguments[1..]),
        Some("churn") => churn::churn(&arguments[1..]),
        Some("manager") => manager::manager(&arguments[1..]),
        other => panic!("no such role: {other:?}"),
    }
}

/// Takes the sockets of LISTEN_FDS as any service does, says `ready PID`, and answers every
/// connection with `PID PORT` and a line feed.
fn serve() {
    let mut fds = listenfd::ListenFd::from_env();
    let mut threads = Vec::new();
    for index in 0..fds.len() {
        let listener = fds
            .take_tcp_listener(index)
            .expect("a TCP listener")
            .expect("a socket");
        threads.push(std::thread::spawn(move || answer(&listener, false)));
    }
    say(&format!("ready {}", std::process::id()));
    for thread in threads {
        thread.join().expect("a server thread");
    }
    // Without a listener any more: stay until ended.
    loop {
        std::thread::park();
    }
}

fn answer(listener: &TcpListener, keeps: bool) {
    let mut kept = Vec::new();
    while let Ok((mut stream, _)) = listener.accept() {
        let port = stream.local_addr().expect("a local address").port();
        drop(writeln!(stream, "{} {port}", std::process::id()));
        if keeps {
            kept.push(stream);
        }
    }
    // Without the listener the connections stay as long as the process.
    std::mem::forget(kept);
}

/// Prints the environment's variables of socket activation and every open descriptor, then
/// `ready PID`, and stays until its standard input ends.
fn show() {
    for (name, value) in std::env::vars() {
        if name.starts_with("LISTEN_") || name.starts_with("PORT") {
            say(&format!("{name}={value}"));
        }
    }
    let mut numbers: Vec<u32> = std::fs::read_dir("/proc/self/fd")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    for number in numbers {
        let target = std::fs::read_link(format!("/proc/self/fd/{number}"));
        // The folder's own descriptor is closed by now.
        if let Ok(target) = target {
            say(&format!("fd {number} {}", target.display()));
        }
    }
    for argument in std::env::args().skip(2) {
        say(&format!("argument {argument}"));
    }
    say(&format!("ready {}", std::process::id()));
    wait_for_end_of_input();
}

/// Reads lines `ADDRESS PORT MODE` (`plain`, `reuseaddr`, `reuseport`, `both`; with `-udp` behind
/// for UDP), tries to bind and, for TCP, to listen, and answers each with `bound`, `listening` or
/// the error's kind. Nothing is kept.
fn intrude() {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let [address, port, mode] = words[..] else {
            panic!("not three words: {line:?}")
        };
        let address = SocketAddr::new(
            address.parse().expect("an address"),
            port.parse().expect("a port"),
        );
        let outcome = match try_bind(address, mode) {
            Ok((_, true)) => "listening".to_owned(),
            Ok((_, false)) => "bound".to_owned(),
            Err(error) => format!("{:?}", error.kind()),
        };
        say(&outcome);
    }
}

/// `squat ADDRESS PORT MODE [COUNT]`: binds that many ports from there on, listens, says `ready PID`,
/// and has them until its input ends. What comes to the first is answered with `PID PORT`; with
/// `-keep` behind the mode the connection then stays open. The line `unlisten` ends its listeners.
fn squat(arguments: &[String]) {
    let [address, port, mode, count @ ..] = arguments else {
        panic!("squat ADDRESS PORT MODE [COUNT]")
    };
    let address: IpAddr = address.parse().expect("an address");
    let first: u16 = port.parse().expect("a port");
    let count: u16 = count
        .first()
        .map_or(1, |count| count.parse().expect("a number"));
    let (mode, keeps) = mode
        .strip_suffix("-keep")
        .map_or((mode.as_str(), false), |mode| (mode, true));
    let bind = |port| try_bind(SocketAddr::new(address, port), mode);
    let mut held: Vec<(Socket, bool)> = (first..first + count)
        .map(|port| bind(port).expect("the port is free for the squatter"))
        .collect();
    let copy = held[0].0.try_clone().expect("a copy");
    let mut server = match held[0].1 {
        true => Some(std::thread::spawn(move || answer(&copy.into(), keeps))),
        false if mode.ends_with("-udp") => {
            let receive = move || holders::receive(&copy.into());
            Some(std::thread::spawn(receive))
        }
        false => None,
    };
    say(&format!("ready {}", std::process::id()));
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        assert_eq!(line, "unlisten");
        for (socket, _) in held.drain(..) {
            let outcome = socket.shutdown(std::net::Shutdown::Both);
            outcome.expect("it listens");
        }
        if let Some(server) = server.take() {
            server.join().expect("it ends");
        }
        say("unlistened");
    }
}

/// `take SOCKET`: a client of the library. Connects, says so or why not, then reads pools' names
/// and answers each with `port PORT`, or with the error's text on one line; then with ` fds N`, as
/// many as it has open once the lease is over.
fn take(socket: &str) {
    let client = match portpool::Client::connect_to(socket.as_ref()) {
        Ok(client) => client,
        Err(error) => return say(&error.to_string().replace('\n', " | ")),
    };
    say("connected");
    for pool in std::io::stdin().lock().lines().map_while(Result::ok) {
        let outcome = client.acquire(&pool);
        let answer = match &outcome {
            Ok(lease) => format!("port {}", lease.port()),
            Err(error) => error.to_string().replace('\n', " | "),
        };
        drop(outcome);
        let fds = std::fs::read_dir("/proc/self/fd").expect("/proc").count();
        say(&format!("{answer} fds {fds}"));
    }
}

/// `pretend PATH`: has a Unix socket where an agent could be, and lets nobody in.
fn pretend(path: &str) {
    let held = std::os::unix::net::UnixListener::bind(path).expect("a socket");
    say(&format!("ready {}", std::process::id()));
    wait_for_end_of_input();
    drop(held);
}

/// `grab SOCKET POOL`: takes a slot and gives it back, over and over, until killed.
fn grab(arguments: &[String]) {
    let [socket, pool] = arguments else {
        panic!("grab SOCKET POOL")
    };
    let mut raw = raw::Raw::connect(socket.as_ref()).expect("an agent");
    say("begun");
    loop {
        let taken = raw.call("Acquire", &raw::slots(pool, 3));
        let Ok(reply) = taken.and_then(|()| raw.reply()) else {
            return;
        };
        for lease in reply["parameters"]["leases"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let parameters = format!(r#"{{"leaseId":{}}}"#, lease["leaseId"]);
            drop(raw.call("Release", &parameters).and_then(|()| raw.reply()));
        }
        raw.fds.clear();
    }
}

/// `leave SOCKET POOL BEFORE`: connects, takes a slot if BEFORE is `known`, starts `inherit` with
/// the connection and ends.
fn leave(arguments: &[String]) {
    let [socket, pool, before] = arguments else {
        panic!("leave SOCKET POOL BEFORE")
    };
    let mut raw = raw::Raw::connect(socket.as_ref()).expect("an agent");
    if before == "known" {
        raw.call("Acquire", &raw::slots(pool, 1)).expect("a call");
        assert!(raw.reply().expect("a reply")["error"].is_null());
    }
    let connection = std::os::fd::OwnedFd::from(raw.stream.try_clone().expect("a copy"));
    let child = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["inherit", pool, &std::process::id().to_string()])
        .stdin(connection)
        .spawn();
    drop(child.expect("a child"));
}

/// `inherit POOL PARENT`: waits for its parent's end, then takes a slot over the connection that is its
/// standard input, says the error and how many sockets it got, and leaves.
fn inherit(arguments: &[String]) {
    let [pool, parent] = arguments else {
        panic!("inherit POOL PARENT")
    };
    let stdin = std::io::stdin();
    let stream = std::os::fd::AsFd::as_fd(&stdin).try_clone_to_owned();
    let mut raw = raw::Raw::over(stream.expect("a copy").into()).expect("a connection");
    while std::os::unix::process::parent_id().to_string() == *parent {
        std::thread::yield_now();
    }
    let call = raw.call("Acquire", &raw::slots(pool, 1));
    let answer = call.and_then(|()| raw.error());
    say(&format!("{answer:?} {}", raw.fds.len()));
}

fn try_bind(address: SocketAddr, mode: &str) -> std::io::Result<(Socket, bool)> {
    let (mode, is_udp) = mode
        .strip_suffix("-udp")
        .map_or((mode, false), |mode| (mode, true));
    let kind = if is_udp { Type::DGRAM } else { Type::STREAM };
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(mode.ends_with("-v6only"))?;
    }
    match mode
        .trim_end_matches("-v6only")
        .trim_end_matches("-bindonly")
    {
        "plain" => {}
        "reuseaddr" => socket.set_reuse_address(true)?,
        "reuseport" => socket.set_reuse_port(true)?,
        "both" => {
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
        }
        other => panic!("no such mode: {other:?}"),
    }
    socket.bind(&address.into())?;
    let listens = !is_udp && !mode.contains("-bindonly") && socket.listen(5).is_ok();
    Ok((socket, listens))
}

fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")
        .and_then(|()| output.flush())
        .expect("somebody reads");
}

fn wait_for_end_of_input() {
    let mut nothing = Vec::new();
    drop(std::io::stdin().read_to_end(&mut nothing));
}

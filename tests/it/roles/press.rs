//! An intruder that tries all the time.

use std::collections::BTreeMap;
use std::io::{BufRead, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use socket2::Socket;

use super::{answer, holders, say, try_bind};

const MODES: [&str; 4] = ["plain", "reuseaddr", "reuseport", "both"];

/// What has come of it so far.
#[derive(Default)]
struct Score {
    tries: u64,
    got: Vec<String>,
    /// What else the kernel said than that the address is in use.
    other: BTreeMap<String, u64>,
}

/// `press ADDRESS,... PORT[-udp]...`: binds every port on every address in every mode, over and over, and
/// listens where it can; what it gets it keeps, and answers there with `PID PORT`. Says `pressing` after the
/// first round. The line `score` is answered with `tried N got N: WAY, ...; OTHER N, ...`. It ends with its
/// input.
pub(super) fn press(arguments: &[String]) {
    let [addresses, ports @ ..] = arguments else {
        panic!("press ADDRESS,... PORT[-udp]...")
    };
    let mut ways = Vec::new();
    for address in addresses.split(',') {
        let address: IpAddr = address.parse().expect("an address");
        for port in ports {
            let (port, suffix) = match port.strip_suffix("-udp") {
                Some(port) => (port, "-udp"),
                None => (port.as_str(), ""),
            };
            let port = port.parse().expect("a port");
            let mode = |mode| (SocketAddr::new(address, port), format!("{mode}{suffix}"));
            ways.extend(MODES.map(mode));
        }
    }
    let score = Arc::new(Mutex::new(Score::default()));
    let shared = Arc::clone(&score);
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        try_all(&ways, &shared, &mut kept);
        say("pressing");
        loop {
            try_all(&ways, &shared, &mut kept);
        }
    });
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        assert_eq!(line, "score");
        let score = score.lock().expect("no panic");
        let other: Vec<String> = score
            .other
            .iter()
            .map(|it| format!("{} {}", it.0, it.1))
            .collect();
        say(&format!(
            "tried {} got {}: {}; {}",
            score.tries,
            score.got.len(),
            score.got.join(", "),
            other.join(", ")
        ));
    }
}

fn try_all(ways: &[(SocketAddr, String)], score: &Mutex<Score>, kept: &mut Vec<Socket>) {
    for (address, mode) in ways {
        let outcome = try_bind(*address, mode);
        let mut score = score.lock().expect("no panic");
        score.tries += 1;
        match outcome {
            Ok((socket, listens)) => {
                let how = if listens { "listening" } else { "bound" };
                score.got.push(format!("{address} {mode} {how}"));
                let copy = socket.try_clone().expect("a copy");
                if listens {
                    std::thread::spawn(move || answer(&copy.into(), false));
                } else if mode.ends_with("-udp") {
                    std::thread::spawn(move || holders::receive(&copy.into()));
                }
                kept.push(socket);
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => {
                *score
                    .other
                    .entry(format!("{:?}", error.kind()))
                    .or_default() += 1
            }
        }
    }
}

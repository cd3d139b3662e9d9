//! A holder that speaks the wire itself, changes often, and misuses what it was given as it is told.

use std::io::BufRead;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use socket2::{Socket, Type};

use super::raw::Raw;
use super::{abuse, exchange, holders, say};

/// What it was given, long after the lease is over too: most servers never notice.
struct Tenancy {
    socket: Arc<Socket>,
    is_replaced: Arc<AtomicBool>,
}

/// `tenant SOCKET`: connects, says `connected PID`, and does what its input says, a line each:
///
/// - `acquire JSON`: takes what the parameters ask for, serves it, and says `leased` and a word
///   `ID:PORT:GENERATION` for each lease, or `error NAME`;
/// - `release ID`, `ready ID`: says `done`, or `error NAME`;
/// - `leave`: what it has is another's by now; it ends each listener once its queue is empty, and says `leaving`;
/// - `fork [MODE]`: starts `child MODE` with a copy of all it has, and says `child PID`;
/// - a word of [`abuse::to`]: does that to all it has, and says the word.
///
/// It ends with its input.
pub(super) fn tenant(socket: &str) {
    let mut raw = Raw::connect(socket.as_ref()).expect("an agent");
    say(&format!("connected {}", std::process::id()));
    let mut tenancies: Vec<Tenancy> = Vec::new();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "acquire" => say(&acquire(&mut raw, rest, &mut tenancies)),
            "release" => say(&call(&mut raw, "Release", rest)),
            "ready" => say(&call(&mut raw, "Ready", rest)),
            "leave" => {
                for tenancy in tenancies.drain(..) {
                    tenancy.is_replaced.store(true, Ordering::Relaxed);
                }
                say("leaving");
            }
            "fork" => {
                let sockets = tenancies.iter().map(|tenancy| tenancy.socket.as_fd());
                let sockets: Vec<BorrowedFd> = sockets.collect();
                let mode = (!rest.is_empty()).then_some(rest);
                say(&format!(
                    "child {}",
                    holders::fork(&sockets, mode, Stdio::null())
                ));
            }
            other => {
                for tenancy in &tenancies {
                    abuse::to(&tenancy.socket, other);
                }
                say(other);
            }
        }
    }
}

fn acquire(raw: &mut Raw, parameters: &str, tenancies: &mut Vec<Tenancy>) -> String {
    raw.call("Acquire", parameters).expect("an agent");
    let reply = raw.reply().expect("a reply");
    let Some(leases) = reply["parameters"]["leases"].as_array() else {
        return format!("error {}", error_of(&reply));
    };
    for fd in raw.fds.drain(..) {
        let tenancy = Tenancy {
            socket: Arc::new(fd.into()),
            is_replaced: Arc::default(),
        };
        serve(&tenancy);
        tenancies.push(tenancy);
    }
    let words = leases.iter().map(|lease| {
        format!(
            " {}:{}:{}",
            lease["leaseId"], lease["port"], lease["generation"]
        )
    });
    format!("leased{}", words.collect::<String>())
}

fn serve(tenancy: &Tenancy) {
    let copy = tenancy.socket.try_clone().expect("a copy");
    let is_replaced = Arc::clone(&tenancy.is_replaced);
    if copy.r#type().expect("a type") == Type::DGRAM {
        let copy = UdpSocket::from(copy);
        std::thread::spawn(move || exchange::serve_datagrams(&copy, &is_replaced));
    } else {
        let copy = TcpListener::from(copy);
        std::thread::spawn(move || exchange::serve(&copy, &is_replaced));
    }
}

fn call(raw: &mut Raw, method: &str, lease: &str) -> String {
    let parameters = format!(r#"{{"leaseId":{lease}}}"#);
    raw.call(method, &parameters).expect("an agent");
    let reply = raw.reply().expect("a reply");
    match &reply["error"] {
        Value::Null => "done".to_owned(),
        _ => format!("error {}", error_of(&reply)),
    }
}

/// The error's name without its interface, and what it carries.
pub(super) fn error_of(reply: &Value) -> String {
    let name = reply["error"].as_str().unwrap_or_default();
    let name = name.rsplit('.').next().unwrap_or_default();
    format!("{name} {}", reply["parameters"])
}

//! `attack NAME SOCKET`: does it over and over until the standard input ends. Says `begun` after
//! the first time, and `done N` with how often it was done.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::raw::{Raw, call, slots};
use crate::{say, wait_for_end_of_input};

pub(crate) fn attack(arguments: &[String]) {
    let [name, socket] = arguments else {
        panic!("attack NAME SOCKET")
    };
    let socket = PathBuf::from(socket);
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    std::thread::spawn(move || {
        wait_for_end_of_input();
        over.store(true, Ordering::Relaxed);
    });
    let mut kept = Vec::new();
    let mut rounds = 0u32;
    while !is_over.load(Ordering::Relaxed) {
        once(name, &socket, &mut kept);
        rounds += 1;
        if rounds == 1 {
            say("begun");
        }
    }
    drop(kept);
    say(&format!("done {rounds}"));
}

/// What the agent does to us, and when, is what is tried out: errors are expected.
fn once(name: &str, socket: &Path, kept: &mut Vec<Raw>) {
    if name == "crowd" || name == "crowd-of-listers" {
        return crowd(name, socket, kept);
    }
    let Ok(mut raw) = Raw::connect(socket) else {
        return;
    };
    match name {
        "oversize" => {
            drop(raw.send(&vec![b'x'; 64 * 1024 + 1]));
            drop(raw.reply());
        }
        "stream-of-100-mib" => {
            let part = vec![b'x'; 1 << 20];
            let _ = (0..100).try_for_each(|_| raw.send(&part));
        }
        "garbage" => {
            for garbage in [&b"\0"[..], b"\0\0\0\0", b"{\0", b"\xff\xfe\0", b"[]\0"] {
                if let Ok(mut raw) = Raw::connect(socket) {
                    drop(raw.send(garbage));
                    drop(raw.reply());
                }
            }
        }
        "pipeline" => pipeline(raw, &call("Status", "{}", ""), 10_000),
        "pipeline-of-lists" => pipeline(raw, &call("List", "{}", r#","more":true"#), 200),
        "pipeline-of-refusals" => pipeline(raw, &call("Acquire", &slots("scarce", 1), ""), 1000),
        "long-names" => {
            let parameters = format!(r#"{{"pool":"{}"}}"#, "x".repeat(60_000));
            for _ in 0..20 {
                drop(raw.call("List", &parameters).and_then(|()| raw.reply()));
            }
        }
        "long-wants" => {
            for want in [r#"{"pool":"open","count":253}"#, r#"{"pool":"open"}"#] {
                let wants = vec![want; 253].join(",");
                let parameters = format!(r#"{{"pools":[{wants}]}}"#);
                for _ in 0..10 {
                    drop(raw.call("Acquire", &parameters).and_then(|()| raw.reply()));
                }
            }
        }
        "descriptors" => descriptors(&mut raw, socket),
        "deaf" => {
            for _ in 0..50 {
                drop(raw.stream.set_write_timeout(Some(Duration::from_millis(1))));
                drop(raw.send(&call("List", "{}", r#","more":true"#)));
            }
            kept.push(raw);
            if kept.len() > 150 {
                kept.clear();
            }
        }
        "churn" => {}
        "half-closed" => {
            drop(raw.call("List", "{\"pool\":\"open\"}"));
            drop(raw.shut_writing());
            raw.ends();
        }
        "acquire-and-close" => {
            drop(raw.call("Acquire", &slots("open", 3)));
            raw.wait_for_reply();
        }
        "acquire-50" => {
            let calls = call("Acquire", &slots("open", 1), "").repeat(50);
            drop(raw.send(&calls));
            raw.wait_for_reply();
        }
        "leases" => {
            if raw.call("Acquire", &slots("open", 20)).is_ok() {
                drop(raw.reply());
            }
        }
        other => panic!("no such attack: {other}"),
    }
}

/// 2,000 connections from this process, kept; each asks for something again and again.
fn crowd(name: &str, socket: &Path, kept: &mut Vec<Raw>) {
    while kept.len() < 2000 {
        match Raw::connect(socket) {
            Ok(raw) => kept.push(raw),
            Err(_) => break,
        }
    }
    let call = match name {
        "crowd" => call("Status", "{}", ""),
        _ => call("List", r#"{"pool":"scarce"}"#, ""),
    };
    for raw in kept.iter_mut() {
        drop(raw.send(&call));
    }
    // Those who were sent away come again.
    kept.retain_mut(|raw| raw.error().is_ok_and(|error| error.is_empty()));
}

fn pipeline(mut raw: Raw, call: &[u8], times: usize) {
    let Ok(stream) = raw.stream.try_clone() else {
        return;
    };
    let mut reader = stream;
    let reads = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while reader.read(&mut buffer).is_ok_and(|length| length > 0) {}
    });
    drop(raw.send(&call.repeat(times)));
    drop(raw.shut_writing());
    drop(reads.join());
}

fn descriptors(raw: &mut Raw, socket: &Path) {
    let file = std::fs::File::open("/dev/null").expect("/dev/null");
    let call = call("Status", "{}", "");
    drop(raw.send_with_fds(&call, &[file.as_fd()]));
    drop(raw.error());
    for _ in 0..20 {
        if let Ok(mut raw) = Raw::connect(socket) {
            for _ in 0..4 {
                drop(raw.send_with_fds(&call, &[file.as_fd(); 253]));
            }
            raw.ends();
        }
    }
}

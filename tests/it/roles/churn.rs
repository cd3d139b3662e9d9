//! A holder that takes slots and gives them back as fast as it can, whatever becomes of the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use serde_json::Value;

use super::raw::Raw;
use super::tenant::error_of;
use super::{exchange, say};

/// At most so many leases at a time.
const LEASES: usize = 3;

/// What it believes.
struct Churn {
    socket: String,
    raw: Option<Raw>,
    /// What it has, by the lease's number: the port, and what it serves there.
    leases: BTreeMap<u64, (u64, Server)>,
    /// What it gave back without being answered.
    returning: BTreeSet<u64>,
    /// The pools that it asked for without being answered.
    unanswered: BTreeSet<String>,
    dice: u64,
}

/// `churn SOCKET SEED POOL...`: takes slots of these pools and gives them back, in random order; with
/// `+` before its name it takes a pool's slots over, too. It says `churning PID`, and does what its
/// input says:
///
/// - `pause`: it ends what it is at and says what it has: `ID:PORT` for each lease, then `?POOL` for
///   each pool that it asked for without being answered, and `?ID` for what it gave back so;
/// - `go`: it goes on.
pub(super) fn churn(arguments: &[String]) {
    let [socket, seed, pools @ ..] = arguments else {
        panic!("churn SOCKET SEED POOL...")
    };
    let (orders, takes) = channel();
    let mut churn = Churn {
        socket: socket.clone(),
        raw: None,
        leases: BTreeMap::new(),
        returning: BTreeSet::new(),
        unanswered: BTreeSet::new(),
        dice: seed.parse().expect("a number"),
    };
    say(&format!("churning {}", std::process::id()));
    let pools = pools.to_vec();
    std::thread::spawn(move || churn.go_on(&pools, &takes));
    obey(&orders);
}

fn obey(orders: &Sender<Sender<String>>) {
    let mut paused = None;
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match line.as_str() {
            "pause" => {
                let (answers, answer) = channel();
                orders.send(answers).expect("it churns");
                say(&answer.recv().expect("an answer"));
                paused = Some(answer);
            }
            "go" => {
                paused = None;
                say("going");
            }
            other => panic!("no such line: {other}"),
        }
    }
    drop(paused);
}

impl Churn {
    fn go_on(&mut self, pools: &[String], orders: &Receiver<Sender<String>>) {
        loop {
            if let Ok(answers) = orders.try_recv() {
                self.settle();
                answers.send(self.belief()).expect("somebody asks");
                // Until it is to go on.
                while answers.send(String::new()).is_ok() {
                    std::thread::yield_now();
                }
            }
            let pool = &pools[self.below(pools.len())];
            match self.leases.len() < LEASES && self.below(2) == 0 {
                true => self.take(pool),
                false => self.give_back(),
            }
        }
    }

    fn belief(&self) -> String {
        let leases = self
            .leases
            .iter()
            .map(|(id, (port, ..))| format!("{id}:{port}"));
        let pools = self.unanswered.iter().map(|pool| format!("?{pool}"));
        let returning = self.returning.iter().map(|id| format!("?{id}"));
        let words: Vec<String> = leases.chain(pools).chain(returning).collect();
        words.join(" ")
    }

    /// Gives back again what it does not know to be given back.
    fn settle(&mut self) {
        for id in self.returning.clone() {
            if self
                .call("Release", &format!(r#"{{"leaseId":{id}}}"#))
                .is_some()
            {
                self.returning.remove(&id);
            }
        }
    }

    fn take(&mut self, pool: &str) {
        let takes_over = pool.starts_with('+') && self.below(3) == 0;
        let pool = pool.trim_start_matches('+');
        let more = match takes_over {
            true => r#","takeover":"now""#,
            false => "",
        };
        let wanted = format!(
            r#"{{"pools":[{{"pool":"{pool}","count":{}}}],"onRevoke":"none","program":"churn"{more}}}"#,
            1 + self.below(2)
        );
        let Some(reply) = self.call("Acquire", &wanted) else {
            self.unanswered.insert(pool.to_owned());
            return;
        };
        // Whatever was not answered is over with this.
        self.unanswered.remove(pool);
        let fds = self.raw.as_mut().map(|raw| std::mem::take(&mut raw.fds));
        let mut fds = fds.unwrap_or_default().into_iter();
        let Some(leases) = reply["parameters"]["leases"].as_array() else {
            let error = error_of(&reply);
            assert!(
                ["PoolExhausted", "Busy", "TakeoverUnderWay"]
                    .iter()
                    .any(|known| error.starts_with(known)),
                "{error}"
            );
            return;
        };
        for lease in leases {
            let server = Server::start(fds.next().expect("a socket for each lease"));
            let number = |name: &str| lease[name].as_u64().expect("a number");
            self.leases
                .insert(number("leaseId"), (number("port"), server));
        }
    }

    fn give_back(&mut self) {
        self.settle();
        let nth = self.below(self.leases.len().max(1));
        let Some(id) = self.leases.keys().nth(nth).copied() else {
            return;
        };
        if let Some((_, server)) = self.leases.remove(&id) {
            // An agent that cannot know whether we got a listener looks whether we have it.
            server.end();
        }
        self.returning.insert(id);
        self.settle();
    }

    /// `None` without an answer: the agent has gone.
    fn call(&mut self, method: &str, parameters: &str) -> Option<Value> {
        if self.raw.is_none() {
            self.raw = Raw::connect(self.socket.as_ref()).ok();
        }
        let raw = self.raw.as_mut()?;
        let answer = raw.call(method, parameters).and_then(|()| raw.reply());
        if answer.is_err() {
            self.raw = None;
        }
        answer.ok()
    }

    fn below(&mut self, limit: usize) -> usize {
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let high = usize::try_from(self.dice >> 33).expect("32 bits");
        high % limit
    }
}

/// Answers the clients of a listener.
struct Server {
    end: OwnedFd,
    thread: JoinHandle<()>,
}

impl Server {
    fn start(listener: OwnedFd) -> Server {
        let listener = TcpListener::from(listener);
        listener.set_nonblocking(true).expect("a flag");
        let end = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let ended = end.try_clone().expect("a copy");
        let thread = std::thread::spawn(move || {
            loop {
                let wait = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
                let mut waits = [wait(listener.as_fd()), wait(ended.as_fd())];
                poll(&mut waits, None).expect("an event");
                if !waits[1].revents().is_empty() {
                    return;
                }
                while exchange::serve_next(&listener) {}
            }
        });
        Server { end, thread }
    }

    /// Has the listener no more.
    fn end(self) {
        rustix::io::write(&self.end, &1u64.to_ne_bytes()).expect("it waits");
        self.thread.join().expect("it ends");
    }
}

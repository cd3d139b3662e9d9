//! Acquire and release, as often as can be: by one client and by many at a time.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::caller::Caller;
use crate::crowd::{Crowd, Duty, SLOTS};
use crate::place::{Agent, Place, pools};
use crate::rates::{Rates, print};
use crate::stranger::Stranger;
use crate::{Effort, Outcome};

const SAME: &str = "floor: the same listener each time";
const STEERED: &str = "floor: the same, steered to and away";
const NEW: &str = "floor: a new listener each time";

/// The clients that one line of the table is about: each speaks on its connections in turn.
type Clients = Vec<Vec<Caller>>;

pub(crate) fn measure(place: &Place, effort: Effort) -> Outcome {
    let agent = place.agent("cycle.sock", &pools(SLOTS))?;
    let plan = pools(SLOTS).replace("\"7", "\"8");
    let kept = place.kept_agent("kept.sock", &plan)?;
    let stranger_to_kept = Stranger::start(&kept.socket)?;
    let same = Crowd::start(place.path("same"), Duty::Pass)?;
    let steered = Crowd::start(place.path("steered"), Duty::Steer)?;
    let new = Crowd::start(place.path("new"), Duty::Listen)?;
    let stranger = Stranger::start(&agent.socket)?;
    for (title, clients) in [
        ("Acquire and release by one client", 1),
        ("Acquire and release by 64 clients at a time", SLOTS),
    ] {
        let ours = |socket: &Path| connect(clients, || Ok(vec![UnixStream::connect(socket)?]));
        let both = |agent: &Agent, stranger: &Stranger| {
            Ok(vec![
                UnixStream::connect(&agent.socket)?,
                stranger.connect()?,
            ])
        };
        let mut lines = [
            (Rates::new(SAME), &same.process, ours(same.socket())?),
            (
                Rates::new(STEERED).beside(SAME),
                &steered.process,
                ours(steered.socket())?,
            ),
            (
                Rates::new("portpool: the same process again").beside(STEERED),
                &agent.process,
                ours(&agent.socket)?,
            ),
            (Rates::new(NEW), &new.process, ours(new.socket())?),
            (
                Rates::new("portpool: another process each time").beside(NEW),
                &agent.process,
                connect(clients, || both(&agent, &stranger))?,
            ),
            (
                Rates::new("the same process, and all of it is kept").beside(STEERED),
                &kept.process,
                ours(&kept.socket)?,
            ),
            (
                Rates::new("another process, and all of it is kept").beside(NEW),
                &kept.process,
                connect(clients, || both(&kept, &stranger_to_kept))?,
            ),
        ];
        for (_, _, clients) in &lines {
            cycle(clients, effort.turn / 4)?;
        }
        for _ in 0..effort.rounds {
            for (rates, server, clients) in &mut lines {
                let before = server.processor_time()?;
                let (cycles, took) = cycle(clients, effort.turn)?;
                let spent = server.processor_time()? - before;
                rates.rounds.push(cycles / took.as_secs_f64());
                rates.cost.push(spent.as_secs_f64() * 1e6 / cycles);
            }
        }
        print(title, &lines.map(|(rates, ..)| rates));
    }
    Ok(())
}

/// Clients, each with a pool of its own.
fn connect(clients: u16, connections: impl Fn() -> Outcome<Vec<UnixStream>>) -> Outcome<Clients> {
    let client = |number| {
        let pool = format!("p{number:02}");
        let callers = connections()?.into_iter();
        Ok(callers
            .map(|stream| Caller::new(stream, &pool, ""))
            .collect())
    };
    (0..clients).map(client).collect()
}

/// What all of them do together in about that time, each in a thread of its own: how many cycles, in
/// which time.
fn cycle(clients: &Clients, time: Duration) -> Outcome<(f64, Duration)> {
    let begun = Instant::now();
    let work = |callers: &[Caller]| -> Outcome<u32> {
        let mut done = 0;
        for caller in callers.iter().cycle() {
            if begun.elapsed() >= time {
                break;
            }
            caller.come_and_go()?;
            done += 1;
        }
        Ok(done)
    };
    let done = std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter()
            .map(|callers| scope.spawn(|| work(callers)))
            .collect();
        let counts = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a client panicked")?);
        counts.sum::<Outcome<u32>>()
    })?;
    Ok((f64::from(done), begun.elapsed()))
}

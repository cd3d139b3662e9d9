//! What a handoff costs, beside the least that Linux lets it cost and beside a peer, in one run.
//!
//! `cargo bench` measures, `cargo bench -- --quick` does so with fewer rounds. The variants of a
//! section take turns, batch by batch, so that a busy machine is busy for all of them; a ratio is
//! the median of the batches' ratios. Everything happens in a network namespace of its own.
//!
//! `cargo bench -- --program PATH` measures that `portpool`: what `cargo build --release` makes is
//! smaller, and starts sooner, than what cargo makes for benchmarks with the tests' crates beside.

mod bystanders;
mod caller;
mod change;
mod crowd;
mod cycle;
mod death;
mod exec;
mod floor;
mod hold;
mod lease;
mod map;
mod measure;
mod place;
mod rates;
mod slot;
mod stranger;

use std::time::Duration;

use place::Place;

/// A measurement that cannot be made ends the run.
type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    /// Times that each variant has its turn.
    rounds: usize,
    /// Handoffs in a turn.
    handoffs: usize,
    /// Processes in a turn.
    processes: usize,
    /// Agents with 10,000 slots.
    agents: usize,
    /// How long a turn is in which handoffs are counted.
    turn: Duration,
    /// Rounds of what is told apart by many short turns.
    short_rounds: usize,
    /// Such a turn.
    short_turn: Duration,
}

const FULL: Effort = Effort {
    rounds: 30,
    handoffs: 500,
    processes: 20,
    agents: 15,
    turn: Duration::from_millis(50),
    short_rounds: 120,
    short_turn: Duration::from_millis(20),
};

const QUICK: Effort = Effort {
    rounds: 5,
    handoffs: 100,
    processes: 5,
    agents: 3,
    turn: Duration::from_millis(40),
    short_rounds: 40,
    short_turn: Duration::from_millis(4),
};

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, socket] = &arguments[..]
        && role.starts_with("--")
    {
        let socket = socket.as_ref();
        match role {
            role if role.starts_with(floor::ROLE) => return floor::serve(role, socket),
            role if role.starts_with(crowd::ROLE) => return crowd::serve(role, socket),
            role if role == stranger::ROLE => return stranger::serve(socket),
            _ => {}
        }
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: the benchmarks need root, for a network namespace of their own");
        return Ok(());
    }
    // `cargo bench` says --bench; `cargo test --benches` does not, and only wants to see it run.
    let is_quick = !arguments.iter().any(|argument| argument == "--bench")
        || arguments.iter().any(|argument| argument == "--quick");
    let effort = if is_quick { QUICK } else { FULL };

    let after = |name: &str| {
        let mut rest = arguments.iter().skip_while(|argument| *argument != name);
        rest.nth(1).map(String::as_str)
    };
    let program = after("--program").unwrap_or(env!("CARGO_BIN_EXE_portpool"));
    let place = Place::new(program)?;
    println!("{}", place::machine());
    println!("{effort:?}; times in µs; p99 over all samples");
    let only = after("--only");
    for (name, measure) in SECTIONS {
        if only.is_none_or(|only| only == name) {
            measure(&place, effort)?;
        }
    }
    Ok(())
}

/// Measures a section and prints it.
type Measure = fn(&Place, Effort) -> Outcome;

const SECTIONS: [(&str, Measure); 7] = [
    ("lease", lease::measure),
    ("cycle", cycle::measure),
    ("change", change::measure),
    ("death", death::measure),
    ("bystanders", bystanders::measure),
    ("exec", exec::measure),
    ("hold", hold::measure),
];

//! Ten thousand slots: how soon an agent has them, and what they weigh.

use crate::measure::quantile;
use crate::place::{Agent, Place};
use crate::{Effort, Outcome};

const SLOTS: f64 = 10_000.0;
const MANY: &str = "[pool.web]\nports = \"10000-19999\"\n";
const ONE: &str = "[pool.web]\nports = \"10000\"\n";

pub(crate) fn measure(place: &Place, effort: Effort) -> Outcome {
    let (mut start, mut ready, mut own, mut kernel) = (vec![], vec![], vec![], vec![]);
    for _ in 0..effort.agents {
        let one = place.agent("one.sock", ONE)?;
        let (own_before, kernel_before) = (private_memory(&one)?, kernel_memory()?);
        start.push(one.ready_after.as_secs_f64() * 1e3);
        drop(one);
        let many = place.agent("many.sock", MANY)?;
        ready.push(many.ready_after.as_secs_f64() * 1e3);
        own.push((private_memory(&many)? - own_before) / SLOTS);
        kernel.push((kernel_memory()? - kernel_before) / SLOTS);
    }
    let holding: Vec<f64> = ready
        .iter()
        .zip(&start)
        .map(|(all, one)| all - one)
        .collect();
    println!("\nTen thousand slots");
    println!("{:<58} {:>9} {:>9}", "", "median", "worst");
    line("an agent with one slot, from fork to ready, ms", &start);
    line("an agent with 10,000, from fork to ready, ms", &ready);
    line("the difference: holding 9,999 more, ms", &holding);
    line("the agent's own memory, bytes a slot", &own);
    line("the kernel's memory (Slab), bytes a slot", &kernel);
    Ok(())
}

fn line(name: &str, samples: &[f64]) {
    println!(
        "{name:<58} {:>9.1} {:>9.1}",
        quantile(samples, 0.5),
        quantile(samples, 1.0)
    );
}

/// The bytes that are the process's alone.
fn private_memory(agent: &Agent) -> Outcome<f64> {
    let path = format!("/proc/{}/smaps_rollup", agent.process.id());
    kilobytes(&std::fs::read_to_string(path)?, "Private_Dirty:")
}

/// The bytes of all the kernel's small objects; other processes' come and go.
fn kernel_memory() -> Outcome<f64> {
    kilobytes(&std::fs::read_to_string("/proc/meminfo")?, "Slab:")
}

/// The bytes on a line that counts them in kB.
fn kilobytes(text: &str, name: &str) -> Outcome<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(number.ok_or(format!("no {name}"))?.parse::<f64>()? * 1024.0)
}

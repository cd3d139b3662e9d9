//! Rates side by side: how many a second, and which share that is of another's.

use crate::measure::quantile;

/// One thing that was counted, a rate for each round.
#[derive(Debug)]
pub(crate) struct Rates {
    name: &'static str,
    /// The name of that with which it is compared.
    beside: Option<&'static str>,
    /// A second, in the order of the rounds.
    pub(crate) rounds: Vec<f64>,
    /// What each took of its server's processor time, in µs, in that order; may be left out.
    pub(crate) cost: Vec<f64>,
}

impl Rates {
    pub(crate) fn new(name: &'static str) -> Rates {
        Rates {
            name,
            beside: None,
            rounds: Vec::new(),
            cost: Vec::new(),
        }
    }

    /// Compares it with another.
    pub(crate) fn beside(self, other: &'static str) -> Rates {
        Rates {
            beside: Some(other),
            ..self
        }
    }
}

/// Prints a line for each. A share is the median of the rounds' own shares, because a busy machine
/// is busy for all that take turns in a round.
pub(crate) fn print(title: &str, all: &[Rates]) {
    println!("\n{title}");
    println!(
        "{:<58} {:>9} {:>9}  share (95 % sure)",
        "", "a second", "server µs"
    );
    for rates in all {
        let cost = match rates.cost.is_empty() {
            true => String::new(),
            false => format!("{:.1}", quantile(&rates.cost, 0.5)),
        };
        let mut line = format!(
            "{:<58} {:>9.0} {cost:>9}",
            rates.name,
            quantile(&rates.rounds, 0.5)
        );
        let named = |name| all.iter().find(|other| other.name == name);
        if let Some(other) = rates.beside.and_then(named) {
            let both = rates.rounds.iter().zip(&other.rounds);
            let shares: Vec<f64> = both.map(|(own, other)| own / other * 100.0).collect();
            let (low, high) = interval_of_median(&shares);
            line += &format!(
                "  {:.1} % ({low:.1} to {high:.1}) of {}",
                quantile(&shares, 0.5),
                other.name
            );
        }
        println!("{line}");
    }
}

/// Between which two samples the true median lies, 95 % sure, whatever the samples' distribution:
/// how many of them are below it is a binomial number.
#[expect(
    clippy::cast_precision_loss,
    reason = "there are some hundreds at most"
)]
fn interval_of_median(samples: &[f64]) -> (f64, f64) {
    let half_width = 0.98 / (samples.len() as f64).sqrt();
    (
        quantile(samples, (0.5 - half_width).max(0.0)),
        quantile(samples, (0.5 + half_width).min(1.0)),
    )
}

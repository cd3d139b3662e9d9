//! Variants that take turns, and the table of what they took.

use std::time::Duration;

use crate::Outcome;

/// One way of doing the work. A call does it once and says how long the part that counts took.
pub(crate) struct Variant<'a> {
    name: &'static str,
    /// The variant that it is compared with.
    beside: Option<&'static str>,
    work: Box<dyn FnMut() -> Outcome<Duration> + 'a>,
}

impl<'a> Variant<'a> {
    pub(crate) fn new(
        name: &'static str,
        work: impl FnMut() -> Outcome<Duration> + 'a,
    ) -> Variant<'a> {
        Variant {
            name,
            beside: None,
            work: Box::new(work),
        }
    }

    /// Compares it with another variant.
    pub(crate) fn beside(self, other: &'static str) -> Variant<'a> {
        Variant {
            beside: Some(other),
            ..self
        }
    }
}

/// Lets the variants take turns and prints a line for each.
pub(crate) fn take_turns(
    title: &str,
    rounds: usize,
    batch: usize,
    variants: &mut [Variant],
) -> Outcome {
    for variant in &mut *variants {
        for _ in 0..batch.div_ceil(5) {
            (variant.work)()?;
        }
    }
    let mut batches: Vec<Vec<Vec<f64>>> = vec![Vec::new(); variants.len()];
    for _ in 0..rounds {
        for (variant, batches) in variants.iter_mut().zip(&mut batches) {
            let mut samples = Vec::with_capacity(batch);
            for _ in 0..batch {
                samples.push((variant.work)()?.as_secs_f64() * 1e6);
            }
            batches.push(samples);
        }
    }

    println!("\n{title}");
    println!("{:<58} {:>9} {:>9}  beside", "", "median", "p99");
    let medians: Vec<Vec<f64>> = batches
        .iter()
        .map(|batches| batches.iter().map(|batch| quantile(batch, 0.5)).collect())
        .collect();
    let of = |name| {
        let position = variants.iter().position(|variant| variant.name == name);
        position.map(|position| &medians[position])
    };
    for (variant, batches) in variants.iter().zip(&batches) {
        let all: Vec<f64> = batches.iter().flatten().copied().collect();
        let mut line = format!(
            "{:<58} {:>9.1} {:>9.1}",
            variant.name,
            quantile(&all, 0.5),
            quantile(&all, 0.99)
        );
        let own = of(variant.name);
        if let (Some(name), Some(own)) = (variant.beside, own)
            && let Some(other) = of(name)
        {
            let ratios: Vec<f64> = own
                .iter()
                .zip(other)
                .map(|(own, other)| own / other)
                .collect();
            line += &format!("  {:.2} x {name}", quantile(&ratios, 0.5));
        }
        println!("{line}");
    }
    Ok(())
}

/// The value below which that share of the samples lies; 0 of none.
pub(crate) fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place within the samples"
    )]
    let place = ((sorted.len() as f64) * share) as usize;
    sorted
        .get(place.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0.0)
}

//! What the agent begins with: the configuration, or where an earlier agent ended.

use super::core::{IsDormant, Shared, slots_of};
use super::reload::ReloadError;
use super::store::Past;
use super::{StartError, facts};
use crate::config::{self, Checked, Source};
use crate::plan::Slot;

/// What it begins with.
pub(super) struct Beginning {
    pub(super) sources: Vec<Source>,
    pub(super) checked: Checked,
    pub(super) slots: Vec<(Slot, IsDormant)>,
    pub(super) secret: [u64; 2],
    pub(super) next: Next,
}

/// What it goes over to then.
pub(super) enum Next {
    /// It is there already.
    Nothing,
    /// The configuration as it is now.
    Now(Vec<Source>, Box<Checked>),
    /// The configuration is wrong: it stays with that of the earlier agent.
    Stay(ReloadError),
}

impl Beginning {
    /// The configuration that was found, or that of the earlier agent and then the one that was found.
    ///
    /// # Errors
    /// Why there is none, where there was no earlier agent.
    pub(super) fn of(
        past: Option<&Past>,
        found: Result<(Vec<Source>, Checked), StartError>,
    ) -> Result<Beginning, StartError> {
        let Some(ledger) = past.and_then(|past| past.ledger.as_ref()) else {
            let (sources, checked) = found?;
            for warning in &checked.warnings {
                tracing::warn!("{}", warning.render(&sources, false));
            }
            return Ok(Beginning {
                slots: slots_of(&checked.plan),
                sources,
                checked,
                secret: secret(),
                next: Next::Nothing,
            });
        };
        let sources = ledger.sources();
        let checked = match config::parse(&sources, &facts()) {
            Ok(checked) => checked,
            Err(diagnostics) => {
                for diagnostic in diagnostics {
                    tracing::error!(
                        "the configuration of the earlier agent is not understood: {}",
                        diagnostic.render(&sources, false)
                    );
                }
                // Its slots are held all the same; nobody but root may have any.
                config::parse(&[], &facts())
                    .map_err(|diagnostics| StartError::Configuration(Vec::new(), diagnostics))?
            }
        };
        Ok(Beginning {
            slots: ledger.planned(),
            secret: ledger.secret,
            sources,
            checked,
            next: match found {
                Ok((sources, checked)) => Next::Now(sources, Box::new(checked)),
                Err(StartError::Configuration(sources, diagnostics)) => {
                    Next::Stay(ReloadError::Wrong(sources, diagnostics))
                }
                Err(StartError::Load(error)) => Next::Stay(ReloadError::Load(error)),
                Err(error) => return Err(error),
            },
        })
    }
}

impl Next {
    /// Goes over to it.
    pub(super) fn go_over(self, agent: &Shared) {
        let failed = match self {
            Next::Nothing => return,
            Next::Stay(error) => error,
            Next::Now(sources, checked) => {
                match agent.borrow_mut().become_other(sources, *checked) {
                    Ok(_) => return,
                    Err(error) => error,
                }
            }
        };
        tracing::error!("cannot go over to the configuration there is now: {failed}");
    }
}

/// What nobody can guess; where the kernel has none to give yet, what nobody cares to.
fn secret() -> [u64; 2] {
    let mut bytes = [0; 16];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    if got != Ok(bytes.len()) {
        tracing::warn!("the kernel has no random numbers yet");
    }
    let [low, high] = [0, 8].map(|from| {
        let part = bytes[from..from + 8].try_into().unwrap_or_default();
        u64::from_ne_bytes(part)
    });
    [low, high]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_plan_of_nothing() {
        let checked = config::parse(&[], &config::Machine::default()).unwrap();
        assert!(checked.plan.pools.is_empty());
        assert_ne!(secret(), secret());
    }
}

//! Which leases a command line means: by port, or by pool, instance and port.

use super::failure::{FINDINGS, Failure, USAGE};
use crate::client::Client;
use crate::protocol::{ListParameters, Process, Slot};

/// `PORT`, `POOL`, `POOL/INSTANCE` or `POOL/INSTANCE/PORT`, as `portpool list` writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pool: Option<String>,
    instance: Option<u16>,
    port: Option<u16>,
}

/// A lease that is meant, with the slot that it is shown by.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) lease_id: u64,
    pub(super) holder: Process,
    pub(super) slot: Slot,
}

/// Reads a target.
///
/// # Errors
/// What is wrong with it, as a sentence.
pub(super) fn parse(text: &str) -> Result<Target, String> {
    let number = |word: &str| match word.parse() {
        Ok(number) if number > 0 => Ok(Some(number)),
        _ => Err(format!("{word:?} is no number from 1 to 65535")),
    };
    let mut target = Target {
        pool: None,
        instance: None,
        port: None,
    };
    match text.split('/').collect::<Vec<_>>()[..] {
        [port] if port.bytes().all(|byte| byte.is_ascii_digit()) => target.port = number(port)?,
        [pool, ref rest @ ..] if rest.len() <= 2 => {
            target.pool = Some(pool.to_owned());
            target.instance = rest.first().map_or(Ok(None), |word| number(word))?;
            target.port = rest.get(1).map_or(Ok(None), |word| number(word))?;
        }
        _ => return Err("write PORT, POOL, POOL/INSTANCE or POOL/INSTANCE/PORT".to_owned()),
    }
    Ok(target)
}

impl Target {
    /// The leases that it means, of the instance if one is given; never none.
    ///
    /// # Errors
    /// That there are none, or that two instances are named.
    pub(super) fn leases(
        &self,
        client: &Client,
        instance: Option<u16>,
        is_meant: impl Fn(&Process) -> bool,
    ) -> Result<Vec<Leased>, Failure> {
        if self.instance.is_some() && instance.is_some() && self.instance != instance {
            let text = "two instances are named: the target's and the option's";
            return Err(Failure::new(USAGE, text));
        }
        let slots = client.list(&ListParameters {
            // A companion is listed with its pool.
            pool: self.pool.as_deref().map(main_pool).map(str::to_owned),
            instance: self.instance.or(instance),
        })?;
        let is_named = |slot: &Slot| {
            self.port.is_none_or(|port| port == slot.port)
                && self.pool.as_ref().is_none_or(|pool| *pool == slot.pool)
        };
        let mut leases: Vec<Leased> = Vec::new();
        let mut others = Vec::new();
        for slot in slots.into_iter().filter(is_named) {
            let (Some(lease_id), Some(holder)) = (slot.lease_id, slot.holder.clone()) else {
                continue;
            };
            if !is_meant(&holder) {
                others.push(crate::protocol::program_and_pid(&holder));
            } else if leases.iter().all(|known| known.lease_id != lease_id) {
                leases.push(Leased {
                    lease_id,
                    holder,
                    slot,
                });
            }
        }
        match leases.is_empty() {
            false => Ok(leases),
            true => Err(nothing(self, &others)),
        }
    }
}

fn main_pool(name: &str) -> &str {
    name.split_once('.').map_or(name, |(pool, _)| pool)
}

fn nothing(target: &Target, others: &[String]) -> Failure {
    let words = target.pool.iter().cloned();
    let words = words.chain(target.instance.iter().map(u16::to_string));
    let words = words.chain(target.port.iter().map(u16::to_string));
    let target = words.collect::<Vec<_>>().join("/");
    let text = match others {
        [] => format!("nobody has a lease of {target}; see: portpool list"),
        others => format!(
            "none of your processes has a lease of {target}, but {} has\n\
             end it as an administrator with: portpool revoke {target}",
            others.join(", ")
        ),
    };
    Failure::new(FINDINGS, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_port_and_a_name_is_a_pool() {
        let target = |pool: Option<&str>, instance, port| {
            let pool = pool.map(str::to_owned);
            Ok(Target {
                pool,
                instance,
                port,
            })
        };
        assert_eq!(parse("9000"), target(None, None, Some(9000)));
        assert_eq!(parse("api"), target(Some("api"), None, None));
        assert_eq!(parse("api/2"), target(Some("api"), Some(2), None));
        assert_eq!(
            parse("api/2/9100"),
            target(Some("api"), Some(2), Some(9100))
        );
        assert_eq!(parse("9/2"), target(Some("9"), Some(2), None));
        for wrong in ["0", "65536", "api/x", "api/0", "api/1/2/3"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}

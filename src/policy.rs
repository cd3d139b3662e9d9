//! Who may take which pool, and whose leases: default deny, and a denial that says what would allow
//! it.
//!
//! Pure: it is asked with facts about a process that the kernel has vouched for.

use std::collections::HashMap;

/// What the kernel says of the process that asks.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// Its effective user id when it connected.
    pub uid: u32,
    /// Its effective and supplementary group ids when it connected.
    pub groups: &'a [u32],
    /// The system manager's unit it runs in.
    pub unit: Option<&'a str>,
}

/// Those who may: any of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    /// User ids.
    pub uids: Vec<u32>,
    /// Group ids.
    pub gids: Vec<u32>,
    /// Unit names, in which `*` stands for any text and `?` for any character.
    pub units: Vec<String>,
}

/// Every pool's rule.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// The agent's own user id, which may take every pool, as root may.
    pub own_uid: u32,
    /// Who may take which pool beside them, by the pool's name.
    pub pools: HashMap<String, Allowed>,
    /// Who may administer the agent beside them.
    pub admin: Allowed,
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The rule that decided, as a sentence.
    pub rule: String,
    /// The configuration that would allow it.
    pub fix: String,
}

impl Allowed {
    /// Whether it takes more than the user id to say whether this user is one of them.
    fn is_undecided_about(&self, uid: u32) -> bool {
        let has_more = !self.gids.is_empty() || !self.units.is_empty();
        has_more && !self.uids.contains(&uid)
    }

    fn has(&self, peer: Peer) -> bool {
        self.uids.contains(&peer.uid)
            || peer.groups.iter().any(|group| self.gids.contains(group))
            || peer
                .unit
                .is_some_and(|unit| self.units.iter().any(|glob| matches(glob, unit)))
    }
}

impl Policy {
    /// Whether the pool's rule needs facts beyond the user id to decide about this user.
    pub fn needs_more_than_uid(&self, pool: &str, uid: u32) -> bool {
        let rule = self.pools.get(pool);
        !self.is_above_rules(uid) && rule.is_some_and(|allowed| allowed.is_undecided_about(uid))
    }

    /// The same for `[access] admin`.
    pub fn admin_needs_more_than_uid(&self, uid: u32) -> bool {
        !self.is_above_rules(uid) && self.admin.is_undecided_about(uid)
    }

    /// Root, and the agent's own user, which could do with the agent what they like anyway.
    fn is_above_rules(&self, uid: u32) -> bool {
        uid == 0 || uid == self.own_uid
    }

    /// Whether a process is an administrator: it may take over and take back what is anybody's.
    pub fn is_administrator(&self, peer: Peer) -> bool {
        self.is_above_rules(peer.uid) || self.admin.has(peer)
    }

    /// Whether a process may take back the lease of a process of this user. Those of its own user
    /// it may: it could end that process as well, kill(2).
    ///
    /// # Errors
    /// The rule that says no, and the configuration that would say yes.
    pub fn may_revoke(&self, holder_uid: u32, peer: Peer) -> Result<(), Denial> {
        if peer.uid == holder_uid || self.is_administrator(peer) {
            return Ok(());
        }
        self.may_administer("end another user's lease", peer)
    }

    /// Whether a process may do what is for administrators; `what` completes "to …".
    ///
    /// # Errors
    /// The rule that says no, and the configuration that would say yes.
    pub fn may_administer(&self, what: &str, peer: Peer) -> Result<(), Denial> {
        if self.is_administrator(peer) {
            return Ok(());
        }
        Err(Denial {
            rule: format!(
                "to {what}, access.admin must name this user, a group of its, or its unit"
            ),
            fix: match peer.unit {
                Some(unit) => format!("[access] admin = {{ units = [{unit:?}] }}"),
                None => format!("[access] admin = {{ users = [\"{}\"] }}", peer.uid),
            },
        })
    }

    /// Whether a process may take slots of a pool.
    ///
    /// # Errors
    /// The rule that says no, and the configuration that would say yes.
    pub fn may_acquire(&self, pool: &str, peer: Peer) -> Result<(), Denial> {
        if self.is_above_rules(peer.uid) {
            return Ok(());
        }
        let allowed = self.pools.get(pool);
        if allowed.is_some_and(|allowed| allowed.has(peer)) {
            return Ok(());
        }
        let rule = match allowed {
            Some(_) => format!(
                "pool.{pool}.allow names neither this user, nor a group of its, nor its unit"
            ),
            None => {
                format!("pool.{pool} has no allow: only root and the agent's own user may take it")
            }
        };
        let fix = match peer.unit {
            Some(unit) => format!("[pool.{pool}] allow = {{ units = [{unit:?}] }}"),
            None => format!("[pool.{pool}] allow = {{ users = [\"{}\"] }}", peer.uid),
        };
        Err(Denial { rule, fix })
    }
}

/// Whether a text fits a glob, in which `*` stands for any text and `?` for any character. Takes
/// at most the product of both lengths, whatever the glob.
fn matches(glob: &str, text: &str) -> bool {
    let glob: Vec<char> = glob.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut seen) = (0, 0);
    // Where to go on when what follows the latest star does not fit.
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        match glob.get(at) {
            Some('*') => {
                star = Some((at + 1, seen));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || *wanted == text[seen] => {
                at += 1;
                seen += 1;
            }
            _ => match &mut star {
                Some((after, taken)) => {
                    *taken += 1;
                    (at, seen) = (*after, *taken);
                }
                None => return false,
            },
        }
    }
    glob[at..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        let api = Allowed {
            uids: vec![33],
            gids: vec![50],
            units: vec!["api@*.service".into()],
        };
        Policy {
            own_uid: 900,
            pools: HashMap::from([("api".to_owned(), api)]),
            admin: Allowed {
                gids: vec![70],
                ..Allowed::default()
            },
        }
    }

    fn peer(uid: u32) -> Peer<'static> {
        Peer {
            uid,
            groups: &[],
            unit: None,
        }
    }

    #[test]
    fn root_and_the_agents_own_user_may_take_every_pool() {
        assert!(policy().may_acquire("api", peer(0)).is_ok());
        assert!(policy().may_acquire("unlisted", peer(900)).is_ok());
    }

    #[test]
    fn nobody_else_may_take_a_pool_without_a_rule() {
        let denial = policy().may_acquire("unlisted", peer(33)).unwrap_err();
        assert_eq!(denial.fix, r#"[pool.unlisted] allow = { users = ["33"] }"#);
    }

    #[test]
    fn a_user_a_group_or_a_unit_is_enough() {
        assert!(policy().may_acquire("api", peer(33)).is_ok());
        assert!(
            policy()
                .may_acquire(
                    "api",
                    Peer {
                        groups: &[7, 50],
                        ..peer(1)
                    }
                )
                .is_ok()
        );
        let in_unit = |unit| Peer {
            unit: Some(unit),
            ..peer(1)
        };
        assert!(
            policy()
                .may_acquire("api", in_unit("api@7.service"))
                .is_ok()
        );
        let denial = policy()
            .may_acquire("api", in_unit("apix.service"))
            .unwrap_err();
        assert_eq!(
            denial.fix,
            r#"[pool.api] allow = { units = ["apix.service"] }"#
        );
    }

    #[test]
    fn a_lease_is_taken_back_by_an_administrator_or_by_its_holders_own_user() {
        let policy = policy();
        for administrator in [0, 900] {
            assert!(policy.may_revoke(33, peer(administrator)).is_ok());
        }
        let admin = Peer {
            groups: &[70],
            ..peer(1)
        };
        assert!(policy.may_revoke(33, admin).is_ok());
        assert!(policy.may_revoke(33, peer(33)).is_ok());
        let denial = policy.may_revoke(33, peer(34)).unwrap_err();
        assert_eq!(denial.fix, r#"[access] admin = { users = ["34"] }"#);
        // That it may take the pool makes it no administrator.
        assert!(!policy.is_administrator(peer(33)));
        assert!(policy.may_revoke(34, peer(33)).is_err());
    }

    #[test]
    fn a_glob_matches_all_of_a_unit_name_or_nothing() {
        assert!(matches("api@*.service", "api@.service"));
        assert!(matches("a?i.service", "api.service"));
        assert!(!matches("api@*.service", "api@1.service.d"));
        assert!(!matches("api.service", "api.services"));
        assert!(!matches("", "x"));
    }
}

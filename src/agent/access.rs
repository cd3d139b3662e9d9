//! From the names in `allow` to the ids that the policy decides by.

use crate::config::{Access, Allow};
use crate::plan::Plan;
use crate::policy::{Allowed, Policy};

/// The policy of a plan and of `[access]`. Names that this machine does not know are logged and
/// allow nobody.
pub(super) fn policy(plan: &Plan, access: &Access, own_uid: u32) -> Policy {
    let rule = |pool: &crate::config::Pool| {
        let allow = pool.allow.as_ref()?;
        let key = format!("pool.{}.allow", pool.name);
        Some((pool.name.to_string(), resolve(&key, allow)))
    };
    Policy {
        own_uid,
        pools: plan.held_pools().filter_map(rule).collect(),
        admin: resolve("access.admin", &access.admin),
    }
}

fn resolve(key: &str, allow: &Allow) -> Allowed {
    let unknown = |kind: &str, name: &str| {
        tracing::warn!("{key} names the {kind} {name:?}, which this machine does not know");
    };
    let mut allowed = Allowed {
        units: allow.units.clone(),
        ..Allowed::default()
    };
    for name in &allow.users {
        let user = || {
            nix::unistd::User::from_name(name)
                .ok()
                .flatten()
                .map(|u| u.uid.as_raw())
        };
        match name.parse().ok().or_else(user) {
            Some(uid) => allowed.uids.push(uid),
            None => unknown("user", name),
        }
    }
    for name in &allow.groups {
        let group = || {
            nix::unistd::Group::from_name(name)
                .ok()
                .flatten()
                .map(|g| g.gid.as_raw())
        };
        match name.parse().ok().or_else(group) {
            Some(gid) => allowed.gids.push(gid),
            None => unknown("group", name),
        }
    }
    allowed
}

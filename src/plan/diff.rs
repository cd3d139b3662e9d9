//! What another configuration changes: which pools move, come and go, and which sockets that touches.

use std::collections::{BTreeSet, HashSet};

use super::{Instance, ListenAddress, Plan, PoolName, Port, Protocol, Slot};
use crate::config::{Checked, Pool, PortSet};

/// What becomes of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It has other ports.
    Moves,
    /// It is new.
    Added,
    /// It is gone.
    Freed,
    /// It has the same ports, and something else differs.
    Altered,
}

/// One pool that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Which.
    pub(crate) pool: PoolName,
    /// How.
    pub(crate) kind: Kind,
    /// Its ports before, those of instance 1; empty if it is new.
    pub(crate) before: PortSet,
    /// Its ports after; empty if it is gone.
    pub(crate) after: PortSet,
    /// What it has after that it had not, of all instances, companions included.
    pub(crate) adds: PortSet,
    /// What it had that it has not after.
    pub(crate) frees: PortSet,
    /// Which of its keys differ, ports aside.
    pub(crate) keys: Vec<&'static str>,
    /// Whether a reload refuses it, because the pool is `fixed`.
    pub(crate) refused: bool,
}

/// Every pool that differs: in the order of the old configuration, then those that are new.
pub(crate) fn changes(old: &Checked, new: &Checked) -> Vec<Change> {
    let find = |plan: &Plan, name: &PoolName| plan.pool(name.as_str()).cloned();
    let there = old.config.pools.iter();
    let of_old = there.map(|pool| (Some(pool.clone()), find(&new.plan, &pool.name)));
    let come = new.config.pools.iter();
    let come = come.filter(|pool| old.plan.pool(pool.name.as_str()).is_none());
    let of_new = come.map(|pool| (None, Some(pool.clone())));
    of_old
        .chain(of_new)
        .filter_map(|(before, after)| change(old, new, before.as_ref(), after.as_ref()))
        .collect()
}

fn change(
    old: &Checked,
    new: &Checked,
    before: Option<&Pool>,
    after: Option<&Pool>,
) -> Option<Change> {
    let (had, has) = (before.map(everywhere), after.map(everywhere));
    let (had, has) = (had.unwrap_or_default(), has.unwrap_or_default());
    let only =
        |one: &BTreeSet<(Protocol, Port)>, other| one.difference(other).map(|it| it.1).collect();
    let (adds, frees): (PortSet, PortSet) = (only(&has, &had), only(&had, &has));
    let keys = match (before, after) {
        (Some(before), Some(after)) => keys(before, after),
        _ => Vec::new(),
    };
    let has_moved = !adds.is_empty() || !frees.is_empty();
    // The order is the one they are handed out in.
    let is_same = before.map(|it| &it.ports) == after.map(|it| &it.ports);
    let kind = match (before, after) {
        (None, _) => Kind::Added,
        (_, None) => Kind::Freed,
        _ if has_moved || !is_same => Kind::Moves,
        _ if !keys.is_empty() => Kind::Altered,
        _ => return None,
    };
    let stays = |pool: &Pool| after.is_some_and(|after| stays(&old.plan, pool, &new.plan, after));
    Some(Change {
        pool: before.or(after)?.name.clone(),
        kind,
        before: before.map(|it| it.ports.clone()).unwrap_or_default(),
        after: after.map(|it| it.ports.clone()).unwrap_or_default(),
        adds,
        frees,
        keys,
        refused: before.is_some_and(|pool| pool.fixed && !stays(pool)),
    })
}

/// Whether a pool stays where it is, as `fixed` means it: the same sockets, held or not as before.
fn stays(old: &Plan, before: &Pool, new: &Plan, after: &Pool) -> bool {
    let sockets = (&after.ports, after.stride, after.protocol, &after.addresses);
    sockets
        == (
            &before.ports,
            before.stride,
            before.protocol,
            &before.addresses,
        )
        && new.holds(after) == old.holds(before)
}

/// Every port of the pool and its companions, in every instance that is there from the start.
fn everywhere(pool: &Pool) -> BTreeSet<(Protocol, Port)> {
    let companions = pool.companions.iter().map(|companion| &companion.ports);
    let sets = std::iter::once(&pool.ports).chain(companions);
    sets.flat_map(PortSet::iter)
        .flat_map(|port| {
            let instances = Instance::up_to(pool.instances);
            instances.filter_map(move |instance| port.in_instance(instance, pool.stride))
        })
        .map(|port| (pool.protocol, port))
        .collect()
}

fn keys(before: &Pool, after: &Pool) -> Vec<&'static str> {
    let differs = [
        ("address", before.addresses != after.addresses),
        ("protocol", before.protocol != after.protocol),
        ("extra", before.companions != after.companions),
        ("backlog", before.backlog != after.backlog),
        ("unleased", before.unleased != after.unleased),
        (
            "restart_window",
            before.restart_window != after.restart_window,
        ),
        ("on_revoke", before.on_revoke != after.on_revoke),
        ("allow", before.allow != after.allow),
        ("stride", before.stride != after.stride),
        ("instances", before.instances != after.instances),
        ("max_instances", before.max_instances != after.max_instances),
        ("host", before.host != after.host),
        ("fixed", before.fixed != after.fixed),
        ("external", before.external != after.external),
        ("state", before.state != after.state),
        ("category", before.category != after.category),
        ("title", before.title != after.title),
        ("description", before.description != after.description),
        ("was", before.was != after.was),
        ("planned", before.planned != after.planned),
        (
            "alternative_to",
            before.alternative_to != after.alternative_to,
        ),
        ("container", before.container != after.container),
        ("served_by", before.served_by != after.served_by),
        ("firewall", before.firewall != after.firewall),
        ("health", before.health != after.health),
        ("env", before.env != after.env),
        ("note", before.note != after.note),
    ];
    let differs = differs.into_iter().filter(|(_, differs)| *differs);
    differs.map(|(key, _)| key).collect()
}

/// What makes a slot the same slot: its sockets.
type Key<'a> = (String, Instance, Port, Protocol, &'a [ListenAddress]);

/// The slots of the old plan that a reload would not leave as they are.
pub(crate) fn touched<'a>(old: &'a Plan, new: &Plan) -> Vec<&'a Slot> {
    fn key(slot: &Slot) -> Key<'_> {
        (
            slot.name(),
            slot.instance,
            slot.port,
            slot.protocol,
            &slot.addresses,
        )
    }
    let after: HashSet<Key> = new.slots.iter().chain(&new.dormant).map(key).collect();
    let before = old.slots.iter().chain(&old.dormant);
    before.filter(|slot| !after.contains(&key(slot))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Machine, Source, parse};
    use std::path::PathBuf;

    fn checked(text: &str) -> Checked {
        let path = PathBuf::from("portpool.toml");
        let text = text.to_owned();
        parse(&[Source { path, text }], &Machine::default()).unwrap()
    }

    /// Each change in a line.
    fn told(old: &str, new: &str) -> Vec<String> {
        let changes = changes(&checked(old), &checked(new));
        let told = changes.iter().map(|change| {
            let Change {
                pool,
                kind,
                before,
                after,
                adds,
                frees,
                keys,
                refused,
            } = change;
            let keys = keys.join(",");
            format!("{pool} {kind:?} {before}>{after} +{adds} -{frees} {keys} {refused}")
        });
        told.collect()
    }

    #[test]
    fn pools_move_come_and_go_and_the_rest_is_not_mentioned() {
        let old = "[pool.a]\nports = \"1-3\"\n[pool.b]\nports = 5\n[pool.c]\nports = 7\n";
        let new = "[pool.a]\nports = \"2-4\"\n[pool.c]\nports = 7\n[pool.d]\nports = 5\n";
        let expected = [
            "a Moves 1-3>2-4 +4 -1  false",
            "b Freed 5> + -5  false",
            "d Added >5 +5 -  false",
        ];
        assert_eq!(told(old, new), expected);
        assert_eq!(told(old, old), [""; 0]);
    }

    #[test]
    fn another_stride_moves_the_other_instances_and_touches_no_slot_of_the_first() {
        let plan = |stride| {
            format!(
                "[agent]\ninstances = 2\nstride = {stride}\n[pool.a]\nports = 10\nextra = {{ m = 20 }}\n"
            )
        };
        let (old, new) = (plan(100), plan(200));
        assert_eq!(
            told(&old, &new),
            ["a Moves 10>10 +210, 220 -110, 120 stride false"]
        );
        let (old, new) = (checked(&old).plan, checked(&new).plan);
        let touched: Vec<String> = touched(&old, &new)
            .iter()
            .map(|slot| format!("{}/{} {}", slot.name(), slot.instance, slot.port))
            .collect();
        assert_eq!(touched, ["a/2 110", "a.m/2 120"]);
    }

    #[test]
    fn what_is_fixed_may_change_but_not_move() {
        let plan = |more: &str| format!("[pool.a]\nfixed = true\n{more}\n");
        let old = plan("ports = 1");
        assert_eq!(told(&old, &plan("ports = 2")), ["a Moves 1>2 +2 -1  true"]);
        assert_eq!(
            told(&old, "[pool.b]\nports = 3\n")[0],
            "a Freed 1> + -1  true"
        );
        let retitled = plan("ports = 1\ntitle = \"A\"");
        assert_eq!(told(&old, &retitled), ["a Altered 1>1 + - title false"]);
        let elsewhere = plan("ports = 1\naddress = \"0.0.0.0\"");
        assert_eq!(told(&old, &elsewhere), ["a Altered 1>1 + - address true"]);
    }
}

//! Another configuration, while slots are held: what it does not change is not touched.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;

use super::about::digest;
use super::access;
use super::core::{Agent, Shared, rules_of};
use crate::config::{self, Access, Checked, Diagnostic, LoadError, Pool, Source};
use crate::ledger::{Event, Place, PoolId, Quotas, Rules, SlotId, State};
use crate::plan::{CompanionName, Instance, ListenAddress, Plan, PoolName, Port, Protocol, Slot};

/// Where the configuration is.
#[derive(Debug, Clone)]
pub(crate) enum Files {
    /// These files, in this order.
    These(Vec<PathBuf>),
    /// The files of this folder, as they are at the time: see [`config::system_files`].
    Below(PathBuf),
}

impl Default for Files {
    fn default() -> Files {
        Files::These(Vec::new())
    }
}

impl Files {
    /// Reads them.
    ///
    /// # Errors
    /// The first file that cannot be read.
    pub(crate) fn load(&self) -> Result<Vec<Source>, LoadError> {
        match self {
            Files::These(files) => config::load_files(files),
            Files::Below(folder) => config::load_files(&config::system_files(folder)?),
        }
    }
}

/// Why everything stays as it was.
#[derive(Debug)]
pub(crate) enum ReloadError {
    /// A file cannot be read.
    Load(LoadError),
    /// The configuration is wrong.
    Wrong(Vec<Source>, Vec<Diagnostic>),
    /// It moves pools that are `fixed`.
    Fixed(Vec<String>),
    /// It has more sockets than the steering's map has room for.
    Room {
        /// So many.
        wanted: usize,
        /// So many it may be.
        room: usize,
    },
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            ReloadError::Load(error) => error.fmt(f),
            ReloadError::Wrong(sources, diagnostics) => {
                for diagnostic in diagnostics {
                    writeln!(f, "{}", diagnostic.render(sources, false))?;
                }
                write!(f, "the configuration is wrong: the one before stays")
            }
            ReloadError::Fixed(pools) => write!(
                f,
                "{} may not move or go, because of fixed = true: the configuration before stays. Take \
                 fixed = true away and reload, then change the pool and reload again",
                pools.join(", ")
            ),
            ReloadError::Room { wanted, room } => write!(
                f,
                "{wanted} sockets would be steered to, and this agent has room for {room}: the \
                 configuration before stays. Restart the agent for more"
            ),
        }
    }
}

/// What a reload came to, in slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reloaded {
    /// New ones.
    pub(crate) added: usize,
    /// Those that went at once.
    pub(crate) removed: usize,
    /// Those that go when their lease ends.
    pub(crate) draining: usize,
    /// Those that stay.
    pub(crate) unchanged: usize,
}

/// What makes a slot the same slot: its sockets.
type Key = (
    PoolName,
    Option<CompanionName>,
    Instance,
    Port,
    Protocol,
    Vec<ListenAddress>,
);

fn key(slot: &Slot) -> Key {
    (
        slot.pool.clone(),
        slot.companion.clone(),
        slot.instance,
        slot.port,
        slot.protocol,
        slot.addresses.clone(),
    )
}

/// The slots of a plan, each with its companions, and whether it is held only when claimed.
fn groups(plan: &Plan) -> Vec<(Vec<&Slot>, bool)> {
    let held = plan.slots.iter().map(|slot| (slot, false));
    let dormant = plan.dormant.iter().map(|slot| (slot, true));
    let mut groups: Vec<(Vec<&Slot>, bool)> = Vec::new();
    for (slot, is_dormant) in held.chain(dormant) {
        match (&slot.companion, groups.last_mut()) {
            (Some(_), Some((group, _))) => group.push(slot),
            _ => groups.push((vec![slot], is_dormant)),
        }
    }
    groups
}

/// What `[access]` bounds.
pub(super) fn quotas(access: &Access) -> Quotas {
    Quotas {
        leases_per_user: access.leases_per_user.into(),
        waiters_per_user: access.waiters_per_user.into(),
    }
}

/// Reads the configuration again, and says to the log, the service manager and the caller what came
/// of it.
///
/// # Errors
/// Those of [`Agent::reload`].
pub(super) fn reload_and_tell(agent: &Shared) -> Result<Reloaded, ReloadError> {
    agent.borrow().tell_manager_of_reload();
    let outcome = agent.borrow_mut().reload();
    match &outcome {
        Ok(Reloaded {
            added,
            removed,
            draining,
            unchanged,
        }) => tracing::info!(
            added,
            removed,
            draining,
            unchanged,
            "configuration read again"
        ),
        Err(error) => tracing::error!("cannot reload: {error}"),
    }
    super::say_ready(agent);
    outcome
}

impl Agent {
    /// Reads the configuration again, and goes over to it.
    ///
    /// # Errors
    /// Why it does not; nothing has changed then.
    pub(crate) fn reload(&mut self) -> Result<Reloaded, ReloadError> {
        let sources = self.files.load().map_err(ReloadError::Load)?;
        match config::parse(&sources, &super::facts()) {
            Ok(checked) => self.become_other(sources, checked),
            Err(diagnostics) => Err(ReloadError::Wrong(sources, diagnostics)),
        }
    }

    /// Goes over to another configuration.
    ///
    /// # Errors
    /// Why it does not; nothing has changed then.
    pub(super) fn become_other(
        &mut self,
        sources: Vec<Source>,
        checked: Checked,
    ) -> Result<Reloaded, ReloadError> {
        let Checked {
            config,
            plan,
            warnings,
        } = checked;
        self.may_become(&plan)?;
        for warning in &warnings {
            tracing::warn!("{}", warning.render(&sources, false));
        }
        let reloaded = self.become_plan(&plan);
        self.policy = access::policy(&plan, &config.access, self.about.uid);
        self.ledger.set_quotas(quotas(&config.access));
        self.about.plan = config.plan_name;
        self.about.digest = digest(&sources);
        self.about.configuration = super::names_of(&sources);
        self.sources = sources;
        self.plan = plan;
        (self.plan.slots, self.plan.dormant) = (Vec::new(), Vec::new());

        self.take_in(Event::Reloaded);
        if self.store.is_some() {
            // Before new slots are held: what is held is to outlive us.
            self.renew_store(Vec::new());
        }
        let slots = self.ledger.slots();
        self.hold(slots);
        Ok(reloaded)
    }

    fn may_become(&self, plan: &Plan) -> Result<(), ReloadError> {
        let moves = |old: &&Pool| {
            let is_same = |new: &Pool| {
                let sockets = (&new.ports, new.stride, new.protocol, &new.addresses);
                sockets == (&old.ports, old.stride, old.protocol, &old.addresses)
                    && plan.holds(new) == self.plan.holds(old)
            };
            old.fixed && !plan.pool(old.name.as_str()).is_some_and(is_same)
        };
        let moved: Vec<String> = self
            .plan
            .pools
            .iter()
            .filter(moves)
            .map(|pool| format!("pool {}", pool.name))
            .collect();
        if !moved.is_empty() {
            return Err(ReloadError::Fixed(moved));
        }
        let new = plan.slots.iter().chain(&plan.dormant);
        let leased = self.ledger.slots().filter(|slot| self.is_leased(*slot));
        let leased = leased.map(|slot| &self.slots[slot.0 as usize]);
        let wanted = new.chain(leased).map(|slot| slot.addresses.len()).sum();
        match self.kernel.room() {
            Some(room) if wanted > room => Err(ReloadError::Room { wanted, room }),
            _ => Ok(()),
        }
    }

    fn is_leased(&self, slot: SlotId) -> bool {
        matches!(self.ledger.state(slot), State::Leased(_))
    }

    /// Goes over to other slots and other rules.
    fn become_plan(&mut self, plan: &Plan) -> Reloaded {
        let known = self.known_groups();
        let mut kept = HashSet::new();
        let mut added = 0;
        let mut rotation: HashMap<(PoolId, u16), Vec<SlotId>> = HashMap::new();
        for (group, is_dormant) in groups(plan) {
            let keys: Vec<Key> = group.iter().map(|slot| key(slot)).collect();
            let main = match known.get(&keys) {
                Some(main) => {
                    self.keep(*main, &group, is_dormant);
                    kept.insert(*main);
                    *main
                }
                None => {
                    added += group.len();
                    self.add(&group, is_dormant)
                }
            };
            let place = self.ledger.place(main);
            let of_pool = rotation.entry((place.pool, place.instance));
            of_pool.or_default().push(main);
        }
        let gone: Vec<SlotId> = known
            .into_values()
            .filter(|main| !kept.contains(main))
            .collect();
        let (mut removed, mut draining) = (0, 0);
        for main in &gone {
            self.take_in(Event::Drain(*main));
            let size = 1 + self.ledger.companions(*main).len();
            match self.is_leased(*main) {
                true => draining += size,
                false => removed += size,
            }
        }
        let old = self.pools.values().flat_map(|pool| {
            let instances = self.ledger.instances_of(*pool).into_iter();
            instances.map(|instance| (*pool, instance))
        });
        for place in old.collect::<Vec<_>>() {
            rotation.entry(place).or_default();
        }
        for ((pool, instance), slots) in rotation {
            self.ledger.order(pool, instance, slots);
        }
        let mut rules = vec![Rules::default(); self.pools.len()];
        for pool in &plan.pools {
            if let Some(PoolId(id)) = self.pools.get(pool.name.as_str()) {
                rules[*id as usize] = rules_of(pool);
            }
        }
        self.ledger.set_rules(&rules);
        let all: usize = groups(plan).iter().map(|(group, _)| group.len()).sum();
        Reloaded {
            added,
            removed,
            draining,
            unchanged: all - added,
        }
    }

    /// The slots that are held or may be, each with its companions, by what they are.
    fn known_groups(&self) -> HashMap<Vec<Key>, SlotId> {
        let is_main = |slot: &SlotId| self.ledger.place(*slot).companion_of.is_none();
        let mains = self.ledger.slots().filter(is_main);
        let living = mains.filter(|slot| !self.ledger.drains(*slot) || self.is_leased(*slot));
        let group = |main: SlotId| {
            let companions = self.ledger.companions(main).iter().copied();
            let members = std::iter::once(main).chain(companions);
            let keys = members.map(|slot| key(&self.slots[slot.0 as usize]));
            (keys.collect::<Vec<Key>>(), main)
        };
        living.map(group).collect()
    }

    /// A slot and its companions stay; all that can be another without other sockets is taken over.
    fn keep(&mut self, main: SlotId, group: &[&Slot], is_dormant: bool) {
        self.ledger.keep(main, is_dormant);
        let companions = self.ledger.companions(main).to_vec();
        for (slot, new) in std::iter::once(main).chain(companions).zip(group) {
            self.kernel.set_backlog(slot, new);
            self.slots[slot.0 as usize] = (*new).clone();
        }
    }

    /// Slots that nobody tried to hold yet; gives the first's id.
    fn add(&mut self, group: &[&Slot], is_dormant: bool) -> SlotId {
        let main = SlotId(u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
        for (index, slot) in group.iter().enumerate() {
            let next = PoolId(u32::try_from(self.pools.len()).unwrap_or(u32::MAX));
            let pool = *self.pools.entry(slot.pool.to_string()).or_insert(next);
            self.ledger.add(Place {
                pool,
                instance: slot.instance.get(),
                companion_of: (index > 0).then_some(main),
                dormant: is_dormant,
            });
            self.kernel.add(slot);
            self.slots.push((*slot).clone());
        }
        main
    }
}

//! The search against one that tries every port there is.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::config::{Source, parse_unnumbered};

fn config(text: &str) -> Config {
    let path = PathBuf::from("portpool.toml");
    let text = text.to_owned();
    parse_unnumbered(&[Source { path, text }]).unwrap()
}

fn wanted(scope: Scope) -> Wanted {
    Wanted {
        scope,
        protocol: None,
        count: 1,
        consecutive: false,
        lowest: false,
    }
}

fn numbers(proposal: &Proposal) -> Vec<u16> {
    proposal.ports.iter().map(|port| port.get()).collect()
}

const PLAN: &str = r#"
[plan]
space = "7001-8000"
[pool.first]
ports = 7001
[pool.worker]
ports = 7200
category = "worker"
extra = { metrics = 7900 }
[range.workers]
ports = "7201-7210"
categories = ["worker"]
[range.databases]
ports = "7212-7599"
step = 10
"#;

#[test]
fn the_next_of_the_plan_is_after_its_highest_in_the_range_for_that_kind() {
    let config = config(PLAN);
    let proposal = next(&config, &wanted(Scope::Space), |_, _| None).unwrap();
    assert_eq!(numbers(&proposal), [7201]);
    assert_eq!(proposal.category.as_deref(), Some("worker"));
    assert_eq!(proposal.range.as_deref(), Some("workers"));
}

#[test]
fn a_range_set_aside_for_others_is_passed() {
    let mut config = config(PLAN);
    config.pools[1].category = None;
    let mut wanted = wanted(Scope::Space);
    wanted.count = 2;
    let proposal = next(&config, &wanted, |_, _| None).unwrap();
    assert_eq!(
        numbers(&proposal),
        [7211, 7600],
        "and the one for databases"
    );
    wanted.scope = Scope::Range("databases".into());
    let proposal = next(&config, &wanted, |_, _| None).unwrap();
    assert_eq!(numbers(&proposal), [7212, 7222], "it is asked for by name");
}

#[test]
fn a_port_that_the_machine_has_is_passed_over_and_named() {
    let config = config(PLAN);
    let bound = |_, port: Port| (port.get() == 7201).then_some(Obstacle::Bound);
    let proposal = next(&config, &wanted(Scope::Space), bound).unwrap();
    assert_eq!(numbers(&proposal), [7202]);
    let passed = proposal.passed_over.first().unwrap();
    assert_eq!((passed.0.get(), passed.1), (7201, Obstacle::Bound));
}

#[test]
fn a_word_is_a_range_before_a_category_before_a_pool_unless_it_says_which() {
    let text = "[pool.a]\nports = 1\ncategory = \"b\"\n[range.b]\nports = 5\n[pool.b]\nports = 2\n";
    let config = config(text);
    let parse = |word| Scope::parse(word, &config);
    assert_eq!(parse("b"), Ok(Scope::Range("b".into())));
    assert_eq!(parse("category:b"), Ok(Scope::Category("b".into())));
    assert_eq!(parse("pool:b"), Ok(Scope::Pool("b".parse().unwrap())));
    assert_eq!(parse("a"), Ok(Scope::Pool("a".parse().unwrap())));
    assert!(parse("pool:c").unwrap_err().contains("there is no"));
}

/// A plan of a few pools and ranges on the ports 2000 to 2059, in numbers only.
#[derive(Debug, Clone)]
struct Sketch {
    space: bool,
    instances: u16,
    stride: u16,
    /// First port, how many, of which category, the proposed port.
    pools: Vec<(u16, u16, u8, Option<u16>)>,
    /// First port, how many, its step, for which category if any.
    ranges: Vec<(u16, u16, u16, u8)>,
    /// What the machine has.
    bound: Vec<u16>,
}

const LOW: u16 = 2000;
const HIGH: u16 = 2059;

impl Sketch {
    fn text(&self) -> String {
        let (instances, stride) = (self.instances, self.stride);
        let mut text = format!("[agent]\ninstances = {instances}\nstride = {stride}\n");
        if self.space {
            text += &format!("[plan]\nspace = \"{LOW}-{HIGH}\"\n");
        }
        for (index, (first, more, category, planned)) in self.pools.iter().enumerate() {
            text += &format!("[pool.p{index}]\nports = \"{first}-{}\"\n", first + more);
            if *category > 0 {
                text += &format!("category = \"c{category}\"\n");
            }
            if let Some(planned) = planned {
                text += &format!("planned = {planned}\n");
            }
        }
        for (index, (first, more, step, category)) in self.ranges.iter().enumerate() {
            let last = first + more;
            text += &format!("[range.r{index}]\nports = \"{first}-{last}\"\nstep = {step}\n");
            if *category > 0 {
                text += &format!("categories = [\"c{category}\"]\n");
            }
        }
        text
    }

    fn range_has(range: &(u16, u16, u16, u8), port: u16) -> bool {
        (range.0..=range.0 + range.1).contains(&port)
    }

    /// Whether the port can be had by one of that category (0: none), who names `range` perhaps.
    fn is_free(&self, port: u16, category: u8, named: Option<usize>) -> bool {
        (1..=self.instances).all(|instance| {
            let there = port + (instance - 1) * self.stride;
            let in_space = !self.space || (LOW..=HIGH).contains(&there);
            let barred = self.ranges.iter().enumerate().any(|(index, range)| {
                Self::range_has(range, there)
                    && range.3 > 0
                    && range.3 != category
                    && named != Some(index)
            });
            let taken = self.pools.iter().any(|(first, more, _, planned)| {
                (1..=self.instances).any(|other| {
                    let shift = (other - 1) * self.stride;
                    let own = first + shift..=first + more + shift;
                    own.contains(&there) || planned.is_some_and(|port| port + shift == there)
                })
            });
            in_space && !barred && !taken && !self.bound.contains(&there)
        })
    }

    /// The first port there is for a category or a range, by trying all of them.
    fn brute(&self, of_range: Option<usize>, category: u8, lowest: bool) -> Option<u16> {
        let tops = |wanted: &dyn Fn(u16) -> bool, of: u8| {
            let pools = self.pools.iter().filter(|pool| of == 0 || pool.2 == of);
            let ports = pools.flat_map(|(first, more, _, _)| *first..=first + more);
            ports.filter(|port| wanted(*port)).max()
        };
        let in_ranges: Vec<usize> = match of_range {
            Some(range) => vec![range],
            None => (0..self.ranges.len())
                .filter(|index| self.ranges[*index].3 == category)
                .collect(),
        };
        for index in &in_ranges {
            let range = self.ranges[*index];
            let top = tops(&|port| Self::range_has(&range, port), 0);
            for port in range.0..=range.0 + range.1 {
                let fits = match (lowest, top) {
                    (false, Some(top)) => port > top && (port - top).is_multiple_of(range.2),
                    _ => (port - range.0).is_multiple_of(range.2),
                };
                if fits && self.is_free(port, category, of_range) {
                    return Some(port);
                }
            }
        }
        if !in_ranges.is_empty() {
            return None;
        }
        let is_open = |port: u16| {
            (!self.space || (LOW..=HIGH).contains(&port))
                && port >= 1024
                && !self.ranges.iter().any(|range| Self::range_has(range, port))
        };
        let top = tops(&is_open, category).filter(|_| !lowest).unwrap_or(0);
        (top + 1..=u16::MAX / 2).find(|port| is_open(*port) && self.is_free(*port, category, None))
    }
}

fn sketches() -> impl Strategy<Value = Sketch> {
    let port = || LOW..HIGH - 6;
    let pool = (port(), 0u16..3, 0u8..3, prop::option::of(port()));
    let range = (port(), 0u16..6, 1u16..4, 0u8..3);
    (
        any::<bool>(),
        1u16..4,
        1u16..20,
        prop::collection::vec(pool, 0..6),
        prop::collection::vec(range, 0..4),
        prop::collection::vec(LOW..HIGH, 0..20),
    )
        .prop_map(|(space, instances, stride, pools, ranges, bound)| Sketch {
            space,
            instances,
            stride,
            pools,
            ranges,
            bound,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn the_search_finds_what_trying_every_port_finds(
        sketch in sketches(), of_range in any::<prop::sample::Index>(), by_range: bool, category in 1u8..3,
        lowest: bool,
    ) {
        let text = sketch.text() + "[category.c1]\n[category.c2]\n";
        let config = parse_unnumbered(&[Source { path: PathBuf::from("t"), text }]);
        // A range of categories outside the space, and the like.
        let Ok(config) = config else { return Ok(()) };
        let range = (by_range && !sketch.ranges.is_empty()).then(|| of_range.index(sketch.ranges.len()));
        let own = range.map_or(category, |range| sketch.ranges[range].3);
        let scope = match range {
            Some(range) => Scope::Range(format!("r{range}")),
            None => Scope::Category(format!("c{category}")),
        };
        let wanted = Wanted { lowest, ..wanted(scope) };
        let is_bound = |_, port: Port| sketch.bound.contains(&port.get()).then_some(Obstacle::Bound);
        let found = next(&config, &wanted, is_bound).ok().map(|it| numbers(&it)[0]);
        prop_assert_eq!(found, sketch.brute(range, own, lowest));
    }

    #[test]
    fn many_are_each_free_and_consecutive_ones_follow_each_other(
        sketch in sketches(), count in 1u16..5, consecutive: bool, lowest: bool,
    ) {
        let text = sketch.text() + "[category.c1]\n";
        let Ok(config) = parse_unnumbered(&[Source { path: PathBuf::from("t"), text }]) else { return Ok(()) };
        let wanted = Wanted { count, consecutive, lowest, ..wanted(Scope::Category("c1".into())) };
        let is_bound = |_, port: Port| sketch.bound.contains(&port.get()).then_some(Obstacle::Bound);
        let Ok(found) = next(&config, &wanted, is_bound) else { return Ok(()) };
        let ports = numbers(&found);
        prop_assert_eq!(ports.len(), usize::from(count));
        let mut everywhere = HashSet::new();
        for port in &ports {
            prop_assert!(sketch.is_free(*port, 1, None), "{} is not free", port);
            for instance in 0..sketch.instances {
                prop_assert!(everywhere.insert(port + instance * sketch.stride), "they meet: {:?}", ports);
            }
        }
        if consecutive {
            prop_assert!(ports.windows(2).all(|two| two[1] == two[0] + 1), "{:?}", ports);
        }
    }
}

//! Configurations that must be refused or warned of, with what is said about them: each file of
//! tests/config/bad and tests/config/warn is a test of its own. After a wanted change of the words, run with
//! INSTA_UPDATE=always and read the difference.
#![cfg(feature = "agent")]
#![expect(
    clippy::expect_used,
    reason = "a test may say what it expects and die of it"
)]

use std::path::Path;

use portpool::config::{
    Diagnostic, Machine, Severity, Source, defaults_markdown, defaults_text, load_files, parse,
};
use proptest::prelude::*;

/// The sources of a case: NAME.toml, and what lies in NAME.conf.d beside it. Paths are cut to what is the same
/// on every machine.
fn sources(folder: &str, name: &str) -> Vec<Source> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/config")
        .join(folder);
    let mut paths = vec![folder.join(format!("{name}.toml"))];
    let drop_ins = std::fs::read_dir(folder.join(format!("{name}.conf.d")))
        .into_iter()
        .flatten();
    let mut drop_ins: Vec<_> = drop_ins
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    drop_ins.sort();
    paths.extend(drop_ins);
    let mut sources = load_files(&paths).expect("the files of a case can be read");
    for source in &mut sources {
        source.path = source
            .path
            .strip_prefix(&folder)
            .expect("a case lies in its folder")
            .to_owned();
    }
    sources
}

/// Every finding as a person sees it, after checking what holds for all of them.
fn rendered(findings: &[Diagnostic], sources: &[Source]) -> String {
    let render = |finding: &Diagnostic| {
        let text = finding.render(sources, false);
        let place = format!("{}:{}", finding.line(sources), finding.column(sources));
        assert!(
            text.contains(&format!(".toml:{place}\n")),
            "{place} is not in {text}"
        );
        assert!(finding.help.is_some(), "no way out of: {text}");
        assert!(
            finding.render(sources, true).contains('\u{1b}'),
            "no colour"
        );
        text
    };
    findings.iter().map(render).collect::<Vec<_>>().join("\n\n")
}

/// Compares with tests/config/FOLDER/NAME.snap.
fn assert_words(folder: &str, name: &str, words: &str) {
    insta::with_settings!({
        snapshot_path => Path::new("config").join(folder),
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, { insta::assert_snapshot!(name, words) });
}

fn assert_refused(name: &str) {
    let sources = sources("bad", name);
    let findings = parse(&sources, &Machine::default()).expect_err("this is refused");
    assert!(
        findings
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    );
    assert_words("bad", name, &rendered(&findings, &sources));
}

/// A small machine, so that little is enough to be warned.
fn small_machine() -> Machine {
    Machine {
        hostname: "laptop".to_owned(),
        ephemeral: Some(32768..=60999),
        reserved: vec![40000..=40004],
        unprivileged_start: 1024,
        may_bind_privileged: false,
        fd_limit: 128,
    }
}

fn assert_warned(name: &str) {
    let sources = sources("warn", name);
    let checked = parse(&sources, &small_machine()).expect("this is accepted");
    assert!(!checked.warnings.is_empty());
    assert_words("warn", name, &rendered(&checked.warnings, &sources));
    let unknown = parse(&sources, &Machine::default()).expect("this is accepted anywhere");
    assert!(unknown.warnings.len() <= checked.warnings.len());
}

/// Each name a test, and the list of them.
macro_rules! cases {
    ($list:ident, $assert:ident: $($name:ident)*) => {
        $(#[test] fn $name() { $assert(stringify!($name)); })*
        const $list: &[&str] = &[$(stringify!($name)),*];
    };
}

cases! { REFUSED, assert_refused:
    addresses_twice
    alternatives_are_both_held
    bad_addresses
    bad_allow
    bad_containers
    bad_durations
    bad_environment_names
    bad_firewalls
    bad_health
    bad_hosts
    bad_metrics
    bad_names_of_hosts_categories_ranges
    bad_numbers
    bad_pool_names
    bad_words
    broken_templates
    companion_meets_its_pool
    companion_of_another_instance_meets_a_pool
    defined_in_two_files
    empty_pool
    empty_texts
    environment_names_fold
    external_pool_meets
    instances_meet
    instances_of_two_pools_meet
    metrics_meet_a_pool
    metrics_without_a_port
    metrics_without_listen
    more_companions_than_ports
    more_instances_than_the_maximum
    no_host_declared
    not_a_port
    not_toml
    pool_in_a_range_of_other_categories
    pool_of_every_host_meets
    pool_without_ports
    pools_meet
    pools_of_two_files_meet
    port_beyond_65535_by_stride
    port_out_of_range
    port_outside_the_space
    port_twice_in_one_pool
    qwen_valencia_with_eleven_instances
    range_without_ports
    reversed_range
    section_is_no_table
    stride_zero
    too_many_sockets_in_a_slot
    unclosed_text
    unknown_keys
    unknown_references
    unknown_tables
    unknown_template_references
    with_characters_of_several_bytes
    wrong_in_defaults
    wrong_in_defaults_without_a_pool
    wrong_types
}

cases! { WARNED, assert_warned:
    a_variable_of_two_pools
    below_the_unprivileged_ports
    inside_the_ephemeral_range
    more_sockets_than_descriptors
    range_for_a_misspelt_category
    ranges_overlap
    restart_window_on_udp
    the_hostname_is_no_host
    this_machine_is_no_host
}

#[test]
fn every_file_is_a_case() {
    for (folder, cases) in [("bad", REFUSED), ("warn", WARNED)] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/config")
            .join(folder);
        let files = std::fs::read_dir(&folder).expect("the folder is there");
        let files = files.filter_map(|entry| Some(entry.ok()?.path()));
        for file in files.filter(|file| {
            file.extension()
                .is_some_and(|extension| extension == "toml")
        }) {
            let name = file
                .file_stem()
                .expect("a file has a name")
                .to_string_lossy()
                .into_owned();
            assert!(cases.contains(&name.as_str()), "{name} is not tested");
        }
    }
}

/// Lines of configurations, good and bad, to be mixed.
fn some_line() -> impl Strategy<Value = String> {
    let known = [REFUSED, WARNED].concat();
    let lines: Vec<String> = known
        .iter()
        .zip(
            REFUSED
                .iter()
                .map(|_| "bad")
                .chain(WARNED.iter().map(|_| "warn")),
        )
        .flat_map(|(name, folder)| sources(folder, name))
        .flat_map(|source| source.text.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| line.len() < 200)
        .collect();
    proptest::sample::select(lines)
}

/// Whatever is found can be shown, in place.
fn assert_no_panic(text: String) {
    let sources = [Source {
        path: "portpool.toml".into(),
        text,
    }];
    for machine in [Machine::default(), small_machine()] {
        let findings = match parse(&sources, &machine) {
            Ok(checked) => checked.warnings,
            Err(findings) => findings,
        };
        for finding in findings {
            finding.render(&sources, false);
            assert!(finding.line(&sources) > 0 && finding.column(&sources) > 0);
        }
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(?s).{0,80}") {
        assert_no_panic(text);
    }

    #[test]
    fn no_mixture_of_lines_makes_it_panic(lines in proptest::collection::vec(some_line(), 0..40)) {
        assert_no_panic(lines.join("\n"));
    }

    #[test]
    fn no_slip_of_the_hand_makes_it_panic(at in 0usize..4000, with in "[\\[\\]{}=\".,a-z0-9äß\u{1F600}\n\r\t-]{0,4}", without in 0usize..4) {
        let mut text: Vec<char> = include_str!("config/whole_schema.toml").chars().collect();
        let at = at.min(text.len());
        let end = (at + without).min(text.len());
        text.splice(at..end, with.chars());
        assert_no_panic(text.into_iter().collect());
    }

    #[test]
    fn no_two_slots_of_an_accepted_plan_meet(
        ports in proptest::collection::vec((9000u16..9060, 1u16..4, 0u16..3), 1..5),
        instances in 1u16..6,
        stride in 0u16..40,
    ) {
        let mut text = format!("[agent]\ninstances = {instances}\nstride = {stride}\n");
        for (index, (first, more, extra)) in ports.iter().enumerate() {
            text += &format!("[pool.p{index}]\nports = \"{first}-{}\"\n", first + more);
            if *extra > 0 {
                text += &format!("extra = {{ metrics = {} }}\n", first + 10 * extra);
            }
        }
        let sources = [Source { path: "portpool.toml".into(), text }];
        let accepted = parse(&sources, &Machine::default());
        let wanted = ports.iter().flat_map(|(first, more, extra)| {
            let companion = (*extra > 0).then_some(first + 10 * extra);
            (*first..=first + more).chain(companion)
        });
        let all: Vec<u16> = wanted.flat_map(|port| (0..instances).map(move |n| port + n * stride)).collect();
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        prop_assert_eq!(accepted.is_ok(), distinct.len() == all.len());
        if let Ok(checked) = accepted {
            let mut planned: Vec<_> = checked.plan.slots.iter().map(|slot| slot.port.get()).collect();
            let mut all = all;
            planned.sort_unstable();
            all.sort_unstable();
            prop_assert_eq!(planned, all);
        }
    }
}

#[test]
fn the_document_of_every_key_is_up_to_date() {
    let document = include_str!("../docs/configuration.md");
    let regenerate = "regenerate it: portpool check --defaults --markdown > docs/configuration.md";
    assert!(
        document == defaults_markdown(),
        "docs/configuration.md is stale; {regenerate}"
    );
}

#[test]
fn every_key_is_printed_with_its_default() {
    let text = defaults_text();
    for line in [
        "  backlog         number of connections, 1 to 65535; default: 4096",
        "[range.NAME]: Ports set aside",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

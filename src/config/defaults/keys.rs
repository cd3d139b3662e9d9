//! The table itself, in the order it is printed.

use super::{Key, Section, pool_keys::POOL};

/// The tables of the top level, to recognise them by.
pub(in crate::config) const TOP: [&str; 8] = [
    "plan", "agent", "access", "defaults", "host", "category", "range", "pool",
];

/// Everything that is printed.
pub(super) static SECTIONS: [&Section; 13] = [
    &PLAN, &AGENT, &METRICS, &ACCESS, &ALLOW, &HOST, &CATEGORY, &RANGE, &POOL, &CONTAINER,
    &SERVED_BY, &FIREWALL, &HEALTH,
];

pub(super) const fn key(
    name: &'static str,
    kind: &'static str,
    default: &'static str,
    example: &'static str,
    meaning: &'static str,
) -> Key {
    Key {
        name,
        kind,
        default,
        example,
        meaning,
    }
}

pub(in crate::config) static PLAN: Section = Section {
    title: "[plan]",
    meaning: "The plan as a whole.",
    keys: &[
        key(
            "name",
            "text",
            "-",
            r#"name = "D8""#,
            "The title of generated tables and documents.",
        ),
        key(
            "space",
            "ports",
            "-",
            r#"space = "7001-8000""#,
            "Every port of every instance must lie in it.",
        ),
    ],
};

pub(in crate::config) static AGENT: Section = Section {
    title: "[agent]",
    meaning: "How the agent of this machine runs.",
    keys: &[
        key(
            "instances",
            "number, 1 to 65535",
            "1",
            "instances = 2",
            "How many instances are held from the start.",
        ),
        key(
            "max_instances",
            "number, 1 to 65535",
            "instances",
            "max_instances = 10",
            "How far `--instance auto` may go; proven free of collisions.",
        ),
        key(
            "stride",
            "number of ports, 0 to 65535",
            "100",
            "stride = 100",
            "From a port in one instance to the same port in the next: port + (instance - 1) * stride.",
        ),
        key(
            "strict",
            "true or false",
            "false",
            "strict = true",
            "Whether a conflict at start is fatal.",
        ),
        key(
            "host",
            "name of a [host]",
            "the hostname",
            r#"host = "main""#,
            "Which host this machine is; of the pools that name a host, only those of this one are held.",
        ),
        key(
            "metrics",
            "table",
            "Unix socket only",
            r#"metrics = { listen = "127.0.0.1:9180" }"#,
            "See `metrics`.",
        ),
    ],
};

pub(in crate::config) static METRICS: Section = Section {
    title: "metrics",
    meaning: "Where the agent serves its metrics over HTTP, in [agent].",
    keys: &[key(
        "listen",
        "address:port",
        "-",
        r#"listen = "127.0.0.1:9180""#,
        "The address and port to listen on.",
    )],
};

pub(in crate::config) static ACCESS: Section = Section {
    title: "[access]",
    meaning: "Who may administer the agent.",
    keys: &[
        key(
            "admin",
            "table as `allow`",
            "root and the agent's own user",
            r#"admin = { groups = ["portpool-admin"] }"#,
            "Who else may revoke and take over whatever there is.",
        ),
        key(
            "leases_per_user",
            "number, 1 to 65535",
            "1024",
            "leases_per_user = 1024",
            "How many leases one user's processes may have together. Not for root and the agent's own user.",
        ),
        key(
            "waiters_per_user",
            "number, 0 to 65535",
            "64",
            "waiters_per_user = 64",
            "How many of one user's processes may wait at a time. Not for root and the agent's own user.",
        ),
    ],
};

pub(in crate::config) static ALLOW: Section = Section {
    title: "allow",
    meaning: "Who may do something, as the kernel knows them: any user, group or unit listed is enough.",
    keys: &[
        key(
            "users",
            "text or list",
            "[]",
            r#"users = ["www"]"#,
            "User names or numbers.",
        ),
        key(
            "groups",
            "text or list",
            "[]",
            r#"groups = ["svc"]"#,
            "Group names or numbers.",
        ),
        key(
            "units",
            "text or list",
            "[]",
            r#"units = ["api-server@*.service"]"#,
            "System units, as globs, ending in .service, .scope or .slice.",
        ),
    ],
};

pub(in crate::config) static HOST: Section = Section {
    title: "[host.NAME]",
    meaning: "A machine the plan spans.",
    keys: &[key(
        "address",
        "IP address or DNS name",
        "required",
        r#"address = "192.168.1.101""#,
        "How other machines reach it: `{host}` in templates.",
    )],
};

pub(in crate::config) static CATEGORY: Section = Section {
    title: "[category.NAME]",
    meaning: "A group of pools in tables and documents. Once there is one, pools may only name categories which are \
              declared, or listed by a range.",
    keys: &[key(
        "tier",
        "text",
        "-",
        r#"tier = "Backend""#,
        "The heading it is shown under.",
    )],
};

pub(in crate::config) static RANGE: Section = Section {
    title: "[range.NAME]",
    meaning: "Ports set aside for a purpose.",
    keys: &[
        key(
            "ports",
            "ports",
            "required",
            r#"ports = "7201-7210""#,
            "The ports set aside.",
        ),
        key(
            "purpose",
            "text",
            "-",
            r#"purpose = "workers' status""#,
            "What for.",
        ),
        key(
            "categories",
            "text or list",
            "every one",
            r#"categories = ["worker-status"]"#,
            "The categories which may use it; pools of others are refused there. `portpool next` enters a range without them only by its name.",
        ),
        key(
            "step",
            "number of ports, 1 to 65535",
            "1",
            "step = 10",
            "The distance `portpool next` keeps.",
        ),
    ],
};

/// The keys of a pool, where `[defaults]` has them.
pub(in crate::config) static DEFAULTS: Section = Section {
    title: "[defaults]",
    meaning: "",
    keys: POOL.keys,
};

pub(in crate::config) static CONTAINER: Section = Section {
    title: "container",
    meaning: "The container a pool's service runs in.",
    keys: &[
        key(
            "name",
            "text",
            "required",
            r#"name = "tv-api""#,
            "Its name on the container network: `{POOL.inner}` is name:port.",
        ),
        key(
            "compose",
            "text",
            "-",
            r#"compose = "api""#,
            "Its service in the compose file.",
        ),
        key(
            "port",
            "port",
            "the pool's first port",
            "port = 8000",
            "The port inside.",
        ),
    ],
};

pub(in crate::config) static SERVED_BY: Section = Section {
    title: "served_by",
    meaning: "Who is expected to listen on a pool's ports: exactly one of these; the audit compares.",
    keys: &[
        key(
            "program",
            "text",
            "-",
            r#"program = "ollama""#,
            "A program.",
        ),
        key(
            "unit",
            "text",
            "-",
            r#"unit = "ollama.service""#,
            "A system unit.",
        ),
        key(
            "container",
            "text",
            "-",
            r#"container = "tv-api""#,
            "A container.",
        ),
    ],
};

pub(in crate::config) static FIREWALL: Section = Section {
    title: "firewall",
    meaning: "Who may reach a pool's ports, for generated firewall rules.",
    keys: &[key(
        "from",
        "text or list",
        "required",
        r#"from = ["any", "192.168.1.0/24"]"#,
        "any, addresses, or networks.",
    )],
};

pub(in crate::config) static HEALTH: Section = Section {
    title: "health",
    meaning: "How to ask a service whether it is well: exactly one of http, tcp and tls.",
    keys: &[
        key("http", "path", "-", r#"http = "/health""#, "GET this path."),
        key("tcp", "true", "-", "tcp = true", "Connect."),
        key("tls", "true", "-", "tls = true", "Connect and shake hands."),
        key(
            "expect",
            "HTTP status, 100 to 599",
            "200",
            "expect = 200",
            "The answer of a healthy service, with http.",
        ),
        key(
            "timeout",
            "duration, 1ms to 5m",
            r#""2s""#,
            r#"timeout = "2s""#,
            "When to give up.",
        ),
    ],
};

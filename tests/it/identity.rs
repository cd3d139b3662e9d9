//! Who asks is the kernel's word: whoever opened the connection, and no one who has its number, its
//! connection, or a name like its unit's.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::host::{Host, NOBODY, on_a_host, said};

/// A user that no pool's `allow` names.
const STRANGER: u32 = 65533;

const PLAN: &str = r#"
    [pool.own]
    ports = "9000-9003"
    allow = { users = ["nobody"] }
    [pool.unit]
    ports = "9010-9013"
    allow = { units = ["api-server@*.service"] }
"#;

/// How often a process is started until it gets a wanted pid: others are started meanwhile, too.
const TRIES: usize = 500;

/// A process of root's that has this pid, which is free.
fn with_pid(host: &Host, pid: u32) -> Option<crate::host::Process> {
    (0..TRIES).find_map(|_| {
        // The next process gets the next number: proc_sys_kernel(5).
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).expect("root");
        Some(host.role(&["intrude"], 0)).filter(|process| process.id() == pid)
    })
}

#[test]
fn a_process_that_got_a_dead_clients_number_is_not_taken_for_it() {
    on_a_host(|host| {
        let agent = host.agent(PLAN);
        let (socket, file) = (host.socket(), host.folder().join("go"));
        let words = ["bequeath", socket.to_str().expect("text"), "own"];
        let words = [
            &words[..],
            &[file.to_str().expect("text"), "65534", "leaves"],
        ]
        .concat();
        let mut opener = host.role(&words, NOBODY);
        assert_eq!(opener.line(), "bequeathed");
        let pid = opener.id();
        assert_eq!(opener.wait(), Some(0));
        let double = with_pid(host, pid).expect("its number was free");
        assert_eq!(double.id(), pid);
        std::fs::write(&file, "").expect("a file");
        // The heir writes to the output that it has from the opener.
        assert_eq!(opener.line(), r#"Ok("org.portpool.Agent.Busy") 0"#);
        assert_eq!(agent.client().status().expect("a status").leased, 0);
    });
}

#[test]
fn what_is_taken_over_a_connection_that_was_passed_on_is_its_openers_and_ends_with_it() {
    on_a_host(|host| {
        let agent = host.agent(PLAN);
        let socket = host.socket();
        let opened_by = |uid: u32, number: u32| {
            let file = host.file(&format!("go{number}"), "");
            let stranger = STRANGER.to_string();
            let words = ["bequeath", socket.to_str().expect("text"), "own"];
            let more = [file.to_str().expect("text"), &stranger, "stays"];
            let opener = host.role(&[&words[..], &more].concat(), uid);
            // In whatever order the two speak.
            let mut lines = [opener.line(), opener.line()];
            lines.sort_unstable();
            let [answer, opened] = lines;
            assert_eq!(opened, "bequeathed");
            (opener, answer)
        };
        // A stranger with the connection of one who may: the lease is the opener's.
        let (opener, answer) = opened_by(0, 1);
        assert_eq!(answer, r#"Ok("") 1"#);
        let slot = agent.slots("own").remove(0);
        assert_eq!(
            slot.holder.map(|it| (it.pid, it.uid)),
            Some((opener.id(), 0))
        );
        opener.signal(Signal::SIGKILL);
        agent.wait_until("it is over with its opener", |slots| {
            slots.iter().all(|slot| slot.state == "parked")
        });
        // And of one who may not: nothing.
        let (_opener, answer) = opened_by(STRANGER, 2);
        assert_eq!(answer, r#"Ok("org.portpool.Agent.PermissionDenied") 0"#);
    });
}

/// A folder of the kernel's cgroups that processes can be put into. It goes with this value.
struct Cgroup(PathBuf);

impl Cgroup {
    /// `None` where this machine lets nobody make one.
    fn new(path: &str) -> Option<Cgroup> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("/proc");
        let is_unified = |line: &&str| line.split(' ').nth(2) == Some("cgroup2");
        let mount = mounts.lines().find(is_unified)?.split(' ').nth(1)?;
        let folder = Path::new(mount).join(path);
        std::fs::create_dir_all(&folder).ok()?;
        Some(Cgroup(folder))
    }

    /// A shell that puts itself there and becomes the command.
    fn wrap(&self, command: &std::process::Command) -> std::process::Command {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]);
        shell.arg(&self.0).arg(command.get_program());
        shell.args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                shell.env(name, value);
            }
        }
        shell
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Up to the first that somebody else uses, too.
        let mut folder = self.0.as_path();
        while std::fs::remove_dir(folder).is_ok() {
            match folder.parent() {
                Some(parent) => folder = parent,
                None => break,
            }
        }
    }
}

#[test]
fn a_system_unit_is_allowed_by_its_name_and_a_users_own_unit_of_that_name_is_not() {
    on_a_host(|host| {
        let agent = host.agent(PLAN);
        let of_system = Cgroup::new("system.slice/system-api.slice/api-server@7.service");
        let Some(of_system) = of_system else {
            assert!(std::env::var_os("CI").is_none(), "cgroups can be made here");
            return eprintln!("SKIPPED: no cgroup2 file system that can be written");
        };
        let of_user =
            "user.slice/user-65534.slice/user@65534.service/app.slice/api-server@7.service";
        let of_user = Cgroup::new(of_user).expect("another one");
        let of_container = "payload/system.slice/api-server@7.service";
        let of_container = Cgroup::new(of_container).expect("another one");
        let run = |cgroup: &Cgroup| {
            // As a user of its own, but only after it has got into the cgroup.
            let mut command = host.command("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
            let portpool = agent.portpool(&["exec", "unit", "--", "true"]);
            command
                .arg(portpool.get_program())
                .args(portpool.get_args());
            command.env("PORTPOOL_SOCKET", host.socket());
            cgroup.wrap(&command).output().expect("it runs")
        };
        let allowed = run(&of_system);
        assert_eq!(allowed.status.code(), Some(0), "{}", said(&allowed));
        for (cgroup, unit) in [(&of_user, "a user's"), (&of_container, "a container's")] {
            let denied = run(cgroup);
            assert_eq!(denied.status.code(), Some(77), "{unit}: {}", said(&denied));
            assert!(said(&denied).contains("allow"), "{}", said(&denied));
        }
    });
}

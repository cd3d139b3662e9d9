//! Which files a configuration is read from, and what is said of those that cannot be.
#![cfg(feature = "agent")]
#![expect(
    clippy::expect_used,
    reason = "a test may say what it expects and die of it"
)]

use std::fs;
use std::path::{Path, PathBuf};

use portpool::config::{MAX_FILE, load_files, system_files};

/// An empty folder of the test's own.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("conf.d")).expect("a folder can be made");
    folder
}

fn write(folder: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).expect("a file can be written");
    path
}

#[test]
fn the_main_file_comes_first_and_the_others_by_name() {
    let folder = folder("files-in-order");
    for name in ["conf.d/20-b.toml", "conf.d/10-a.toml", "portpool.toml"] {
        write(&folder, name, "");
    }
    for ignored in [
        "conf.d/.10-a.toml.swp",
        "conf.d/.hidden.toml",
        "conf.d/30-c.toml.dpkg-old",
        "conf.d/README",
    ] {
        write(&folder, ignored, "");
    }
    let files = system_files(&folder).expect("the folder can be read");
    let names: Vec<_> = files
        .iter()
        .filter_map(|file| file.strip_prefix(&folder).ok()?.to_str())
        .collect();
    assert_eq!(
        names,
        ["portpool.toml", "conf.d/10-a.toml", "conf.d/20-b.toml"]
    );
}

#[test]
fn drop_ins_alone_are_a_configuration_and_so_is_the_main_file_alone() {
    let drop_ins = folder("drop-ins-alone");
    write(&drop_ins, "conf.d/10-a.toml", "");
    assert_eq!(system_files(&drop_ins).expect("one is enough").len(), 1);
    let main = folder("main-alone");
    write(&main, "portpool.toml", "");
    fs::remove_dir(main.join("conf.d")).expect("it is empty");
    assert_eq!(system_files(&main).expect("one is enough").len(), 1);
}

#[test]
fn no_file_at_all_names_the_one_to_write() {
    let error = system_files(&folder("no-file")).expect_err("there is nothing");
    assert!(error.path.ends_with("no-file/portpool.toml"));
    assert!(error.to_string().contains("or name another"), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_a_way_out() {
    let folder = folder("cannot-be-read");
    let told = |path: PathBuf| {
        load_files(&[path])
            .expect_err("it cannot be read")
            .to_string()
    };
    let missing = told(folder.join("missing.toml"));
    assert!(
        missing.contains("missing.toml") && missing.contains("--config"),
        "{missing}"
    );
    let latin = told(write(&folder, "latin.toml", b"name = \"A\xf1o\""));
    assert!(latin.contains("UTF-8"), "{latin}");
    let size = usize::try_from(MAX_FILE).expect("it fits") + 1;
    let large = told(write(&folder, "large.toml", "#".repeat(size)));
    assert!(
        large.contains("1 MiB") && large.contains("conf.d"),
        "{large}"
    );
    let exact = write(&folder, "exact.toml", "#".repeat(size - 1));
    assert!(load_files(&[exact]).is_ok());
}

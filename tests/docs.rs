//! What the documents say of the tests is so.

use std::path::Path;

/// `it::module::name`, and `it::module`, in backquotes, for the folder `it` of tests.
fn named_tests(text: &str, folder: &str) -> Vec<(String, Option<String>)> {
    let beginning = format!("{folder}::");
    let quoted = text.split('`').skip(1).step_by(2);
    let paths = quoted.filter_map(|text| text.strip_prefix(&beginning));
    paths
        .filter(|path| !path.is_empty())
        .map(|path| match path.split_once("::") {
            Some((module, name)) => (module.to_owned(), Some(name.to_owned())),
            None => (path.to_owned(), None),
        })
        .collect()
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/threat-model.md")).expect("the document");
    for (folder, many) in [("it", 30), ("systemd", 0)] {
        let named = named_tests(&text, folder);
        assert!(named.len() > many, "{named:?}");
        for (module, name) in named {
            let path = root.join("tests").join(folder).join(format!("{module}.rs"));
            let source = std::fs::read_to_string(&path);
            let source = source.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let Some(name) = name else { continue };
            let mut parts = source.split("#[test]\n").skip(1);
            let is_it = |part: &str| {
                let mut lines = part.lines().skip_while(|line| line.starts_with("#["));
                lines.next() == Some(&format!("fn {name}() {{"))
            };
            assert!(parts.any(is_it), "{folder}::{module} has no test {name}");
        }
    }
}

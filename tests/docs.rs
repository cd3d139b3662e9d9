//! What the documents say of the tests is so.

use std::path::Path;

/// `it::module::name`, and `it::module`, in backquotes.
fn named_tests(text: &str) -> Vec<(String, Option<String>)> {
    let quoted = text.split('`').skip(1).step_by(2);
    let paths = quoted.filter_map(|text| text.strip_prefix("it::"));
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
    let named = named_tests(&text);
    assert!(named.len() > 30, "{named:?}");
    for (module, name) in named {
        let path = root.join("tests/it").join(format!("{module}.rs"));
        let source = std::fs::read_to_string(&path);
        let source = source.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if let Some(name) = name {
            let is_there = source.contains(&format!("#[test]\nfn {name}()"));
            assert!(is_there, "it::{module} has no test {name}");
        }
    }
}

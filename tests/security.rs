//! Every promise of SECURITY.md names the tests that check it.

#![allow(missing_docs, clippy::unwrap_used, reason = "a failure is a failed test")]

use std::path::Path;

/// The names of all tests in a folder.
fn tests_in(folder: &Path, names: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_in(&path, names);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let source = std::fs::read_to_string(path).unwrap();
        let mut is_test = false;
        for line in source.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
                names.push(rest.split('(').next().unwrap().to_owned());
                is_test = false;
            }
        }
    }
}

#[test]
fn every_promise_names_its_tests_and_they_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = vec![];
    tests_in(&root.join("src"), &mut tests);
    tests_in(&root.join("tests"), &mut tests);
    assert!(tests.len() > 300, "{}", tests.len());
    let text = std::fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let mut named = 0;
    for paragraph in text.split("Tests: ").skip(1) {
        for name in paragraph.split('.').next().unwrap().split(',') {
            let name = name.trim().trim_matches('`');
            assert!(tests.iter().any(|test| test == name), "there is no test `{name}`");
            named += 1;
        }
    }
    assert!(named > 35, "{named}");
    let promises = text.split_once("* **G1**").unwrap().1.split_once("\n\n").unwrap().0;
    let promises: Vec<_> = promises.split("\n* **").collect();
    assert_eq!(promises.len(), 8);
    for promise in promises {
        assert!(promise.contains("\n  Tests: "), "names no test: {promise}");
    }
}

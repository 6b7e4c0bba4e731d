//! Every promise of SECURITY.md names the tests that check it.

#![allow(missing_docs, clippy::unwrap_used, reason = "a failure is a failed test")]

use std::path::Path;

/// The names of all tests in a folder, and of the rules of the conformance kit, each of which is a test of every stack.
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
        let source = std::fs::read_to_string(&path).unwrap();
        let mut is_test = false;
        for line in source.lines().map(str::trim) {
            let is_rule = folder.ends_with("testing/rules") && line.starts_with("pub(crate) async fn ");
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test || is_rule) {
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
    let mut check = |names: &str| {
        for name in names.split('`').skip(1).step_by(2) {
            assert!(tests.iter().any(|test| test == name), "there is no test `{name}`");
            named += 1;
        }
    };
    text.split("Tests: ").skip(1).for_each(|rest| check(rest.split('.').next().unwrap()));

    // Sections that promise something.
    let silent = ["The first thing to know", "Assets"];
    for section in text.split("\n## ").skip(1) {
        let (title, content) = section.split_once('\n').unwrap();
        if !silent.contains(&title) && title != "Attacks tried" {
            assert!(content.contains("Tests: "), "`{title}` names no test");
        }
    }
    let promises = text.split_once("* **G1**").unwrap().1.split_once("\n\n").unwrap().0;
    let promises: Vec<_> = promises.split("\n* **").collect();
    assert_eq!(promises.len(), 8);
    for promise in promises {
        assert!(promise.contains("\n  Tests: "), "names no test: {promise}");
    }
    let attacks = text.split_once("## Attacks tried").unwrap().1;
    let rows: Vec<_> =
        attacks.lines().filter(|line| line.starts_with("| ") && line.contains(|c: char| c.is_ascii_digit())).collect();
    for (number, row) in (1..).zip(&rows) {
        assert!(row.starts_with(&format!("| {number} |")), "{row}");
        let tests = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        assert!(tests.contains('`') || tests == "see *Rollback*", "names no test: {row}");
        check(tests);
    }
    assert_eq!(rows.len(), 56);
    check(attacks.split_once("Besides: ").unwrap().1);
    assert!(named > 150, "{named}");
}

/// A type that has the trait makes the call ambiguous, and this file does not compile.
macro_rules! assert_lacks {
    ($trait:path: $($type:ty),+) => { $({
        trait Ambiguous<A> {
            fn call() {}
        }
        struct Has;
        impl<T: ?Sized> Ambiguous<()> for T {}
        impl<T: ?Sized + $trait> Ambiguous<Has> for T {}
        <$type as Ambiguous<_>>::call();
    })+ };
}

#[test]
fn secrets_can_be_neither_compared_nor_copied() {
    use wastore::{Key, Passphrase, RecoveryKey, Secret};

    // Where the crate itself compares, it does so in constant time, with `subtle`.
    assert_lacks!(PartialEq: Passphrase, Key, RecoveryKey, Secret);
    assert_lacks!(Clone: Passphrase, Key, RecoveryKey, Secret);
    assert_lacks!(std::fmt::Display: Passphrase, Key, RecoveryKey, Secret);
    assert_lacks!(std::ops::Deref: Passphrase, Key, RecoveryKey, Secret);
    assert_lacks!(serde::Serialize: Passphrase, Key, RecoveryKey, Secret);
    let mut sources = String::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/encrypt")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => sources.push_str(&std::fs::read_to_string(path).unwrap()),
            }
        }
    }
    for comparison in [".commitment().ct_eq(", ".ct_eq(mac)"] {
        assert!(sources.contains(comparison), "{comparison}");
    }
}

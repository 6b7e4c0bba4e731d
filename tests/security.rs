//! Every promise of `docs/threat-model.md` names the tests that check it, and `docs/format.md` names those of the formats.

#![allow(missing_docs, clippy::unwrap_used, reason = "a failure is a failed test")]

use std::path::{Path, PathBuf};

use quote::ToTokens;
use syn::visit::Visit;

/// The items that the tests below search for in all files.
#[derive(Default)]
struct Sources {
    /// The names of all tests, and of all rules of the conformance kit. Each rule is a test of every stack.
    tests: Vec<String>,
    /// The comparisons in constant time.
    comparisons: Vec<String>,
}

impl Sources {
    fn of(folder: &str) -> Self {
        let mut sources = Self::default();
        sources.read(&root().join(folder));
        sources
    }

    fn read(&mut self, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.read(&path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                self.visit_file(&syn::parse_file(&std::fs::read_to_string(&path).unwrap()).unwrap());
            }
        }
    }
}

impl<'ast> Visit<'ast> for Sources {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        let is_test = |attribute: &syn::Attribute| {
            attribute.path().segments.last().is_some_and(|segment| segment.ident == "test")
        };
        if function.attrs.iter().any(is_test) || is_rule(&function.sig) {
            self.tests.push(function.sig.ident.to_string());
        }
        syn::visit::visit_item_fn(self, function);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        if call.method == "ct_eq" {
            self.comparisons.push(call.to_token_stream().to_string().replace(' ', ""));
        }
        syn::visit::visit_expr_method_call(self, call);
    }
}

/// Returns whether a function is a rule: it takes a subject and returns nothing.
fn is_rule(signature: &syn::Signature) -> bool {
    let first = signature.inputs.first().map(|first| first.to_token_stream().to_string().replace(' ', ""));
    let takes_subject = first.is_some_and(|first| first.ends_with(":&Subject") || first.ends_with(":&mutSubject"));
    takes_subject && signature.asyncness.is_some() && matches!(signature.output, syn::ReturnType::Default)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

#[test]
fn every_promise_names_its_tests_and_they_exist() {
    let tests = [Sources::of("src").tests, Sources::of("tests").tests].concat();
    assert!(tests.len() > 300, "{}", tests.len());
    let [text, formats] =
        ["threat-model.md", "format.md"].map(|page| std::fs::read_to_string(root().join("docs").join(page)).unwrap());
    let mut named = 0;
    let mut check = |names: &str| {
        for name in names.split('`').skip(1).step_by(2) {
            assert!(tests.iter().any(|test| test == name), "there is no test `{name}`");
            named += 1;
        }
    };
    assert!(formats.contains("Tests: "), "the formats name no test");
    for page in [&text, &formats] {
        page.split("Tests: ").skip(1).for_each(|rest| check(rest.split('.').next().unwrap()));
    }

    // Sections that contain no promise.
    let silent = ["The first thing to know", "Assets", "Attackers"];
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

/// Fails to compile if a type has the trait, because the call is then ambiguous.
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

    // The crate itself compares in constant time, with `subtle`.
    assert_lacks!(PartialEq: Passphrase, Key, RecoveryKey, Secret);
    assert_lacks!(Clone: Passphrase, Key, RecoveryKey, Secret);
    assert_lacks!(std::fmt::Display: Passphrase, Key, RecoveryKey, Secret);
    assert_lacks!(std::ops::Deref: Passphrase, Key, RecoveryKey, Secret);
    assert_lacks!(serde::Serialize: Passphrase, Key, RecoveryKey, Secret);
    let comparisons = Sources::of("src").comparisons;
    for comparison in [".commitment().ct_eq(", ".ct_eq(mac)"] {
        assert!(comparisons.iter().any(|found| found.contains(comparison)), "{comparison}: {comparisons:?}");
    }
}

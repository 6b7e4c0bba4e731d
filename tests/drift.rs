//! Compares upstream's storage traits in the version of this build with the version for which this crate was written.
//!
//! `clippy::missing_trait_methods` notices a method that upstream adds with a default body, but only where clippy
//! runs. The compiler never notices that a default body changed. This test names every difference. Decide what each
//! layer and store does about a difference, then accept it with `WASTORE_ACCEPT_UPSTREAM=1`.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a failure is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use quote::ToTokens;
use sha2::{Digest, Sha256};
use syn::visit::Visit;
use wastore::Method;

const TRAITS: [&str; 5] = ["SignalStore", "AppSyncStore", "ProtocolStore", "DeviceStore", "MsgSecretStore"];

/// The declaration of one method of a trait, one function, or one struct.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Declaration {
    signature: String,
    /// The hash of the default body; `None` if the method has none.
    default_body: Option<String>,
}

/// The declarations of the storage traits by `Trait::method`, and those of the functions and structs beside them.
type Declarations = BTreeMap<String, Declaration>;

fn declarations(source: &str) -> Declarations {
    let mut found = Declarations::new();
    for item in syn::parse_file(source).unwrap().items {
        let item = match item {
            syn::Item::Trait(item) => item,
            // Functions that default bodies and stores call, such as the merging of deadlines.
            syn::Item::Fn(item) => {
                let declaration = Declaration { signature: text(&item.sig), default_body: Some(hash(&item.block)) };
                found.insert(format!("fn {}", item.sig.ident), declaration);
                continue;
            }
            // The stored types.
            syn::Item::Struct(item) => {
                let fields = item.fields.iter().map(|field| {
                    let name = field.ident.as_ref().map_or_else(String::new, ToString::to_string);
                    format!("{name}: {}", text(&field.ty))
                });
                let signature = fields.collect::<Vec<_>>().join(", ");
                found.insert(format!("struct {}", item.ident), Declaration { signature, default_body: None });
                continue;
            }
            _ => continue,
        };
        if !TRAITS.iter().any(|name| item.ident == name) {
            continue;
        }
        for member in item.items {
            let syn::TraitItem::Fn(method) = member else { continue };
            let default_body = method.default.as_ref().map(hash);
            let declaration = Declaration { signature: text(&method.sig), default_body };
            found.insert(format!("{}::{}", item.ident, method.sig.ident), declaration);
        }
    }
    found
}

fn hash(body: &impl ToTokens) -> String {
    hex::encode(&Sha256::digest(text(body))[..16])
}

/// The tokens, without comments and layout.
fn text(syntax: &impl ToTokens) -> String {
    syntax.to_token_stream().to_string()
}

/// The differences, one line each; empty if there are none.
fn differences(known: &Declarations, resolved: &Declarations) -> Vec<String> {
    let mut lines = vec![];
    for (name, declaration) in resolved {
        match known.get(name) {
            None => {
                let body = if declaration.default_body.is_some() { "with a default body" } else { "required" };
                lines.push(format!("{name} was added, {body}: {}", declaration.signature));
            }
            Some(known) => {
                if known.signature != declaration.signature {
                    lines.push(format!(
                        "{name} changed its signature\n  from {}\n  to   {}",
                        known.signature, declaration.signature
                    ));
                }
                match (&known.default_body, &declaration.default_body) {
                    (None, Some(_)) => lines.push(format!("{name} got a default body")),
                    (Some(_), None) => lines.push(format!("{name} lost its default body")),
                    (known, resolved) if known != resolved => lines.push(format!("{name} changed its default body")),
                    _ => {}
                }
            }
        }
    }
    let removed = known.keys().filter(|name| !resolved.contains_key(*name));
    lines.extend(removed.map(|name| format!("{name} was removed")));
    lines
}

/// The source of the traits in the version of `wacore` that this build uses.
fn resolved_source() -> String {
    // Only packages of this platform, because cargo fetches the others only on request.
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("-vV").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let manifests: Vec<_> = packages.iter().filter(|package| package["name"] == "wacore").collect();
    let [wacore] = manifests[..] else { panic!("there are {} versions of wacore", manifests.len()) };
    let folder = Path::new(wacore["manifest_path"].as_str().unwrap()).parent().unwrap();
    fs::read_to_string(folder.join("src/store/traits.rs")).unwrap()
}

fn snapshot_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/upstream-traits.txt")
}

fn write_snapshot(declarations: &Declarations) -> String {
    let line = |(name, declaration): (&String, &Declaration)| {
        let body = declaration.default_body.as_deref().unwrap_or("-");
        format!("{name}\n  {}\n  {body}\n", declaration.signature)
    };
    declarations.iter().map(line).collect()
}

fn read_snapshot(text: &str) -> Declarations {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let entry = |lines: &[&str]| {
        let [name, signature, body] = lines else { panic!("an entry has three lines: {lines:?}") };
        let default_body = (*body != "-").then(|| (*body).to_owned());
        ((*name).to_owned(), Declaration { signature: (*signature).to_owned(), default_body })
    };
    lines.chunks(3).map(entry).collect()
}

#[test]
fn upstream_is_what_this_crate_was_written_for() {
    let resolved = declarations(&resolved_source());
    if std::env::var_os("WASTORE_ACCEPT_UPSTREAM").is_some() {
        fs::write(snapshot_path(), write_snapshot(&resolved)).unwrap();
    }
    let known = read_snapshot(&fs::read_to_string(snapshot_path()).unwrap());
    let differences = differences(&known, &resolved);
    assert!(differences.is_empty(), "the storage traits of wacore have changed:\n{}", differences.join("\n"));
}

#[test]
fn the_table_of_methods_is_that_of_the_traits() {
    let resolved = declarations(&resolved_source());
    let table: Vec<_> =
        Method::ALL.iter().map(|method| format!("{}::{}", method.trait_name(), method.name())).collect();
    for name in resolved.keys().filter(|name| name.contains("::")) {
        assert!(table.contains(name), "{name} is missing in src/method.rs");
    }
    for (method, name) in Method::ALL.iter().zip(&table) {
        let Some(declaration) = resolved.get(name) else { panic!("{name} is not a method of upstream's traits") };
        let signature: syn::Signature = syn::parse_str(&declaration.signature).unwrap();
        let argument = |argument: &syn::FnArg| match argument {
            syn::FnArg::Receiver(_) => None,
            syn::FnArg::Typed(typed) => Some(text(&typed.pat).trim_start_matches('_').to_owned()),
        };
        let arguments: Vec<_> = signature.inputs.iter().filter_map(argument).collect();
        assert_eq!(method.arguments(), arguments, "the arguments of {name}");
    }
}

/// Tests the comparison: it notices every kind of change, and names the method.
#[test]
fn every_kind_of_change_is_named() {
    let before = "
        pub trait SignalStore {
            async fn kept(&self, a: &str) -> Result<()>;
            async fn gone(&self);
            async fn widened(&self, id: u16);
            async fn relaxed(&self);
            async fn tightened(&self) {}
            async fn reworded(&self) -> bool { false }
        }
        pub trait Other { fn ignored(&self); }
    ";
    let after = "
        pub trait SignalStore {
            /// A comment and another layout are not a change.
            async fn kept(
                &self, a: &str
            ) -> Result<()>;
            async fn widened(&self, id: u32);
            async fn relaxed(&self) {}
            async fn tightened(&self);
            async fn reworded(&self) -> bool { true }
            async fn added(&self);
            async fn added_softly(&self) {}
        }
        pub trait Other { fn ignored_too(&self); }
    ";
    let (before, after) = (declarations(before), declarations(after));
    assert!(differences(&before, &before).is_empty());
    assert_eq!(read_snapshot(&write_snapshot(&before)), before);
    let differences = differences(&before, &after);
    let first_line = |line: &String| line.split(['\n', ':']).filter(|part| !part.is_empty()).nth(1).unwrap().to_owned();
    assert_eq!(
        differences.iter().map(first_line).collect::<Vec<_>>(),
        [
            "added was added, required",
            "added_softly was added, with a default body",
            "relaxed got a default body",
            "reworded changed its default body",
            "tightened lost its default body",
            "widened changed its signature",
            "gone was removed",
        ]
    );
}

/// Every implementation of a storage trait in the library forbids inherited default bodies.
#[test]
fn every_layer_and_store_denies_missing_methods() {
    struct Impls {
        found: Vec<(String, bool)>,
    }

    impl<'ast> Visit<'ast> for Impls {
        fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
            let Some((path, _)) = &item.trait_ else { return };
            let name = path.segments.last().unwrap().ident.to_string();
            if TRAITS.contains(&name.as_str()) {
                let denied = item.attrs.iter().any(|attribute| {
                    attribute.path().is_ident("deny") && text(&attribute.meta).contains("missing_trait_methods")
                });
                self.found.push((format!("{name} for {}", text(&item.self_ty)), denied));
            }
        }
    }

    let mut impls = Impls { found: vec![] };
    let mut generated = 0;
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() && !entry.ends_with("tests") {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                let source = fs::read_to_string(&entry).unwrap();
                impls.visit_file(&syn::parse_file(&source).unwrap());
                // The implementation that `uniform_layer!` writes.
                let lines: Vec<_> = source.lines().map(str::trim).collect();
                generated += lines
                    .windows(2)
                    .filter(|pair| pair[0].contains("missing_trait_methods") && pair[1].contains("for $d layer"))
                    .count();
            }
        }
    }
    for (name, denied) in &impls.found {
        assert!(denied, "`impl {name}` needs #[deny(clippy::missing_trait_methods)]");
    }
    // The cache, the encrypting layer and the SQLite store.
    assert!(impls.found.len() >= 15 && impls.found.len().is_multiple_of(TRAITS.len()), "{:?}", impls.found);
    assert_eq!(generated, 1);
}

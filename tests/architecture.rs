//! The order of the modules in `src/`: which file may import which.
//!
//! `docs/architecture.md` draws the order; this test reads it there and holds the imports of every file against it. It
//! resolves re-exports, so that a name counts as imported from the file that defines it.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a failure is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::Visit;

/// More than this and a file has a second job, or a function a second step.
const MOST_LINES_OF_A_FILE: usize = 600;
const MOST_LINES_OF_A_FUNCTION: usize = 60;

/// Functions that are one list or one `match`, and that splitting would not make easier to read.
const LONG_FUNCTIONS: [&str; 0] = [];

/// The names of a module: what each of them stands for.
enum Name {
    Module(usize),
    Here,
    Import(Vec<String>),
}

/// A module of the crate. Modules without a file of their own count as part of the file around them.
struct Module {
    file: PathBuf,
    parent: Option<usize>,
    names: BTreeMap<String, Name>,
    globs: Vec<Vec<String>>,
    /// Paths that the module names, with the line of each.
    paths: Vec<(Vec<String>, usize)>,
}

#[derive(Default)]
struct Crate {
    modules: Vec<Module>,
    functions: Vec<(PathBuf, String, usize)>,
}

/// One file imports another: the line, and the name it imports.
type Imports = BTreeMap<(PathBuf, PathBuf), (usize, String)>;

fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

/// What can be named in a file and where it names something else.
struct Reader<'a> {
    krate: &'a mut Crate,
    module: usize,
}

impl Reader<'_> {
    fn name(&mut self, name: &syn::Ident, what: Name) {
        self.krate.modules[self.module].names.entry(name.to_string()).or_insert(what);
    }

    fn path(&mut self, path: Vec<String>, line: usize) {
        self.krate.modules[self.module].paths.push((path, line));
    }

    fn use_tree(&mut self, tree: &syn::UseTree, mut path: Vec<String>) {
        let line = tree.span().start().line;
        match tree {
            syn::UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                self.use_tree(&tree.tree, path);
            }
            syn::UseTree::Name(tree) => {
                let name = match tree.ident.to_string().as_str() {
                    "self" => path.last().cloned().unwrap_or_default(),
                    name => {
                        path.push(name.to_owned());
                        name.to_owned()
                    }
                };
                self.import(name, path, line);
            }
            syn::UseTree::Rename(tree) => {
                if tree.ident != "self" {
                    path.push(tree.ident.to_string());
                }
                self.import(tree.rename.to_string(), path, line);
            }
            syn::UseTree::Glob(_) => {
                self.krate.modules[self.module].globs.push(path.clone());
                self.path(path, line);
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.use_tree(tree, path.clone());
                }
            }
        }
    }

    fn import(&mut self, name: String, path: Vec<String>, line: usize) {
        self.krate.modules[self.module].names.entry(name).or_insert_with(|| Name::Import(path.clone()));
        self.path(path, line);
    }

    /// The paths in the tokens of a macro, which the parser does not look into.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        let mut start = 0;
        for token in tokens {
            match &token {
                TokenTree::Ident(ident) if path.is_empty() || colons == 2 => {
                    if path.is_empty() {
                        start = ident.span().start().line;
                    }
                    path.push(ident.to_string());
                    colons = 0;
                    continue;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => {
                    colons += 1;
                    continue;
                }
                _ => {}
            }
            self.end_of_path(&mut path, start);
            colons = 0;
            match token {
                TokenTree::Ident(ident) => {
                    start = ident.span().start().line;
                    path.push(ident.to_string());
                }
                TokenTree::Group(group) if group.delimiter() != Delimiter::None || !group.stream().is_empty() => {
                    self.tokens(group.stream());
                }
                _ => {}
            }
        }
        self.end_of_path(&mut path, start);
    }

    fn end_of_path(&mut self, path: &mut Vec<String>, line: usize) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            self.path(path, line);
        }
    }

    fn function(&mut self, name: &syn::Ident, lines: std::ops::RangeInclusive<usize>) {
        let file = self.krate.modules[self.module].file.clone();
        self.krate.functions.push((file, name.to_string(), lines.count()));
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let (attributes, name) = match item {
            syn::Item::Const(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Enum(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
            syn::Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
            syn::Item::Static(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Struct(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Trait(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Type(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Use(item) => (&item.attrs, None),
            syn::Item::Impl(item) => (&item.attrs, None),
            syn::Item::Mod(item) => (&item.attrs, None),
            _ => return,
        };
        if is_test_only(attributes) {
            return;
        }
        if let Some(name) = name {
            self.name(name, Name::Here);
        }
        syn::visit::visit_item(self, item);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if is_test_only(&function.attrs) {
            return;
        }
        self.function(&function.sig.ident, function.sig.span().start().line..=function.block.span().end().line);
        syn::visit::visit_impl_item_fn(self, function);
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.function(&function.sig.ident, function.sig.span().start().line..=function.block.span().end().line);
        syn::visit::visit_item_fn(self, function);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let file = self.krate.modules[self.module].file.clone();
        let file = match &item.content {
            Some(_) => file,
            None => file_of(&file, &item.ident.to_string()),
        };
        let module = self.krate.read(file, Some(self.module), item);
        self.name(&item.ident, Name::Module(module));
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&item.tree, Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 && path.leading_colon.is_none() {
            let names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.path(names, path.span().start().line);
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone());
        syn::visit::visit_macro(self, call);
    }
}

/// The file of `mod name;` in `file`.
fn file_of(file: &Path, name: &str) -> PathBuf {
    let folder = match file.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") => file.parent().unwrap().to_owned(),
        _ => file.with_extension(""),
    };
    let flat = folder.join(name).with_extension("rs");
    if flat.exists() { flat } else { folder.join(name).join("mod.rs") }
}

impl Crate {
    fn root(file: &Path) -> Self {
        let mut krate = Self::default();
        let parsed = syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap();
        krate.read_items(file.to_owned(), None, &parsed.items);
        krate
    }

    fn read(&mut self, file: PathBuf, parent: Option<usize>, item: &syn::ItemMod) -> usize {
        match &item.content {
            Some((_, items)) => self.read_items(file, parent, items),
            None => {
                let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                let parsed = syn::parse_file(&text).unwrap();
                self.read_items(file, parent, &parsed.items)
            }
        }
    }

    fn read_items(&mut self, file: PathBuf, parent: Option<usize>, items: &[syn::Item]) -> usize {
        let module = self.modules.len();
        self.modules.push(Module { file, parent, names: BTreeMap::new(), globs: Vec::new(), paths: Vec::new() });
        let mut reader = Reader { krate: self, module };
        for item in items {
            reader.visit_item(item);
        }
        module
    }

    /// The module that defines what `path` names in `module`; nothing if that is another crate.
    fn definition(&self, module: usize, path: &[String], seen: &mut BTreeSet<(usize, String)>) -> Option<usize> {
        let (first, rest) = path.split_first()?;
        let next = match first.as_str() {
            "crate" => Some(0),
            "self" => Some(module),
            "super" => self.modules[module].parent,
            _ => None,
        };
        if let Some(next) = next {
            return if rest.is_empty() { Some(next) } else { self.definition(next, rest, seen) };
        }
        match self.modules[module].names.get(first) {
            Some(Name::Module(child)) if rest.is_empty() => Some(*child),
            Some(Name::Module(child)) => self.definition(*child, rest, seen),
            Some(Name::Here) => Some(module),
            Some(Name::Import(import)) => {
                if !seen.insert((module, first.clone())) {
                    return None;
                }
                let import: Vec<String> = import.iter().chain(rest).cloned().collect();
                // The names of other crates are imported as well.
                self.definition(module, &import, seen)
            }
            None => self.modules[module].globs.iter().find_map(|glob| {
                if !seen.insert((module, glob.join("::") + first)) {
                    return None;
                }
                let path: Vec<String> = glob.iter().chain(path).cloned().collect();
                self.definition(module, &path, seen)
            }),
        }
    }

    fn imports(&self, source: &Path) -> Imports {
        let mut imports = Imports::new();
        for (number, module) in self.modules.iter().enumerate() {
            for (path, line) in &module.paths {
                let Some(from) = self.definition(number, path, &mut BTreeSet::new()) else { continue };
                let from = &self.modules[from].file;
                if *from == module.file {
                    continue;
                }
                let files = (relative(&module.file, source), relative(from, source));
                imports.entry(files).or_insert_with(|| (*line, path.join("::")));
            }
        }
        imports
    }
}

fn relative(file: &Path, source: &Path) -> PathBuf {
    file.strip_prefix(source).unwrap().to_owned()
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The files that can be reached from `file` by imports.
fn reached(file: &Path, imports: &Imports) -> BTreeSet<PathBuf> {
    let mut reached = BTreeSet::new();
    let mut open = vec![file.to_owned()];
    while let Some(file) = open.pop() {
        for ((_, from), _) in imports.iter().filter(|((into, _), _)| *into == file) {
            if reached.insert(from.clone()) {
                open.push(from.clone());
            }
        }
    }
    reached
}

#[test]
fn no_file_imports_itself_through_others() {
    let source = source();
    let imports = Crate::root(&source.join("lib.rs")).imports(&source);
    let mut circles = String::new();
    for ((into, from), (line, name)) in &imports {
        if reached(from, &imports).contains(into) {
            writeln!(
                circles,
                "src/{}:{line} imports {name} of src/{}, which imports it in turn",
                into.display(),
                from.display()
            )
            .unwrap();
        }
    }
    assert!(circles.is_empty(), "circles of imports:\n{circles}");
}

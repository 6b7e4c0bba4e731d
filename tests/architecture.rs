//! The order of the modules in `src/`: which file may import which.
//!
//! `docs/architecture.md` has a table of the order. This test reads the table and checks the imports of every file
//! against it. It resolves re-exports, so a name counts as imported from the file that defines it.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a failure is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::Visit;

/// The most lines of a file and of a function. A longer file has a second job, and a longer function a second step.
const MOST_LINES_OF_A_FILE: usize = 600;
const MOST_LINES_OF_A_FUNCTION: usize = 60;

/// Functions that consist of one list or one `match`. Splitting them would not make them easier to read.
const LONG_FUNCTIONS: [&str; 2] = ["testing/arguments.rs::call", "testing/arguments.rs::numbered"];

/// The meaning of a name in a module.
enum Name {
    Module(usize),
    Here,
    /// Defined in this module, in tests only.
    TestOnly,
    Import(Vec<String>),
}

/// A module of the crate. A module without its own file counts as part of the file around it.
struct Module {
    file: PathBuf,
    parent: Option<usize>,
    names: BTreeMap<String, Name>,
    globs: Vec<Vec<String>>,
    /// The paths in the module, each with its line.
    paths: Vec<(Vec<String>, usize)>,
}

#[derive(Default)]
struct Crate {
    modules: Vec<Module>,
    functions: Vec<(PathBuf, String, usize)>,
}

/// For two files, of which one imports from the other: the line of the import, and the imported name.
type Imports = BTreeMap<(PathBuf, PathBuf), (usize, String)>;

fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

/// Collects the names that a file defines and imports, and the paths that it uses.
struct Reader<'a> {
    krate: &'a mut Crate,
    module: usize,
}

impl Reader<'_> {
    fn name(&mut self, name: &syn::Ident, what: Name) {
        let names = &mut self.krate.modules[self.module].names;
        match what {
            Name::TestOnly => drop(names.entry(name.to_string()).or_insert(what)),
            what => drop(names.insert(name.to_string(), what)),
        }
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

    /// Collects the paths in the tokens of a macro, which the parser skips.
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
            syn::Item::Mod(item) => (&item.attrs, Some(&item.ident)),
            _ => return,
        };
        let what = if is_test_only(attributes) { Name::TestOnly } else { Name::Here };
        let is_over = matches!(what, Name::TestOnly);
        if let Some(name) = name {
            self.name(name, what);
        }
        if is_over {
            return;
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

    /// `pub(in crate::…)` is not an import.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

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

    /// The module that defines the name `path` in `module`; `None` if another crate does. If the path leads to a
    /// module that does not contain the name, a macro defines it there.
    fn definition(
        &self,
        module: usize,
        path: &[String],
        led: bool,
        seen: &mut BTreeSet<(usize, String)>,
    ) -> Option<usize> {
        let (first, rest) = path.split_first()?;
        let next = match first.as_str() {
            "crate" => Some(0),
            "self" => Some(module),
            "super" => self.modules[module].parent,
            _ => None,
        };
        if let Some(next) = next {
            return if rest.is_empty() { Some(next) } else { self.definition(next, rest, true, seen) };
        }
        match self.modules[module].names.get(first) {
            Some(Name::Module(child)) if rest.is_empty() => Some(*child),
            Some(Name::Module(child)) => self.definition(*child, rest, true, seen),
            Some(Name::Here) => Some(module),
            Some(Name::TestOnly) => None,
            Some(Name::Import(import)) => {
                if !seen.insert((module, first.clone())) {
                    return None;
                }
                let import: Vec<String> = import.iter().chain(rest).cloned().collect();
                self.definition(module, &import, false, seen)
            }
            None => {
                let by_glob = self.modules[module].globs.iter().find_map(|glob| {
                    if !seen.insert((module, glob.join("::") + first)) {
                        return None;
                    }
                    let path: Vec<String> = glob.iter().chain(path).cloned().collect();
                    self.definition(module, &path, false, seen)
                });
                by_glob.or(led.then_some(module))
            }
        }
    }

    fn imports(&self, source: &Path) -> Imports {
        let mut imports = Imports::new();
        for (number, module) in self.modules.iter().enumerate() {
            for (path, line) in &module.paths {
                let Some(from) = self.definition(number, path, false, &mut BTreeSet::new()) else { continue };
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

/// The files that `file` imports, directly or through other files.
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

/// The library and the command, which are two crates.
fn crates() -> [(Crate, PathBuf); 2] {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let command = source.join("bin/wastore");
    [(Crate::root(&source.join("lib.rs")), source), (Crate::root(&command.join("main.rs")), command)]
}

#[test]
fn no_file_imports_itself_through_others() {
    let mut circles = String::new();
    for (krate, source) in crates() {
        let imports = krate.imports(&source);
        for ((into, from), (line, name)) in &imports {
            if reached(from, &imports).contains(into) {
                let (into, from) = (source.join(into), source.join(from));
                writeln!(
                    circles,
                    "{}:{line} imports {name} of {}, which imports it in turn",
                    into.display(),
                    from.display()
                )
                .unwrap();
            }
        }
    }
    assert!(circles.is_empty(), "circular imports:\n{circles}");
}

/// The table of modules in `docs/architecture.md`: each module with the text of the column `may import`.
fn order() -> BTreeMap<String, Vec<String>> {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let document = fs::read_to_string(document).unwrap();
    let table = document.split("| module | may import | job |").nth(1).unwrap().split("\n\n").next().unwrap();
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let mut order = BTreeMap::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split('|').collect();
        for module in quoted(cells[1]) {
            let twice = order.insert(module.clone(), quoted(cells[2]));
            assert!(twice.is_none(), "docs/architecture.md has two rows for {module}");
        }
    }
    order
}

/// The top-level module that a file belongs to.
fn module_of(file: &Path) -> String {
    let first = file.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn imports_keep_to_the_documented_order() {
    let order = order();
    let [(krate, source), _] = crates();
    let mut upwards = String::new();
    for ((into, from), (line, name)) in krate.imports(&source) {
        let (upper, lower) = (module_of(&into), module_of(&from));
        // The root defines only exported macros.
        if upper == lower || [&*upper, &*lower].contains(&"lib") {
            continue;
        }
        let allowed = order.get(&upper).unwrap_or_else(|| panic!("docs/architecture.md has no row for {upper}"));
        let allows =
            |entry: &String| *entry == lower || name.ends_with(entry) && entry.starts_with(&format!("{lower}::"));
        if !allowed.iter().any(allows) {
            writeln!(upwards, "src/{}:{line} imports {name} of {lower}", into.display()).unwrap();
        }
    }
    assert!(upwards.is_empty(), "docs/architecture.md does not allow:\n{upwards}");
}

/// The table must not be circular: no module may import a module that may import it.
#[test]
fn the_documented_order_has_no_circle() {
    let order = order();
    let mut below = BTreeMap::new();
    for (module, allowed) in &order {
        for entry in allowed {
            let lower = entry.split("::").next().unwrap();
            assert!(order.contains_key(lower), "docs/architecture.md has no row for {lower}");
            below.insert((PathBuf::from(module), PathBuf::from(lower)), (0, entry.clone()));
        }
    }
    for module in order.keys().map(PathBuf::from) {
        assert!(!reached(&module, &below).contains(&module), "{} is above itself", module.display());
    }
}

#[test]
fn files_and_functions_have_one_job() {
    let mut too_long = String::new();
    for (krate, source) in crates() {
        for file in krate.modules.iter().map(|module| &module.file).collect::<BTreeSet<_>>() {
            let lines = fs::read_to_string(file).unwrap().lines().count();
            if lines > MOST_LINES_OF_A_FILE {
                writeln!(too_long, "{} has {lines} lines", file.display()).unwrap();
            }
        }
        for (file, name, lines) in &krate.functions {
            let place = format!("{}::{name}", relative(file, &source).display());
            if *lines > MOST_LINES_OF_A_FUNCTION && !LONG_FUNCTIONS.contains(&&*place) {
                writeln!(too_long, "{place} has {lines} lines").unwrap();
            }
        }
    }
    assert!(too_long.is_empty(), "too long:\n{too_long}");
}

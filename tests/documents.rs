//! The documents: their length, their links, the commands that they show, and their words.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a failure is a failed test")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MOST_WORDS_OF_THE_README: usize = 1500;

/// Words that hide who acts, or that English has a plainer word for.
const AVOIDED: [&str; 9] = ["nobody", "somebody", "anybody", "someone", "whoever", "anew", "he", "his", "himself"];

/// Sentences do not begin with these.
const AVOIDED_AT_THE_START: [&str; 2] = ["What", "Whoever"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// All files below these folders and files with an extension, without what others wrote or a build made.
fn files(of: &[&str], extension: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut open: Vec<PathBuf> = of.iter().map(|name| root().join(name)).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let skipped = ["target", "golden", "corpus", "node_modules"];
            let entries = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
            open.extend(entries.filter(|entry| !skipped.iter().any(|name| entry.ends_with(name))));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn documents() -> Vec<PathBuf> {
    let names = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "RELEASING.md"];
    let documents = files(&[&names[..], &["docs", "benches", "examples", ".github"]].concat(), "md");
    assert!(documents.len() > 15, "{documents:?}");
    documents
}

fn sources() -> Vec<PathBuf> {
    files(&["src", "tests", "examples", "benches", "fuzz/fuzz_targets"], "rs")
}

/// The text without code blocks, line by line.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            return None;
        }
        (!is_code).then_some((number + 1, line))
    })
}

#[test]
fn the_readme_is_short() {
    let words = fs::read_to_string(root().join("README.md")).unwrap().split_whitespace().count();
    assert!(words <= MOST_WORDS_OF_THE_README, "README.md has {words} words");
}

/// The anchor that a heading gets on the repository's site.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    prose(text)
        .filter(|(_, line)| line.starts_with('#'))
        .map(|(_, line)| anchor(line.trim_start_matches('#')))
        .collect()
}

/// The targets of links in a line.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = String::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for (number, line) in prose(&text) {
            for link in links(line) {
                // Items of the crate are checked when its docs are built.
                if link.contains("://") || link.starts_with("crate::") || link.starts_with("mailto:") {
                    continue;
                }
                let (path, heading) = link.split_once('#').unwrap_or((link, ""));
                let target = if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
                let leads = match fs::read_to_string(&target) {
                    Ok(text) => heading.is_empty() || anchors(&text).contains(heading),
                    Err(_) => target.is_dir() && heading.is_empty(),
                };
                if !leads {
                    writeln!(broken, "{}:{number}: {link}", document.display()).unwrap();
                }
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{broken}");
}

/// The commands of `wastore` that a document shows in blocks of a shell, without their output.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut commands = vec![];
    let mut shell = None;
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            shell = match shell {
                Some(_) => None,
                None => Some(language.trim().to_owned()),
            };
            continue;
        }
        let line = match shell.as_deref() {
            Some("sh" | "bash") => line.trim(),
            Some("console") => match line.trim().strip_prefix("$ ") {
                Some(line) => line,
                None => continue,
            },
            _ => continue,
        };
        if let Some(arguments) = line.strip_prefix("wastore ") {
            commands.push(arguments.split_whitespace().map(str::to_owned).collect());
        }
    }
    commands
}

#[test]
fn every_command_shown_exists() {
    let mut shown = 0;
    for document in documents() {
        for command in commands(&fs::read_to_string(&document).unwrap()) {
            shown += 1;
            let is_word = |word: &&String| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            let mut help = None;
            // One subcommand, or two.
            for words in [2, 1] {
                let words: Vec<_> = command.iter().take(words).take_while(is_word).collect();
                let output = Command::new(env!("CARGO_BIN_EXE_wastore")).args(words).arg("--help").output().unwrap();
                if output.status.success() {
                    help = Some(String::from_utf8(output.stdout).unwrap());
                    break;
                }
            }
            let name = document.display();
            let help = help.unwrap_or_else(|| panic!("{name} shows `wastore {}`", command.join(" ")));
            for option in command.iter().filter(|word| word.starts_with("--")) {
                let option = option.split('=').next().unwrap();
                assert!(help.contains(option), "{name} shows `wastore {}`: no {option}", command.join(" "));
            }
        }
    }
    assert!(shown > 10, "{shown}");
}

/// The words that a line has and should not. Code between backticks is no prose.
fn avoided(line: &str) -> Vec<String> {
    line.split('`').step_by(2).flat_map(avoided_in).collect()
}

fn avoided_in(prose: &str) -> Vec<String> {
    let words = prose.split(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | '\''));
    let words = words.filter(|word| AVOIDED.contains(&word.to_lowercase().trim_end_matches("'s")));
    let mut found: Vec<String> = words.map(str::to_owned).collect();
    // A line may continue a sentence, so only those behind the end of another one are looked at, and items of lists.
    let sentences = prose.split(". ").skip(usize::from(!prose.starts_with("* ")));
    for sentence in sentences {
        let first = sentence.trim_start_matches(['*', ' ']).split(' ').next().unwrap_or_default();
        found.extend(AVOIDED_AT_THE_START.contains(&first).then(|| first.to_owned()));
    }
    found
}

#[test]
fn documents_and_sources_avoid_words_that_hide_the_actor() {
    let mut found = String::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for (number, line) in prose(&text) {
            for word in avoided(line) {
                writeln!(found, "{}:{number}: {word}", document.display()).unwrap();
            }
        }
    }
    for source in sources().iter().filter(|source| !source.ends_with("tests/documents.rs")) {
        let text = fs::read_to_string(source).unwrap();
        for (number, line) in text.lines().enumerate() {
            for word in avoided(line) {
                writeln!(found, "{}:{}: {word}", source.display(), number + 1).unwrap();
            }
        }
    }
    assert!(found.is_empty(), "see the rules of prose in CONTRIBUTING.md:\n{found}");
}

/// A test name is a plain statement.
const MOST_CHARACTERS_OF_A_TEST_NAME: usize = 60;

#[test]
fn test_names_are_short() {
    let mut too_long = vec![];
    for source in sources() {
        let text = fs::read_to_string(&source).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            let name = line.split_once("fn ").and_then(|(_, rest)| rest.split('(').next());
            if let (true, Some(name)) = (is_test, name) {
                is_test = false;
                if name.len() > MOST_CHARACTERS_OF_A_TEST_NAME {
                    too_long.push(name.to_owned());
                }
            }
        }
    }
    assert!(too_long.is_empty(), "{too_long:#?}");
}

//! Completions and manual pages, compared with the list of `--help`.

use super::*;

/// The subcommands below a command, each with the commands above it.
fn subcommands(desk: &Desk, above: &[String]) -> Vec<Vec<String>> {
    let help = desk.ok(&format!("{} --help", above.join(" ")));
    let Some((_, listed)) = help.split_once("\nCommands:\n") else { return vec![] };
    let listed = listed.lines().take_while(|line| !line.is_empty());
    let names = listed.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names
        .flat_map(|name| {
            let path = [above, &[name.to_owned()]].concat();
            let below = subcommands(desk, &path);
            std::iter::once(path).chain(below).collect::<Vec<_>>()
        })
        .collect()
}

fn all_subcommands(desk: &Desk) -> Vec<Vec<String>> {
    let all = subcommands(desk, &[]);
    assert!(all.len() > 25 && all.contains(&vec!["keys".to_owned(), "add".to_owned()]), "{all:?}");
    all
}

#[test]
fn completions_know_every_subcommand() {
    let desk = Desk::new();
    let all = all_subcommands(&desk);
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = desk.ok(&format!("completions {shell}"));
        for path in &all {
            let name = path.last().unwrap();
            let mut words = script.split(|character: char| !character.is_alphanumeric() && character != '-');
            assert!(words.any(|word| word == name), "{shell}: {path:?}");
        }
    }
    let (code, said) = desk.fails("completions tcsh");
    assert!(code == 2 && said.contains("invalid value 'tcsh'"), "{code} {said}");
}

#[cfg(unix)]
#[test]
fn completions_are_scripts_of_their_shell() {
    let desk = Desk::new();
    for shell in ["bash", "fish", "zsh"] {
        desk.write("script", &desk.ok(&format!("completions {shell}")));
        // Shells that are not installed print nothing.
        if let Ok(checked) = Command::new(shell).arg("-n").arg(desk.path("script")).output() {
            assert!(checked.status.success(), "{shell}: {}", String::from_utf8_lossy(&checked.stderr));
        }
    }
}

#[test]
fn every_subcommand_has_a_manual_page() {
    let desk = Desk::new();
    desk.ok("man --dir pages/man1");
    // Pages of an older release are replaced.
    desk.write("pages/man1/wastore.1", "old");
    assert_eq!(desk.ok("man --dir pages/man1"), "");
    let mut expected: Vec<_> =
        all_subcommands(&desk).iter().map(|path| format!("wastore-{}.1", path.join("-"))).collect();
    expected.push("wastore.1".to_owned());
    let pages = std::fs::read_dir(desk.path("pages/man1")).unwrap();
    let mut pages: Vec<_> = pages.map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    expected.sort();
    pages.sort();
    assert_eq!(pages, expected);

    let page = |name: &str| std::fs::read_to_string(desk.path("pages/man1").join(name)).unwrap();
    assert_eq!(page("wastore.1"), desk.ok("man"));
    assert!(page("wastore.1").contains("Exit codes:"));
    assert!(page("wastore-keys-add.1").contains("recovery"));

    desk.write("taken", "");
    let (code, said) = desk.fails("man --dir taken");
    assert!(code == 5 && said.contains("the manual pages cannot be written: taken"), "{code} {said}");
}

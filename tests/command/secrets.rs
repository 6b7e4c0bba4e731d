//! The sources of secrets: files, descriptors, variables and the terminal, and never the command
//! line.

use super::*;

#[test]
fn secrets_never_come_from_the_command_line() {
    let desk = Desk::new();
    let mut init = desk.command("init wa.db --new-passphrase-env SECRET");
    assert!(init.env("SECRET", "correct horse battery staple").output().unwrap().status.success());
    desk.ok("verify wa.db --passphrase-file old");
    let (code, error) = desk.fails("verify wa.db");
    assert!(code == 2 && error.contains("no terminal to ask for a passphrase"), "{error}");
    assert_eq!(desk.fails("verify wa.db --passphrase secret").0, 2);
    assert_eq!(desk.fails("verify wa.db --passphrase-file old --key-file key").0, 2, "one of them");
    assert_eq!(desk.fails("verify wa.db --passphrase-file nowhere").0, 5);
}

#[cfg(unix)]
#[test]
fn a_descriptor_is_read_from_where_it_is() {
    use std::io::{Seek, SeekFrom, Write};
    let desk = Desk::new();
    desk.ok("init wa.db --new-passphrase-file old");
    let verified = |mut command: Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    // A file that was already read up to some position.
    desk.write("both", "a line before\ncorrect horse battery staple\n");
    let mut file = std::fs::File::open(desk.path("both")).unwrap();
    file.seek(SeekFrom::Start(14)).unwrap();
    let mut command = desk.command("verify wa.db --passphrase-fd 0");
    command.stdin(file);
    verified(command);
    // A socket, which has no name in any folder.
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.write_all(b"correct horse battery staple\n").unwrap();
    drop(ours);
    let mut command = desk.command("verify wa.db --passphrase-fd 0");
    command.stdin(std::os::fd::OwnedFd::from(theirs));
    verified(command);
    // A pipe, and a file that the command itself may not open.
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_wastore")]).current_dir(desk.folder.path());
        command.stdin(Stdio::null());
        command
    };
    verified(shell("cat old | { exec 5<&0; exec \"$0\" verify wa.db --passphrase-fd 5; }"));
    verified(shell("exec 7<old; chmod 0 old; exec \"$0\" verify wa.db --passphrase-fd 7"));
    for (number, why) in [("9", "no such descriptor is open"), ("-1", "no such descriptor"), ("x", "must be a number")]
    {
        let output = desk.command("verify wa.db").arg(format!("--passphrase-fd={number}")).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && error.contains(why), "{number}: {error}");
    }
}

#[test]
fn a_cost_that_others_refuse_is_not_taken() {
    let desk = Desk::new();
    for cost in ["--kdf-memory 257", "--kdf-memory 4294967295", "--kdf-memory 64 --kdf-passes 17", "--kdf-memory 0"] {
        let (code, error) = desk.fails(&format!("init wa.db --new-passphrase-file old {cost}"));
        assert!(code == 2 && !desk.path("wa.db").exists(), "{cost}: {code} {error}");
    }
    desk.ok("init wa.db --new-passphrase-file old --kdf-memory 256 --kdf-passes 1");
    desk.ok("verify wa.db --quick --passphrase-file old");
    // A program with higher limits may have made such a slot.
    wait(async {
        let store = SqliteStore::open(desk.path("wa.db")).await.unwrap();
        let vault = open_account(&store, &VaultOptions::new(), old()).await.unwrap();
        let options = VaultOptions::new().kdf_cost(Argon2Cost::new(257 << 10, 1, 4).unwrap());
        let vault = options.open(&store, vault.add_recovery_key().await.unwrap()).await.unwrap();
        vault.add_slot("costly", Passphrase::new("quite another passphrase").unwrap()).await.unwrap();
    });
    let (code, error) = desk.fails("verify wa.db --quick --passphrase-file new");
    assert!(code == 1 && error.contains("`--kdf-memory 256`"), "{code}: {error}");
    desk.ok("verify wa.db --quick --passphrase-file new --kdf-memory 65 --kdf-passes 1");
}

#[test]
fn a_recovery_key_that_was_not_added_is_void() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    for arguments in [&format!("--label {}", "x".repeat(33)), ""] {
        if arguments.is_empty() {
            (1..8).for_each(|_| drop(desk.ok("keys add wa.db --key-file key --recovery")));
        }
        let (code, error) = desk.fails(&format!("keys add wa.db --key-file key --recovery {arguments}"));
        assert!(code == 1 && error.contains("opens nothing: throw it away"), "{code}: {error}");
    }
}

#[cfg(unix)]
#[test]
fn files_with_secrets_are_for_their_owner() {
    use std::os::unix::fs::PermissionsExt;
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    desk.ok("keys add wa.db --key-file key --new-passphrase-file old");
    desk.write("recovery", &desk.ok("keys add wa.db --key-file key --recovery"));
    for (file, option) in [("key", "--key-file"), ("old", "--passphrase-file"), ("recovery", "--recovery-key-file")] {
        for mode in [0o644, 0o660, 0o604, 0o602, 0o620] {
            std::fs::set_permissions(desk.path(file), PermissionsExt::from_mode(mode)).unwrap();
            let (code, error) = desk.fails(&format!("verify wa.db {option} {file}"));
            assert!(code == 5 && error.contains("other users: run chmod 600"), "{file} {mode:o}: {code}: {error}");
        }
        std::fs::set_permissions(desk.path(file), PermissionsExt::from_mode(0o400)).unwrap();
        desk.ok(&format!("verify wa.db {option} {file}"));
        // Root chooses the group.
        std::fs::set_permissions(desk.path(file), PermissionsExt::from_mode(0o640)).unwrap();
        let opens = desk.run(&format!("verify wa.db {option} {file}")).status.success();
        assert_eq!(opens, rustix::process::geteuid().is_root(), "{file}");
    }
}

#[test]
fn keygen_makes_a_key_and_standard_input_gives_a_passphrase() {
    let desk = Desk::new();
    desk.ok("keygen random");
    assert_eq!(desk.fails("keygen random").0, 5, "never over another file");
    #[cfg(unix)]
    assert_private(desk.path("random"));
    desk.ok("init wa.db --new-key-file random");
    let with_input = |arguments: &str| {
        let mut command = desk.command(arguments);
        command.stdin(std::fs::File::open(desk.path("old")).unwrap()).output().unwrap()
    };
    assert!(with_input("keys add wa.db --key-file random --new-passphrase-file -").status.success());
    assert!(with_input("verify wa.db --passphrase-file -").status.success());
    desk.ok("verify wa.db --passphrase-file old");
    let (code, error) = desk.fails("verify wa.db --passphrase-file -");
    assert!(code == 1 && error.contains("standard input: passphrase must not be empty"), "{code}: {error}");
    desk.write("empty", "");
    for option in ["--passphrase-file", "--key-file", "--recovery-key-file"] {
        let (code, error) = desk.fails(&format!("verify wa.db {option} empty"));
        assert!(code == 1 && error.contains("empty: "), "{option}: {code}: {error}");
    }
    // To standard output, for example to `systemd-creds encrypt`, but not into the void.
    desk.write("piped", &desk.ok("keygen -"));
    desk.ok("keys add wa.db --key-file random --new-key-file piped");
    desk.ok("verify wa.db --quick --key-file piped");
    let void = desk.command("keygen -").stdout(Stdio::null()).output().unwrap();
    assert_eq!(void.status.code(), if cfg!(unix) { Some(2) } else { Some(0) });
}

#[test]
fn weak_secrets_are_refused_or_warned_of() {
    let desk = Desk::new();
    let sequence: String = (0..32).map(|byte| format!("{byte:02x}")).collect();
    desk.ok("init other.db --new-key-file key");
    for weak in [
        "0123456789abcdef0123456789abcdef",
        &"\0".repeat(32),
        &"00".repeat(32),
        "correct horse battery staple, 32",
        &sequence,
        &"5aa5".repeat(16),
    ] {
        desk.write("weak", weak);
        let (code, error) = desk.fails("init wa.db --new-key-file weak");
        assert!(code == 1 && error.contains("key file holds"), "{weak:?}: {code}: {error}");
        // A weak secret that already opens a store still opens it.
        let (code, error) = desk.fails("verify other.db --key-file weak");
        assert_eq!(code, 3, "{weak:?}: {error}");
    }
    let blank = [" ".repeat(20), "\u{200b}".repeat(20), "\n".repeat(9), "a".repeat(20), "\0".repeat(20)];
    let blank = blank.iter().map(|text| (text.as_str(), 2));
    for (short, code) in [("x", 2), ("sevenäö", 2), ("", 1), ("\n", 1)].into_iter().chain(blank) {
        desk.write("short", short);
        assert_eq!(desk.fails("init wa.db --new-passphrase-file short").0, code, "{short:?}");
        assert!(!desk.path("wa.db").exists());
    }
    for guessed in
        ["fourteen chars", "hunter2hunter2", "Whatsapp2026!", "qwertyuiop[]", "kate 14.02.1995", "wastore wastore"]
    {
        desk.write("short", guessed);
        let (code, error) = desk.fails("init wa.db --new-passphrase-file short");
        assert!(code == 2 && error.contains("quickly guessed") && error.contains("--weak-passphrase"), "{error}");
        assert!(!error.contains(guessed) && !desk.path("wa.db").exists(), "{error}");
    }
    // A few characters are refused, whatever the user says.
    desk.write("few", "zq7!Gx");
    assert!(desk.fails("init wa.db --new-passphrase-file few --weak-passphrase").1.contains("fewer than 8"));
    let output = desk.run("init wa.db --new-passphrase-file short --weak-passphrase");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && error.contains("warning: the new passphrase is quickly guessed"), "{error}");
    // An old passphrase opens the store even if it is weak.
    desk.ok("passwd wa.db --passphrase-file short --new-passphrase-file old");
}

#[test]
fn a_passphrase_is_the_same_however_its_accents_are_typed() {
    let desk = Desk::new();
    desk.write("composed", "Schlüssel für Ångström, 한글\n");
    desk.write(
        "decomposed",
        "Schlu\u{308}ssel fu\u{308}r A\u{30a}ngstro\u{308}m, \u{1112}\u{1161}\u{11ab}\u{1100}\u{1173}\u{11af}\n",
    );
    desk.write("neither", "Schlussel fur Angstrom, 한글\n");
    desk.ok("init wa.db --new-passphrase-file decomposed");
    desk.ok("verify wa.db --passphrase-file composed");
    desk.ok("verify wa.db --passphrase-file decomposed");
    assert_eq!(desk.fails("verify wa.db --passphrase-file neither").0, 3);
    // Opened as a bot does it.
    for text in ["composed", "decomposed"] {
        let secret = Passphrase::from_file(desk.path(text)).unwrap();
        assert_eq!(desk.session("wa.db", 1, secret), None);
    }
}

/// A source of a secret.
#[cfg(target_os = "linux")]
#[derive(Clone, Copy, Debug)]
enum Channel {
    File,
    StandardInput,
    Descriptor,
    Variable,
    Command,
    Credential,
    Terminal,
}

#[cfg(target_os = "linux")]
impl Channel {
    const ALL: [Self; 7] = [
        Self::File,
        Self::StandardInput,
        Self::Descriptor,
        Self::Variable,
        Self::Command,
        Self::Credential,
        Self::Terminal,
    ];

    /// Runs a command that reads a passphrase from this source; `new` is `new-` or empty.
    fn run(self, desk: &Desk, arguments: &str, new: &str, bytes: &[u8]) -> Option<i32> {
        desk.write_bytes("secret", bytes);
        let file = || std::fs::File::open(desk.path("secret")).unwrap();
        let option = match self {
            Self::File => format!("{arguments} --{new}passphrase-file secret"),
            Self::StandardInput => format!("{arguments} --{new}passphrase-file -"),
            Self::Descriptor => format!("{arguments} --{new}passphrase-fd 0"),
            Self::Variable => format!("{arguments} --{new}passphrase-env SECRET"),
            Self::Command => arguments.to_owned(),
            Self::Credential => format!("{arguments} --{new}credential secret"),
            Self::Terminal => {
                let mut terminal = Terminal::run(desk, arguments);
                let prompts = if new.is_empty() { &["passphrase: "][..] } else { &["new passphrase: ", "once more: "] };
                for prompt in prompts {
                    terminal.until(prompt);
                    terminal.type_in(std::str::from_utf8(bytes).unwrap());
                }
                let shown = terminal.rest();
                assert!(!shown.contains("horse"), "{shown}");
                return terminal.end();
            }
        };
        let mut command = desk.command(&option);
        match self {
            Self::StandardInput | Self::Descriptor => drop(command.stdin(file())),
            Self::Variable => {
                use std::os::unix::ffi::OsStrExt;
                command.env("SECRET", std::ffi::OsStr::from_bytes(bytes));
            }
            Self::Command => drop(command.arg(format!("--{new}passphrase-command")).arg("cat 'secret'")),
            Self::Credential => drop(command.env("CREDENTIALS_DIRECTORY", desk.path(""))),
            Self::File | Self::Terminal => {}
        }
        let output = command.output().unwrap();
        output.status.code()
    }

    /// Whether this source can carry the bytes.
    fn takes(self, bytes: &[u8]) -> bool {
        match self {
            Self::Variable => !bytes.contains(&0),
            // A keyboard has no byte order mark, and ends the line.
            Self::Terminal => {
                bytes.ends_with(b"\n") && !bytes.ends_with(b"\r\n") && !bytes.starts_with(b"\xef\xbb\xbf")
            }
            _ => true,
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_passphrase_is_the_same_by_every_channel() {
    let wide = |text: &str, bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
    let text = "correct horse battery staple";
    let plain = vec![
        text.as_bytes().to_vec(),
        format!("{text}\n").into_bytes(),
        format!("{text}\r\n").into_bytes(),
        format!("\u{feff}{text}\r\n").into_bytes(),
        wide(&format!("\u{feff}{text}\r\n"), u16::to_le_bytes),
        wide(&format!("\u{feff}{text}"), u16::to_be_bytes),
    ];
    let accents = ["Schlüssel der horse\n".as_bytes().to_vec(), "Schlu\u{308}ssel der horse\n".as_bytes().to_vec()];
    let secrets = [
        plain,
        accents.to_vec(),
        vec![b"a\thorse, a battery and a tab\n".to_vec()],
        vec![b" battery, horse and spaces  \n".to_vec()],
    ];
    let desk = Desk::new();
    for ways in &secrets {
        for creates in Channel::ALL {
            let created_from: Vec<_> = ways.iter().filter(|bytes| creates.takes(bytes)).collect();
            let bytes = created_from[created_from.len() / 2];
            std::fs::remove_file(desk.path("wa.db")).ok();
            let init = "init wa.db --kdf-memory 19 --kdf-passes 2";
            assert_eq!(creates.run(&desk, init, "new-", bytes), Some(0), "{creates:?}: {bytes:?}");
            for opens in Channel::ALL {
                for bytes in ways.iter().filter(|bytes| opens.takes(bytes)) {
                    let code = opens.run(&desk, "verify wa.db --quick", "", bytes);
                    assert_eq!(code, Some(0), "created by {creates:?}, opened by {opens:?}: {bytes:?}");
                }
            }
        }
    }
    // Other white space counts.
    assert_eq!(Channel::File.run(&desk, "verify wa.db", "", b"battery, horse and spaces\n"), Some(3));
}

#[cfg(unix)]
#[test]
fn credentials_of_systemd() {
    let desk = Desk::new();
    let with = |arguments: &str, folder: Option<&str>| {
        let mut command = desk.command(arguments);
        command.env_remove("CREDENTIALS_DIRECTORY");
        if let Some(folder) = folder {
            command.env("CREDENTIALS_DIRECTORY", folder);
        }
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let folder = desk.path("").to_str().unwrap().to_owned();
    let here = Some(folder.as_str());
    assert_eq!(with("init wa.db --new-key-credential key", here).0, Some(0));
    assert_eq!(with("verify wa.db --quick --key-credential key", here).0, Some(0));
    assert_eq!(with("keys add wa.db --key-credential key --new-credential old", here).0, Some(0));
    assert_eq!(with("verify wa.db --quick --credential old", here).0, Some(0));
    assert_eq!(with("verify wa.db --quick --credential new", here).0, Some(3));
    for (name, folder, problem) in [
        ("old", None, "LoadCredential="),
        ("old", Some("relative"), "LoadCredential="),
        ("../old", here, "must be named"),
        ("sub/old", here, "must be named"),
        ("..", here, "must be named"),
        ("..\\old", here, "must be named"),
        ("absent", here, "absent"),
    ] {
        let (code, text) = with(&format!("verify wa.db --quick --credential {name}"), folder);
        assert!(code != Some(0) && code != Some(3) && text.contains(problem), "{name}: {code:?} {text}");
    }
    // A new store is not created without its secret.
    assert_ne!(with("init other.db --new-credential absent", here).0, Some(0));
    assert!(!desk.path("other.db").exists());
}

#[cfg(unix)]
#[test]
fn a_command_that_prints_no_passphrase_is_named() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-passphrase-file old");
    for (command, problem) in [
        ("", "is empty"),
        ("cat 'old", "open quote"),
        ("no-such-program", "cannot be started"),
        ("false", "failed"),
        ("sh -c 'cat old; exit 3'", "failed"),
        ("true", "output of the command for the passphrase: passphrase must not be empty"),
        ("cat /dev/zero", "output of the command for the passphrase: passphrase is too long"),
        ("cat new", "wrong"),
    ] {
        let mut verify = desk.command("verify wa.db --quick");
        let output = verify.arg("--passphrase-command").arg(command).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(problem), "{command}: {text}");
        assert!(!text.contains("horse"), "{command}: {text}");
    }
}

#[cfg(unix)]
#[test]
fn an_interruption_ends_the_command_for_a_passphrase() {
    use rustix::process::{Pid, Signal, kill_process, test_kill_process};

    let desk = Desk::new();
    desk.ok("init wa.db --new-passphrase-file old");
    // The second one has closed its output, and goes on.
    for script in ["echo $$ >pid; exec sleep 100", "echo $$ >pid; cat old; exec sleep 100 >/dev/null"] {
        std::fs::remove_file(desk.path("pid")).ok();
        let mut verify = desk.command("verify wa.db --quick");
        let mut verify = verify.arg("--passphrase-command").arg(format!("sh -c '{script}'")).spawn().unwrap();
        let asked = loop {
            let pid = std::fs::read_to_string(desk.path("pid")).unwrap_or_default();
            match pid.strip_suffix('\n') {
                Some(pid) => break Pid::from_raw(pid.parse().unwrap()).unwrap(),
                None => std::thread::sleep(std::time::Duration::from_millis(10)),
            }
        };
        test_kill_process(asked).unwrap();
        kill_process(Pid::from_child(&verify), Signal::TERM).unwrap();
        assert_eq!(verify.wait().unwrap().code(), Some(130), "{script}");
        assert!(test_kill_process(asked).is_err(), "{script}: it still runs");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_command_for_a_passphrase_leaves_the_terminal_in_order() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-passphrase-file old");
    // The second one does not heed the signal.
    for (trap, heeds) in [("trap '>heeded; exit' TERM", true), ("trap '' TERM", false)] {
        let script = format!("{trap}; stty -echo </dev/tty; echo asks >/dev/tty; while :; do sleep 100 & wait; done");
        let asks = format!("sh -c \"{script}\"");
        let program = env!("CARGO_BIN_EXE_wastore");
        let mut terminal = Terminal::start(&desk, &[program, "verify", "wa.db", "--passphrase-command", &asks]);
        terminal.until("asks");
        assert!(!terminal.shows_what_is_typed(), "before it is interrupted");
        Command::new("kill").args(["-TERM", &terminal.running.id().to_string()]).status().unwrap();
        assert_eq!(terminal.end(), Some(130), "{trap}");
        assert_eq!(std::fs::remove_file(desk.path("heeded")).is_ok(), heeds, "{trap}");
    }
    // In the background, the terminal belongs to the shell, which may be changing it.
    let job = "set -m; \"$0\" verify wa.db --quick --passphrase-command 'cat old' & wait $!; echo code $?";
    let mut terminal = Terminal::start(&desk, &["sh", "-c", job, env!("CARGO_BIN_EXE_wastore")]);
    let shown = terminal.rest();
    assert!(shown.contains("sound") && shown.contains("code 0"), "{shown}");
    assert_eq!(terminal.end(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn a_recovery_key_is_the_same_by_every_channel() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    let key = desk.ok("keys add wa.db --key-file key --recovery");
    let key = key.trim();
    let typed = [
        key.to_owned(),
        key.replace('-', "\u{2013}"),
        key.replace('-', "\u{a0}"),
        format!("\u{201c}{key}\u{201d}"),
        format!("'{key}'"),
        format!("Recovery key of the bot: {key}"),
        key.to_lowercase().replace('-', ""),
    ];
    for text in typed {
        desk.write("recovery", &format!("{text}\n"));
        desk.ok("verify wa.db --quick --recovery-key-file recovery");
        let mut command = desk.command("verify wa.db --quick --recovery-key-file -");
        command.stdin(std::fs::File::open(desk.path("recovery")).unwrap());
        assert!(command.output().unwrap().status.success(), "{text}");
        let mut terminal = Terminal::run(&desk, "verify wa.db --quick --recovery-key");
        terminal.until("recovery key: ");
        terminal.type_in(&format!("{text}\n"));
        assert_eq!((terminal.rest().contains(key), terminal.end()), (false, Some(0)), "{text}");
    }
    let mut command = desk.command("verify wa.db --quick --key-file -");
    command.stdin(std::fs::File::open(desk.path("key")).unwrap());
    assert!(command.output().unwrap().status.success());
}

#[cfg(target_os = "linux")]
#[test]
fn the_terminal_is_asked_if_standard_input_is_redirected() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-passphrase-file old");
    let script = "exec \"$0\" verify wa.db --quick </dev/null >/dev/null";
    let mut terminal = Terminal::start(&desk, &["sh", "-c", script, env!("CARGO_BIN_EXE_wastore")]);
    terminal.until("passphrase: ");
    terminal.type_in("correct horse battery staple\n");
    terminal.rest();
    assert_eq!(terminal.end(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn a_line_that_is_cut_is_no_passphrase() {
    let desk = Desk::new();
    for typed in ["x".repeat(5000) + "\n", "half a passphrase\u{4}".to_owned()] {
        let mut terminal = Terminal::run(&desk, "init wa.db");
        terminal.until("new passphrase: ");
        terminal.type_in(&typed);
        let shown = terminal.rest();
        assert!(shown.contains("the line is incomplete"), "{shown}");
        assert_eq!(terminal.end(), Some(2));
        assert!(!desk.path("wa.db").exists());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_prompt_cannot_be_left_for_a_shell_with_echo() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-passphrase-file old");
    let mut terminal = Terminal::run(&desk, "verify wa.db --quick");
    terminal.until("passphrase: ");
    terminal.type_in("\u{1a}");
    assert!(!terminal.shows_what_is_typed());
    terminal.type_in("\u{15}correct horse battery staple\n");
    terminal.rest();
    assert_eq!(terminal.end(), Some(0));
}

#[test]
fn two_secrets_do_not_come_from_one_stream() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-passphrase-file old");
    for arguments in [
        "passwd wa.db --passphrase-file - --new-passphrase-file -",
        "passwd wa.db --passphrase-fd 0 --new-passphrase-file -",
        "keys add wa.db --passphrase-file - --new-key-file -",
        "revoke wa.db --passphrase-file - --new-passphrase-fd 0",
    ] {
        let (code, error) = desk.fails(arguments);
        assert!(code == 2 && error.contains("cannot come from the same stream"), "{arguments}: {code}: {error}");
    }
}

#[test]
fn a_new_passphrase_can_be_typed() {
    let desk = Desk::new();
    let wide: Vec<u8> = "correct horse battery staple\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for bytes in
        [&b"correct horse\nbattery staple"[..], b"correct horse battery \xe4", b"correct horse\x1bbattery", &wide]
    {
        desk.write_bytes("bytes", bytes);
        let (code, error) = desk.fails("init wa.db --new-passphrase-file bytes");
        assert!(code == 2 && error.contains("no one could type it"), "{bytes:?}: {code}: {error}");
    }
}

/// A key that opens the store, but that no one has seen, is worse than none.
#[cfg(unix)]
#[test]
fn a_recovery_key_that_cannot_be_shown_is_not_added() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    let add = "exec \"$0\" keys add wa.db --key-file key --recovery";
    for script in [format!("{{ sleep 1; {add}; }} | true"), format!("{add} >&-"), format!("{add} >/dev/null")] {
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_wastore")]).current_dir(desk.folder.path());
        command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(desk.ok("keys list wa.db").lines().count(), 2, "{script}");
    }
}

/// The command on its own terminal.
#[cfg(target_os = "linux")]
struct Terminal {
    screen: std::fs::File,
    terminal: std::fs::File,
    running: std::process::Child,
}

#[cfg(target_os = "linux")]
impl Terminal {
    fn run(desk: &Desk, arguments: &str) -> Self {
        let command: Vec<_> = [env!("CARGO_BIN_EXE_wastore")].into_iter().chain(arguments.split_whitespace()).collect();
        Self::start(desk, &command)
    }

    fn start(desk: &Desk, command: &[&str]) -> Self {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&screen).unwrap();
        unlockpt(&screen).unwrap();
        let path = ptsname(&screen, vec![]).unwrap().into_string().unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        let terminal = std::fs::File::from(rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap());
        let handle = || terminal.try_clone().unwrap();
        let mut running = Command::new("setsid");
        running.arg("--ctty").args(command).current_dir(desk.folder.path());
        let running = running.stdin(handle()).stdout(handle()).stderr(handle()).spawn().unwrap();
        Self { screen: screen.into(), terminal, running }
    }

    /// Reads the output up to this text.
    fn until(&mut self, text: &str) -> String {
        use std::io::Read;
        let mut shown = vec![];
        while !String::from_utf8_lossy(&shown).contains(text) {
            let mut byte = [0];
            self.screen.read_exact(&mut byte).unwrap();
            shown.extend(byte);
        }
        String::from_utf8(shown).unwrap()
    }

    /// Waits for the end of the command, and reads the rest of its output.
    fn rest(&mut self) -> String {
        use std::io::Read;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while self.running.try_wait().unwrap().is_none() {
            assert!(std::time::Instant::now() < deadline, "it waits for something");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        // The command prints little, and a terminal has room for it.
        std::io::Write::write_all(&mut self.terminal, b"\nend of the screen").unwrap();
        let mut shown = vec![];
        while !shown.ends_with(b"end of the screen") {
            let mut byte = [0];
            self.screen.read_exact(&mut byte).unwrap();
            shown.extend(byte);
        }
        String::from_utf8(shown).unwrap()
    }

    fn type_in(&mut self, text: &str) {
        std::io::Write::write_all(&mut self.screen, text.as_bytes()).unwrap();
    }

    fn shows_what_is_typed(&self) -> bool {
        let modes = rustix::termios::tcgetattr(&self.terminal).unwrap().local_modes;
        modes.contains(rustix::termios::LocalModes::ECHO | rustix::termios::LocalModes::ICANON)
    }

    fn end(mut self) -> Option<i32> {
        let code = self.running.wait().unwrap().code();
        assert!(self.shows_what_is_typed(), "the terminal was left as the prompt needs it");
        code
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_at_the_prompt_restores_the_terminal() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-passphrase-file old");
    for signal in ["INT", "TERM", "HUP", "QUIT"] {
        for arguments in ["verify wa.db", "init new.db", "passwd wa.db --passphrase-file old"] {
            let mut terminal = Terminal::run(&desk, arguments);
            terminal.until("passphrase: ");
            assert!(!terminal.shows_what_is_typed(), "before it asks");
            let killed = Command::new("kill").args([format!("-{signal}"), terminal.running.id().to_string()]).status();
            assert!(killed.unwrap().success());
            assert_eq!(terminal.end(), Some(130), "{signal}: {arguments}");
        }
    }
    let mut terminal = Terminal::run(&desk, "verify wa.db");
    terminal.until("passphrase: ");
    terminal.type_in("half of it\u{3}");
    assert_eq!(terminal.end(), Some(130), "Ctrl-C");
    // The command waits in the same way for a named pipe that no one writes to.
    Command::new("mkfifo").arg(desk.path("pipe")).status().unwrap();
    for arguments in ["verify wa.db --passphrase-file pipe", "header restore wa.db pipe --passphrase-file old"] {
        let terminal = Terminal::run(&desk, arguments);
        wait_until_it_listens(terminal.running.id());
        Command::new("kill").args(["-TERM", &terminal.running.id().to_string()]).status().unwrap();
        assert_eq!(terminal.end(), Some(130), "{arguments}");
    }
    assert_eq!(desk.files(|name| name.starts_with('.') || name == "new.db"), Vec::<String>::new());
}

#[cfg(target_os = "linux")]
#[test]
fn a_passphrase_is_typed_and_not_shown() {
    let desk = Desk::new();
    let mut terminal = Terminal::run(&desk, "init wa.db");
    terminal.until("new passphrase: ");
    terminal.type_in("correct horse battery staple\n");
    terminal.until("once more: ");
    terminal.type_in("correct horse battery staple\n");
    let shown = terminal.rest();
    assert!(shown.contains("was created") && !shown.contains("horse"), "{shown}");
    assert_eq!(terminal.end(), Some(0));
    desk.ok("verify wa.db --passphrase-file old");
}

#[cfg(target_os = "linux")]
#[test]
fn a_weak_passphrase_needs_a_yes() {
    let desk = Desk::new();
    for (answer, code) in [("no", 2), ("", 2), ("y", 2), ("yes", 0)] {
        let mut terminal = Terminal::run(&desk, "init wa.db");
        for prompt in ["new passphrase: ", "once more: "] {
            terminal.until(prompt);
            terminal.type_in("hunter2hunter2\n");
        }
        let asked = terminal.until("(yes or no): ");
        assert!(asked.contains("quickly guessed") && !asked.contains("hunter2"), "{asked}");
        terminal.type_in(&format!("{answer}\n"));
        terminal.rest();
        assert_eq!(terminal.end(), Some(code), "{answer}");
        assert_eq!(desk.path("wa.db").exists(), code == 0, "{answer}");
    }
    desk.write("weak", "hunter2hunter2");
    desk.ok("verify wa.db --passphrase-file weak");
}

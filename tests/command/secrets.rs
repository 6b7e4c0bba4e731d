//! How secrets come in: from files, descriptors, variables and the terminal, and never from the command line.

use super::*;

#[test]
fn secrets_come_from_files_descriptors_and_variables_and_never_from_the_command_line() {
    let desk = Desk::new();
    let mut init = desk.command("init wa.db --new-passphrase-env SECRET");
    assert!(init.env("SECRET", "correct horse battery staple").output().unwrap().status.success());
    desk.ok("verify wa.db --passphrase-file old");
    let (code, error) = desk.fails("verify wa.db");
    assert!(code == 2 && error.contains("no terminal to ask for a passphrase on"), "{error}");
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
    // A file that was read to some place before.
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
    for (number, why) in
        [("9", "no such descriptor is open"), ("-1", "no such descriptor"), ("x", "has to be a number")]
    {
        let output = desk.command("verify wa.db").arg(format!("--passphrase-fd={number}")).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && error.contains(why), "{number}: {error}");
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
        for mode in [0o644, 0o640, 0o604, 0o602, 0o620] {
            std::fs::set_permissions(desk.path(file), PermissionsExt::from_mode(mode)).unwrap();
            let (code, error) = desk.fails(&format!("verify wa.db {option} {file}"));
            assert!(code == 5 && error.contains("other users: run chmod 600"), "{file} {mode:o}: {code}: {error}");
        }
        std::fs::set_permissions(desk.path(file), PermissionsExt::from_mode(0o400)).unwrap();
        desk.ok(&format!("verify wa.db {option} {file}"));
    }
}

#[test]
fn a_key_file_is_made_and_a_passphrase_comes_from_standard_input() {
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
    assert_eq!(desk.fails("verify wa.db --passphrase-file -").0, 1, "nothing came");
}

#[test]
fn weak_secrets_are_refused_or_warned_of() {
    let desk = Desk::new();
    let sequence: String = (0..32).map(|byte| format!("{byte:02x}")).collect();
    for weak in [&"\0".repeat(32), &"00".repeat(32), "correct horse battery staple, 32", &sequence, &"5aa5".repeat(16)]
    {
        desk.write("weak", weak);
        let (code, error) = desk.fails("init wa.db --new-key-file weak");
        assert!(code == 1 && error.contains("key file holds"), "{weak:?}: {code}: {error}");
    }
    let blank = [" ".repeat(20), "\u{200b}".repeat(20), "\n".repeat(9), "a".repeat(20), "\0".repeat(20)];
    let blank = blank.iter().map(|text| (text.as_str(), 2));
    for (short, code) in [("x", 2), ("sevenäö", 2), ("", 1), ("\n", 1)].into_iter().chain(blank) {
        desk.write("short", short);
        assert_eq!(desk.fails("init wa.db --new-passphrase-file short").0, code, "{short:?}");
        assert!(!desk.path("wa.db").exists());
    }
    desk.write("short", "fourteen chars");
    let output = desk.run("init wa.db --new-passphrase-file short");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && error.contains("warning: a passphrase of fewer than 15"), "{error}");
    // An old one opens whatever it is.
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
    // As a bot opens it.
    for text in ["composed", "decomposed"] {
        let secret = Passphrase::from_file(desk.path(text)).unwrap();
        assert_eq!(desk.session("wa.db", 1, secret), None);
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_passphrase_and_utf_16_is_refused() {
    let desk = Desk::new();
    desk.write("marked", "\u{feff}correct horse battery staple\r\n");
    desk.ok("init wa.db --new-passphrase-file marked");
    desk.ok("verify wa.db --passphrase-file old");
    desk.ok("verify wa.db --passphrase-file marked");
    for bytes in [u16::to_le_bytes, u16::to_be_bytes] {
        let wide: Vec<u8> = "\u{feff}correct horse battery staple\n".encode_utf16().flat_map(bytes).collect();
        desk.write_bytes("wide", &wide);
        for arguments in ["verify wa.db --passphrase-file wide", "init new.db --new-passphrase-file wide"] {
            let (code, error) = desk.fails(arguments);
            assert!(code == 1 && error.contains("save the file as UTF-8"), "{arguments}: {code}: {error}");
        }
    }
}

/// A key that opens the store, but that nobody has read, is worse than none.
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

/// The command on a terminal of its own.
#[cfg(target_os = "linux")]
struct Terminal {
    screen: std::fs::File,
    terminal: std::fs::File,
    running: std::process::Child,
}

#[cfg(target_os = "linux")]
impl Terminal {
    fn run(desk: &Desk, arguments: &str) -> Self {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&screen).unwrap();
        unlockpt(&screen).unwrap();
        let path = ptsname(&screen, vec![]).unwrap().into_string().unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        let terminal = std::fs::File::from(rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap());
        let mut command = Command::new("setsid");
        command.args(["--ctty", env!("CARGO_BIN_EXE_wastore")]).args(arguments.split_whitespace());
        let handle = || terminal.try_clone().unwrap();
        let running = command.current_dir(desk.folder.path()).stdin(handle()).stdout(handle()).stderr(handle());
        let running = running.spawn().unwrap();
        Self { screen: screen.into(), terminal, running }
    }

    /// Reads what is shown up to this text.
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
fn at_the_prompt_a_signal_ends_the_command_and_the_terminal_is_as_before() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-passphrase-file old");
    for signal in ["INT", "TERM", "HUP", "QUIT"] {
        for arguments in ["verify wa.db", "init new.db", "passwd wa.db --passphrase-file old"] {
            let mut terminal = Terminal::run(&desk, arguments);
            terminal.until("passphrase: ");
            while terminal.shows_what_is_typed() {
                std::thread::yield_now();
            }
            let killed = Command::new("kill").args([format!("-{signal}"), terminal.running.id().to_string()]).status();
            assert!(killed.unwrap().success());
            assert_eq!(terminal.end(), Some(130), "{signal}: {arguments}");
        }
    }
    let mut terminal = Terminal::run(&desk, "verify wa.db");
    terminal.until("passphrase: ");
    terminal.type_in("half of it\u{3}");
    assert_eq!(terminal.end(), Some(130), "Ctrl-C");
    // A named pipe that no one writes to is waited for in the same way.
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
    let shown = terminal.until("was created");
    assert!(!shown.contains("horse"), "{shown}");
    assert_eq!(terminal.end(), Some(0));
    desk.ok("verify wa.db --passphrase-file old");
}

//! A throwaway session of a user: a message bus, and GNOME Keyring on it with an unlocked keyring.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const HOW_TO_INSTALL: &str = "`dbus-daemon`, `dbus-send` or `gnome-keyring-daemon` cannot be started: install them (on \
    Debian: `apt-get install --no-install-recommends dbus gnome-keyring`), or skip their tests with WASTORE_NO_KEYRING=1";

/// The session. It ends when it is dropped.
pub(crate) struct Session {
    bus: Child,
    keyring: Option<Child>,
    folder: tempfile::TempDir,
}

impl Session {
    /// Returns `None` if the caller asked for no such tests.
    pub(crate) fn start() -> Option<Self> {
        let mut session = Self::without_keyring()?;
        session.start_keyring();
        Some(session)
    }

    /// Only the message bus.
    pub(crate) fn without_keyring() -> Option<Self> {
        if std::env::var_os("WASTORE_NO_KEYRING").is_some_and(|value| value == "1") {
            eprintln!("skipped: WASTORE_NO_KEYRING is set");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("bus");
        // Without the folders of services, so that no other keyring is started.
        let policy = "<allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/>";
        let config = format!(
            "<busconfig><type>session</type><listen>unix:path={}</listen><policy context=\"default\">{policy}</policy></busconfig>",
            socket.display()
        );
        fs::write(folder.path().join("bus.conf"), config).unwrap();
        let bus = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", folder.path().join("bus.conf").display()))
            .arg("--nofork")
            .stderr(Stdio::null())
            .spawn()
            .expect(HOW_TO_INSTALL);
        wait_until(|| socket.exists());
        Some(Self { bus, keyring: None, folder })
    }

    pub(crate) fn start_keyring(&mut self) {
        let mut keyring = Command::new("gnome-keyring-daemon");
        keyring.args(["--foreground", "--unlock", "--components=secrets"]);
        self.enter(&mut keyring);
        let keyring = keyring.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut keyring = keyring.expect(HOW_TO_INSTALL);
        keyring.stdin.take().unwrap().write_all(b"a password of the test").unwrap();
        self.keyring = Some(keyring);
        wait_until(|| {
            let owner = self.send(
                "org.freedesktop.DBus",
                "/",
                "org.freedesktop.DBus.NameHasOwner",
                &["string:org.freedesktop.secrets"],
            );
            owner.contains("true")
        });
    }

    /// Stops the keyring from answering, or lets it go on.
    pub(crate) fn signal_keyring(&self, signal: Signal) {
        kill_process(Pid::from_child(self.keyring.as_ref().unwrap()), signal).unwrap();
    }

    /// Ends the keyring. Its entries stay.
    pub(crate) fn stop_keyring(&mut self) {
        end(self.keyring.take());
    }

    /// Makes a command run in the session.
    pub(crate) fn enter<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let folder = self.folder.path();
        command
            .env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", folder.join("bus").display()))
            .env("HOME", folder)
            .env("XDG_DATA_HOME", folder.join("data"))
            .env("XDG_RUNTIME_DIR", folder)
    }

    /// Locks the keyring. There is no desktop on which a user could unlock it again.
    pub(crate) fn lock(&self) {
        let arguments = ["array:objpath:/org/freedesktop/secrets/aliases/default"];
        self.send(
            "org.freedesktop.secrets",
            "/org/freedesktop/secrets",
            "org.freedesktop.Secret.Service.Lock",
            &arguments,
        );
    }

    /// The attributes of all entries.
    pub(crate) fn entries(&self) -> Vec<String> {
        let path = "/org/freedesktop/secrets/aliases/default";
        let property = ["string:org.freedesktop.Secret.Collection", "string:Items"];
        let items = self.send("org.freedesktop.secrets", path, "org.freedesktop.DBus.Properties.Get", &property);
        let attributes = |item: &str| {
            let property = ["string:org.freedesktop.Secret.Item", "string:Attributes"];
            self.send("org.freedesktop.secrets", item, "org.freedesktop.DBus.Properties.Get", &property)
        };
        items
            .lines()
            .filter_map(|line| line.trim().strip_prefix("object path "))
            .map(|item| attributes(item.trim_matches('"')))
            .collect()
    }

    /// Deletes all entries.
    pub(crate) fn delete_entries(&self) {
        self.send(
            "org.freedesktop.secrets",
            "/org/freedesktop/secrets/aliases/default",
            "org.freedesktop.Secret.Collection.Delete",
            &[],
        );
    }

    fn send(&self, service: &str, path: &str, method: &str, arguments: &[&str]) -> String {
        let mut send = Command::new("dbus-send");
        send.args(["--session", "--print-reply", &format!("--dest={service}"), path, method]).args(arguments);
        let output = self.enter(&mut send).output().expect(HOW_TO_INSTALL);
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop_keyring();
        self.bus.kill().ok();
        self.bus.wait().ok();
    }
}

fn end(process: Option<Child>) {
    if let Some(mut process) = process {
        process.kill().ok();
        process.wait().ok();
    }
}

fn wait_until(is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "the session does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
}

//! Stores that a keyring or a Transit engine opens, with the real services.

use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::Desk;
use crate::keyring::Session;
use crate::openbao::OpenBao;

/// Runs the command with a service, and returns whether it succeeded and all of its output.
struct Run<'a> {
    desk: &'a Desk,
    options: String,
    prepare: Box<dyn Fn(&mut Command) + 'a>,
}

impl Run<'_> {
    fn run(&self, arguments: &str) -> Output {
        let mut command = self.desk.command(&format!("{arguments} {}", self.options));
        (self.prepare)(&mut command);
        command.output().unwrap()
    }

    fn ok(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "wastore {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The error of a command that fails within the time limit of a request and a little more.
    fn fails(&self, arguments: &str) -> String {
        let start = Instant::now();
        let output = self.run(arguments);
        assert!(!output.status.success(), "wastore {arguments} succeeded");
        assert!(start.elapsed() < Duration::from_secs(40), "wastore {arguments} took {:?}", start.elapsed());
        String::from_utf8(output.stderr).unwrap()
    }

    /// Creates, opens, changes, revokes and removes, with `old` and `new` as the options for the provider.
    fn lives(&self, old: &str, new: &str, shown: &str) {
        let desk = self.desk;
        desk.upstream("whatsapp.db", &[1]);
        self.ok(&format!("import whatsapp.db wa.db {new}"));
        self.ok(&format!("verify wa.db {old}"));
        let listed = self.ok("keys list wa.db");
        assert!(listed.contains(shown), "{listed}");
        assert!(self.ok("inspect wa.db --json").contains(shown));

        // A second slot, of a key file, and back.
        self.ok(&format!("keys add wa.db {old} --new-key-file key"));
        self.ok("verify wa.db --key-file key");
        let added = self.ok(&format!("keys add wa.db --key-file key {new} --label spare"));
        assert!(added.contains("slot 2"), "{added}");
        self.ok(&format!("keys remove wa.db {old} 0"));
        self.ok(&format!("verify wa.db {old}"));
        self.ok(&format!("rotate wa.db {old}"));
        // It takes its own place with a new key, a passphrase takes its place, and it that of the passphrase.
        self.ok(&format!("revoke wa.db {old} {new}"));
        self.ok(&format!("revoke wa.db {old} --new-passphrase-file old"));
        let refused = self.fails(&format!("verify wa.db {old}"));
        assert!(refused.contains("no slot of the vault was made with this key provider"), "{refused}");
        self.ok(&format!("revoke wa.db --passphrase-file old {new}"));
        self.ok(&format!("verify wa.db {old}"));
        self.fails("verify wa.db --passphrase-file old");
        self.ok(&format!("init other.db {new}"));
        // The header of one vault does not open through the key of another.
        self.ok(&format!("verify other.db {old}"));
        // The vault of the first account opens the second one.
        desk.upstream("two.sqlite", &[1, 2]);
        self.ok(&format!("import two.sqlite two.db --all-accounts {new}"));
        self.ok(&format!("verify two.db {old}"));
    }

    /// The service fails: the store stays closed, nothing is created, and nothing changes.
    fn stays_closed(&self, old: &str, new: &str, says: &str) {
        let before = std::fs::read(self.desk.path("wa.db")).unwrap();
        for arguments in [
            format!("verify wa.db {old}"),
            format!("verify two.db {old} --account 2"),
            format!("rotate wa.db {old}"),
            format!("revoke two.db {old} --new-key-file key"),
            format!("init new.db {new}"),
            format!("init new.db --account 2 {new}"),
            format!("import whatsapp.db new.db {new}"),
        ] {
            let error = self.fails(&arguments);
            assert!(error.contains(says), "{arguments}: {error}");
        }
        assert!(self.desk.files(|name| name.starts_with("new.db") || name.starts_with(".wastore-")).is_empty());
        assert_eq!(std::fs::read(self.desk.path("wa.db")).unwrap(), before);
    }
}

fn on_transit<'a>(desk: &'a Desk, server: &OpenBao, token_file: &std::path::Path) -> Run<'a> {
    let options = format!("--transit-url {} --transit-token-file {}", server.url(), token_file.display());
    Run { desk, options, prepare: Box::new(|_| {}) }
}

fn in_session<'a>(desk: &'a Desk, session: &'a Session) -> Run<'a> {
    let prepare = |command: &mut Command| {
        session.enter(command);
    };
    Run { desk, options: String::new(), prepare: Box::new(prepare) }
}

#[test]
fn a_transit_engine_opens_a_store() {
    let Some(server) = OpenBao::start() else { return };
    let desk = Desk::new();
    let token = server.token_file(&["encrypt", "decrypt"]);
    let run = on_transit(&desk, &server, &token);
    let (old, new) = ("--transit-key wastore", "--new-transit-key wastore");
    run.lives(old, new, "Transit key, version 1");
    desk.ok("init mixed.db --new-passphrase-file old");
    run.ok(&format!("init mixed.db --account 2 {new}"));

    server.admin(&["write", "transit/keys/public", "type=rsa-2048"]);

    // A rotated key still opens, until the engine forgets the version.
    server.admin(&["write", "-f", "transit/keys/wastore/rotate"]);
    run.ok(&format!("verify wa.db {old}"));
    server.admin(&["write", "transit/keys/wastore/config", "min_decryption_version=2"]);
    let error = run.fails(&format!("verify wa.db {old}"));
    assert!(error.contains("min_decryption_version"), "{error}");
    server.admin(&["write", "transit/keys/wastore/config", "min_decryption_version=1"]);
    run.ok(&format!("keys add wa.db {old} {new}"));
    assert!(run.ok("keys list wa.db").contains("Transit key, version 2"));

    // A token that may only decrypt opens, but makes no slot.
    let reader = server.token_file(&["decrypt"]);
    let reading = on_transit(&desk, &server, &reader);
    reading.ok(&format!("verify wa.db {old}"));
    let error = reading.fails(&format!("init new.db {new}"));
    assert!(error.contains("denied"), "{error}");
    // A token that may only encrypt makes no slot that it could not open.
    let writer = server.token_file(&["encrypt"]);
    on_transit(&desk, &server, &writer).stays_closed(old, new, "denied");
    // The token is read again.
    std::fs::write(&writer, std::fs::read(&token).unwrap()).unwrap();
    on_transit(&desk, &server, &writer).ok(&format!("verify wa.db {old}"));

    let root = server.root_token_file();
    let all = on_transit(&desk, &server, &root);
    for (arguments, says) in [
        ("verify wa.db --transit-key other", "no such key"),
        ("verify wa.db --transit-key wastore --transit-mount elsewhere", "no such key"),
        ("init new.db --new-transit-key public", "does not bind ciphertexts"),
    ] {
        let error = all.fails(arguments);
        assert!(error.contains(says), "{arguments}: {error}");
    }
    // Another key of the same name.
    server.admin(&["secrets", "enable", "-path=team/transit", "transit"]);
    server.admin(&["write", "-f", "team/transit/keys/wastore"]);
    // Slots of other kinds, and derived keys, do not hide the reason.
    for arguments in [
        format!("verify wa.db {old}"),
        format!("verify two.db --account 2 {old}"),
        format!("verify mixed.db --account 2 {old}"),
        format!("revoke mixed.db {old} --new-passphrase-file new"),
    ] {
        let error = all.fails(&format!("{arguments} --transit-mount team/transit"));
        assert!(error.contains("does not open this slot"), "{arguments}: {error}");
    }
    all.ok(&format!("init team.db {new} --transit-mount team/transit"));
    all.ok(&format!("verify team.db {old} --transit-mount team/transit"));
    for (name, content, says) in [
        ("empty", "", "token is empty"),
        ("two", "a token\n", "one word of text"),
        ("revoked", "s.thisTokenWasRevoked\n", "denied"),
    ] {
        let file = server.write(name, content);
        on_transit(&desk, &server, &file).stays_closed(old, new, says);
    }
    let missing = server.write("missing", "");
    std::fs::remove_file(&missing).unwrap();
    on_transit(&desk, &server, &missing).stays_closed(old, new, "No such file");
    let (code, error) = desk.fails(&format!("verify wa.db {old}"));
    assert!(code == 2 && error.contains("needs `--transit-url`"), "{error}");

    server.signal(Signal::STOP);
    for arguments in [format!("verify other.db {old}"), format!("init new.db {new}")] {
        let error = run.fails(&arguments);
        assert!(error.contains("did not answer in time"), "{arguments}: {error}");
    }
    let error = run.fails(&format!("verify two.db {old}"));
    assert!(error.contains("account 2: not opened, because the key provider failed"), "{error}");
    // The token may come from a pipe, or a server that does not answer.
    let pipe = desk.path("pipe");
    assert!(Command::new("mkfifo").arg("-m600").arg(&pipe).status().unwrap().success());
    let error = on_transit(&desk, &server, &pipe).fails(&format!("verify wa.db {old}"));
    assert!(error.contains("did not answer in time"), "{error}");
    server.signal(Signal::CONT);
    server.admin(&["operator", "seal"]);
    run.stays_closed(old, new, "sealed");
    desk.write("token", &std::fs::read_to_string(token).unwrap());
    let gone = Run { options: format!("--transit-url {} --transit-token-file token", server.url()), ..run };
    drop(server);
    gone.stays_closed(old, new, "cannot be reached");
}

#[test]
fn a_transit_server_needs_a_certificate_that_is_trusted() {
    let Some(server) = OpenBao::start_with_tls() else { return };
    let desk = Desk::new();
    let token = server.token_file(&["encrypt", "decrypt"]);
    let ca = server.ca();
    let trusting = Run {
        prepare: Box::new(|command| {
            command.env("SSL_CERT_FILE", &ca);
        }),
        ..on_transit(&desk, &server, &token)
    };
    trusting.ok("init wa.db --new-transit-key wastore");
    trusting.ok("verify wa.db --transit-key wastore");
    // No proxy gets the token or the key.
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    proxy.set_nonblocking(true).unwrap();
    let address = format!("http://{}", proxy.local_addr().unwrap());
    let names = ["ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "http_proxy", "https_proxy"];
    let proxied = Run {
        prepare: Box::new(|command| {
            command.env("SSL_CERT_FILE", &ca).env_remove("NO_PROXY").env_remove("no_proxy");
            command.envs(names.map(|name| (name, &address)));
        }),
        ..on_transit(&desk, &server, &token)
    };
    proxied.ok("verify wa.db --transit-key wastore");
    assert!(proxy.accept().is_err(), "the command went to a proxy");
    let error = on_transit(&desk, &server, &token).fails("verify wa.db --transit-key wastore");
    assert!(error.contains("cannot be reached") && error.contains("certificate"), "{error}");
    let plain = server.url().replace("https://127.0.0.1", "http://bao.example.org");
    let (code, error) =
        desk.fails(&format!("verify wa.db --transit-key wastore --transit-url {plain} --transit-token-file t"));
    assert!(code == 2 && error.contains("must begin with `https://`"), "{error}");
    for folder in [None, Some("/etc/ssl/certs")] {
        let missing = Run {
            prepare: Box::new(move |command| {
                command.env("SSL_CERT_FILE", "none").env_remove("SSL_CERT_DIR");
                command.envs(folder.map(|folder| ("SSL_CERT_DIR", folder)));
            }),
            ..on_transit(&desk, &server, &token)
        };
        let error = missing.fails("verify wa.db --transit-key wastore");
        assert!(error.contains("UnknownIssuer; failed to read PEM"), "{folder:?}: {error}");
    }
}

#[test]
fn the_keyring_of_the_user_opens_a_store() {
    let Some(mut session) = Session::start() else { return };
    let desk = Desk::new();
    {
        let run = in_session(&desk, &session);
        run.lives("--keyring", "--new-keyring", "keyring entry ");
        // Of the imports, the added slot, two revocations and the second store.
        let entries = session.entries();
        assert_eq!(entries.len(), 6, "{entries:?}");
        let listed = run.ok("keys list wa.db");
        let name = listed.split_once("keyring entry ").unwrap().1.split_whitespace().next().unwrap();
        assert_eq!(entries.iter().filter(|entry| entry.contains(name) && entry.contains("\"wastore\"")).count(), 1);
        run.ok("keys add wa.db --keyring --new-key-file key");
        let removed = run.ok("keys remove wa.db --key-file key 0");
        assert!(removed.contains(name) && removed.contains("delete it there"), "{removed}");
        run.ok("keys add wa.db --key-file key --new-keyring");
        let revoked = run.ok("revoke two.db --keyring --new-keyring");
        assert!(revoked.contains("the keyring keeps its entry"), "{revoked}");
    }
    session.lock();
    let locked = in_session(&desk, &session);
    locked.stays_closed("--keyring", "--new-keyring", "locked");
    drop(locked);

    session.stop_keyring();
    let stopped = in_session(&desk, &session);
    stopped.stays_closed("--keyring", "--new-keyring", "cannot be used");
    drop(stopped);

    // It comes back with its entries, which outlive the session.
    session.start_keyring();
    let again = in_session(&desk, &session);
    again.ok("verify wa.db --keyring");
    session.delete_entries();
    let error = again.fails("verify wa.db --keyring");
    assert!(error.contains("no entry for this slot"), "{error}");
    // Another secret still opens it.
    again.ok("verify wa.db --key-file key");
    drop(again);
    let outside = Run {
        desk: &desk,
        options: String::new(),
        prepare: Box::new(|command| {
            command.env_remove("DBUS_SESSION_BUS_ADDRESS").env("XDG_RUNTIME_DIR", "/nowhere");
        }),
    };
    outside.stays_closed("--keyring", "--new-keyring", "cannot be used");
}

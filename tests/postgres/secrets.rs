//! No log, error or `Debug` shows what is stored, the keys of records, or a password.

use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;

use log::{LevelFilter, Log, Metadata, Record};
use wacore::store::traits::{Backend, SignalStore};
use wastore::{Key, Stack, Vault};

use super::common::{Direct, is_lost, options, seconds};
use super::proxy::{Mode, Proxy};
use super::server::{Server, available};

const CHILD: &str = "WASTORE_SECRETS";
const PASSWORD: &str = "hunter2-password";
const ADDRESS: &str = "15557654321:3@s.whatsapp.net";
const CHAT: &str = "15557654321@s.whatsapp.net";
const MESSAGE: &str = "3EB0C0FFEE123456";
const SESSION: &[u8] = b"session-of-the-test-with-ratchet";
const PAYLOAD: &[u8] = b"payload-of-a-sent-message";
const IDENTITY: [u8; 32] = *b"identity-key-of-thirty-two-bytes";
const VAULT_KEY: [u8; 32] = *b"the-key-of-the-vault-is-32-bytes";

/// Keeps all log lines.
struct Kept(Mutex<String>);

static KEPT: Kept = Kept(Mutex::new(String::new()));

impl Log for Kept {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = format!("{} {} {}\n", record.level(), record.target(), record.args());
        self.0.lock().unwrap().push_str(&line);
    }

    fn flush(&self) {}
}

/// The forms in which bytes could be printed.
fn forms(secret: &[u8]) -> [String; 4] {
    let list = format!("{secret:?}");
    [
        String::from_utf8_lossy(secret).into_owned(),
        hex::encode(secret),
        hex::encode_upper(secret),
        list.trim_matches(['[', ']']).to_owned(),
    ]
}

/// The first line that shows a secret.
fn leak<'a>(text: &'a str, secrets: &[Vec<u8>]) -> Option<&'a str> {
    let forms: Vec<String> = secrets.iter().flat_map(|secret| forms(secret)).collect();
    text.lines().find(|line| forms.iter().any(|form| line.contains(form)))
}

/// Uses a store, the full stack over it, and makes calls fail in several ways. Returns the texts of the errors.
async fn use_store(server: &Server) -> (String, Vec<Vec<u8>>) {
    let proxy = Proxy::start(server.port());
    let url = proxy.url().replace("postgres@", &format!("postgres:{PASSWORD}@"));
    let open = || options(&url).lease_name("bot").deadline(seconds(2)).answer_timeout(seconds(1));
    let store = open().open(1).await.unwrap();
    let mut texts = format!("{store:?} {:?} {:?}\n", open(), store.stats());
    calls(&store).await;
    let sealed = store.account(2).await.unwrap();
    let vault = Vault::create(Arc::new(sealed.clone()), Key::from_bytes(&mut { VAULT_KEY })).await.unwrap();
    let stack = Stack::new(sealed).layer(vault.layer());
    texts += &format!("{stack:?}\n");
    calls(&*stack.into_backend()).await;
    // Connections that break, a server that is not there, a table that is not there, a lease that is lost.
    proxy.set(Mode::Swallow { then_cut: true });
    store.put_session(ADDRESS, SESSION).await.unwrap();
    proxy.cut();
    store.put_session(ADDRESS, SESSION).await.unwrap();
    let direct = Direct::connect(&server.url()).await;
    // Sealed records, and the two copies of the vault's header.
    let sql = "SELECT string_agg(encode(record, 'hex'), ',') FROM wastore.sender_keys WHERE account = 2";
    let sealed = direct.ask(sql).await;
    direct.run("ALTER TABLE wastore.sessions ADD CHECK (length(record) < 10) NOT VALID").await;
    texts += &format!("{:?}\n", store.put_session(ADDRESS, SESSION).await.unwrap_err());
    direct.run("DROP TABLE wastore.identities").await;
    texts += &format!("{:?}\n", store.put_identity(ADDRESS, IDENTITY).await.unwrap_err());
    proxy.set(Mode::Refuse);
    proxy.cut();
    texts += &format!("{:?}\n", store.get_session(ADDRESS).await.unwrap_err());
    texts += &format!("{:?}\n", open().open(3).await.unwrap_err());
    proxy.set(Mode::Pass);
    let _second = open().open(1).await.unwrap();
    let error = store.put_sender_key(ADDRESS, SESSION).await.unwrap_err();
    assert!(is_lost(&error));
    texts += &format!("{error:?} {error}\n");
    let sealed: Vec<Vec<u8>> = sealed.split(',').map(|record| hex::decode(record).unwrap()[40..80].to_vec()).collect();
    assert!(sealed.len() > 2, "{sealed:?}");
    let secrets = [PASSWORD.as_bytes(), ADDRESS.as_bytes(), CHAT.as_bytes(), MESSAGE.as_bytes(), SESSION, PAYLOAD];
    let secrets = secrets.into_iter().chain([&IDENTITY[..], &VAULT_KEY[..]]);
    (texts, secrets.map(<[u8]>::to_vec).chain(sealed).collect())
}

async fn calls(store: &dyn Backend) {
    store.put_session(ADDRESS, SESSION).await.unwrap();
    store.put_sessions_batch(&[(ADDRESS.into(), SESSION.into())]).await.unwrap();
    store.get_session(ADDRESS).await.unwrap();
    store.put_identity(ADDRESS, IDENTITY).await.unwrap();
    store.load_identity(ADDRESS).await.unwrap();
    store.put_sender_key(ADDRESS, SESSION).await.unwrap();
    store.store_sent_message(CHAT, MESSAGE, PAYLOAD).await.unwrap();
    store.take_sent_message(CHAT, MESSAGE).await.unwrap();
    store.store_pending_inbound(CHAT, CHAT, MESSAGE, PAYLOAD).await.unwrap();
    store.delete_expired_sent_messages(1).await.unwrap();
}

/// Run by the next test in a process of its own, whose log no other test writes to.
#[test]
fn child_that_logs() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    log::set_logger(&KEPT).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let server = Server::with_settings(&[("fsync", "off")]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (texts, secrets) = runtime.block_on(use_store(&server));
    let logged = KEPT.0.lock().unwrap().clone();
    // The driver logs its statements, so the capture works.
    assert!(logged.contains("executing statement") && logged.contains("INSERT INTO"), "{logged}");
    assert!(logged.lines().count() > 50);
    assert_eq!(leak(&logged, &secrets), None);
    assert_eq!(leak(&texts, &secrets), None);
    assert!(logged.contains("took account 1 over"), "{logged}");
}

#[test]
fn nothing_secret_is_logged_at_trace_level() {
    if !available() {
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "secrets::child_that_logs", "--nocapture"]).env(CHILD, "1");
    let output = child.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
}

/// The check itself finds what it looks for.
#[test]
fn the_check_for_secrets_finds_each_form() {
    for form in forms(SESSION) {
        let text = format!("a line\nparameters: [{form}]\n");
        assert!(leak(&text, &[SESSION.to_vec()]).is_some(), "{form}");
    }
    for harmless in ["a line", "parameters: [..]", ADDRESS] {
        assert_eq!(leak(harmless, &[SESSION.to_vec()]), None);
    }
}

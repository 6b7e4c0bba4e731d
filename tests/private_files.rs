//! At no moment can other users read any file of the command, with any umask.

#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a failure is a failed test")]

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use wacore::store::traits::{DeviceStore, SignalStore};
use wastore::testing::Operation;
use wastore::{Access, Method};
use whatsapp_rust_sqlite_storage::SqliteStore as UpstreamStore;

/// Watches a folder, and each folder that appears in it.
struct Watch {
    ended: Arc<AtomicBool>,
    watching: JoinHandle<BTreeMap<PathBuf, u32>>,
}

impl Watch {
    fn begin(folder: &Path) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO;
        let mut folders = HashMap::new();
        folders.insert(inotify::add_watch(&events, folder, flags).unwrap(), folder.to_owned());
        let (end, mut modes) = (ended.clone(), BTreeMap::<PathBuf, u32>::new());
        let watching = std::thread::spawn(move || {
            let mut buffer = [MaybeUninit::uninit(); 8192];
            let mut reader = inotify::Reader::new(&events, &mut buffer);
            // The modes at the first look at each name. Later looks add theirs.
            let mut look = |path: &Path| {
                let metadata = path.symlink_metadata().ok()?;
                *modes.entry(path.to_owned()).or_default() |= metadata.permissions().mode() & 0o777;
                Some(())
            };
            loop {
                let ending = end.load(Ordering::Acquire);
                loop {
                    let (path, is_folder) = match reader.next() {
                        Ok(event) => {
                            let Some(name) = event.file_name() else { continue };
                            let path = folders[&event.wd()].join(OsStr::from_bytes(name.to_bytes()));
                            (path, event.events().contains(ReadFlags::ISDIR))
                        }
                        Err(Errno::AGAIN) => break,
                        Err(error) => panic!("{error}"),
                    };
                    look(&path);
                    if is_folder && let Ok(watch) = inotify::add_watch(&events, &path, flags) {
                        folders.insert(watch, path.clone());
                        // Files that appeared before the watch.
                        for entry in path.read_dir().into_iter().flatten().flatten() {
                            look(&entry.path());
                        }
                    }
                }
                if ending {
                    return modes;
                }
                std::thread::yield_now();
            }
        });
        Self { ended, watching }
    }

    /// The union of the modes that each name was seen with.
    fn end(self) -> BTreeMap<PathBuf, u32> {
        self.ended.store(true, Ordering::Release);
        self.watching.join().unwrap()
    }
}

fn upstream(path: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = UpstreamStore::new_for_device(path.to_str().unwrap(), 1).await.unwrap();
        store.create().await.unwrap();
        for method in Method::ALL.iter().filter(|method| method.access() == Access::Write) {
            if *method != Method::Create {
                Operation::sample(*method).run(&store, 0).await.unwrap();
            }
        }
        store.put_session("15550001111@s.whatsapp.net", &[7; 3000]).await.unwrap();
    });
}

#[test]
fn under_any_umask_no_file_is_public_for_a_moment() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (name, content) in [("old", "correct horse battery staple\n"), ("new", "quite another passphrase\n")] {
        std::fs::write(elsewhere.path().join(name), content).unwrap();
        std::fs::set_permissions(elsewhere.path().join(name), PermissionsExt::from_mode(0o600)).unwrap();
    }
    upstream(&elsewhere.path().join("whatsapp.db"));
    std::fs::copy(elsewhere.path().join("whatsapp.db"), elsewhere.path().join("second.db")).unwrap();
    let commands = [
        ("init empty.db --new-passphrase-file @/old", &["empty.db"][..]),
        ("import @/whatsapp.db wa.db --new-passphrase-file @/old", &["wa.db"]),
        ("import @/second.db wa2.db --remove-source --new-passphrase-file @/old", &["wa2.db"]),
        ("export wa.db back.db --plaintext --passphrase-file @/old", &["back.db", "whatsapp.db"]),
        ("backup wa.db copy.db", &["copy.db"]),
        ("header save wa.db saved --passphrase-file @/old", &["saved"]),
        ("keys add wa.db --passphrase-file @/old --recovery", &["wa.db-wal"]),
        ("passwd wa.db --passphrase-file @/old --new-passphrase-file @/new", &["wa.db-wal"]),
        ("rotate wa.db --passphrase-file @/new", &["wa.db-wal"]),
        ("revoke wa.db --passphrase-file @/new --new-passphrase-file @/old", &["wa.db-wal"]),
        ("verify wa.db --passphrase-file @/old", &[]),
        ("backup wa.db --to-folder . --keep 2", &[]),
        ("restore copy.db wa.db", &["wa.db", "wa.db.before-restore-1"]),
        ("keygen random", &["random"]),
    ];
    for (arguments, made) in commands {
        let arguments = arguments.replace('@', elsewhere.path().to_str().unwrap());
        let watch = Watch::begin(folder.path());
        let output = Command::new("sh")
            .args(["-c", "umask 0; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_wastore")])
            .args(arguments.split_whitespace())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let modes = watch.end();
        assert!(output.status.success(), "wastore {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        for name in made {
            assert!(modes.keys().any(|path| path.ends_with(name)), "{name} was not seen: {modes:?}");
        }
        for (path, mode) in modes {
            assert_eq!(mode & 0o077, 0, "wastore {arguments} made {} with mode {mode:o}", path.display());
        }
    }
}

//! An anchor in a folder of small files.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::rollback::{Anchor, AnchorError, RollbackAnchor};
use crate::background::Running;
use crate::filesystem;
use crate::private;

/// Remembers headers in a folder, in one small text file for each store.
///
/// The folder must exist, belong to the user of the process or to root, and not be writable by its group or others
/// (`chmod go-w`). Using it fails otherwise. It must not be copied, backed up or restored together with the store: put
/// it on another disk or another machine. A rollback goes unnoticed if the folder is put back together with the store.
///
/// Several processes of one user may use it at once, over a network file system only if that locks files. Its files
/// belong to the user that wrote them last. So run the command as the user that the bot runs as, and let no other user
/// write there.
#[derive(Debug, Clone)]
pub struct FileAnchor {
    folder: PathBuf,
}

/// The first line of a file.
const TITLE: &str = "wastore freshness anchor 1";
/// Every file is shorter.
const MAX_BYTES: u64 = 1024;
/// The longest time to wait for another process.
const PATIENCE: Duration = Duration::from_secs(10);

impl FileAnchor {
    /// Anchors in this folder. Nothing is read or written yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn path(&self, store: &[u8; 16]) -> PathBuf {
        self.folder.join(format!("{}.anchor", hex(store)))
    }
}

#[async_trait]
impl RollbackAnchor for FileAnchor {
    async fn load(&self, store: &[u8; 16]) -> Result<Option<Anchor>, AnchorError> {
        let (folder, path, store) = (self.folder.clone(), self.path(store), *store);
        on_a_thread(move || {
            check_folder(&folder)?;
            read(&path, &store)
        })
        .await
    }

    async fn advance(&self, store: &[u8; 16], from: Option<Anchor>, to: Anchor) -> Result<bool, AnchorError> {
        let (folder, path, store) = (self.folder.clone(), self.path(store), *store);
        on_a_thread(move || {
            check_folder(&folder)?;
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false);
            let lock = private::open_with(&folder.join("anchors.lock"), &mut options)?;
            wait_for(&lock)?;
            let same = read(&path, &store)? == from;
            if same {
                write(&path, &store, to)?;
            }
            Ok(same)
        })
        .await
    }
}

fn read(path: &Path, store: &[u8; 16]) -> io::Result<Option<Anchor>> {
    let content = match private::read(path, MAX_BYTES) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8(content).ok();
    let anchor = text.and_then(|text| parse(&text, store));
    anchor.map(Some).ok_or_else(|| private::refused(path, "is not an anchor of this store"))
}

fn write(path: &Path, store: &[u8; 16], anchor: Anchor) -> io::Result<()> {
    // No other process writes while the lock is held, so a crash left this file, or an attacker planted it.
    let new = path.with_extension("anchor.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = private::create(&new)?;
    file.write_all(text(store, anchor).as_bytes())?;
    filesystem::sync(&file, &new)?;
    fs::rename(&new, path)?;
    filesystem::sync_folder_of(path)
}

/// A process holds the lock only while it writes a small file, unless it was stopped in the middle.
fn wait_for(lock: &File) -> io::Result<()> {
    let started = Instant::now();
    loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if started.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::TimedOut.into()),
            Err(TryLockError::Error(error)) => return Err(error),
            Ok(()) => return Ok(()),
        }
    }
}

/// A disk that is not mounted must not look like an anchor that knows nothing of the store. A folder that other users
/// can change is no anchor.
fn check_folder(folder: &Path) -> io::Result<()> {
    let metadata = fs::metadata(folder)?;
    if !metadata.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if ![0, rustix::process::geteuid().as_raw()].contains(&metadata.uid()) {
            return Err(private::refused(folder, "belongs to another user: run this as its owner"));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(private::refused(folder, "can be written by other users: run chmod go-w on it"));
        }
    }
    Ok(())
}

fn text(store: &[u8; 16], anchor: Anchor) -> String {
    let Anchor { generation, checksum } = anchor;
    format!("{TITLE}\nstore {}\ngeneration {generation}\nheader {}\n", hex(store), hex(&checksum))
}

fn parse(found: &str, store: &[u8; 16]) -> Option<Anchor> {
    let generation = found.lines().find_map(|line| line.strip_prefix("generation "))?.parse().ok()?;
    let header = found.lines().find_map(|line| line.strip_prefix("header "))?;
    let checksum = data_encoding::HEXLOWER.decode(header.as_bytes()).ok()?.try_into().ok()?;
    let anchor = Anchor { generation, checksum };
    (found == text(store, anchor)).then_some(anchor)
}

fn hex(bytes: &[u8; 16]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// Waits for the disk without blocking the async runtime, whichever it is.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, AnchorError> {
    let (sender, receiver) = futures_channel::oneshot::channel();
    let running = Running::new();
    std::thread::Builder::new().name("wastore-anchor".to_owned()).spawn(move || {
        sender.send(work()).ok();
        drop(running);
    })?;
    Ok(receiver.await??)
}

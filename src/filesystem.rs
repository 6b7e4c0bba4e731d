//! Makes files durable and gives them their names, also on file systems with fewer abilities. Errors say which file
//! failed and why.

use std::fs::File;
#[cfg(feature = "sqlite")]
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::printable::printable_path;

/// Waits until the content of a file is on the disk.
pub(crate) fn sync(file: &File, path: &Path) -> io::Result<()> {
    tolerated(file.sync_all(), path)
}

/// The same for a closed file.
#[cfg(feature = "sqlite")]
pub(crate) fn sync_file(path: &Path) -> io::Result<()> {
    sync(&File::open(path)?, path)
}

/// Makes the name of a file survive a power cut.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let folder = folder_of(path);
        tolerated(File::open(folder)?.sync_all(), folder)?;
    }
    Ok(())
}

/// Some network and FUSE file systems cannot wait for the disk. The file is complete all the same, so this is no error.
fn tolerated(synced: io::Result<()>, path: &Path) -> io::Result<()> {
    match synced {
        Err(error) if cannot(&error) => {
            log::warn!(
                "the file system of {} cannot wait for the disk ({error}): a power cut may undo the last writes",
                printable_path(path)
            );
            Ok(())
        }
        synced => synced,
    }
}

/// `true` if the file system does not support the operation at all.
fn cannot(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

/// Gives a file a new name.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if the name is taken.
#[cfg(feature = "sqlite")]
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // The file system, an old kernel or a sandbox refuses the flag.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::PERM) => {}
            renamed => return Ok(renamed?),
        }
    }
    match fs::hard_link(from, to) {
        Ok(()) => return fs::remove_file(from),
        Err(error) if [io::ErrorKind::AlreadyExists, io::ErrorKind::NotFound].contains(&error.kind()) => {
            return Err(error);
        }
        // The file system has no links.
        Err(_) => {}
    }
    // An empty file of our own takes the name first, so the rename replaces only that.
    from.symlink_metadata()?;
    let place = OpenOptions::new().write(true).create_new(true).open(to)?;
    drop(place);
    fs::rename(from, to).inspect_err(|_| {
        fs::remove_file(to).ok();
    })
}

/// The disk failed after the file got its name. The complete file stays.
#[cfg(feature = "sqlite")]
pub(crate) fn complete(path: &Path, error: io::Error) -> io::Error {
    let text = format!("{} is complete, but may not survive a power cut: {error}", printable_path(path));
    said(io::ErrorKind::Other, text)
}

/// The folder that holds a file.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// An error of the operating system with its path. If permissions are the reason, the text says who may use the file.
pub(crate) fn named(path: &Path, error: io::Error) -> io::Error {
    // The text names the file already.
    if error.get_ref().is_some_and(|inner| inner.is::<Said>()) {
        return error;
    }
    let shown = printable_path(path);
    // The text of a library names its own temporary file, so only the kind of error is shown.
    let cause =
        if error.raw_os_error().is_some() { error.to_string() } else { io::Error::from(error.kind()).to_string() };
    let text = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("{shown}: {cause}{}", rights(path).map(|rights| format!(": {rights}")).unwrap_or_default())
        }
        io::ErrorKind::ReadOnlyFilesystem => format!("{shown}: it is on a file system that is mounted read-only"),
        _ => format!("{shown}: {cause}"),
    };
    said(error.kind(), text)
}

/// An error whose text names the file.
pub(crate) fn said(kind: io::ErrorKind, text: String) -> io::Error {
    io::Error::new(kind, Said(text))
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Said(String);

/// The owner and the mode of a file, or of its nearest folder that can be seen.
fn rights(path: &Path) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let (seen, metadata) = path.ancestors().find_map(|path| {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            Some((PathBuf::from(path), path.metadata().ok()?))
        })?;
        let (owner, mode, user) = (metadata.uid(), metadata.mode() & 0o7777, rustix::process::geteuid().as_raw());
        Some(format!(
            "{} belongs to user {owner} with mode {mode:o}, and this runs as user {user}",
            printable_path(&seen)
        ))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// The reason why SQLite cannot open or write a database: the first of its file, log and folder that this process may
/// not use.
#[cfg(feature = "sqlite")]
pub(crate) fn what_forbids(paths: &[PathBuf], folder: &Path) -> Option<io::Error> {
    #[cfg(unix)]
    {
        use rustix::fs::{Access, AtFlags, CWD, accessat};
        let check = |path: &Path, access| {
            // Without opening the file: closing it again would drop SQLite's locks.
            let forbidden = accessat(CWD, path, access, AtFlags::EACCESS).err()?;
            (forbidden != rustix::io::Errno::NOENT).then(|| named(path, forbidden.into()))
        };
        let file = Access::READ_OK | Access::WRITE_OK;
        let forbidden = paths.iter().find_map(|path| check(path, file));
        forbidden.or_else(|| check(folder, file | Access::EXEC_OK))
    }
    #[cfg(not(unix))]
    {
        let _ = (paths, folder);
        None
    }
}

/// `true` if the file system of a folder has no locks. SQLite reports that as a lock of another process.
#[cfg(feature = "sqlite")]
pub(crate) fn has_no_locks(folder: &Path) -> bool {
    #[cfg(unix)]
    {
        use rustix::fs::{FlockOperation, fcntl_lock};
        use rustix::io::Errno;
        let Ok(file) = tempfile::tempfile_in(folder) else { return false };
        matches!(
            fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive),
            Err(Errno::NOLCK | Errno::NOSYS | Errno::NOTSUP | Errno::INVAL)
        )
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        false
    }
}

/// Warns that root made a file in a folder of another user, who cannot use it.
#[cfg(feature = "sqlite")]
pub(crate) fn warn_of_root(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let owner = |path: &Path| path.metadata().map(|metadata| metadata.uid());
        if let (Ok(0), Ok(folder)) = (owner(path), owner(folder_of(path)))
            && folder != 0
        {
            log::warn!(
                "{} belongs to root, and its folder to user {folder}: change the owner of the file if that user's bot must open it",
                printable_path(path)
            );
        }
    }
    #[cfg(not(unix))]
    let _ = path;
}

#[cfg(all(test, unix, feature = "sqlite"))]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_given_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("one"), "one").unwrap();
        fs::write(path("other"), "other").unwrap();
        assert_eq!(rename_new(&path("one"), &path("other")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(path("other")).unwrap(), b"other");
        rename_new(&path("one"), &path("new")).unwrap();
        assert_eq!(fs::read(path("new")).unwrap(), b"one");
        assert_eq!(rename_new(&path("nothing"), &path("newer")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!path("newer").exists());
    }

    #[test]
    fn errors_name_the_file_and_its_permitted_users() {
        let folder = tempfile::tempdir().unwrap();
        let denied =
            named(&folder.path().join("a/b"), io::Error::from_raw_os_error(rustix::io::Errno::ACCESS.raw_os_error()));
        let text = denied.to_string();
        assert!(text.contains("/a/b: Permission denied") && text.contains(", and this runs as user "), "{text}");
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
        let read_only = named(Path::new("wa.db"), io::Error::from_raw_os_error(rustix::io::Errno::ROFS.raw_os_error()));
        assert!(read_only.to_string().contains("wa.db: it is on a file system that is mounted read-only"));
        let named_twice = named(Path::new("x"), said(io::ErrorKind::Other, "said".to_owned()));
        assert_eq!(named_twice.to_string(), "said");
    }
}

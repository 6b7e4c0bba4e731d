//! Files and folders that only their owner can read from the first moment on, and that no other user planted.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use crate::filesystem;

/// A new folder for unfinished files beside `target`, mode 0700. Dropping the value removes the folder.
#[cfg(feature = "sqlite")]
pub(crate) fn unfinished_folder(target: &Path, prefix: &str) -> io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
    let folder = filesystem::folder_of(target);
    builder.tempdir_in(folder).map_err(|error| filesystem::named(folder, error))
}

/// A file with a random name in the folder of `path`, mode 0600. It is deleted unless it is [finished](finish).
#[cfg(feature = "sqlite")]
pub(crate) fn unfinished_file(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".wastore-").suffix(".partial");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600));
    let folder = filesystem::folder_of(path);
    let file = builder.tempfile_in(folder).map_err(|error| filesystem::named(folder, error))?;
    check(file.as_file(), file.path())?;
    Ok(file)
}

/// Gives a file its name after its content is on the disk.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if the name is taken. If only waiting for the folder fails, the file has its name
/// all the same.
#[cfg(feature = "sqlite")]
pub(crate) fn finish(file: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    filesystem::sync(file.as_file(), path)?;
    name(file, path)?;
    filesystem::warn_of_root(path);
    filesystem::sync_folder_of(path).map_err(|error| filesystem::complete(path, error))
}

/// The same for a file that does not have to survive a power cut.
#[cfg(feature = "sqlite")]
pub(crate) fn name(file: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    let (_, unnamed) = file.into_parts();
    filesystem::rename_new(&unnamed, path).map_err(|error| filesystem::named(path, error))?;
    // The file has its final name now, so it must not be deleted.
    unnamed.keep().ok();
    Ok(())
}

/// Writes a new file that only its owner can read. The file is complete or not there.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if the name is taken. If only waiting for the folder fails, the file has its name
/// all the same.
#[cfg(feature = "cli")]
pub fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = unfinished_file(path)?;
    io::Write::write_all(&mut file, content)?;
    finish(file, path)
}

/// Creates a file, mode 0600, and opens it for writing.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if the name is taken; those of [`check`].
pub(crate) fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    let file = open_with(path, &mut options)?;
    if let Err(error) = check(&file, path) {
        std::fs::remove_file(path).ok();
        return Err(error);
    }
    Ok(file)
}

/// Opens an existing file to write over it.
///
/// # Errors
/// [`io::ErrorKind::NotFound`]; those of [`open_with`]. Names the file if it belongs to another user.
#[cfg(feature = "import")]
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = open_with(path, OpenOptions::new().write(true))?;
    check_owner(&file, path)?;
    Ok(file)
}

/// Reads a regular file of at most `max` bytes.
///
/// # Errors
/// [`io::ErrorKind::NotFound`], [`io::ErrorKind::FileTooLarge`]; those of [`open_with`].
pub(crate) fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = open_with(path, OpenOptions::new().read(true))?;
    let mut content = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(content) }
}

/// Opens a regular file. Follows no link, and does not wait for the other end of a pipe. A new file has mode 0600.
///
/// # Errors
/// Names the file and says what to do if it is a link or not a regular file.
pub(crate) fn open_with(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt;
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.mode(0o600).custom_flags(flags.bits() as i32);
    }
    let file = options.open(path).map_err(|error| {
        let is_link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
        if is_link && error.kind() != io::ErrorKind::AlreadyExists {
            refused(path, "is a symbolic link: remove it")
        } else {
            filesystem::named(path, error)
        }
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused(path, "is not a regular file: remove it")) }
}

/// Checks an open file. Its name is not checked, because it may lead to another file by now.
///
/// # Errors
/// Names the file and says what to do if it is not a regular file, belongs to another user, or has a second name.
pub(crate) fn check(file: &File, path: &Path) -> io::Result<()> {
    check_owner(file, path)?;
    #[cfg(unix)]
    if std::os::unix::fs::MetadataExt::nlink(&file.metadata()?) != 1 {
        return Err(refused(path, "has another name (hard link) as well, or none: remove the link"));
    }
    Ok(())
}

/// Checks that only the owner can read an open file with a secret, or a group that root chose. A pipe passes: it is
/// read only once.
///
/// # Errors
/// Names the file and says what to do.
pub(crate) fn check_readers(file: &File, path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let (metadata, user) = (file.metadata()?, rustix::process::geteuid().as_raw());
        if metadata.is_dir() {
            return Err(refused(path, "is a folder: name the file in it"));
        }
        let others = match metadata.uid() {
            _ if !metadata.is_file() => 0,
            0 => 0o037,
            owner if owner == user => 0o077,
            _ => return Err(refused(path, "belongs to another user: copy it to a file of your own")),
        };
        if metadata.mode() & others != 0 {
            return Err(refused(
                path,
                "can be read or changed by other users: run chmod 600 on it, or mount it with such a mode",
            ));
        }
    }
    #[cfg(not(unix))]
    let _ = (file, path);
    Ok(())
}

fn check_owner(file: &File, path: &Path) -> io::Result<()> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(refused(path, "is not a regular file: remove it"));
    }
    #[cfg(unix)]
    if std::os::unix::fs::MetadataExt::uid(&metadata) != rustix::process::geteuid().as_raw() {
        return Err(refused(path, "belongs to another user: run this as its owner"));
    }
    Ok(())
}

/// An error that names a file and its problem.
pub(crate) fn refused(path: &Path, problem: &str) -> io::Error {
    filesystem::said(io::ErrorKind::Other, format!("{} {problem}", crate::printable::printable_path(path)))
}

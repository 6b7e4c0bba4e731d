//! Reading secrets from files, descriptors, variables, commands, credentials of systemd and the terminal.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
#[cfg(unix)]
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
#[cfg(unix)]
use std::time::Instant;

use clap::Args;
use wastore::{Error, Key, Passphrase, RecoveryKey, Secret, Vault, printable_path};

use crate::failure::Failure;
use crate::settings::Settings;
use crate::terminal::{KeptTerminal, Terminal};
use crate::threads::on_a_thread;
use wastore::maintenance::{OwnStore, open_account};
use wastore::vault::{KeyringProvider, OpenMode};

/// The secret that opens the store. Prompts for a passphrase if no option is given.
#[derive(Args, Clone)]
pub(crate) struct CurrentSecret {
    /// Read the passphrase from a file, or from standard input if it is `-`
    #[arg(long, value_name = "FILE", group = "current")]
    passphrase_file: Option<PathBuf>,
    /// Read the passphrase from an open file descriptor
    #[arg(long, value_name = "NUMBER", group = "current", value_parser = Descriptor::parse)]
    passphrase_fd: Option<Descriptor>,
    /// Read the passphrase from an environment variable; other programs of the same user can read
    /// it there
    #[arg(long, value_name = "NAME", group = "current")]
    passphrase_env: Option<String>,
    /// Run a command, for example of a password manager, and read the passphrase from its output;
    /// it is split into words as by a shell, but no shell runs it
    #[arg(long, value_name = "COMMAND", group = "current")]
    passphrase_command: Option<String>,
    /// Read the passphrase from a credential that systemd passes to the service (`LoadCredential=`)
    #[arg(long, value_name = "NAME", group = "current")]
    credential: Option<String>,
    /// Open with a key file of 32 random bytes or 64 hexadecimal digits; `-` is standard input
    #[arg(long, value_name = "FILE", group = "current")]
    key_file: Option<PathBuf>,
    /// Open with a key from a credential of systemd
    #[arg(long, value_name = "NAME", group = "current")]
    key_credential: Option<String>,
    /// Open with a key in the keyring of the operating system's user
    #[arg(long, group = "current")]
    keyring: bool,
    /// Open with this key of the Transit engine of OpenBao or Vault, at `--transit-url`
    #[arg(long, value_name = "NAME", group = "current")]
    transit_key: Option<String>,
    /// Open with a recovery key, read from a file; `-` is standard input
    #[arg(long, value_name = "FILE", group = "current")]
    recovery_key_file: Option<PathBuf>,
    /// Open with a recovery key, and ask for it on the terminal
    #[arg(long, group = "current")]
    recovery_key: bool,
}

/// A new passphrase for the store. Prompts for it if no option is given.
#[derive(Args, Clone)]
pub(crate) struct NewPassphrase {
    /// Read the new passphrase from a file, or from standard input if it is `-`
    #[arg(long, value_name = "FILE", group = "new")]
    new_passphrase_file: Option<PathBuf>,
    /// Read the new passphrase from an open file descriptor
    #[arg(long, value_name = "NUMBER", group = "new", value_parser = Descriptor::parse)]
    new_passphrase_fd: Option<Descriptor>,
    /// Read the new passphrase from an environment variable; other programs of the same user can
    /// read it there
    #[arg(long, value_name = "NAME", group = "new")]
    new_passphrase_env: Option<String>,
    /// Run a command, and read the new passphrase from its output; it is split into words as by a
    /// shell, but no shell runs it
    #[arg(long, value_name = "COMMAND", group = "new")]
    new_passphrase_command: Option<String>,
    /// Read the new passphrase from a credential that systemd passes to the service
    #[arg(long, value_name = "NAME", group = "new")]
    new_credential: Option<String>,
    /// Accept a new passphrase that is quickly guessed
    #[arg(long)]
    weak_passphrase: bool,
}

/// A new secret for the store. Prompts for a passphrase if no option is given.
#[derive(Args, Clone)]
pub(crate) struct NewSecret {
    #[command(flatten)]
    passphrase: NewPassphrase,
    /// Use a new key file of 32 random bytes or 64 hexadecimal digits; `-` is standard input
    #[arg(long, value_name = "FILE", group = "new")]
    new_key_file: Option<PathBuf>,
    /// Use a new key from a credential of systemd
    #[arg(long, value_name = "NAME", group = "new")]
    new_key_credential: Option<String>,
    /// Keep a new key in the keyring of the operating system's user
    #[arg(long, group = "new")]
    new_keyring: bool,
    /// Make a new key, and have this key of a Transit engine at `--transit-url` encrypt it
    #[arg(long, value_name = "NAME", group = "new")]
    new_transit_key: Option<String>,
}

/// A source of a secret that can be read only once.
#[derive(PartialEq)]
enum Stream {
    StandardInput,
    #[cfg(unix)]
    Descriptor(RawFd),
}

impl Stream {
    fn of(files: &[&Option<PathBuf>], descriptor: &Option<Descriptor>) -> Option<Self> {
        #[cfg(unix)]
        if let Some(descriptor) = descriptor {
            return Some(if descriptor.number == 0 {
                Self::StandardInput
            } else {
                Self::Descriptor(descriptor.number)
            });
        }
        #[cfg(not(unix))]
        let _ = descriptor;
        files.iter().any(|file| file.as_deref().is_some_and(is_stream)).then_some(Self::StandardInput)
    }
}

impl CurrentSecret {
    /// `true` if an option says where the secret is.
    pub(crate) fn is_given(&self) -> bool {
        let files = [&self.passphrase_file, &self.key_file, &self.recovery_key_file];
        let texts =
            [&self.passphrase_env, &self.passphrase_command, &self.credential, &self.key_credential, &self.transit_key];
        files.iter().any(|file| file.is_some())
            || texts.iter().any(|text| text.is_some())
            || self.passphrase_fd.is_some()
            || self.keyring
            || self.recovery_key
    }

    /// Refuses to read two secrets from one stream: both would be read as one.
    ///
    /// # Errors
    /// If both secrets come from the same stream.
    pub(crate) fn refuse_stream_of(&self, new: &NewPassphrase, key: &Option<PathBuf>) -> Result<(), Failure> {
        let files = [&self.passphrase_file, &self.key_file, &self.recovery_key_file];
        let current = Stream::of(&files, &self.passphrase_fd);
        if current.is_some() && current == Stream::of(&[&new.new_passphrase_file, key], &new.new_passphrase_fd) {
            return Err(Failure::usage(
                "two secrets cannot come from the same stream: pass one of them in another way",
            ));
        }
        Ok(())
    }

    pub(crate) async fn open(&self, store: &impl OwnStore, settings: &Settings) -> Result<Vault, Failure> {
        Ok(open_account(store, &settings.vault, self.read(settings).await?).await?)
    }

    pub(crate) async fn open_read_only(&self, store: &impl OwnStore, settings: &Settings) -> Result<Vault, Failure> {
        let options = settings.vault.clone().mode(OpenMode::ReadOnly);
        Ok(open_account(store, &options, self.read(settings).await?).await?)
    }

    pub(crate) async fn read(&self, settings: &Settings) -> Result<Secret, Failure> {
        if let Some(provider) = provider(self.keyring, self.transit_key.as_deref(), settings)? {
            return Ok(provider);
        }
        let given = self.clone();
        on_a_thread(move || given.read_blocking()).await
    }

    fn read_blocking(self) -> Result<Secret, Failure> {
        if let Some(path) = self.key_file {
            return Ok(key(&path)?.into());
        }
        if let Some(name) = self.key_credential {
            return Ok(Key::from_credential(&name)?.into());
        }
        if let Some(path) = self.recovery_key_file {
            return Ok(file(&path, RecoveryKey::from_file, RecoveryKey::from_reader)?.into());
        }
        if self.recovery_key {
            return Ok(RecoveryKey::from_reader(&**Terminal::open()?.ask("recovery key: ")?)?.into());
        }
        let source = PassphraseSource {
            file: self.passphrase_file,
            descriptor: self.passphrase_fd,
            variable: self.passphrase_env,
            command: self.passphrase_command,
            credential: self.credential,
        };
        Ok(match source.read()? {
            Some(passphrase) => passphrase.into(),
            None => Passphrase::from_reader(&**Terminal::open()?.ask("passphrase: ")?)?.into(),
        })
    }
}

impl NewSecret {
    /// Like [`CurrentSecret::refuse_stream_of`].
    pub(crate) fn refuse_stream_of(&self, current: &CurrentSecret) -> Result<(), Failure> {
        current.refuse_stream_of(&self.passphrase, &self.new_key_file)
    }

    /// The label of the slot that it opens.
    pub(crate) fn usual_label(&self) -> &'static str {
        match self {
            Self { new_keyring: true, .. } => "keyring",
            Self { new_transit_key: Some(_), .. } => "transit",
            Self { new_key_file: Some(_), .. } | Self { new_key_credential: Some(_), .. } => "key",
            _ => "passphrase",
        }
    }

    pub(crate) async fn read(&self, settings: &Settings) -> Result<Secret, Failure> {
        if let Some(provider) = provider(self.new_keyring, self.new_transit_key.as_deref(), settings)? {
            return Ok(provider);
        }
        match (self.new_key_file.clone(), self.new_key_credential.clone()) {
            (Some(path), _) => on_a_thread(move || Ok(key(&path)?.into())).await,
            (None, Some(name)) => on_a_thread(move || Ok(Key::from_credential(&name)?.into())).await,
            (None, None) => Ok(self.passphrase.read().await?.into()),
        }
    }
}

/// The key provider that the options name.
fn provider(keyring: bool, transit_key: Option<&str>, settings: &Settings) -> Result<Option<Secret>, Failure> {
    Ok(match transit_key {
        Some(key) => Some(Arc::new(settings.transit.provider(key)?).into()),
        None => keyring.then(|| Arc::new(KeyringProvider::new()).into()),
    })
}

impl NewPassphrase {
    pub(crate) async fn read(&self) -> Result<Passphrase, Failure> {
        let given = self.clone();
        on_a_thread(move || given.read_blocking()).await
    }

    fn read_blocking(self) -> Result<Passphrase, Failure> {
        let source = PassphraseSource {
            file: self.new_passphrase_file,
            descriptor: self.new_passphrase_fd,
            variable: self.new_passphrase_env,
            command: self.new_passphrase_command,
            credential: self.new_credential,
        };
        let (passphrase, terminal) = match source.read()? {
            Some(passphrase) => (passphrase, None),
            None => {
                let mut terminal = Terminal::open()?;
                let first = terminal.ask("new passphrase: ")?;
                if first != terminal.ask("once more: ")? {
                    return Err(Failure::usage("the two passphrases are not the same"));
                }
                (Passphrase::from_reader(&**first)?, Some(terminal))
            }
        };
        refuse_weak(&passphrase, self.weak_passphrase, terminal)?;
        Ok(passphrase)
    }
}

/// # Errors
/// If the new passphrase cannot be typed or has too few characters, or if it is quickly guessed and the user does not
/// say yes to that, by `accepted` or on the terminal.
fn refuse_weak(passphrase: &Passphrase, accepted: bool, terminal: Option<Terminal>) -> Result<(), Failure> {
    if !passphrase.can_be_typed() {
        return Err(Failure::usage(
            "the new passphrase is not one line of text, so no one could type it: save it as UTF-8, or make a key file with `keygen`",
        ));
    }
    if passphrase.characters() < SHORTEST {
        return Err(Failure::usage(
            "the new passphrase has fewer than 8 characters: take several random words, or a key file",
        ));
    }
    let guesses = passphrase.guesses_log10();
    if guesses >= ENOUGH {
        return Ok(());
    }
    let weakness = format!("the new passphrase is quickly guessed, with some 10^{guesses:.0} guesses");
    let advice = "take four random words or more, or make a key file with `keygen`";
    if accepted {
        tell!("wastore: warning: {weakness}");
        return Ok(());
    }
    let Some(mut terminal) = terminal else {
        return Err(Failure::usage(&format!("{weakness}: {advice}, or accept it with `--weak-passphrase`")));
    };
    tell!("wastore: warning: {weakness}: {advice}");
    match terminal.ask("use it all the same? (yes or no): ")?.trim_ascii() {
        b"yes" => Ok(()),
        _ => Err(Failure::usage("run it again, and type another passphrase")),
    }
}

/// The length that NIST requires of any passphrase (SP 800-63B-4, section 3.1.1.2).
const SHORTEST: usize = 8;

/// The decimal logarithm of the number of guesses that a passphrase should take. With the usual cost, a graphics card
/// makes some thousands of guesses a second, so a hundred cards take some weeks.
const ENOUGH: f64 = 12.0;

/// Where a passphrase is read from: one of these, or the terminal.
struct PassphraseSource {
    file: Option<PathBuf>,
    descriptor: Option<Descriptor>,
    variable: Option<String>,
    command: Option<String>,
    credential: Option<String>,
}

impl PassphraseSource {
    /// Returns `None` if no source is given.
    fn read(self) -> Result<Option<Passphrase>, Failure> {
        Ok(Some(match self {
            Self { file: Some(path), .. } => file(&path, Passphrase::from_file, Passphrase::from_reader)?,
            Self { descriptor: Some(descriptor), .. } => descriptor.read()?,
            Self { variable: Some(name), .. } => Passphrase::from_env(&name)?,
            Self { command: Some(command), .. } => output_of(&command)?,
            Self { credential: Some(name), .. } => Passphrase::from_credential(&name)?,
            _ => return Ok(None),
        }))
    }
}

/// The command that is asked for a passphrase.
struct Asked {
    child: Option<Child>,
    /// This program was interrupted.
    interrupted: bool,
}

fn asked() -> MutexGuard<'static, Asked> {
    static ASKED: Mutex<Asked> = Mutex::new(Asked { child: None, interrupted: false });
    ASKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends a command that is asked for a passphrase, because this program was interrupted. The command has a second to put
/// the terminal in order and to end what it has started.
pub(crate) fn end_command() {
    let mut asked = asked();
    asked.interrupted = true;
    if let Some(mut child) = asked.child.take() {
        #[cfg(unix)]
        end_gently(&mut child);
        child.kill().ok();
        child.wait().ok();
    }
}

#[cfg(unix)]
fn end_gently(child: &mut Child) {
    use rustix::process::{Pid, Signal, kill_process};
    let (start, patience) = (Instant::now(), Duration::from_secs(1));
    let is_running = |child: &mut Child| matches!(child.try_wait(), Ok(None));
    if is_running(child) {
        kill_process(Pid::from_child(child), Signal::TERM).ok();
    }
    while is_running(child) && start.elapsed() < patience {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command and reads a passphrase from its output. It may ask on the terminal, and its errors are shown.
fn output_of(command: &str) -> Result<Passphrase, Failure> {
    let failed = |problem: &str| {
        let text = format!("the command for the passphrase {problem}: run it by itself, and see what it prints");
        Failure::other(io::Error::other(text))
    };
    let _terminal = KeptTerminal::begin();
    let output = start(command, failed)?;
    // Afterwards the pipe is closed, so a command that writes for ever ends.
    let read = Passphrase::from_reader(output);
    let status = loop {
        let mut asked = asked();
        match asked.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => {
                // From now on its number may be that of another process.
                asked.child = None;
                break status;
            }
            Some(Ok(None)) => {}
            Some(Err(error)) => return Err(Failure::other(error)),
            None => return Err(failed("was ended")),
        }
        drop(asked);
        std::thread::sleep(Duration::from_millis(5));
    };
    match read {
        Ok(passphrase) if status.success() => Ok(passphrase),
        Ok(_) => Err(failed("failed")),
        Err(_) if status.code().is_some_and(|code| code != 0) => Err(failed("failed")),
        read => naming("the output of the command for the passphrase", read),
    }
}

fn start(command: &str, failed: impl Fn(&str) -> Failure) -> Result<ChildStdout, Failure> {
    let words =
        shell_words::split(command).map_err(|_| Failure::usage("the command for the passphrase has an open quote"))?;
    let [program, arguments @ ..] = &words[..] else {
        return Err(Failure::usage("the command for the passphrase is empty"));
    };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut asked = asked();
    if asked.interrupted {
        return Err(failed("was not started"));
    }
    let mut child = command.spawn().map_err(|error| failed(&format!("cannot be started ({error})")))?;
    let output = child.stdout.take();
    asked.child = Some(child);
    output.ok_or_else(|| failed("has no output"))
}

fn key(path: &Path) -> Result<Key, Failure> {
    file(path, Key::from_file, Key::from_reader)
}

/// Reads a secret from a file, or from standard input if the path is `-`.
fn file<'p, T>(
    path: &'p Path,
    from_file: impl FnOnce(&'p Path) -> Result<T, Error>,
    from_reader: impl FnOnce(Box<dyn Read>) -> Result<T, Error>,
) -> Result<T, Failure> {
    match is_stream(path) {
        true => naming("standard input", from_reader(Box::new(standard_input()?))),
        false => naming(printable_path(path), from_file(path)),
    }
}

/// Names the place of a secret whose content is not valid.
fn naming<T>(place: impl Display, read: Result<T, Error>) -> Result<T, Failure> {
    read.map_err(|error| match error {
        Error::InvalidInput { .. } => Failure::other(io::Error::other(format!("{place}: {error}"))),
        error => error.into(),
    })
}

/// Standard input without a buffer, which would keep secrets.
fn standard_input() -> Result<impl Read, Failure> {
    #[cfg(unix)]
    return io::stdin().as_fd().try_clone_to_owned().map(|input| Waiting(input.into())).map_err(Failure::other);
    #[cfg(not(unix))]
    Ok(io::stdin())
}

/// `true` for `-`, which is standard input or output.
pub(crate) fn is_stream(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// An open file of the caller. Reads through the descriptor itself: opening its name in `/dev/fd`
/// would open the file again.
#[cfg(unix)]
#[derive(Clone)]
struct Descriptor {
    number: RawFd,
    open: Arc<filedescriptor::FileDescriptor>,
}

#[cfg(unix)]
impl Descriptor {
    /// Duplicates the descriptor while the command line is parsed, before the program opens its own
    /// files.
    fn parse(number: &str) -> Result<Self, String> {
        /// The descriptors that were opened here.
        static OWN: Mutex<Vec<RawFd>> = Mutex::new(vec![]);
        let number: RawFd = number.parse().map_err(|_| "it must be a number".to_owned())?;
        let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
        let open = Some(number).filter(|number| !own.contains(number));
        let open = open.and_then(|number| filedescriptor::FileDescriptor::dup(&number).ok());
        let open = open.ok_or_else(|| "no such descriptor is open".to_owned())?;
        own.push(open.as_raw_fd());
        Ok(Self { number, open: Arc::new(open) })
    }

    fn read(&self) -> Result<Passphrase, Failure> {
        let file = self.open.as_file().map_err(Failure::other)?;
        Ok(Passphrase::from_reader(Waiting(file))?)
    }
}

/// Waits for input, even if the descriptor is non-blocking.
#[cfg(unix)]
struct Waiting(File);

#[cfg(unix)]
impl Read for Waiting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use rustix::event::{PollFd, PollFlags, poll};
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None)?;
                }
                read => return read,
            }
        }
    }
}

#[cfg(not(unix))]
#[derive(Clone)]
struct Descriptor;

#[cfg(not(unix))]
impl Descriptor {
    fn parse(_: &str) -> Result<Self, String> {
        Err("there are no such descriptors on this system: use a file".to_owned())
    }

    fn read(&self) -> Result<Passphrase, Failure> {
        Err(Failure::usage("there are no such descriptors on this system: use a file"))
    }
}

/// Reads a saved header, up to the size of the longest one.
pub(crate) async fn saved_header(path: &Path) -> Result<Vec<u8>, Failure> {
    let path = path.to_owned();
    on_a_thread(move || {
        let mut content = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(HEADER_BYTES + 1).read_to_end(&mut content));
        match read {
            Ok(_) if content.len() as u64 > HEADER_BYTES => Err(io::ErrorKind::FileTooLarge.into()),
            Ok(_) => Ok(content),
            Err(error) => Err(error),
        }
        .map_err(|error| Failure::file("the saved header cannot be read", &path, &error))
    })
    .await
}

/// The size of the longest header, in bytes.
const HEADER_BYTES: u64 = 16 << 10;

//! Prompts and output: secrets on the terminal, standard output, warnings, progress.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use wastore::{Error, printable};
use zeroize::Zeroizing;

use crate::failure::{Failure, OTHER};

/// The terminal of the user. It does not show typed text as long as this value exists.
pub(crate) struct Terminal(system::Hidden);

impl Terminal {
    /// Opens the terminal, because standard input may be redirected.
    pub(crate) fn open() -> Result<Self, Failure> {
        system::Hidden::begin().map(Self)
    }

    /// Reads a line.
    pub(crate) fn ask(&mut self, prompt: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.0.ask(prompt)
    }
}

/// While another program asks on the terminal. Dropping it undoes what that program left behind.
pub(crate) struct KeptTerminal(());

impl KeptTerminal {
    pub(crate) fn begin() -> Self {
        system::keep();
        Self(())
    }
}

impl Drop for KeptTerminal {
    fn drop(&mut self) {
        system::give_back();
    }
}

/// Makes the terminal show typed text again after an interrupted prompt.
pub(crate) fn restore_terminal() {
    system::end();
}

fn no_terminal() -> Failure {
    Failure::usage("there is no terminal to ask for a passphrase: say by an option where the secret is, see `--help`")
}

/// Writes to standard output. A closed pipe is not an error.
pub(crate) fn say(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let text = format!(
                "standard output cannot be written: the work that it would have reported is done, and nothing after it: {error}"
            );
            Err(Failure { text, code: OTHER })
        }
        _ => Ok(()),
    }
}

/// Writes a secret to standard output, which must be readable to the user.
pub(crate) fn show_secret(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        // A closed standard output also points there.
        let is_null = |out: rustix::fs::Stat| fs::metadata("/dev/null").is_ok_and(|null| null.rdev() == out.st_rdev);
        if rustix::fs::fstat(&out).is_ok_and(is_null) {
            return Err(Failure::usage("standard output is discarded: the key would be lost"));
        }
    }
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Failure::other)
}

/// Shows the library's warnings from now on.
pub(crate) fn show_warnings() {
    if log::set_logger(&Warnings).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}

struct Warnings;

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn && metadata.target().split("::").next() == Some("wastore")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            tell!("wastore: warning: {}", printable(&record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

/// A progress bar; shown only on a terminal.
pub(crate) fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{msg:>9} {bar:40} {human_pos}/{human_len} {per_sec} {eta}") {
        bar.set_style(style);
    }
    bar
}

/// Shows how far the work is.
pub(crate) fn show(bar: &ProgressBar, what: &'static str, done: u64, total: u64) {
    bar.set_message(what);
    bar.set_length(total);
    bar.set_position(done);
}

/// Writes a new file that only its owner can read.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), Failure> {
    wastore::write_new(path, content).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::TargetExists { path: path.to_owned() }.into(),
        _ => Error::File { what: "new", source }.into(),
    })
}

#[cfg(unix)]
mod system {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use rustix::process::getpgrp;
    use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp, tcsetattr};
    use zeroize::Zeroizing;

    use super::no_terminal;
    use crate::failure::{Failure, INTERRUPTED};

    /// The terminal settings of the shell, while they are changed.
    struct Before {
        settings: Option<(File, Termios)>,
        /// The command is about to end.
        is_over: bool,
    }

    static BEFORE: Mutex<Before> = Mutex::new(Before { settings: None, is_over: false });

    fn before() -> MutexGuard<'static, Before> {
        BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) struct Hidden(File);

    impl Hidden {
        pub(crate) fn begin() -> Result<Self, Failure> {
            let terminal = File::options().read(true).write(true).open("/dev/tty").map_err(|_| no_terminal())?;
            let mut before = before();
            if before.is_over {
                return Err(interrupted());
            }
            let settings = tcgetattr(&terminal).map_err(|_| no_terminal())?;
            let mut hiding = settings.clone();
            // Shows the end of the line, and makes Ctrl-C a signal.
            hiding.local_modes.remove(LocalModes::ECHO);
            hiding.local_modes.insert(LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
            // Disable Ctrl-Z: the shell would reset the terminal, and after resuming it would show
            // the typed text.
            hiding.special_codes[SpecialCodeIndex::VSUSP] = DISABLED;
            tcsetattr(&terminal, OptionalActions::Now, &hiding).map_err(Failure::other)?;
            before.settings = Some((terminal.try_clone().map_err(Failure::other)?, settings));
            Ok(Self(terminal))
        }

        pub(crate) fn ask(&mut self, prompt: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
            self.0.write_all(prompt.as_bytes()).map_err(Failure::other)?;
            // Larger than the longest line of a terminal.
            let mut line = Zeroizing::new(vec![0; LINE_BYTES]);
            let length = self.0.read(&mut line).map_err(Failure::other)?;
            line.truncate(length);
            match line.last() {
                // A longer line loses its end.
                Some(b'\n') if length < LONGEST_LINE => Ok(line),
                None => Err(interrupted()),
                Some(_) => Err(Failure::usage(
                    "the line is incomplete: a terminal takes a few thousand bytes at most, so put a longer secret into a file",
                )),
            }
        }
    }

    const LINE_BYTES: usize = 64 << 10;
    /// Includes the line's end (`MAX_CANON`, or its equivalent on Linux).
    const LONGEST_LINE: usize = if cfg!(any(target_os = "linux", target_os = "android")) { 4096 } else { 1024 };
    /// The value that disables a special character (`_POSIX_VDISABLE`).
    const DISABLED: u8 = if cfg!(any(target_os = "linux", target_os = "android")) { 0 } else { 0xff };

    impl Drop for Hidden {
        fn drop(&mut self) {
            give_back();
        }
    }

    /// Remembers the settings of the terminal, if there is one that listens to this program.
    pub(crate) fn keep() {
        let mut before = before();
        if let Ok(terminal) = File::open("/dev/tty")
            && is_in_front(&terminal)
            && let Ok(settings) = tcgetattr(&terminal)
            && !before.is_over
        {
            before.settings = Some((terminal, settings));
        }
    }

    pub(crate) fn give_back() {
        restore(&mut before());
    }

    fn restore(before: &mut Before) -> bool {
        let Some((terminal, settings)) = before.settings.take() else { return false };
        is_in_front(&terminal) && tcsetattr(&terminal, OptionalActions::Now, &settings).is_ok()
    }

    /// A program in the background must leave the terminal to the shell, and would be stopped if it changed it.
    fn is_in_front(terminal: &File) -> bool {
        tcgetpgrp(terminal).is_ok_and(|front| front == getpgrp())
    }

    pub(crate) fn end() {
        let mut before = before();
        before.is_over = true;
        if restore(&mut before) {
            tell!("");
        }
    }

    fn interrupted() -> Failure {
        Failure { text: "interrupted".to_owned(), code: INTERRUPTED }
    }
}

#[cfg(not(unix))]
mod system {
    use std::io::{self, IsTerminal};

    use zeroize::Zeroizing;

    use super::no_terminal;
    use crate::failure::Failure;

    pub(crate) struct Hidden;

    impl Hidden {
        pub(crate) fn begin() -> Result<Self, Failure> {
            if io::stdin().is_terminal() { Ok(Self) } else { Err(no_terminal()) }
        }

        pub(crate) fn ask(&mut self, prompt: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
            rpassword::prompt_password(prompt).map(|line| Zeroizing::new(line.into_bytes())).map_err(Failure::other)
        }
    }

    pub(crate) fn keep() {}

    pub(crate) fn give_back() {}

    pub(crate) fn end() {}
}

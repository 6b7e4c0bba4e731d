//! Asking for secrets on the terminal.

use zeroize::Zeroizing;

use super::Failure;

/// The terminal of whoever runs the command, which does not show what is typed as long as this exists.
pub(super) struct Terminal(system::Hidden);

impl Terminal {
    /// Asks the user and not standard input, which may be redirected.
    pub(super) fn open() -> Result<Self, Failure> {
        system::Hidden::begin().map(Self)
    }

    /// Reads a line.
    pub(super) fn ask(&mut self, prompt: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.0.ask(prompt)
    }
}

/// Makes the terminal show what is typed again, if a prompt was interrupted.
pub(super) fn restore_terminal() {
    system::end();
}

fn no_terminal() -> Failure {
    Failure::usage(
        "no terminal to ask for a passphrase on: give one of the options for files, descriptors and variables",
    )
}

#[cfg(unix)]
mod system {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
    use zeroize::Zeroizing;

    use super::no_terminal;
    use crate::{Failure, INTERRUPTED};

    /// How the shell left the terminal, as long as it is not so.
    struct Before {
        settings: Option<(File, Termios)>,
        /// The command is about to end.
        is_over: bool,
    }

    static BEFORE: Mutex<Before> = Mutex::new(Before { settings: None, is_over: false });

    fn before() -> MutexGuard<'static, Before> {
        BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) struct Hidden(File);

    impl Hidden {
        pub(super) fn begin() -> Result<Self, Failure> {
            let terminal = File::options().read(true).write(true).open("/dev/tty").map_err(|_| no_terminal())?;
            let mut before = before();
            if before.is_over {
                return Err(interrupted());
            }
            let settings = tcgetattr(&terminal).map_err(|_| no_terminal())?;
            let mut hiding = settings.clone();
            // The end of the line is shown, and Ctrl-C is a signal.
            hiding.local_modes.remove(LocalModes::ECHO);
            hiding.local_modes.insert(LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
            tcsetattr(&terminal, OptionalActions::Now, &hiding).map_err(Failure::other)?;
            before.settings = Some((terminal.try_clone().map_err(Failure::other)?, settings));
            Ok(Self(terminal))
        }

        pub(super) fn ask(&mut self, prompt: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
            self.0.write_all(prompt.as_bytes()).map_err(Failure::other)?;
            // More than a terminal takes as a line.
            let mut line = Zeroizing::new(vec![0; LINE_BYTES]);
            let length = self.0.read(&mut line).map_err(Failure::other)?;
            if length == 0 {
                return Err(interrupted());
            }
            line.truncate(length);
            Ok(line)
        }
    }

    const LINE_BYTES: usize = 64 << 10;

    impl Drop for Hidden {
        fn drop(&mut self) {
            restore(&mut before());
        }
    }

    fn restore(before: &mut Before) -> bool {
        let Some((terminal, settings)) = before.settings.take() else { return false };
        tcsetattr(&terminal, OptionalActions::Now, &settings).is_ok()
    }

    pub(super) fn end() {
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
    use crate::Failure;

    pub(super) struct Hidden;

    impl Hidden {
        pub(super) fn begin() -> Result<Self, Failure> {
            if io::stdin().is_terminal() { Ok(Self) } else { Err(no_terminal()) }
        }

        pub(super) fn ask(&mut self, prompt: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
            rpassword::prompt_password(prompt).map(|line| Zeroizing::new(line.into_bytes())).map_err(Failure::other)
        }
    }

    pub(super) fn end() {}
}

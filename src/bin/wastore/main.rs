//! The command `wastore`: an operator's work on the store of a bot.
//!
//! | file | |
//! |--|--|
//! | `cli.rs` | the command line |
//! | `commands.rs` | one function for each command |
//! | `copy.rs` | the command `copy` |
//! | `manual.rs` | shell completions and manual pages |
//! | `place.rs` | where a store is: a path or a URL |
//! | `stores.rs` | opening the store and choosing its accounts |
//! | `settings.rs` | how vaults are opened and created |
//! | `secrets.rs` | reading secrets: from files, descriptors, variables, commands, credentials and the terminal |
//! | `transit.rs` | the Transit server, and the HTTP client for it |
//! | `threads.rs` | work that may wait for long |
//! | `terminal.rs` | prompts and output |
//! | `interruption.rs` | signals, and cleaning up after one |
//! | `failure.rs` | failures, and their exit codes |

#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "a command talks to a terminal")]

use std::process::ExitCode;

use clap::Parser;

/// Writes a line to standard error, which may be closed.
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write;
        writeln!(std::io::stderr(), $($text)*).ok();
    }};
}

mod cli;
mod commands;
mod copy;
mod failure;
mod interruption;
mod manual;
mod place;
mod secrets;
mod settings;
mod stores;
mod terminal;
mod threads;
mod transit;

use cli::Cli;
use failure::{Failure, INTERRUPTED};
use interruption::{Makes, end_background_work, interrupted};
use terminal::{restore_terminal, show_warnings};

fn main() -> ExitCode {
    let cli = Cli::parse();
    show_warnings();
    let settings = match cli.settings() {
        Ok(settings) => settings,
        Err(failure) => {
            tell!("wastore: {}", failure.text);
            return ExitCode::from(failure.code);
        }
    };
    let makes = Makes::of(&cli.command);
    let run = || -> Result<ExitCode, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::other)?;
        // Dropping the running work removes its unfinished files.
        runtime.block_on(async {
            // Listen before anything is made that a signal must not leave behind.
            let interrupted = interrupted();
            let done = tokio::select! {
                done = commands::run(cli.command, &settings) => done,
                () = interrupted => Err(Failure { text: "interrupted".to_owned(), code: INTERRUPTED }),
            };
            stores::leave_servers().await;
            done
        })
    };
    match run() {
        Ok(code) => code,
        Err(failure) => {
            if failure.code == INTERRUPTED {
                secrets::end_command();
                end_background_work();
                restore_terminal();
                makes.tell_what_is_done();
            }
            tell!("wastore: {}", failure.text);
            ExitCode::from(failure.code)
        }
    }
}

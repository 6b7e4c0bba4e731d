//! Completions and manual pages, both made from the definitions in `cli.rs`.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::terminal::say;

const NAME: &str = "wastore";

pub(crate) fn completions(shell: Shell) -> Result<ExitCode, Failure> {
    // `generate` panics if it cannot write, for example to a closed pipe.
    let mut script = vec![];
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    say(String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the page of the command, or writes this page and one for each subcommand into a folder.
pub(crate) fn man(folder: Option<&Path>) -> Result<ExitCode, Failure> {
    // The `help` subcommand would get a page of its own.
    let command = Cli::command().disable_help_subcommand(true);
    let Some(folder) = folder else {
        let mut page = vec![];
        clap_mangen::Man::new(command).render(&mut page).map_err(Failure::other)?;
        say(String::from_utf8_lossy(&page))?;
        return Ok(ExitCode::SUCCESS);
    };
    let written = fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(command, folder));
    written.map_err(|error| Failure::file("the manual pages cannot be written", folder, &error))?;
    Ok(ExitCode::SUCCESS)
}

//! What a program prints about itself: its manual page and its completion scripts, made of the definition of its command
//! line. The same for all three programs. Never reads a configuration, never writes but where it is told to.

use clap::{Args, Command, ValueEnum};
use std::io::{self, Write as _};
use std::path::Path;

/// Options of a program that has no commands of its own for them.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Papers")]
pub struct Papers {
    /// Print the manual page, and exit.
    #[arg(long, exclusive = true)]
    man: bool,
    /// Print a completion script, and exit.
    #[arg(long, exclusive = true, value_enum, value_name = "SHELL")]
    completion: Option<Shell>,
}

/// Shells with completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// Bash.
    Bash,
    /// Zsh.
    Zsh,
    /// Fish.
    Fish,
}

impl Papers {
    /// Prints what was asked for; whether anything was.
    #[must_use]
    pub fn print(&self, command: Command) -> bool {
        let text = match self {
            Self { completion: Some(shell), .. } => completion(command, *shell),
            Self { man: true, .. } => manual(command),
            Self { man: false, completion: None } => return false,
        };
        // Who closes the pipe has read enough.
        let _ = io::stdout().write_all(text.as_bytes());
        true
    }
}

/// The manual page of the program.
#[must_use]
pub fn manual(command: Command) -> String {
    let mut page = Vec::new();
    // A vector takes whatever is written.
    let _ = clap_mangen::Man::new(command).render(&mut page);
    String::from_utf8_lossy(&page).into_owned()
}

/// Writes the manual pages of a program and of all its commands into a directory, which is made if it is not there.
///
/// # Errors
/// What the system says about files.
pub fn manuals(command: Command, directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(command, directory)
}

/// The completion script of the program for a shell.
#[must_use]
pub fn completion(mut command: Command, shell: Shell) -> String {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let (name, mut script) = (command.get_name().to_owned(), Vec::new());
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

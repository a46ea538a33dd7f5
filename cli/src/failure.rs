//! Exit codes, and errors that say what to do. The only place where a gRPC status becomes an exit code.
//! Never holds a token.

use std::process::ExitCode;

use tonic::{Code, Status};

/// How the program ends; documented in `--help` and docs/heliosctl.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok,
    /// `config diff`, or a dry run, found differences.
    Differences,
    /// Wrong command line, or a file that cannot be read.
    Usage,
    /// There is no such thing.
    NotFound,
    /// It is not as expected: another revision, it exists already, not possible as things are.
    Conflict,
    /// Nothing answers, or it cannot do this.
    Unavailable,
    /// No token, a wrong one, or one that is not allowed to.
    Denied,
    /// Something is wrong with the fleet, or waiting took too long.
    Degraded,
    /// The configuration or the request is not valid.
    Rejected,
}

impl Exit {
    /// The number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Differences => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unavailable => 5,
            Self::Denied => 6,
            Self::Degraded => 7,
            Self::Rejected => 8,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.number().into()
    }
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// How the program ends.
    pub exit: Exit,
    /// For standard error; empty: nothing is to be said.
    pub text: String,
}

impl Failure {
    /// A failure with words.
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }

    /// A wrong command line.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text)
    }

    /// Standard output failed; who closed it does not want to hear more.
    #[must_use]
    pub fn output(error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::new(Exit::Ok, "");
        }
        Self::new(Exit::Unavailable, format!("cannot write to standard output: {error}"))
    }

    /// What a service said, with what to do about it.
    #[must_use]
    pub fn of_status(status: &Status, endpoint: &str) -> Self {
        let said = clean(status.message());
        let (exit, text) = match status.code() {
            Code::NotFound => (Exit::NotFound, said),
            Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => (Exit::Conflict, said),
            Code::InvalidArgument | Code::OutOfRange => (Exit::Rejected, said),
            Code::Unauthenticated => (
                Exit::Denied,
                format!(
                    "{endpoint} refused: {said}\nhint: give a token of [[management.tokens]] by --token-file, \
                     HELIOSCTL_TOKEN or a context, or a certificate that it names by --cert and --key"
                ),
            ),
            Code::PermissionDenied => (Exit::Denied, said),
            Code::Unimplemented => (Exit::Unavailable, format!("{endpoint} does not offer this: {said}")),
            Code::DeadlineExceeded => (Exit::Degraded, format!("{endpoint} did not answer in time: {said}")),
            Code::Unavailable => (Exit::Unavailable, format!("{endpoint} cannot do this now: {said}")),
            _ => (
                Exit::Unavailable,
                format!(
                    "{endpoint} does not answer as a management service: {said}\nhint: the port is \
                     listen_address in [management], 9091 unless the file says otherwise; with TLS write https://"
                ),
            ),
        };
        Self { exit, text }
    }
}

/// Text from elsewhere, without what could steer a terminal; lines stay lines.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_exit() {
        let exit = |code| Failure::of_status(&Status::new(code, "x"), "http://e").exit.number();
        for (code, number) in [
            (Code::NotFound, 3),
            (Code::AlreadyExists, 4),
            (Code::Aborted, 4),
            (Code::FailedPrecondition, 4),
            (Code::Unavailable, 5),
            (Code::Unimplemented, 5),
            (Code::Internal, 5),
            (Code::Unauthenticated, 6),
            (Code::PermissionDenied, 6),
            (Code::DeadlineExceeded, 7),
            (Code::InvalidArgument, 8),
        ] {
            assert_eq!(exit(code), number, "{code:?}");
        }
    }

    #[test]
    fn what_a_service_says_cannot_steer_the_terminal() {
        let status = Status::new(Code::NotFound, "no \u{1b}[31mnode\u{7}\nx");
        assert_eq!(Failure::of_status(&status, "e").text, "no  [31mnode \nx");
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let failure = Failure::output(&std::io::ErrorKind::BrokenPipe.into());
        assert_eq!((failure.exit, failure.text.as_str()), (Exit::Ok, ""));
    }
}

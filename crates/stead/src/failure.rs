//! How a command ends when it fails: what is printed, and the exit code.

use std::io;
use std::process::ExitCode;

use stead_core::error::{Code, UserError};
use stead_core::manifest::Problems;

use crate::output::{Format, painted};

/// Everything was said already; only the exit code is left.
#[derive(Debug, thiserror::Error)]
#[error("ended with exit code {0}")]
pub(crate) struct Quiet(pub(crate) u8);

/// Prints a failure on standard error and gives its exit code.
pub(crate) fn report(error: &anyhow::Error, format: Format) -> ExitCode {
    if let Some(Quiet(code)) = error.downcast_ref() {
        return ExitCode::from(*code);
    }
    if let Some(problems) = error.downcast_ref::<Problems>() {
        let code = UserError::from(problems.clone());
        match format {
            Format::Json => print_json(&code),
            _ => eprintln!("{problems}"),
        }
        return ExitCode::from(code.kind().exit_code());
    }
    let error = match error.downcast_ref::<UserError>() {
        Some(error) => error.clone(),
        // Whoever read the answer has seen enough.
        None if io_kind(error) == Some(io::ErrorKind::BrokenPipe) => return ExitCode::SUCCESS,
        None => foreign(error),
    };
    match format {
        Format::Json => print_json(&error),
        _ => eprint!("{}", text(&error)),
    }
    ExitCode::from(error.kind().exit_code())
}

/// The lines a person sees.
pub(crate) fn text(error: &UserError) -> String {
    let head = painted(&format!("error[{}]", error.code), "1;31");
    let mut out = format!("{head}: {}\n", harmless(&error.message));
    if !error.hint.is_empty() {
        out.push_str(&format!("  {} {}\n", painted("help:", "1"), harmless(&error.hint)));
    }
    out
}

/// Without what does something to a terminal: names of a stranger's files stand in messages, and
/// what their tools said.
fn harmless(text: &str) -> String {
    text.chars().filter(|&letter| matches!(letter, '\n' | '\t') || !letter.is_control()).collect()
}

/// An error of this machine that no one expected: a file, a socket.
fn foreign(error: &anyhow::Error) -> UserError {
    let hint = match io_kind(error) {
        Some(io::ErrorKind::PermissionDenied) => "run it as root",
        Some(io::ErrorKind::StorageFull) => "make room on the disk",
        _ => "",
    };
    UserError::new(Code::Internal, format!("{error:#}"), hint)
}

fn io_kind(error: &anyhow::Error) -> Option<io::ErrorKind> {
    error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind)
}

fn print_json(error: &UserError) {
    let document = serde_json::json!({ "error": error });
    eprintln!("{document}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_code_and_what_to_do() {
        let error =
            UserError::new(Code::ImageNotFound, "image x:1 does not exist", "check the tag");
        assert_eq!(
            text(&error),
            "error[STEAD-I001]: image x:1 does not exist\n  help: check the tag\n"
        );
    }

    #[test]
    fn a_message_does_nothing_to_a_terminal() {
        let said = UserError::new(Code::PackageUnfit, "a\u{1b}]0;x\u{7} b\nc\rd", "e\u{9b}2J");
        assert_eq!(text(&said), "error[STEAD-I010]: a]0;x b\ncd\n  help: e2J\n");
    }

    #[test]
    fn what_no_one_expected_still_says_what_to_do() {
        let error = anyhow::Error::from(io::Error::from(io::ErrorKind::PermissionDenied))
            .context("cannot write /var/lib/stead");
        let error = foreign(&error);
        assert_eq!((error.code, error.hint.as_str()), (Code::Internal, "run it as root"));
        assert!(error.message.starts_with("cannot write /var/lib/stead: "), "{error}");
    }
}

//! A person's own programs, run as they would run them: argument vectors, their configuration,
//! their mirrors.
//!
//! Promises: what a program said is shown when it fails, the end of it. Does not know what the
//! programs do.

use std::io;
use std::process::{Command, Stdio};

use super::error::PackError;

/// Lines of a failed program's output that are shown.
const LINES: usize = 25;

/// Runs `command` to its end and gives what it wrote to its standard output. `tool` is its
/// name, `hint` what to do where it is not installed or fails.
///
/// # Errors
/// When it cannot be started or does not succeed.
pub(super) fn run(command: &mut Command, tool: &str, hint: &str) -> Result<String, PackError> {
    let fail =
        |reason: String| PackError::Tool { tool: tool.to_owned(), reason, hint: hint.into() };
    let output = match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(fail("it is not installed".to_owned()));
        }
        Err(error) => return Err(fail(format!("it cannot be started: {error}"))),
        Ok(output) => output,
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    Err(fail(format!("it failed ({}):\n{}", output.status, last.join("\n"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_given_and_the_end_of_it_shown_when_it_fails() {
        let shell = |script: &str| run(Command::new("sh").args(["-c", script]), "sh", "mend it");
        assert_eq!(shell("echo fine; echo not >&2").unwrap(), "fine\n");
        let error = shell("seq 100; echo broken >&2; exit 3").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.ends_with("broken"), "{text}");
        assert!(text.contains("\n100\n") && !text.contains("\n50\n"), "{text}");
        assert_eq!(error.hint(), "mend it");
        let error = run(&mut Command::new("/no/such/program"), "such", "install it").unwrap_err();
        assert!(error.to_string().contains("not installed"), "{error}");
    }
}

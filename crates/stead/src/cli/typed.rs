//! What a person types, or a pipe brings, that is shown nowhere.

use std::io::{self, BufRead, IsTerminal, Read};

use anyhow::Result;
use rustix::termios::{LocalModes, OptionalActions};
use stead_core::secret::LONGEST;

use super::terminal::Changed;
use crate::failure::Quiet;

/// A secret from standard input, without the line end that follows it. On a terminal it is
/// asked for with `prompt`, and one line is read.
///
/// # Errors
/// [`Quiet`] if the person gives up.
pub(super) async fn secret(prompt: &str) -> Result<Vec<u8>> {
    // Restored also when the person gives up.
    let hidden = if io::stdin().is_terminal() {
        eprint!("{prompt} (not shown): ");
        Some(Changed::new(OptionalActions::Flush, |it| it.local_modes.remove(LocalModes::ECHO))?)
    } else {
        None
    };
    let one_line = hidden.is_some();
    let read = tokio::select! {
        read = tokio::task::spawn_blocking(move || read(one_line)) => Some(read??),
        _ = tokio::signal::ctrl_c() => None,
    };
    if hidden.is_some() {
        // The person's own line end was not shown either.
        eprintln!();
    }
    Ok(read.ok_or(Quiet(1))?)
}

/// One line that is shown while it is typed.
///
/// # Errors
/// [`Quiet`] if the person gives up.
pub(super) async fn line(prompt: &str) -> Result<Vec<u8>> {
    eprint!("{prompt}: ");
    tokio::select! {
        read = tokio::task::spawn_blocking(move || read(true)) => Ok(read??),
        _ = tokio::signal::ctrl_c() => Err(Quiet(1).into()),
    }
}

/// One line, or everything; without the line end that follows it.
fn read(one_line: bool) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = LONGEST as u64 + 3;
    let mut stdin = io::stdin().lock().take(most);
    if one_line {
        stdin.read_until(b'\n', &mut bytes)?;
    } else {
        stdin.read_to_end(&mut bytes)?;
    }
    Ok(without_line_end(bytes))
}

fn without_line_end(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_is_taken_off() {
        for (given, kept) in
            [("a\n", "a"), ("a\r\n", "a"), ("a", "a"), ("a\n\n", "a\n"), ("\n", ""), (" a ", " a ")]
        {
            assert_eq!(without_line_end(given.into()), kept.as_bytes(), "{given:?}");
        }
    }
}

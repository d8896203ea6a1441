//! The terminal of whoever runs a command, in another mode for a while.

use std::io;

use rustix::termios::{self, OptionalActions, Termios};

/// A terminal that was changed; as it was again once this is dropped.
pub(super) struct Changed {
    before: Termios,
}

impl Changed {
    /// Changes the terminal of standard input. `when` says what happens to what was typed before.
    ///
    /// # Errors
    /// When standard input is no terminal.
    pub(super) fn new(
        when: OptionalActions,
        change: impl FnOnce(&mut Termios),
    ) -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut changed = before.clone();
        change(&mut changed);
        termios::tcsetattr(io::stdin(), when, &changed)?;
        Ok(Self { before })
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

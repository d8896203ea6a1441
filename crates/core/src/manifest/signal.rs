//! The signal that asks a process to end, by its name on Linux.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::problem::BadValue;
use super::suggest;
use crate::error::Code;

/// Signals that can ask a process to end: those of signal(7) for x86 and ARM, but for those
/// that stop a process or let it go on (SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGCONT).
const NAMES: [(&str, u8); 26] = [
    ("SIGHUP", 1),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGILL", 4),
    ("SIGTRAP", 5),
    ("SIGABRT", 6),
    ("SIGBUS", 7),
    ("SIGFPE", 8),
    ("SIGKILL", 9),
    ("SIGUSR1", 10),
    ("SIGSEGV", 11),
    ("SIGUSR2", 12),
    ("SIGPIPE", 13),
    ("SIGALRM", 14),
    ("SIGTERM", 15),
    ("SIGSTKFLT", 16),
    ("SIGCHLD", 17),
    ("SIGURG", 23),
    ("SIGXCPU", 24),
    ("SIGXFSZ", 25),
    ("SIGVTALRM", 26),
    ("SIGPROF", 27),
    ("SIGWINCH", 28),
    ("SIGIO", 29),
    ("SIGPWR", 30),
    ("SIGSYS", 31),
];

/// First and last real-time signal as glibc and musl number them.
const REAL_TIME: (u8, u8) = (34, 64);

/// A stop signal. Written `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[derive(utoipa::ToSchema, schemars::JsonSchema)]
#[schema(value_type = String, example = "SIGQUIT")]
#[schemars(with = "String", inline)]
pub struct StopSignal(u8);

impl StopSignal {
    /// SIGTERM, what a process gets where nothing else is asked for.
    pub const TERM: Self = Self(15);

    /// Its number on Linux.
    pub const fn number(self) -> i32 {
        self.0 as i32
    }
}

fn number_of(text: &str) -> Option<u8> {
    let usable = |number: &u8| {
        NAMES.iter().any(|(_, known)| known == number)
            || (REAL_TIME.0..=REAL_TIME.1).contains(number)
    };
    if let Ok(number) = text.parse::<u8>() {
        return Some(number).filter(usable);
    }
    let upper = text.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(above) = short.strip_prefix("RTMIN") {
        let above =
            if above.is_empty() { 0 } else { above.strip_prefix('+')?.parse::<u8>().ok()? };
        return REAL_TIME.0.checked_add(above).filter(|number| *number <= REAL_TIME.1);
    }
    NAMES.iter().find(|(name, _)| &name[3..] == short).map(|(_, number)| *number)
}

impl FromStr for StopSignal {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        number_of(text).map(Self).ok_or_else(|| {
            let expected = "a signal that can end a process, such as SIGTERM or SIGQUIT";
            let near = suggest::nearest(text, NAMES.iter().map(|(name, _)| *name));
            BadValue::text(Code::ManifestText, expected, text).nearest(near)
        })
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "SIGRTMIN+{}", self.0 - REAL_TIME.0),
        }
    }
}

impl TryFrom<String> for StopSignal {
    type Error = BadValue;
    fn try_from(text: String) -> Result<Self, BadValue> {
        text.parse()
    }
}

impl From<StopSignal> for String {
    fn from(signal: StopSignal) -> String {
        signal.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_many_spellings_and_one_name() {
        for text in ["SIGQUIT", "QUIT", "quit", "3"] {
            assert_eq!(text.parse::<StopSignal>().unwrap().to_string(), "SIGQUIT", "{text}");
        }
        assert_eq!("SIGRTMIN+3".parse::<StopSignal>().unwrap().number(), 37);
        assert_eq!("37".parse::<StopSignal>().unwrap().to_string(), "SIGRTMIN+3");
        for bad in
            ["", "SIG", "SIGSTOP", "SIGTSTP", "0", "19", "32", "65", "SIGRTMIN+31", "RTMIN3", "ü"]
        {
            assert!(bad.parse::<StopSignal>().is_err(), "{bad}");
        }
        let near = "SIGTEMR".parse::<StopSignal>().unwrap_err().nearest;
        assert_eq!(near.as_deref(), Some("SIGTERM"));
    }

    #[test]
    fn every_signal_reads_what_it_writes() {
        for number in 0..=u8::MAX {
            if let Ok(signal) = number.to_string().parse::<StopSignal>() {
                assert_eq!(signal.to_string().parse::<StopSignal>().unwrap(), signal);
            }
        }
    }
}

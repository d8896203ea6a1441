//! What is wrong with a manifest: where, what was expected, what was found, what to do.
//!
//! The text form is a compiler's: `app.yaml:7:3: error STEAD-M004: unknown key "replicas"`,
//! then a line of help. Whatever is quoted from the manifest is escaped, so that it cannot
//! play tricks on a terminal.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Code, UserError};

/// A place in the manifest's text. Both numbers count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

/// Why a single value is refused, wherever it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found}")]
pub struct BadValue {
    /// What kind of mistake it is.
    pub code: Code,
    /// What would have been right, as a noun phrase.
    pub expected: String,
    /// What stood there, quoted and shortened.
    pub found: String,
    /// The known word nearest to the one found.
    pub nearest: Option<String>,
    /// What to do about it, where that does not follow from the rest.
    pub hint: Option<String>,
}

impl BadValue {
    /// A refusal of something described in words.
    pub(super) fn new(code: Code, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { code, expected: expected.into(), found: found.into(), nearest: None, hint: None }
    }

    /// A refusal of a text, which is quoted.
    pub(super) fn text(code: Code, expected: impl Into<String>, text: &str) -> Self {
        Self::new(code, expected, quote(text))
    }

    /// The same with advice.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with the known word that was probably meant.
    pub(super) fn nearest(mut self, nearest: Option<&str>) -> Self {
        self.nearest = nearest.map(str::to_owned);
        self
    }
}

/// How much of a text is shown, in characters.
const LONGEST: usize = 60;

/// Quotes and escapes a text of the manifest, shortened to what fits a line.
pub(super) fn quote(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// One mistake in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The code; its page under `docs/errors/` explains more.
    pub code: Code,
    /// Which field, such as `health.readiness.period` or `volumes[1].mount`. Empty for the
    /// manifest as a whole.
    pub path: String,
    /// Where in the text. `None` when the manifest did not come as text.
    pub at: Option<Position>,
    /// What would have been right.
    pub expected: String,
    /// What stood there.
    pub found: String,
    /// The known key or word that was probably meant.
    pub nearest: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    pub(super) fn new(bad: BadValue, path: &FieldPath, at: Option<Position>) -> Self {
        let BadValue { code, expected, found, nearest, hint } = bad;
        Self { code, path: path.to_string(), at, expected, found, nearest, hint }
    }

    /// What is wrong, as a sentence without its place.
    pub fn message(&self) -> String {
        let Self { path, expected, found, .. } = self;
        match self.code {
            Code::ManifestSyntax => format!("YAML syntax: {found}"),
            Code::ManifestUnknownKey => format!("unknown key {found}"),
            Code::ManifestMissingKey => format!("missing key {path}"),
            Code::ManifestNotBuilt => format!("{path}: {found} is not built yet"),
            _ if path.is_empty() => format!("expected {expected}, found {found}"),
            _ => format!("{path}: expected {expected}, found {found}"),
        }
    }

    /// What to do, where there is something to say beyond [`Self::message`].
    pub fn help(&self) -> Option<String> {
        match (&self.nearest, &self.hint, self.code) {
            (Some(nearest), _, _) => Some(format!("did you mean {nearest:?}?")),
            (None, Some(hint), _) => Some(hint.clone()),
            (None, None, Code::ManifestUnknownKey | Code::ManifestNotBuilt) => {
                Some(format!("use {}", self.expected))
            }
            (None, None, _) => None,
        }
    }
}

/// Every mistake of one manifest, in the order of the text. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
pub struct Problems {
    /// What the manifest is called in messages, such as `app.yaml`.
    pub origin: String,
    /// The mistakes.
    pub list: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, list } = self;
        for problem in list {
            match problem.at {
                Some(Position { line, column }) => write!(f, "{origin}:{line}:{column}")?,
                None => f.write_str(origin)?,
            }
            writeln!(f, ": error {}: {}", problem.code, problem.message())?;
            if let Some(help) = problem.help() {
                writeln!(f, "  help: {help}")?;
            }
        }
        let count = match list.len() {
            1 => "1 problem".to_owned(),
            n => format!("{n} problems"),
        };
        write!(f, "{origin}: {count}; docs/errors/ has a page for each code")
    }
}

impl From<Problems> for UserError {
    /// All problems in one error, under the code of the first.
    fn from(problems: Problems) -> Self {
        let code = problems.list.first().map_or(Code::ManifestSyntax, |first| first.code);
        UserError::new(code, problems.to_string(), "correct the manifest and try again")
    }
}

/// A field's place in a manifest, as a chain of keys and indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FieldPath(pub(super) Vec<Step>);

/// One link of a [`FieldPath`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl FieldPath {
    pub(super) fn of(keys: &[&str]) -> Self {
        Self(keys.iter().map(|key| Step::Key((*key).to_owned())).collect())
    }

    pub(super) fn key(&self, key: &str) -> Self {
        self.then(Step::Key(key.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    fn then(&self, step: Step) -> Self {
        let mut longer = self.clone();
        longer.0.push(step);
        longer
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    if depth > 0 {
                        f.write_str(".")?;
                    }
                    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
                    if (1..=LONGEST).contains(&key.len()) && key.bytes().all(plain) {
                        f.write_str(key)?;
                    } else {
                        f.write_str(&quote(key))?;
                    }
                }
            }
        }
        Ok(())
    }
}

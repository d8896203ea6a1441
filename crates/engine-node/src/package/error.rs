//! What can go wrong while packing, each kind its own variant, and how a person is told.
//!
//! Promises: every error has a code and a hint. Does not know how it is shown.

use std::io;
use std::path::{Path, PathBuf};

use stead_core::error::{Code, UserError};

/// Why a Package could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// It is damaged, or holds what no honest Package holds.
    #[error("{path} is refused: {reason}", path = path.display())]
    Refused {
        /// The file or folder that was handed over.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It is whole, but nothing that runs can be made of it as it is.
    #[error("{path} cannot be packed: {reason}", path = path.display())]
    Unfit {
        /// The file or folder that was handed over.
        path: PathBuf,
        /// What is missing or does not fit.
        reason: String,
        /// What works.
        hint: String,
    },
    /// A program that packing needs is missing, or failed.
    #[error("{tool}: {reason}")]
    Tool {
        /// The program, such as `npm`.
        tool: String,
        /// What it said, or that it is not installed.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// Something on this machine cannot be read or written.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// What was to be read or written.
        path: PathBuf,
        /// How it failed.
        error: io::Error,
    },
    /// Whoever takes in what is packed stopped doing so.
    #[error("writing the layer: {0}")]
    Output(io::Error),
}

impl PackError {
    pub(super) fn refused(path: &Path, reason: impl Into<String>) -> Self {
        Self::Refused { path: path.to_owned(), reason: reason.into() }
    }

    pub(super) fn unfit(path: &Path, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Unfit { path: path.to_owned(), reason: reason.into(), hint: hint.into() }
    }

    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |error| Self::Io { path: path.to_owned(), error }
    }

    /// The code a person searches for.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused { .. } => Code::PackageRefused,
            Self::Unfit { .. } => Code::PackageUnfit,
            Self::Tool { .. } => Code::PackageTool,
            Self::Io { .. } => Code::PackageUnreadable,
            Self::Output(_) => Code::Internal,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &str {
        match self {
            Self::Refused { .. } => "build the package anew with a current tool",
            Self::Unfit { hint, .. } | Self::Tool { hint, .. } => hint,
            Self::Io { .. } => "check the path and its permissions",
            Self::Output(_) => "try again",
        }
    }
}

impl From<PackError> for UserError {
    fn from(error: PackError) -> Self {
        UserError::new(error.code(), error.to_string(), error.hint())
    }
}

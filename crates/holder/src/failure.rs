//! Turns errors of the kernel into the failures `serve` is told.

use std::ffi::CString;
use std::io;

use stead_holder::wire::Failure;

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Says what was being done when the kernel refused.
pub(crate) trait Context<T> {
    /// With a fixed text.
    fn at(self, step: &str) -> Result<T>;
    /// With a text that is only made on failure.
    fn because(self, step: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn at(self, step: &str) -> Result<T> {
        self.because(|| step.to_owned())
    }

    fn because(self, step: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Failure::Step {
            step: step(),
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        })
    }
}

/// A terminated text for the kernel.
pub(crate) fn text(value: &str) -> Result<CString> {
    CString::new(value).map_err(|_| Failure::NotUnderstood(format!("a zero byte in {value:?}")))
}

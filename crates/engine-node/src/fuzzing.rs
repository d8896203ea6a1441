//! What `fuzz/` calls: the targets of this crate, each in the module whose promises it tests.

pub use crate::image::fuzzing::TARGETS as IMAGE;
pub use crate::package::fuzzing::TARGETS as PACKAGE;

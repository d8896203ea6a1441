//! stead's nouns, pure decisions and traits.
//!
//! Everything here decides from its arguments alone: no clock, file, socket, thread or
//! randomness. The other crates do what this one decided.

pub mod error;
pub mod ids;
pub mod name;
pub mod time;

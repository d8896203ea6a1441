//! stead's embedded engine for one Linux machine.

pub mod image;

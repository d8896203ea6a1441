//! stead's embedded engine for one Linux machine.

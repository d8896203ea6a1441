//! Reads zip archives (being written).

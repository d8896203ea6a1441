//! The process that owns a Sandbox and outlives `serve`.

//! simulators, the engine contract suite, the load generator.

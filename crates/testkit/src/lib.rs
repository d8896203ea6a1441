//! Simulators, the engine contract suite, test images with a registry, and the load generator.

pub mod contract;
pub mod images;
pub mod load;
pub mod registry;
pub mod sim;

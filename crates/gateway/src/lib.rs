//! stead's L7 data plane.

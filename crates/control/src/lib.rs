//! stead's control plane: store, reconciler, API, events, authorisation.

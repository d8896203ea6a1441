//! Claims against a closing gate in every order that matters, by loom.
#![allow(dead_code, unreachable_pub, missing_docs)]

#[path = "../src/gate.rs"]
mod gate;

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
}

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use gate::Gate;

struct World {
    gate: Gate,
    /// Claims out, counted apart from the gate.
    inside: AtomicUsize,
    /// Times somebody was told that the gate is closed and empty.
    drained: AtomicUsize,
    closed: AtomicBool,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            gate: Gate::new(),
            inside: AtomicUsize::new(0),
            drained: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        })
    }

    fn told_drained(&self) {
        assert_eq!(self.inside.load(Ordering::SeqCst), 0, "drained while a claim is out");
        self.drained.fetch_add(1, Ordering::SeqCst);
    }

    fn request(&self) {
        let closed_before = self.closed.load(Ordering::SeqCst);
        if !self.gate.enter() {
            return;
        }
        assert!(!closed_before, "a claim was granted after close had returned");
        self.inside.fetch_add(1, Ordering::SeqCst);
        self.inside.fetch_sub(1, Ordering::SeqCst);
        if self.gate.leave() {
            self.told_drained();
        }
    }

    fn close(&self) {
        if self.gate.close() {
            self.told_drained();
        }
        self.closed.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_closed_gate_admits_nobody_and_is_reported_empty_once() {
    // All interleavings with up to three switches; unbounded, the same takes a minute.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let world = World::new();
        let requests: Vec<_> = (0..2)
            .map(|_| {
                let world = world.clone();
                loom::thread::spawn(move || world.request())
            })
            .collect();
        world.close();
        for request in requests {
            request.join().unwrap();
        }
        assert!(world.gate.is_drained());
        assert_eq!(world.drained.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn a_reopened_gate_admits_again() {
    loom::model(|| {
        let world = World::new();
        let other = world.clone();
        let request = loom::thread::spawn(move || {
            if other.gate.enter() {
                let _ = other.gate.leave();
            }
        });
        let _ = world.gate.close();
        world.gate.reopen();
        request.join().unwrap();
        assert!(world.gate.enter());
        assert_eq!(world.gate.claims(), 1);
        assert!(!world.gate.leave(), "an open gate is not drained");
        assert!(!world.gate.is_closed());
    });
}

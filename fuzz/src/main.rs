//! One libFuzzer program for all targets, which are functions of the crates themselves
//! (`stead_core::fuzzing` and its like): there each seed is also an ordinary test.
//!
//! `STEAD_FUZZ_TARGET` says which one; one program is linked once. What libFuzzer makes of
//! bytes is repaired where a checksum would stop nearly all of it at the door.

#![no_main]

mod repair;

use std::sync::OnceLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

type Target = (&'static str, fn(&[u8]));

const ALL: &[&[Target]] = &[
    stead_core::fuzzing::TARGETS,
    stead_engine_node::fuzzing::IMAGE,
    stead_engine_node::fuzzing::PACKAGE,
    stead_gateway::fuzzing::TARGETS,
];

fuzz_target!(|bytes: &[u8]| (target().1)(bytes));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, _seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    match target().0 {
        "tar" | "image-archive" => repair::tar(&mut data[..size]),
        "jar" | "war" => repair::zip(&mut data[..size]),
        _ => {}
    }
    size
});

fn target() -> Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    *TARGET.get_or_init(|| {
        let name = std::env::var("STEAD_FUZZ_TARGET").unwrap_or_default();
        let all = || ALL.iter().copied().flatten();
        all().copied().find(|target| target.0 == name).unwrap_or_else(|| {
            let names: Vec<_> = all().map(|target| target.0).collect();
            eprintln!("STEAD_FUZZ_TARGET must name one of:\n{}", names.join("\n"));
            std::process::exit(2);
        })
    })
}

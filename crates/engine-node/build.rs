//! Builds the holder, which engine-node carries inside itself.
//!
//! The holder is linked statically and without position-independent code, so that it stays small
//! and starts fast; those flags must not touch the rest of the workspace. So a nested cargo
//! builds it, into this script's own folder, from the same lock file and without a network.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A statically linked holder needs a target named on the command line, or the flags would also
/// apply to build scripts and procedural macros.
const STATIC: &str = "-C target-feature=+crt-static -C relocation-model=static";

fn main() {
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("../holder/Cargo.toml");
    let out = PathBuf::from(variable("OUT_DIR"));
    let target = variable("TARGET");
    let folder = manifest.parent().expect("the path above ends with a file name");
    watch(folder);

    let target_dir = out.join("holder");
    let status = Command::new(variable("CARGO"))
        .args(["build", "--quiet", "--release", "--offline", "--bin", "stead-holder"])
        .arg("--manifest-path")
        .arg(&manifest)
        .arg("--target")
        .arg(&target)
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTFLAGS", STATIC)
        // These would carry the outer build's choices into the nested one.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET")
        // Smaller and faster to load; the holder has no use for a symbol table.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_LTO", "thin")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .status()
        .expect("cargo runs this script, so it can be run");
    assert!(status.success(), "the holder does not build: see above");
    let built = target_dir.join(target).join("release/stead-holder");
    println!("cargo::rustc-env=STEAD_HOLDER={}", built.display());
}

fn watch(folder: &Path) {
    for part in ["Cargo.toml", "src"] {
        println!("cargo::rerun-if-changed={}", folder.join(part).display());
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

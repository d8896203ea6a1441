//! Debian packages, installed when they are missing.
//!
//! Their services are not started: what tests and benchmarks need they start by hand, on ports of
//! their own.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail};

use crate::run::program;

/// A file whose presence says that a package is installed, and the package.
pub(crate) type Package = (&'static str, &'static str);

/// What the demo needs: nothing but what stead itself needs, a C library to link statically.
pub(crate) const FOR_DEMO: &[Package] =
    &[("/usr/bin/cc", "gcc"), ("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev")];

/// What the tests and the test images need.
pub(crate) const FOR_TESTS: &[Package] = &[
    ("/bin/busybox", "busybox-static"),
    ("/bin/mount", "mount"),
    ("/sbin/ip", "iproute2"),
    ("/usr/bin/cc", "gcc"),
    ("/usr/bin/curl", "curl"),
    ("/usr/bin/docker-registry", "docker-registry"),
    ("/usr/bin/javac", "openjdk-17-jdk-headless"),
    ("/usr/bin/mvn", "maven"),
    ("/usr/bin/node", "nodejs"),
    ("/usr/bin/npm", "npm"),
    ("/usr/bin/pip3", "python3-pip"),
    ("/usr/bin/python3", "python3"),
    ("/usr/bin/redis-server", "redis-server"),
    ("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/sbin/nginx", "nginx-light"),
];

/// What the benchmarks compare with.
pub(crate) const FOR_BENCH: &[Package] = &[
    ("/sbin/mkfs.ext4", "e2fsprogs"),
    ("/usr/bin/containerd", "containerd"),
    ("/usr/bin/crun", "crun"),
    ("/usr/bin/podman", "podman"),
    ("/usr/sbin/dockerd", "docker.io"),
    ("/usr/sbin/nginx", "nginx-light"),
    ("/usr/sbin/runc", "runc"),
];

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs those of the packages that are missing. Several runs at once wait for each other.
///
/// # Errors
/// When apt-get cannot install them.
pub(crate) fn install(wanted: &[Package]) -> anyhow::Result<()> {
    let missing = || -> Vec<&str> {
        wanted.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, name)| *name).collect()
    };
    if missing().is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        bail!("missing: {}; become root, or install them", missing().join(" "));
    }
    let lock = fs::File::create("/var/lock/stead-packages").context("the lock of the packages")?;
    lock.lock().context("the lock of the packages")?;
    // Whoever held the lock before may have done it all.
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    let _quiet = NoServices::begin()?;
    apt(&["update"])?;
    apt(&[&["install", "--yes", "--no-install-recommends"], missing.as_slice()].concat())
}

fn apt(arguments: &[&str]) -> anyhow::Result<()> {
    let patience = ["-qq", "-o", "DPkg::Lock::Timeout=600"];
    program("apt-get", patience.iter().chain(arguments))
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run()
}

/// While it lives, installed services are not started (Debian policy, invoke-rc.d).
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn begin() -> anyhow::Result<Self> {
        let created = fs::File::create_new(POLICY);
        let Ok(mut file) = created else {
            // The machine has a policy of its own.
            return Ok(Self { ours: false });
        };
        let guard = Self { ours: true };
        file.write_all(b"#!/bin/sh\nexit 101\n").context(POLICY)?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)).context(POLICY)?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}

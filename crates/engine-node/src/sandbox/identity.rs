//! The files that tell a Container who and where it is: `hosts`, `hostname`, `resolv.conf`.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::Path;

use stead_holder::wire;

use super::SandboxSpec;
use crate::network::Ips;

const FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Writes the files, owned by the Sandbox's root.
pub(crate) fn write(folder: &Path, spec: &SandboxSpec, ips: Ips, owner: u32) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let contents = [hosts(spec, ips), format!("{}\n", spec.hostname), resolver(spec)];
    for (name, content) in FILES.iter().zip(contents) {
        let path = folder.join(name);
        fs::write(&path, content)?;
        chown(&path, Some(owner), Some(owner))?;
    }
    Ok(())
}

/// Where they go in a Container.
pub(crate) fn mounts(folder: &Path) -> Vec<wire::Mount> {
    let mount = |name: &&str| wire::Mount::Bind {
        source: folder.join(name).to_string_lossy().into_owned(),
        target: format!("/etc/{name}"),
        read_only: true,
        mapped: false,
    };
    FILES.iter().map(mount).collect()
}

fn hosts(spec: &SandboxSpec, ips: Ips) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n".to_owned();
    // Writing to a string cannot fail.
    for ip in ips.all() {
        let _ = writeln!(text, "{ip}\t{}", spec.hostname);
    }
    for (name, address) in &spec.extra_hosts {
        let _ = writeln!(text, "{address}\t{name}");
    }
    text
}

fn resolver(spec: &SandboxSpec) -> String {
    spec.dns.iter().map(|server| format!("nameserver {server}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_finds_itself_and_its_neighbours_by_name() {
        let spec = SandboxSpec {
            hostname: "web-0".into(),
            dns: vec!["10.88.0.1".parse().unwrap()],
            extra_hosts: vec![("db".into(), "10.88.0.9".parse().unwrap())],
            ..SandboxSpec::default()
        };
        let ips = Ips { v4: "10.88.0.2".parse().unwrap(), v6: "fd00::2".parse().ok() };
        let text = hosts(&spec, ips);
        assert!(text.ends_with("10.88.0.2\tweb-0\nfd00::2\tweb-0\n10.88.0.9\tdb\n"));
        assert_eq!(resolver(&spec), "nameserver 10.88.0.1\n");
    }
}

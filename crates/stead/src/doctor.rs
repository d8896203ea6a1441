//! `stead doctor`: whether this machine can run the platform, and for each thing that is
//! missing the command that gets it.
//!
//! It only looks. Each check stands alone: one that cannot be made says so and the others go
//! on.

mod runtimes;

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::Serialize;
use stead_core::error::Code;

use crate::client::{Client, Endpoint};
use crate::output::{Output, Table, human};
use crate::platform::layout::Layout;
use crate::platform::settings::{Asked, Settings};

/// The first kernel whose overlayfs takes id-mapped layers.
const KERNEL: (u32, u32) = (5, 19);
/// Below this the platform cannot unpack anything of use.
const DISK_LEAST: u64 = 512 << 20;
/// Below this it soon gets tight.
const DISK_GOOD: u64 = 5 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// As it should be.
    Ok,
    /// Worth knowing; the platform works.
    Note,
    /// The platform does not work without it.
    Missing,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    /// The command that fixes it, or what to do.
    fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), fix: None }
    }

    fn note(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Note, found: found.into(), fix: Some(fix.into()) }
    }

    fn missing(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Missing, found: found.into(), fix: Some(fix.into()) }
    }
}

/// Makes every check and prints what it found. The exit code is 1 when something is missing.
pub(crate) fn run(layout: &Layout, output: Output) -> Result<ExitCode> {
    let settings = Settings::new(layout.clone(), Asked::default())?;
    let running = UnixStream::connect(layout.api_socket()).is_ok();
    // The kernel loads the module for whoever asks for it, as the engine does.
    let _ = rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC);
    let mut findings = vec![
        user(),
        kernel(rustix::system::uname().release().to_string_lossy().as_ref()),
        cgroups(Path::new("/sys/fs/cgroup")),
        overlayfs(&fs::read_to_string("/proc/filesystems").unwrap_or_default()),
        user_namespaces(),
        seccomp(),
        nftables(),
        forwarding(),
        disk(&layout.data_dir),
        port("gateway port", settings.http, running),
        platform(layout, running),
    ];
    findings.extend(settings.listen.0.map(|addr| port("api port", addr, running)));
    if running {
        findings.extend(damaged(layout));
    }
    findings.extend(runtimes::findings(&asked(layout, "/bases")));
    output.show(&findings, |findings| table(findings))?;
    let unfit = findings.iter().any(|finding| finding.verdict == Verdict::Missing);
    Ok(if unfit {
        ExitCode::from(Code::MachineUnfit.kind().exit_code())
    } else {
        ExitCode::SUCCESS
    })
}

fn table(findings: &[Finding]) -> String {
    let mut table = Table::new(["CHECK", "VERDICT", "FOUND", "WHAT TO DO"], "");
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Missing => "MISSING",
        };
        table.row([
            finding.check.to_owned(),
            verdict.to_owned(),
            finding.found.clone(),
            finding.fix.clone().unwrap_or_default(),
        ]);
    }
    table.finish()
}

fn user() -> Finding {
    if rustix::process::geteuid().is_root() {
        Finding::ok("user", "root")
    } else {
        Finding::missing("user", "not root", "sudo stead doctor")
    }
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = (numbers.next(), numbers.next());
    match version {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= KERNEL => {
            Finding::ok("kernel", release)
        }
        _ => Finding::missing(
            "kernel",
            release,
            format!("a Linux kernel from {}.{} on: id-mapped layers need it", KERNEL.0, KERNEL.1),
        ),
    }
}

fn cgroups(root: &Path) -> Finding {
    let words = |path: &str| -> Vec<String> {
        let text = fs::read_to_string(root.join(path)).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    };
    let unified = root.join("cgroup.controllers").exists();
    let v2 = words(if unified { "cgroup.controllers" } else { "unified/cgroup.controllers" });
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|name| !v2.iter().any(|known| known == name) && !root.join(name).is_dir())
        .collect();
    let kind = match (unified, root.join("unified").is_dir()) {
        (true, _) => "v2",
        (false, true) => "hybrid",
        (false, false) => "v1",
    };
    if kind == "v1" {
        return Finding::missing(
            "cgroups",
            "v1 alone",
            "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        );
    }
    if missing.is_empty() {
        Finding::ok("cgroups", format!("{kind}, with cpu, memory and pids"))
    } else {
        Finding::missing(
            "cgroups",
            format!("{kind}, without {}", missing.join(", ")),
            "switch them on at boot: cgroup_enable=memory, and no cgroup_disable=…",
        )
    }
}

fn overlayfs(filesystems: &str) -> Finding {
    if filesystems.lines().any(|line| line.trim_end().ends_with("overlay")) {
        Finding::ok("overlayfs", "available")
    } else {
        Finding::missing("overlayfs", "not loaded", "modprobe overlay")
    }
}

fn user_namespaces() -> Finding {
    let text = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    match text.trim().parse::<u64>() {
        Ok(0) => Finding::missing(
            "user namespaces",
            "switched off",
            "sysctl -w user.max_user_namespaces=15000",
        ),
        Ok(most) => Finding::ok("user namespaces", format!("up to {most}")),
        Err(_) => Finding::missing(
            "user namespaces",
            "not in this kernel",
            "a kernel with CONFIG_USER_NS",
        ),
    }
}

fn seccomp() -> Finding {
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(_) => Finding::ok("seccomp", "available"),
        Err(_) => {
            Finding::missing("seccomp", "not in this kernel", "a kernel with CONFIG_SECCOMP_FILTER")
        }
    }
}

fn nftables() -> Finding {
    match nftables_generation() {
        Ok(()) => Finding::ok("nftables", "available"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Finding::note("nftables", "cannot be looked at", "sudo stead doctor")
        }
        Err(error) => Finding::missing("nftables", error.to_string(), "modprobe nf_tables"),
    }
}

/// Asks the kernel for the generation of its nftables rules: the smallest request there is.
fn nftables_generation() -> io::Result<()> {
    const NETLINK_NETFILTER: u32 = 12;
    const SUBSYSTEM: u16 = 10 << 8; // NFNL_SUBSYS_NFTABLES
    const GET_GENERATION: u16 = SUBSYSTEM | 16; // NFT_MSG_GETGEN
    const NEW_GENERATION: u16 = SUBSYSTEM | 15; // NFT_MSG_NEWGEN
    const REQUEST: u16 = 1; // NLM_F_REQUEST

    let protocol = std::num::NonZeroU32::new(NETLINK_NETFILTER).map(Protocol::from_raw);
    let flags = SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    // struct nlmsghdr, then struct nfgenmsg (linux/netlink.h, linux/netfilter/nfnetlink.h).
    let mut message = Vec::with_capacity(20);
    message.extend(20u32.to_ne_bytes());
    message.extend(GET_GENERATION.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 12]);
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0u8; 512];
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    let kind = (length >= 20).then(|| u16::from_ne_bytes([answer[4], answer[5]]));
    if kind == Some(NEW_GENERATION) {
        return Ok(());
    }
    let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    Err(io::Error::from_raw_os_error(-code))
}

fn forwarding() -> Finding {
    match fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default().trim() {
        "1" => Finding::ok("ip forwarding", "on"),
        _ => Finding::note(
            "ip forwarding",
            "off; `stead up` switches it on",
            "sysctl -w net.ipv4.ip_forward=1",
        ),
    }
}

fn disk(data_dir: &Path) -> Finding {
    let there = data_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let free = match rustix::fs::statvfs(there) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => {
            return Finding::note("disk", error.to_string(), format!("df {}", there.display()));
        }
    };
    let found = format!("{} free for {}", human::bytes(free), data_dir.display());
    let fix = "make room (`stead image prune`), or give another --data-dir";
    match free {
        0..DISK_LEAST => Finding::missing("disk", found, fix),
        DISK_LEAST..DISK_GOOD => Finding::note("disk", found, fix),
        _ => Finding::ok("disk", found),
    }
}

fn port(check: &'static str, addr: SocketAddr, running: bool) -> Finding {
    match TcpListener::bind(addr) {
        Ok(_) => Finding::ok(check, format!("{addr} is free")),
        Err(_) if running => Finding::ok(check, format!("{addr} is the platform's")),
        Err(error) => Finding::missing(
            check,
            format!("{addr}: {error}"),
            format!(
                "ss -ltnp 'sport = :{}' shows who has it; or give another address",
                addr.port()
            ),
        ),
    }
}

fn platform(layout: &Layout, running: bool) -> Finding {
    let socket = layout.api_socket();
    if running {
        Finding::ok("platform", format!("answers at unix:{}", socket.display()))
    } else {
        Finding::note("platform", "not running", "stead up --detach")
    }
}

/// Records that the running platform cannot read, each one a finding.
fn damaged(layout: &Layout) -> Vec<Finding> {
    let records: Vec<String> = asked(layout, "/doctor");
    let locked = Code::SecretsLocked.as_str();
    let finding = |record: String| {
        if record.starts_with(locked) {
            return Finding::note("secrets", record, format!("see docs/errors/{locked}.md"));
        }
        Finding::note(
            "record",
            record,
            "deploy or delete what it names; all else goes on without it",
        )
    };
    records.into_iter().map(finding).collect()
}

/// A list from the running platform. Without an answer there is nothing to say: that it does
/// not run is said already.
fn asked<T: serde::de::DeserializeOwned>(layout: &Layout, path: &str) -> Vec<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let client = Client::new(Endpoint::Unix(layout.api_socket()), None);
    runtime.ok().and_then(|rt| rt.block_on(client.get(path)).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_compare_by_number() {
        for (release, verdict) in [
            ("6.18.0-cloud", Verdict::Ok),
            ("5.19.0", Verdict::Ok),
            ("5.4.0-150-generic", Verdict::Missing),
            ("10.0", Verdict::Ok),
            ("strange", Verdict::Missing),
        ] {
            assert_eq!(kernel(release).verdict, verdict, "{release}");
        }
    }

    #[test]
    fn a_missing_controller_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(cgroups(root).found, "v1 alone");
        fs::write(root.join("cgroup.controllers"), "cpuset cpu io pids\n").unwrap();
        assert_eq!(cgroups(root).found, "v2, without memory");
        fs::write(root.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        assert_eq!(cgroups(root).verdict, Verdict::Ok);
    }

    #[test]
    fn a_port_in_use_is_a_problem_only_without_us() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert_eq!(port("p", addr, false).verdict, Verdict::Missing);
        assert_eq!(port("p", addr, true).verdict, Verdict::Ok);
        drop(listener);
        assert_eq!(port("p", addr, false).verdict, Verdict::Ok);
    }

    #[test]
    fn overlay_is_found_by_its_whole_word() {
        assert_eq!(overlayfs("nodev\ttmpfs\nnodev\toverlay\n").verdict, Verdict::Ok);
        assert_eq!(overlayfs("nodev\ttmpfs\n").verdict, Verdict::Missing);
    }
}

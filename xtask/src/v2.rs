//! The engine's tests on a machine with pure cgroup v2 and a kernel of Debian's, emulated.
//!
//! The machine has what the tests touch and nothing else: busybox, nft, ip, the kernel's modules
//! and the test programs. It is emulated in software, so this works anywhere and takes minutes.
//! Nothing on the machine it runs on is changed but `target/v2` (and missing packages).

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};

use crate::packages::{self, Package};
use crate::run::{self, cargo, program};
use crate::test::Tally;

/// Which kernel to test on.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A suite of Debian: its kernel is taken.
    #[arg(long, default_value = "bookworm")]
    suite: String,
    /// How long the machine may run, in seconds.
    #[arg(long, default_value_t = 1200)]
    patience: u64,
}

/// What builds and runs the machine, and what is copied into it.
const NEEDED: &[Package] = &[
    ("/bin/busybox", "busybox-static"),
    ("/sbin/ip", "iproute2"),
    ("/sbin/mke2fs", "e2fsprogs"),
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/bin/strip", "binutils"),
    ("/usr/bin/unxz", "xz-utils"),
    ("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/share/seabios/bios-256k.bin", "seabios"),
];

/// The test programs that touch the kernel; the others need a registry.
const PROGRAMS: [&str; 6] = [
    "sandbox_exec",
    "sandbox_life",
    "sandbox_network",
    "sandbox_recover",
    "sandbox_slots",
    "sandbox_still",
];

/// Drivers of the disk, in the order they need each other. Some kernels have them built in.
const DRIVERS: [&str; 6] = [
    "virtio/virtio",
    "virtio/virtio_ring",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
];

/// What busybox is called in the machine.
const TOOLS: [&str; 8] =
    ["sh", "cat", "mkdir", "mount", "poweroff", "uname", "../sbin/modprobe", "ls"];

/// The closing word of `init.sh`.
const END: &str = "all programs have run";

/// Builds the programs and the machine, runs it, and counts.
///
/// # Errors
/// When something cannot be built, a test fails, or the machine does not come to its end.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the files of the machine must be root's: become root (sudo -E cargo xtask test-v2)");
    }
    packages::install(NEEDED)?;
    let programs = build()?;
    // A relative target folder is below the root, where everything is run.
    let folder = run::root().join(run::target()).join("v2").join(&options.suite);
    let machine = Machine { folder };
    match fs::remove_dir_all(&machine.folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("the machine of an earlier run");
        }
        _ => {}
    }
    machine.add_kernel(&options.suite)?;
    machine.add_programs(&programs)?;
    machine.make_disks()?;
    machine.run(options.patience)
}

/// Builds the test programs; where they are.
fn build() -> anyhow::Result<Vec<(&'static str, PathBuf)>> {
    let mut words = vec!["test", "--no-run", "--message-format=json", "-p", "stead-engine-node"];
    words.extend(PROGRAMS.iter().flat_map(|name| ["--test", name]));
    let messages = cargo(words).output()?;
    let mut found = Vec::new();
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("cargo's messages")?;
        let name = PROGRAMS.into_iter().find(|name| message["target"]["name"] == *name);
        if let (Some(name), Some(file)) = (name, message["executable"].as_str()) {
            found.push((name, PathBuf::from(file)));
        }
    }
    if found.len() != PROGRAMS.len() {
        bail!("cargo built {} of {} programs", found.len(), PROGRAMS.len());
    }
    Ok(found)
}

/// A machine in a folder: `root` becomes its disk, `ram` its initial RAM disk.
struct Machine {
    folder: PathBuf,
}

impl Machine {
    fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// Unpacks the suite's kernel into the root. The machine's own list of packages is not touched.
    fn add_kernel(&self, suite: &str) -> anyhow::Result<()> {
        let apt = self.folder.join("apt");
        fs::create_dir_all(apt.join("lists/partial")).context("a folder for apt")?;
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let source = format!("deb [signed-by={keys}] http://deb.debian.org/debian {suite} main\n");
        fs::write(apt.join("sources.list"), source).context("a list of sources")?;
        let place = apt.display();
        let settings = format!(
            "Dir::Etc::SourceList \"{place}/sources.list\";\nDir::Etc::SourceParts \"-\";\n\
             Dir::State::Lists \"{place}/lists\";\nDir::Cache::PkgCache \"\";\n\
             Dir::Cache::SrcPkgCache \"\";\nAPT::Sandbox::User \"root\";\n"
        );
        let config = apt.join("apt.conf");
        fs::write(&config, settings).context("a configuration of apt")?;
        program("apt-get", ["-qq", "update"]).env("APT_CONFIG", &config).run()?;
        // The package of that name is empty and depends on the newest kernel.
        let depends = program("apt-cache", ["depends", "linux-image-cloud-amd64"]);
        let depends = depends.env("APT_CONFIG", &config).output()?;
        let kernel = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        let kernel = kernel.with_context(|| format!("{suite} has no kernel for clouds"))?;
        let download = program("apt-get", ["-qq", "download", kernel]);
        download.env("APT_CONFIG", &config).within(&apt).run()?;
        let package = only(&apt, |name| name.ends_with(".deb"))?;
        program("dpkg-deb", ["-x".as_ref(), package.as_path(), &self.root()]).run()?;
        fs::rename(
            only(&self.root().join("boot"), |name| name.starts_with("vmlinuz"))?,
            self.folder.join("kernel"),
        )
        .context("the kernel")?;

        let modules = only(&self.root().join("lib/modules"), |_| true)?;
        program("find", [modules.as_os_str()])
            .args(&["-name", "*.xz", "-exec", "unxz", "{}", "+"])
            .run()?;
        let version = modules.file_name().context("the kernel's version")?;
        program("busybox", ["depmod".as_ref(), "-b".as_ref(), self.root().as_os_str(), version])
            .run()?;
        self.add_drivers(&modules.join("kernel/drivers"))
    }

    fn add_drivers(&self, from: &Path) -> anyhow::Result<()> {
        let to = self.folder.join("ram/modules");
        fs::create_dir_all(&to).context("the initial RAM disk")?;
        let mut order = String::new();
        for driver in DRIVERS {
            let file = from.join(driver).with_extension("ko");
            if let (true, Some(name)) = (file.exists(), file.file_name()) {
                fs::copy(&file, to.join(name)).context("the drivers")?;
                order.push_str(&format!("{}\n", name.display()));
            }
        }
        fs::write(to.join("order"), order).context("the drivers")
    }

    fn add_programs(&self, tests: &[(&str, PathBuf)]) -> anyhow::Result<()> {
        let root = self.root();
        for folder in ["bin", "dev", "proc", "root", "run", "sbin", "sys", "tests", "tmp"] {
            fs::create_dir_all(root.join(folder)).context("the folders of the machine")?;
        }
        for folder in ["bin", "dev", "disk"] {
            fs::create_dir_all(self.folder.join("ram").join(folder)).context("the RAM disk")?;
        }
        for place in [root.join("bin"), self.folder.join("ram/bin")] {
            fs::copy("/bin/busybox", place.join("busybox")).context("busybox")?;
        }
        for tool in TOOLS {
            symlink("/bin/busybox", root.join("bin").join(tool)).context("busybox")?;
        }
        let mut linked = vec![PathBuf::from("/usr/sbin/nft"), PathBuf::from("/sbin/ip")];
        for file in &linked {
            let name = file.file_name().context("a program without a name")?;
            fs::copy(file, root.join("sbin").join(name)).context("the tools")?;
        }
        for (name, file) in tests {
            let to = root.join("tests").join(name);
            program("strip", ["-g", "-o"]).arg(to).arg(file).run()?;
            linked.push(file.clone());
        }
        for library in libraries(&program("ldd", &linked).output()?) {
            let to = root.join(library.trim_start_matches('/'));
            let folder = to.parent().context("a library without a folder")?;
            fs::create_dir_all(folder).context("the libraries")?;
            fs::copy(library, &to).with_context(|| format!("library {library}"))?;
        }
        write_program(&root.join("init"), include_str!("v2/init.sh"))?;
        write_program(&self.folder.join("ram/init"), include_str!("v2/boot.sh"))
    }

    fn make_disks(&self) -> anyhow::Result<()> {
        program("mke2fs", ["-q", "-t", "ext4", "-d"])
            .arg(self.root())
            .arg(self.folder.join("disk"))
            .arg("1G")
            .run()?;
        let ram = self.folder.join("ram");
        let names = program("find", ["."]).within(&ram).output()?;
        let [list, to] = ["names", "ramdisk"].map(|name| self.folder.join(name));
        fs::write(&list, names).context("the initial RAM disk")?;
        // busybox has no option for the names, but one for the output.
        let mut cpio = program("busybox", ["cpio", "-o", "-H", "newc", "-F"]).arg(&to).within(&ram);
        cpio = cpio.stdin(fs::File::open(&list).context("the initial RAM disk")?);
        cpio.run()
    }

    /// Runs it to its end, shows what it says and counts the results.
    fn run(&self, patience: u64) -> anyhow::Result<()> {
        let mut disk = OsString::from("format=raw,if=virtio,cache=unsafe,file=");
        disk.push(self.folder.join("disk"));
        let mut command = program("timeout", [patience.to_string().as_str(), "qemu-system-x86_64"])
            // A plain processor: QEMU 7.2 gets five-level paging and cmpxchg16b wrong, and kernels
            // that use them crash.
            .args(&["-M", "q35", "-accel", "tcg", "-cpu", "Nehalem,cx16=off"])
            .args(&["-smp", "2", "-m", "1024", "-nodefaults", "-no-user-config", "-no-reboot"])
            .args(&["-display", "none", "-serial", "stdio"])
            .args(&["-append", "console=ttyS0 loglevel=3 panic=-1 mitigations=off nokaslr"])
            .arg("-kernel")
            .arg(self.folder.join("kernel"))
            .arg("-initrd")
            .arg(self.folder.join("ramdisk"))
            .arg("-drive")
            .arg(disk)
            .into_command();
        let mut machine = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("timeout (coreutils) cannot be started")?;
        let console = machine.stdout.take().context("the machine has no console")?;
        let mut said = Said::default();
        for line in BufReader::new(console).split(b'\n') {
            let line = line.context("the console of the machine")?;
            let line = String::from_utf8_lossy(&line);
            println!("{}", line.trim_end());
            said.hear(line.trim_end());
        }
        machine.wait().context("waiting for the machine")?;
        said.judge(PROGRAMS.len())
    }
}

/// What the machine has said on its console.
#[derive(Debug, Default)]
struct Said {
    tally: Tally,
    good_ends: usize,
    left_behind: u64,
    came_to_its_end: bool,
}

impl Said {
    fn hear(&mut self, line: &str) {
        self.tally.count(line);
        self.good_ends += usize::from(line == "ended 0");
        self.left_behind += u64::from(line.starts_with("left behind: "));
        self.came_to_its_end |= line == END;
    }

    fn judge(&self, programs: usize) -> anyhow::Result<()> {
        if !self.came_to_its_end {
            bail!("the machine stopped, or took too long, before all programs had run");
        }
        let Tally { passed, failed } = self.tally;
        let failed = failed + self.left_behind;
        println!("\n{passed} passed, {failed} failed");
        if failed > 0 || self.good_ends != programs {
            bail!("{} of {programs} programs ended well", self.good_ends);
        }
        Ok(())
    }
}

/// The one entry of a folder that is meant.
fn only(folder: &Path, is_meant: impl Fn(&str) -> bool) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut found =
        entries.flatten().filter(|entry| is_meant(&entry.file_name().to_string_lossy()));
    match (found.next(), found.next()) {
        (Some(entry), None) => Ok(entry.path()),
        _ => bail!("{} does not hold exactly one of what is looked for", folder.display()),
    }
}

/// The files named in the output of `ldd`, each once.
fn libraries(output: &str) -> Vec<&str> {
    let mut found: Vec<_> = output
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .filter(|word| !word.ends_with(':'))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn write_program(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = fs::write(path, text);
    write
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_named_once() {
        let output = "/tests/a:\n\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\
                      /tests/b:\n\tlibc.so.6 => /lib/libc.so.6 (0x3)\n\t/lib64/ld.so (0x4)\n";
        assert_eq!(libraries(output), ["/lib/libc.so.6", "/lib64/ld.so"]);
    }

    #[test]
    fn a_machine_that_stops_early_has_not_passed() {
        let mut said = Said::default();
        for line in ["test result: ok. 3 passed; 0 failed; 0 ignored", "ended 0"] {
            said.hear(line);
        }
        assert!(said.judge(1).is_err());
        said.hear(END);
        said.judge(1).unwrap();
        assert!(said.judge(2).is_err(), "a program is missing");
        said.hear("left behind: /sys/fs/cgroup/x/");
        assert!(said.judge(1).is_err());
    }
}

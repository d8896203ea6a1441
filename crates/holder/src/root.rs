//! Makes the detached mounts a Container is put together from.
//!
//! All is made in the host's userns, where layers and volumes can be opened, and handed to the
//! Container as descriptors. Nothing is visible anywhere until the Container attaches it.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use stead_holder::wire;

use crate::failure::{Context, Result, text};
use crate::namespaces::Namespaces;
use crate::sys;

/// A mount waiting to be attached.
pub(crate) struct Piece {
    pub(crate) mount: OwnedFd,
    /// Where, from the Container's root, without a leading slash.
    pub(crate) target: CString,
    pub(crate) is_folder: bool,
}

/// The devices every Container has.
const DEVICES: [(&CStr, &CStr); 6] = [
    (c"/dev/null", c"null"),
    (c"/dev/zero", c"zero"),
    (c"/dev/full", c"full"),
    (c"/dev/random", c"random"),
    (c"/dev/urandom", c"urandom"),
    (c"/dev/tty", c"tty"),
];

/// Mounts the overlay of the layers, ids mapped into the Sandbox.
pub(crate) fn overlay(root: &wire::Root, userns: BorrowedFd<'_>) -> Result<OwnedFd> {
    // Closing a detached mount dissolves it, so all stay open until the overlay has its copies.
    let layers = root.layers.iter().map(|layer| {
        let about = || format!("layer {layer}");
        let tree = sys::open_tree(&text(layer)?, false).because(about)?;
        sys::set_mount(tree.as_fd(), 0, Some(userns), false).because(about)?;
        Ok(tree)
    });
    let layers = layers.collect::<Result<Vec<_>>>()?;
    match by_descriptor(&layers, root) {
        // Before 6.5 a descriptor is not supported, before 6.13 one that is only a place (O_PATH)
        // is a bad one.
        Err(wire::Failure::Step {
            errno: libc::EOPNOTSUPP | libc::EBADF | libc::EINVAL, ..
        }) => by_path(&layers, root),
        other => other,
    }
}

fn by_descriptor(layers: &[OwnedFd], root: &wire::Root) -> Result<OwnedFd> {
    let fs = sys::fs_open(c"overlay").at("overlay")?;
    // The kernel wants the topmost layer first.
    for layer in layers.iter().rev() {
        sys::fs_descriptor(fs.as_fd(), c"lowerdir+", layer.as_fd()).at("overlay layers")?;
    }
    finish(&fs, root)
}

/// For kernels before 6.13.
fn by_path(layers: &[OwnedFd], root: &wire::Root) -> Result<OwnedFd> {
    let places = Places::attach(layers)?;
    let fs = sys::fs_open(c"overlay").at("overlay")?;
    sys::fs_text(fs.as_fd(), c"lowerdir", &places.list()?).at("overlay layers")?;
    finish(&fs, root)
}

fn finish(fs: &OwnedFd, root: &wire::Root) -> Result<OwnedFd> {
    sys::fs_text(fs.as_fd(), c"upperdir", &text(&root.upper)?).at("overlay upper folder")?;
    sys::fs_text(fs.as_fd(), c"workdir", &text(&root.work)?).at("overlay work folder")?;
    // The upper folder never outlives the machine's uptime, so nothing is worth a sync.
    sys::fs_flag(fs.as_fd(), c"volatile").at("overlay")?;
    sys::fs_mount(fs.as_fd(), libc::MOUNT_ATTR_NODEV).at("overlay mount")
}

/// Layers made visible for the moment in which an overlay is made of them. The paths are relative
/// to the Sandbox's folder, which keeps the list of many layers below the kernel's limit.
struct Places(usize);

impl Places {
    fn attach(layers: &[OwnedFd]) -> Result<Self> {
        // Grows with each mount, so that a failure in between undoes what is done.
        let mut places = Self(0);
        for (number, layer) in layers.iter().enumerate() {
            let path = format!("l/{number}");
            fs::create_dir_all(&path).because(|| format!("folder {path}"))?;
            let place = sys::open(&text(&path)?, libc::O_PATH).at("overlay layers")?;
            sys::move_mount(layer.as_fd(), place.as_fd()).at("overlay layers")?;
            places.0 += 1;
        }
        Ok(places)
    }

    /// Topmost first.
    fn list(&self) -> Result<CString> {
        let paths: Vec<_> = (0..self.0).rev().map(|number| format!("l/{number}")).collect();
        text(&paths.join(":"))
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for number in 0..self.0 {
            if let Ok(path) = text(&format!("l/{number}")) {
                sys::detach(&path);
            }
        }
    }
}

/// Opens volumes, files and scratch folders.
pub(crate) fn pieces(mounts: &[wire::Mount], owner: &Namespaces) -> Result<Vec<Piece>> {
    mounts.iter().map(|mount| piece(mount, owner)).collect()
}

fn piece(mount: &wire::Mount, owner: &Namespaces) -> Result<Piece> {
    match mount {
        wire::Mount::Bind { source, target, read_only, mapped } => {
            let about = || format!("mount of {source} on {target}");
            let tree = sys::open_tree(&text(source)?, !mapped).because(about)?;
            let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
            if *read_only {
                attributes |= libc::MOUNT_ATTR_RDONLY;
            }
            sys::set_mount(tree.as_fd(), attributes, mapped.then_some(owner.user.as_fd()), !mapped)
                .because(about)?;
            let is_folder = fs::metadata(source).because(about)?.is_dir();
            Ok(Piece { mount: tree, target: relative(target)?, is_folder })
        }
        wire::Mount::Tmpfs { target, bytes } => {
            let about = || format!("tmpfs on {target}");
            let fs = sys::fs_open(c"tmpfs").because(about)?;
            sys::fs_text(fs.as_fd(), c"size", &text(&bytes.to_string())?).because(about)?;
            sys::fs_text(fs.as_fd(), c"mode", c"1777").because(about)?;
            let root = text(&owner.first_id.to_string())?;
            sys::fs_text(fs.as_fd(), c"uid", &root).because(about)?;
            sys::fs_text(fs.as_fd(), c"gid", &root).because(about)?;
            let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
            let mount = sys::fs_mount(fs.as_fd(), attributes).because(about)?;
            Ok(Piece { mount, target: relative(target)?, is_folder: true })
        }
    }
}

/// The host's devices, to be attached in the Container's `/dev`.
pub(crate) fn devices() -> Result<Vec<Piece>> {
    DEVICES
        .iter()
        .map(|(source, name)| {
            let mount = sys::open_tree(source, false)
                .because(|| format!("device {}", source.to_string_lossy()))?;
            Ok(Piece { mount, target: (*name).to_owned(), is_folder: false })
        })
        .collect()
}

/// What the Container sees of its own v1 control groups: target under `/sys/fs/cgroup`.
pub(crate) fn cgroup_view(view: &[(String, String)]) -> Result<Vec<Piece>> {
    view.iter()
        .map(|(name, folder)| {
            let about = || format!("control group {folder}");
            let mount = sys::open_tree(&text(folder)?, false).because(about)?;
            let attributes = libc::MOUNT_ATTR_RDONLY
                | libc::MOUNT_ATTR_NOSUID
                | libc::MOUNT_ATTR_NODEV
                | libc::MOUNT_ATTR_NOEXEC;
            sys::set_mount(mount.as_fd(), attributes, None, false).because(about)?;
            Ok(Piece { mount, target: text(name)?, is_folder: true })
        })
        .collect()
}

/// A file system made inside the Container's own namespaces.
pub(crate) fn fresh(
    kind: &CStr,
    options: &[(&CStr, &CStr)],
    attributes: u64,
) -> io::Result<OwnedFd> {
    let fs = sys::fs_open(kind)?;
    for (key, value) in options {
        if value.is_empty() {
            sys::fs_flag(fs.as_fd(), key)?;
        } else {
            sys::fs_text(fs.as_fd(), key, value)?;
        }
    }
    sys::fs_mount(fs.as_fd(), attributes)
}

fn relative(target: &str) -> Result<CString> {
    text(target.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Needs root.
    #[test]
    fn layers_are_stacked_and_mapped_on_old_and_new_kernels() {
        let folder = std::env::temp_dir().join(format!("holder-root-{}", std::process::id()));
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        for name in ["base", "top", "upper1", "work1", "upper2", "work2"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::write(path("base/file"), "base").unwrap();
        fs::write(path("base/other"), "other").unwrap();
        fs::write(path("top/file"), "top").unwrap();
        // The only test here that has a view on the current folder.
        std::env::set_current_dir(&folder).unwrap();
        let (namespaces, _) = Namespaces::new(1 << 24).unwrap();
        let root = |n: u8| wire::Root {
            layers: vec![path("base"), path("top")],
            upper: path(&format!("upper{n}")),
            work: path(&format!("work{n}")),
            read_only: false,
        };
        let layers = || {
            let layer = |name: &str| {
                let tree = sys::open_tree(&text(&path(name)).unwrap(), false).unwrap();
                sys::set_mount(tree.as_fd(), 0, Some(namespaces.user.as_fd()), false).unwrap();
                tree
            };
            vec![layer("base"), layer("top")]
        };
        let made = [overlay(&root(1), namespaces.user.as_fd()), by_path(&layers(), &root(2))];
        for overlay in made {
            let overlay = overlay.unwrap();
            for (name, content) in [(c"file", "top"), (c"other", "other")] {
                let file = sys::open_in_root(overlay.as_fd(), name, libc::O_RDONLY).unwrap();
                let mut file = fs::File::from(file);
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                assert_eq!(text, content);
                assert_eq!(file.metadata().unwrap().uid(), 1 << 24);
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(folder.to_str().unwrap()), "nothing stays attached");
        fs::remove_dir_all(&folder).unwrap();
    }
}

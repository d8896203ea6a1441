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
    let fs = sys::fs_open(c"overlay").at("overlay")?;
    // The kernel wants the topmost layer first.
    let given = layers
        .iter()
        .rev()
        .try_for_each(|layer| sys::fs_descriptor(fs.as_fd(), c"lowerdir+", layer.as_fd()));
    match given {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let places = Places::attach(&layers)?;
            let fs = sys::fs_open(c"overlay").at("overlay")?;
            sys::fs_text(fs.as_fd(), c"lowerdir", &places.list()?).at("overlay layers")?;
            finish(&fs, root)
        }
        other => {
            other.at("overlay layers")?;
            finish(&fs, root)
        }
    }
}

fn finish(fs: &OwnedFd, root: &wire::Root) -> Result<OwnedFd> {
    sys::fs_text(fs.as_fd(), c"upperdir", &text(&root.upper)?).at("overlay upper folder")?;
    sys::fs_text(fs.as_fd(), c"workdir", &text(&root.work)?).at("overlay work folder")?;
    // The upper folder never outlives the machine's uptime, so nothing is worth a sync.
    sys::fs_flag(fs.as_fd(), c"volatile").at("overlay")?;
    sys::fs_mount(fs.as_fd(), libc::MOUNT_ATTR_NODEV).at("overlay mount")
}

/// Layers made visible for the moment in which an overlay is made of them. Kernels before 6.13
/// take layers by path only. The paths are relative to the Sandbox's folder, which keeps the
/// list of many layers below the kernel's limit.
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

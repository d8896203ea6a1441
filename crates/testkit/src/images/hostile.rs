//! Layers that attack whoever unpacks them. None may leave anything outside its root; what is
//! refused must leave nothing behind at all.

use std::sync::Arc;

use super::layer::{Compression, Layer};
use super::{Image, Settings};

/// An attack and the image that carries it.
#[derive(Debug)]
pub struct Attack {
    /// Short name, fit for a tag and a file name.
    pub name: &'static str,
    /// Whether it must be refused. An unpacker may also take an attack and keep it inside: a link
    /// to an absolute path means a path inside the image.
    pub must_refuse: bool,
    /// The image; only its last layer is hostile.
    pub image: Image,
}

/// The file name every climbing attack tries to leave outside: look for it after the attempt.
pub const ESCAPED: &str = "stead-escaped";

const WRITES_THROUGH_A_LINK: &str = "writes-through-a-link";

/// Every attack.
pub fn attacks() -> Vec<Attack> {
    use tar::EntryType::{Block, Char, Link, Regular, Symlink};
    let up = |levels| format!("{}{ESCAPED}", "../".repeat(levels));
    let one = |entry: Entry| vec![entry];
    let listed: Vec<(&'static str, Vec<Entry>)> = vec![
        ("climbs-out", one(Entry::new(Regular, &up(12)).with(b"out"))),
        (
            "climbs-through-a-folder",
            one(Entry::new(Regular, &format!("a/{}", up(12))).with(b"out")),
        ),
        ("links-out", one(Entry::new(Link, "passwd").to("../../../../../../../../etc/passwd"))),
        ("links-out-by-name", one(Entry::new(Link, "passwd").to("/etc/passwd"))),
        (
            WRITES_THROUGH_A_LINK,
            vec![
                Entry::new(Symlink, "door").to("/tmp"),
                Entry::new(Regular, &format!("door/{ESCAPED}")).with(b"out"),
            ],
        ),
        ("block-device", one(Entry::new(Block, "disk").device(8, 0))),
        ("character-device", one(Entry::new(Char, "mem").device(1, 1))),
        ("whiteout-climbs-out", one(Entry::new(Regular, "a/.wh..."))),
    ];
    let mut attacks: Vec<_> = listed
        .into_iter()
        .map(|(name, entries)| attack(name, entries.iter().flat_map(Entry::bytes).collect()))
        .collect();
    attacks.push(attack("huge-pax-field", pax("comment", &"x".repeat(8 << 20))));
    attacks.push(attack("pax-path-climbs-out", pax("path", &up(12))));
    attacks.push(attack_as("bomb", bomb(), Compression::GzipBest));
    attacks
}

fn attack(name: &'static str, tar: Vec<u8>) -> Attack {
    attack_as(name, tar, Compression::Gzip)
}

fn attack_as(name: &'static str, mut tar: Vec<u8>, compression: Compression) -> Attack {
    tar.extend([0; 1024]);
    let layer = Arc::new(Layer::of_tar(tar, compression));
    let must_refuse = name != WRITES_THROUGH_A_LINK;
    Attack { name, must_refuse, image: Image::new(vec![layer], &Settings::run(["/hello"])) }
}

/// A tar entry written byte by byte: tar libraries refuse to write such names.
struct Entry {
    kind: tar::EntryType,
    name: String,
    target: String,
    device: (u32, u32),
    content: Vec<u8>,
}

impl Entry {
    fn new(kind: tar::EntryType, name: &str) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            target: String::new(),
            device: (0, 0),
            content: Vec::new(),
        }
    }

    fn with(mut self, content: &[u8]) -> Self {
        self.content = content.to_vec();
        self
    }

    fn to(mut self, target: &str) -> Self {
        self.target = target.to_owned();
        self
    }

    fn device(mut self, major: u32, minor: u32) -> Self {
        self.device = (major, minor);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(self.kind);
        header.set_size(self.content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let fields = header.as_ustar_mut().expect("it was made as ustar");
        fields.name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        fields.linkname[..self.target.len()].copy_from_slice(self.target.as_bytes());
        fields.set_device_major(self.device.0);
        fields.set_device_minor(self.device.1);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(&self.content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

/// A file whose extended header (POSIX pax) carries one field.
fn pax(field: &str, value: &str) -> Vec<u8> {
    // The length in front counts its own digits: grow until it is stable.
    let mut length = field.len() + value.len() + 3;
    let record = loop {
        let record = format!("{length} {field}={value}\n");
        if record.len() == length {
            break record;
        }
        length = record.len();
    };
    let mut bytes =
        Entry::new(tar::EntryType::XHeader, "PaxHeaders/file").with(record.as_bytes()).bytes();
    bytes.extend(Entry::new(tar::EntryType::Regular, "file").with(b"x").bytes());
    bytes
}

/// 512 MiB of zeros; half a mebibyte on the wire, about the most that deflate can do.
fn bomb() -> Vec<u8> {
    Entry::new(tar::EntryType::Regular, "zeros").with(&vec![0; 512 << 20]).bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attacks_have_names_of_their_own_and_a_bomb_is_small() {
        let attacks = attacks();
        let names: std::collections::BTreeSet<_> =
            attacks.iter().map(|attack| attack.name).collect();
        assert_eq!(names.len(), attacks.len());
        let bomb = attacks.iter().find(|attack| attack.name == "bomb").unwrap();
        let layer = &bomb.image.layers[0];
        assert!(layer.bytes.len() * 900 < layer.tar.len(), "{} bytes", layer.bytes.len());
    }

    #[test]
    fn an_attack_says_what_it_means_to() {
        let entry = Entry::new(tar::EntryType::Link, "passwd").to("/etc/passwd").bytes();
        let mut archive = tar::Archive::new(entry.as_slice());
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.link_name_bytes().unwrap().as_ref(), b"/etc/passwd");

        let tar = pax("path", "../../x");
        let mut archive = tar::Archive::new(tar.as_slice());
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path_bytes().as_ref(), b"../../x");
    }
}

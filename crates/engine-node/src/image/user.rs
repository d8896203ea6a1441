//! Who an image's program runs as.
//!
//! Promises: names are looked up in the image's own files, seen through its layers as
//! overlayfs will show them, links resolved inside the image. Does not know the machine's
//! users.

use std::path::PathBuf;

use super::error::ImageError;
use super::tree::Tree;

/// Ids above this are not mapped into a sandbox.
const MAX_ID: u32 = 65_535;

/// The ids a program runs with, as seen in its container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups; empty when the group was named.
    pub groups: Vec<u32>,
    /// The home directory, where the image knows it.
    pub home: Option<String>,
}

/// The user that `user`, of the form `[USER[:GROUP]]`, means in an image of these layers,
/// base first. Numbers need not be known to the image; names must be.
///
/// # Errors
/// [`ImageError::BadUser`] when a name is unknown, an id is out of range, or the form is
/// wrong; [`ImageError::Io`] when a layer cannot be read.
pub fn resolve_user(layers: &[PathBuf], user: &str) -> Result<User, ImageError> {
    let bad = |reason: String| ImageError::BadUser { user: user.to_owned(), reason };
    let (user_part, group_part) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user_part = if user_part.is_empty() { "0" } else { user_part };
    let image = Tree::open(layers)?;
    let passwd = image.read("etc/passwd")?;
    let group_file = image.read("etc/group")?;
    let number = |text: &str| text.parse::<u32>().ok();

    let known = lines(&passwd).find(|fields| match number(user_part) {
        Some(uid) => fields.get(2).and_then(|f| number(f)) == Some(uid),
        None => fields[0] == user_part,
    });
    let (uid, own_gid) = match (&known, number(user_part)) {
        (Some(fields), _) => {
            let id = |i: usize| fields.get(i).and_then(|field| number(field));
            id(2)
                .zip(id(3))
                .ok_or_else(|| bad("its line in the image's /etc/passwd is malformed".into()))?
        }
        (None, Some(uid)) => (uid, 0),
        (None, None) => {
            return Err(bad(format!("{user_part:?} is not in the image's /etc/passwd")));
        }
    };
    let mut found = User { uid, gid: own_gid, ..User::default() };
    if let Some(fields) = &known {
        found.home = fields.get(5).filter(|home| !home.is_empty()).map(|home| (*home).to_owned());
        let name = fields[0];
        if group_part.is_none() {
            found.groups = lines(&group_file)
                .filter(|fields| {
                    fields.get(3).is_some_and(|m| m.split(',').any(|m| m.trim() == name))
                })
                .filter_map(|fields| number(fields.get(2)?))
                .filter(|gid| *gid != own_gid)
                .collect();
            found.groups.sort_unstable();
            found.groups.dedup();
        }
    }
    if let Some(group) = group_part {
        let known = lines(&group_file).find(|fields| fields[0] == group);
        found.gid = match (known.and_then(|fields| number(fields.get(2)?)), number(group)) {
            (Some(gid), _) | (None, Some(gid)) => gid,
            (None, None) => return Err(bad(format!("{group:?} is not in the image's /etc/group"))),
        };
    }
    match [found.uid, found.gid].iter().chain(&found.groups).find(|id| **id > MAX_ID) {
        Some(id) => Err(bad(format!("id {id} is larger than {MAX_ID}"))),
        None => Ok(found),
    }
}

/// The fields of each line; comments and lines without fields are left out.
fn lines(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split(':').collect())
}

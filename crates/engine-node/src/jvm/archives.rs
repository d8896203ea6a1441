//! Archives on the disk, and what is known of each key.
//!
//! ```text
//! ROOT/KEY.json      what came of recording it; an archive is complete when this says so
//! ROOT/KEY/          the archive, alone: this folder is what Containers see, read-only
//! ROOT/tmp/          unfinished; emptied at open
//! ```
//!
//! Promises: what [`Archives::usable`] gives has the bytes that were measured; a crash leaves
//! nothing that looks complete and is not. Archives go with their image, with age, and when they
//! are too many. Does not know how they are made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use serde::{Deserialize, Serialize};
use stead_core::fleet::ArchiveKept;
use stead_core::ids::Digest;
use stead_core::time::{Micros, Time};

use super::key::Key;
use super::{flags, train};
use crate::hash;

/// Attempts to record an archive before it is given up.
pub(crate) const ATTEMPTS: u32 = 2;
/// What nobody used for so long goes.
const OLD: Micros = Micros::from_secs(30 * 24 * 3_600);
/// Bytes of all archives; those not used for longest go first.
const QUOTA: u64 = 4 << 30;

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub(crate) enum Known {
    /// There is an archive.
    Kept {
        kept: ArchiveKept,
        /// SHA-256 of its bytes, in hexadecimal.
        sha256: String,
    },
    /// It was recorded, and no start was faster for it.
    Useless { plain: Micros, fast: Micros },
    /// It could not be recorded, or was of no use once it was there.
    Failed { why: String, times: u32 },
}

/// What stands in the file of a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    image: Digest,
    #[serde(flatten)]
    known: Known,
    used: Time,
    /// How often recording it failed, or it was of no use once it was there.
    failures: u32,
}

/// All archives of one machine.
#[derive(Debug)]
pub(crate) struct Archives {
    root: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<Key, Record>,
    /// Archives whose bytes were looked at since this process began.
    checked: BTreeSet<Key>,
    /// Archives with which a start failed. Whether it is their fault the next start says, which
    /// goes without.
    doubted: BTreeSet<Key>,
}

impl Archives {
    /// Opens the folder, making it if there is none, and removes what is incomplete.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o700))?;
        let mut records: BTreeMap<Key, Record> = BTreeMap::new();
        let mut folders = Vec::new();
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            if entry.file_type()?.is_dir() {
                folders.push((name.parse().ok(), entry.path()));
                continue;
            }
            let key = name.strip_suffix(".json").and_then(|name| name.parse().ok());
            let record = fs::read(entry.path()).ok();
            let record = record.and_then(|text| serde_json::from_slice(&text).ok());
            match (key, record) {
                (Some(key), Some(record)) => drop(records.insert(key, record)),
                // Cut off while it was written, or of another version.
                _ => fs::remove_file(entry.path())?,
            }
        }
        for (key, path) in folders {
            let kept = key.and_then(|key| records.get(&key));
            if !kept.is_some_and(|record| matches!(record.known, Known::Kept { .. })) {
                fs::remove_dir_all(path)?;
            }
        }
        let archives = Self { root: root.to_owned(), state: Mutex::default() };
        records.retain(|key, record| match &record.known {
            Known::Kept { kept, .. } => {
                let archive = archives.folder(key).join(flags::file_name(kept.kind));
                fs::metadata(archive).is_ok_and(|found| found.len() == kept.bytes)
            }
            _ => true,
        });
        archives.lock().records = records;
        Ok(archives)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder that a Container sees.
    fn folder(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn record_file(&self, key: &Key) -> PathBuf {
        self.root.join(format!("{key}.json"))
    }

    /// A fresh folder for what is being recorded.
    pub(crate) fn scratch(&self, key: &Key) -> io::Result<PathBuf> {
        let folder = self.root.join("tmp").join(key.as_str());
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// What is known of a key.
    pub(crate) fn known(&self, key: &Key) -> Option<Known> {
        self.lock().records.get(key).map(|record| record.known.clone())
    }

    /// The archive of a key and the folder it is in, if there is one to be used now. The first
    /// time since this process began all its bytes are read.
    pub(crate) fn usable(&self, key: &Key, now: Time) -> Option<(ArchiveKept, PathBuf)> {
        let (kept, sha256, checked) = {
            let state = self.lock();
            if state.doubted.contains(key) {
                return None;
            }
            let Known::Kept { kept, sha256 } = &state.records.get(key)?.known else { return None };
            (*kept, sha256.clone(), state.checked.contains(key))
        };
        let folder = self.folder(key);
        let file = folder.join(flags::file_name(kept.kind));
        let whole = match checked {
            true => fs::metadata(&file).is_ok_and(|found| found.len() == kept.bytes),
            false => sha256_of(&file).is_ok_and(|found| found == sha256),
        };
        if !whole {
            tracing::warn!(%key, "an archive is damaged: it is recorded anew");
            self.remove(key);
            return None;
        }
        let mut state = self.lock();
        state.checked.insert(key.clone());
        if let Some(record) = state.records.get_mut(key) {
            record.used = now;
            self.write(key, record);
        }
        Some((kept, folder))
    }

    /// Takes what was recorded, from a scratch folder. What is there for the same key goes.
    ///
    /// # Errors
    /// When the disk does not take it; then nothing is kept.
    pub(crate) fn keep(
        &self,
        key: &Key,
        image: &Digest,
        trained: &train::Trained,
    ) -> io::Result<()> {
        let train::Trained { scratch, kept } = trained;
        let file = scratch.join(flags::file_name(kept.kind));
        // The Container that wrote it is gone, so it stays what it is now. It may be a link.
        let asked = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let archive = rustix::fs::open(&file, asked, Mode::empty())?;
        rustix::fs::fchown(&archive, Some(Uid::ROOT), Some(Gid::ROOT))?;
        rustix::fs::fchmod(&archive, Mode::from_raw_mode(0o444))?;
        let sha256 = sha256_of(&file)?;
        let place = self.root.join("tmp").join(format!("{key}.new"));
        fs::create_dir_all(&place)?;
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755))?;
        fs::rename(&file, place.join(flags::file_name(kept.kind)))?;
        let failures = self.failures(key);
        self.remove(key);
        fs::rename(&place, self.folder(key))?;
        let known = Known::Kept { kept: *kept, sha256 };
        self.note(key, Record { image: image.clone(), known, used: kept.made, failures });
        self.lock().checked.insert(key.clone());
        Ok(())
    }

    fn failures(&self, key: &Key) -> u32 {
        self.lock().records.get(key).map_or(0, |record| record.failures)
    }

    /// Notes that no start is faster with an archive.
    pub(crate) fn useless(
        &self,
        key: &Key,
        image: &Digest,
        plain: Micros,
        fast: Micros,
        now: Time,
    ) {
        self.remove(key);
        let known = Known::Useless { plain, fast };
        self.note(key, Record { image: image.clone(), known, used: now, failures: 0 });
    }

    /// Notes that an attempt failed, or that an archive was of no use once it was there. Gives
    /// how often that was so.
    pub(crate) fn failed(&self, key: &Key, image: &Digest, why: String, now: Time) -> u32 {
        let failures = self.failures(key) + 1;
        self.remove(key);
        let known = Known::Failed { why, times: failures };
        self.note(key, Record { image: image.clone(), known, used: now, failures });
        failures
    }

    /// A start with the archive failed: the next one goes without.
    pub(crate) fn doubt(&self, key: &Key) {
        self.lock().doubted.insert(key.clone());
    }

    /// Takes the doubt away. Gives whether there was one.
    pub(crate) fn trust(&self, key: &Key) -> bool {
        self.lock().doubted.remove(key)
    }

    /// Removes what is known of images that are gone, what is old, and what is too much.
    pub(crate) fn tidy(&self, now: Time, has_image: impl Fn(&Digest) -> bool) {
        let mut used: Vec<(Time, Key, u64)> = Vec::new();
        let mut gone = Vec::new();
        for (key, record) in &self.lock().records {
            if !has_image(&record.image) || record.used + OLD < now {
                gone.push(key.clone());
            } else if let Known::Kept { kept, .. } = &record.known {
                used.push((record.used, key.clone(), kept.bytes));
            }
        }
        used.sort();
        let mut all: u64 = used.iter().map(|(.., bytes)| bytes).sum();
        for (_, key, bytes) in used {
            if all <= QUOTA {
                break;
            }
            all -= bytes;
            gone.push(key);
        }
        for key in gone {
            self.remove(&key);
        }
    }

    /// Forgets a key. Who has mapped its archive keeps what is mapped.
    fn remove(&self, key: &Key) {
        {
            let mut state = self.lock();
            state.records.remove(key);
            state.checked.remove(key);
            state.doubted.remove(key);
        }
        // First what says that it is complete.
        for result in [fs::remove_file(self.record_file(key)), fs::remove_dir_all(self.folder(key))]
        {
            match result {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%key, %error, "an archive is left over");
                }
                _ => {}
            }
        }
    }

    fn note(&self, key: &Key, record: Record) {
        self.write(key, &record);
        self.lock().records.insert(key.clone(), record);
    }

    /// What cannot be written is only forgotten with this process.
    fn write(&self, key: &Key, record: &Record) {
        let written = || -> io::Result<()> {
            let fresh = self.root.join(format!("{key}.fresh"));
            let mut file = File::create(&fresh)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            drop(file);
            fs::rename(fresh, self.record_file(key))
        };
        if let Err(error) = written() {
            tracing::warn!(%key, %error, "what is known of an archive is not written");
        }
    }
}

/// SHA-256 of a file that is no link, in hexadecimal.
fn sha256_of(path: &Path) -> io::Result<String> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(hash::digest_from(File::open(path)?)?.hex().to_owned())
}

#[cfg(test)]
mod tests {
    use stead_core::fleet::ArchiveKind;

    use super::*;

    const NOW: Time = Time(1_000_000);

    fn key(letter: char) -> Key {
        letter.to_string().repeat(32).parse().unwrap()
    }

    fn image() -> Digest {
        format!("sha256:{}", "a".repeat(64)).parse().unwrap()
    }

    fn keep(archives: &Archives, key: &Key, bytes: &[u8]) -> PathBuf {
        let scratch = archives.scratch(key).unwrap();
        fs::write(scratch.join("app.jsa"), bytes).unwrap();
        let kept = ArchiveKept {
            kind: ArchiveKind::AppCds,
            bytes: bytes.len() as u64,
            plain: Micros::from_secs(3),
            fast: Micros::from_secs(1),
            made: NOW,
        };
        archives.keep(key, &image(), &train::Trained { scratch, kept }).unwrap();
        archives.folder(key).join("app.jsa")
    }

    #[test]
    fn what_is_kept_is_found_again_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (key('a'), key('b'));
        let archives = Archives::open(dir.path()).unwrap();
        keep(&archives, &a, b"classes");
        archives.useless(&b, &image(), Micros(1), Micros(1), NOW);
        let known = [archives.known(&a), archives.known(&b)];
        drop(archives);
        let archives = Archives::open(dir.path()).unwrap();
        assert_eq!([archives.known(&a), archives.known(&b)], known);
        let (kept, folder) = archives.usable(&a, NOW).unwrap();
        assert_eq!((kept.bytes, kept.gain()), (7, 3.0));
        assert_eq!(fs::read(folder.join("app.jsa")).unwrap(), b"classes");
        assert_eq!(archives.usable(&b, NOW), None);
    }

    #[test]
    fn an_archive_of_other_bytes_is_never_used() {
        let dir = tempfile::tempdir().unwrap();
        let archives = Archives::open(dir.path()).unwrap();
        let file = keep(&archives, &key('a'), b"classes");
        drop(archives);
        fs::remove_file(&file).unwrap();
        fs::write(&file, b"glasses").unwrap();
        let archives = Archives::open(dir.path()).unwrap();
        assert_eq!(archives.usable(&key('a'), NOW), None);
        assert_eq!(archives.known(&key('a')), None, "it may be recorded anew");
        assert!(!file.exists());
    }

    #[test]
    fn what_a_crash_cut_off_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let archives = Archives::open(dir.path()).unwrap();
        let whole = keep(&archives, &key('a'), b"classes");
        let short = keep(&archives, &key('b'), b"classes");
        archives.scratch(&key('c')).unwrap();
        drop(archives);
        fs::create_dir(dir.path().join(key('d').as_str())).unwrap();
        fs::write(dir.path().join(format!("{}.json", key('e'))), b"{\"image\":").unwrap();
        fs::remove_file(&short).unwrap();
        fs::write(&short, b"cla").unwrap();
        let archives = Archives::open(dir.path()).unwrap();
        assert!(whole.exists() && archives.usable(&key('a'), NOW).is_some());
        assert_eq!(archives.known(&key('b')), None);
        assert!(!dir.path().join("tmp").exists());
        assert!(!dir.path().join(key('d').as_str()).exists());
        assert!(!dir.path().join(format!("{}.json", key('e'))).exists());
    }

    #[test]
    fn a_doubted_archive_waits_for_its_judgement() {
        let dir = tempfile::tempdir().unwrap();
        let archives = Archives::open(dir.path()).unwrap();
        keep(&archives, &key('a'), b"classes");
        archives.doubt(&key('a'));
        assert_eq!(archives.usable(&key('a'), NOW), None);
        assert!(archives.trust(&key('a')) && !archives.trust(&key('a')));
        assert!(archives.usable(&key('a'), NOW).is_some());
    }

    #[test]
    fn attempts_are_counted_over_restarts_and_end() {
        let dir = tempfile::tempdir().unwrap();
        let archives = Archives::open(dir.path()).unwrap();
        assert_eq!(archives.failed(&key('a'), &image(), "x".into(), NOW), 1);
        drop(archives);
        let archives = Archives::open(dir.path()).unwrap();
        assert_eq!(archives.failed(&key('a'), &image(), "y".into(), NOW), ATTEMPTS);
        // One that was recorded, and does not fit all the same, is tried once more.
        keep(&archives, &key('b'), b"classes");
        assert_eq!(archives.failed(&key('b'), &image(), "z".into(), NOW), 1);
        keep(&archives, &key('b'), b"classes");
        assert_eq!(archives.failed(&key('b'), &image(), "z".into(), NOW), ATTEMPTS);
    }

    #[test]
    fn archives_go_with_their_image_and_with_age() {
        let dir = tempfile::tempdir().unwrap();
        let archives = Archives::open(dir.path()).unwrap();
        let file = keep(&archives, &key('a'), b"classes");
        archives.tidy(NOW + OLD, |_| true);
        assert!(archives.known(&key('a')).is_some());
        archives.tidy(NOW + OLD + Micros(1), |_| true);
        assert!(archives.known(&key('a')).is_none() && !file.exists());
        let file = keep(&archives, &key('b'), b"classes");
        archives.tidy(NOW, |_| false);
        assert!(archives.known(&key('b')).is_none() && !file.exists());
    }
}

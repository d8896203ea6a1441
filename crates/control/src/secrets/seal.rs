//! Sealing: the key in its file, and values encrypted with it.
//!
//! Each value is sealed with ChaCha20-Poly1305 (RFC 8439) under a random nonce, bound to the
//! place where it is stored: moved to another App or another version, it does not open.

use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use stead_core::error::{Code, UserError};
use stead_core::secret::Secret;
use zeroize::Zeroizing;

/// Bytes of a key.
const LENGTH: usize = 32;

/// The key that all values are sealed with.
#[derive(Clone)]
pub(super) struct Key(Zeroizing<[u8; LENGTH]>);

/// A sealed value: Base64 of the nonce, the encrypted text and its tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Sealed(String);

/// It was sealed with another key or for another place, or was changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it does not open with the key")]
pub(super) struct DoesNotOpen;

/// Why there is no key to use.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyError {
    /// There are values, so there was a key.
    #[error("key file {0} is missing, and secrets were stored with it")]
    Missing(PathBuf),
    /// Others may read it.
    #[error("key file {path} may be read by others: its mode is {mode:o}, its owner {owner}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its user id.
        owner: u32,
    },
    /// It holds no key.
    #[error("key file {0} holds no key: expected {LENGTH} bytes")]
    Malformed(PathBuf),
    /// It cannot be read or made.
    #[error("key file {path} cannot be read or made: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<KeyError> for UserError {
    fn from(error: KeyError) -> Self {
        let hint = match &error {
            KeyError::Missing(_) | KeyError::Malformed(_) => {
                "put it back from a backup of the data folder".to_owned()
            }
            KeyError::Open { path, .. } => {
                let path = path.display();
                format!("`chown root {path} && chmod 600 {path}`; who read it knows the secrets")
            }
            KeyError::Io { .. } => "check the disk and who may write there".to_owned(),
        };
        Self::new(Code::SecretsLocked, error.to_string(), hint)
    }
}

impl Key {
    /// Reads the key from its file; `None` if there is no such file.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, KeyError> {
        let failed = |source| KeyError::Io { path: path.to_owned(), source };
        let mut file = match std::fs::File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let (mode, owner) =
            file.metadata().map(|m| (m.mode() & 0o7777, m.uid())).map_err(failed)?;
        if mode & 0o077 != 0 || owner != rustix::process::geteuid().as_raw() {
            return Err(KeyError::Open { path: path.to_owned(), mode, owner });
        }
        let mut key = Self(Zeroizing::new([0; LENGTH]));
        let malformed = |_| KeyError::Malformed(path.to_owned());
        file.read_exact(key.0.as_mut()).map_err(malformed)?;
        match file.read(&mut [0]).map_err(failed)? {
            0 => Ok(Some(key)),
            _ => Err(KeyError::Malformed(path.to_owned())),
        }
    }

    /// Makes a key in a file that is not there yet. It is on the disk before it is used, and
    /// readable by nobody else at any moment.
    pub(super) fn make(path: &Path) -> Result<Self, KeyError> {
        Self::write(path).map_err(|source| KeyError::Io { path: path.to_owned(), source })
    }

    fn write(path: &Path) -> io::Result<Self> {
        let mut key = Self(Zeroizing::new([0; LENGTH]));
        random(key.0.as_mut())?;
        let fresh = path.with_extension("new");
        // Left by a start that died in between; nothing was sealed with it.
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut open = std::fs::OpenOptions::new();
        let mut file = open.write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(key.0.as_ref())?;
        file.sync_all()?;
        // Unlike a rename this never replaces a key.
        std::fs::hard_link(&fresh, path)?;
        std::fs::remove_file(&fresh)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::File::open(folder)?.sync_all()?;
        Ok(key)
    }

    /// Seals a value for the place it is to be stored at.
    pub(super) fn seal(&self, place: &str, value: &Secret) -> io::Result<Sealed> {
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce)?;
        let mut text = Zeroizing::new(value.expose().as_bytes().to_vec());
        let tag = self
            .cipher()
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(place.as_bytes()),
                &mut text,
            )
            .map_err(|_| io::Error::other("the value cannot be encrypted"))?;
        Ok(Sealed(BASE64.encode([nonce.as_slice(), text.as_slice(), tag.as_ref()].concat())))
    }

    /// Opens what was sealed for that place.
    pub(super) fn open(&self, place: &str, sealed: &Sealed) -> Result<Secret, DoesNotOpen> {
        let bytes = BASE64.decode(&sealed.0).map_err(|_| DoesNotOpen)?;
        let mut bytes = Zeroizing::new(bytes);
        let (nonce, text) = bytes.split_at_mut_checked(NONCE_LEN).ok_or(DoesNotOpen)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| DoesNotOpen)?;
        let text = self
            .cipher()
            .open_in_place(nonce, Aad::from(place.as_bytes()), text)
            .map_err(|_| DoesNotOpen)?;
        let text = std::str::from_utf8(text).map_err(|_| DoesNotOpen)?;
        Secret::new(text.to_owned()).map_err(|_| DoesNotOpen)
    }

    fn cipher(&self) -> LessSafeKey {
        let key = UnboundKey::new(&CHACHA20_POLY1305, self.0.as_ref());
        LessSafeKey::new(key.expect("a key of 32 bytes is what this cipher takes"))
    }
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    let filled = SystemRandom::new().fill(bytes);
    filled.map_err(|_| io::Error::other("the kernel gives no random numbers"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned()).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_and_with_its_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::make(&dir.path().join("a.key")).unwrap();
        let value = secret("päss\nword");
        let sealed = key.seal("default/web/A/000001", &value).unwrap();
        assert_eq!(key.open("default/web/A/000001", &sealed), Ok(value.clone()));
        assert_eq!(key.open("default/web/A/000002", &sealed), Err(DoesNotOpen), "another version");
        assert_eq!(key.open("default/shop/A/000001", &sealed), Err(DoesNotOpen), "another app");
        let other = Key::make(&dir.path().join("b.key")).unwrap();
        assert_eq!(other.open("default/web/A/000001", &sealed), Err(DoesNotOpen));
        let again = key.seal("default/web/A/000001", &value).unwrap();
        assert_ne!(sealed, again, "equal values do not look equal");
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::make(&dir.path().join("key")).unwrap();
        let sealed = key.seal("place", &secret("hunter2")).unwrap();
        let bytes = BASE64.decode(&sealed.0).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let changed = Sealed(BASE64.encode(changed));
            assert_eq!(key.open("place", &changed), Err(DoesNotOpen), "byte {at}");
        }
        for end in 0..bytes.len() {
            let cut = Sealed(BASE64.encode(&bytes[..end]));
            assert_eq!(key.open("place", &cut), Err(DoesNotOpen), "cut at {end}");
        }
        assert_eq!(key.open("place", &Sealed("no Base64!".into())), Err(DoesNotOpen));
        let text = format!("{sealed:?}");
        assert!(!text.contains("hunter2"));
    }

    #[test]
    fn a_key_is_private_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secrets.key");
        assert!(Key::read(&file).unwrap().is_none());
        let made = Key::make(&file).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        assert!(matches!(Key::make(&file), Err(KeyError::Io { .. })), "there is one");
        let read = Key::read(&file).unwrap().unwrap();
        assert_eq!(read.0, made.0);
        for mode in [0o640, 0o604, 0o666] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            let refused = Key::read(&file);
            assert!(
                matches!(refused, Err(KeyError::Open { mode: m, .. }) if m == mode),
                "{mode:o}"
            );
        }
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        for wrong in [0, LENGTH - 1, LENGTH + 1] {
            std::fs::write(&file, vec![7; wrong]).unwrap();
            assert!(matches!(Key::read(&file), Err(KeyError::Malformed(_))), "{wrong} bytes");
        }
    }
}

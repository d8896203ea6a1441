//! The vault: secrets of Apps, each in versions, sealed before they are stored.
//!
//! # Guarantees
//! - A version never changes. Setting a secret makes another one; a Release goes on with the
//!   one it was made with, so a rollback brings the old value back.
//! - A version stays while a kept Release uses it, or a new Release would get it.
//! - A value leaves the vault through [`Secrets::value`] only; no error speaks of it.
//! - Making a Release and setting a secret at the same time do not miss each other: both write
//!   the record of the version they saw as current, so the later one decides anew.
//!
//! # Caveats
//! - A key that was read once is kept: Containers that crash are started again although the
//!   file went away meanwhile. Setting a secret looks at the file each time.
//!
//! It does not know who may ask, nor what a change of a secret leads to.

mod seal;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use stead_core::app::Release;
use stead_core::engine::Secrets;
use stead_core::error::{Code, UserError};
use stead_core::manifest::EnvName;
use stead_core::name::AppKey;
use stead_core::secret::Secret;
use stead_core::time::Time;

use crate::registries::{self, StoredLogin};
use crate::store::{Document, Kind, Store, StoreError, Versioned, Write};
pub(crate) use seal::Sealed;
use seal::{Key, KeyError};

/// One version of a secret, as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) name: EnvName,
    pub(crate) version: u32,
    /// When it was set.
    pub(crate) set: Time,
    /// By whom.
    pub(crate) by: String,
    /// A new Release gets this one. Of each name it is one version at most.
    pub(crate) current: bool,
    sealed: Sealed,
}

impl Document for Version {
    const KIND: Kind = Kind::Secret;
}

/// Versions of secrets, by name.
pub(crate) type Versions = BTreeMap<EnvName, u32>;

/// A secret that is to be set.
pub(crate) struct Set {
    /// The version it then has.
    pub(crate) version: u32,
    /// What to commit; empty when it has that value already.
    pub(crate) writes: Vec<Write>,
}

/// The secrets of all Apps.
pub(crate) struct Vault {
    store: Arc<Store>,
    file: PathBuf,
    key: Mutex<Option<Key>>,
}

impl Vault {
    /// The vault whose key is in `file`. The file is made when the first secret is set.
    pub(crate) fn new(store: Arc<Store>, file: PathBuf) -> Self {
        Self { store, file, key: Mutex::default() }
    }

    /// Every version of an App's secrets, by name, oldest first.
    pub(crate) fn of(&self, app: &AppKey) -> Result<Vec<Versioned<Version>>, StoreError> {
        Ok(self.store.list::<Version>(&format!("{app}/"))?.found)
    }

    /// What a secret is now, if it is set.
    pub(crate) fn current(
        &self,
        app: &AppKey,
        name: &EnvName,
    ) -> Result<Option<Versioned<Version>>, StoreError> {
        let all = self.store.list::<Version>(&format!("{app}/{name}/"))?.found;
        Ok(all.into_iter().find(|stored| stored.value.current))
    }

    /// What setting a secret takes: another version, unless it has that value already.
    pub(crate) fn set(
        &self,
        app: &AppKey,
        name: &EnvName,
        value: &Secret,
        by: &str,
        now: Time,
    ) -> Result<Set, UserError> {
        let key = self.key_for_sealing()?;
        let current = self.current(app, name)?;
        if let Some(Versioned { key: place, value: now, .. }) = &current
            && key.open(place, &now.sealed).is_ok_and(|known| known == *value)
        {
            return Ok(Set { version: now.version, writes: Vec::new() });
        }
        // Also above one that is damaged.
        let keys = self.store.keys(Kind::Secret, &format!("{app}/{name}/"))?;
        let last = keys.iter().filter_map(|key| key.rsplit('/').next()?.parse::<u32>().ok()).max();
        let version = last.unwrap_or(0) + 1;
        let place = place(app, name, version);
        let sealed = key
            .seal(&place, value)
            .map_err(|source| UserError::from(KeyError::Io { path: self.file.clone(), source }))?;
        let (name, by) = (name.clone(), by.to_owned());
        let fresh = Version { name, version, set: now, by, current: true, sealed };
        let mut writes = vec![Write::create(place, &fresh)?];
        writes.extend(current.map(|old| self.retire(app, old)).transpose()?);
        Ok(Set { version, writes })
    }

    /// What unsetting a secret takes; `None` if it is not set.
    pub(crate) fn unset(&self, app: &AppKey, name: &EnvName) -> Result<Option<Write>, StoreError> {
        self.current(app, name)?.map(|current| self.retire(app, current)).transpose()
    }

    /// No new Release gets this version any more.
    fn retire(&self, app: &AppKey, old: Versioned<Version>) -> Result<Write, StoreError> {
        let used = self.used(app)?;
        let id = (old.value.name.clone(), old.value.version);
        if used.is_some_and(|used| !used.contains(&id)) {
            return Ok(Write::remove(Kind::Secret, old.key, old.generation));
        }
        let value = Version { current: false, ..old.value.clone() };
        Write::replace(&old, &value)
    }

    /// The versions that a new Release gets for these names, and what must be committed with
    /// it so that none of them goes meanwhile.
    pub(crate) fn hold(
        &self,
        app: &AppKey,
        names: &[EnvName],
    ) -> Result<(Versions, Vec<Write>), UserError> {
        let (mut versions, mut writes) = (Versions::new(), Vec::new());
        let mut unset = Vec::new();
        for name in names {
            match self.current(app, name)? {
                Some(stored) => {
                    versions.insert(name.clone(), stored.value.version);
                    writes.push(Write::replace(&stored, &stored.value)?);
                }
                None => unset.push(name.as_str()),
            }
        }
        let Some(first) = unset.first() else { return Ok((versions, writes)) };
        let namespace = match app.namespace == stead_core::name::NamespaceName::default() {
            true => String::new(),
            false => format!("-n {} ", app.namespace),
        };
        Err(UserError::new(
            Code::SecretUnset,
            format!("app {app} has no value for these secrets: {}", unset.join(", ")),
            format!(
                "`stead {namespace}secrets set {} {first}` reads the value from standard input, \
                     or asks for it",
                app.app
            ),
        ))
    }

    /// Writes that remove what neither a kept Release nor a new one has use for. `dropped` are
    /// keys of Releases that go with the same commit, `made` is one that comes with it.
    pub(crate) fn prune(
        &self,
        app: &AppKey,
        dropped: &[String],
        made: &Release,
    ) -> Result<Vec<Write>, StoreError> {
        let old: Vec<_> = self.of(app)?.into_iter().filter(|old| !old.value.current).collect();
        if old.is_empty() {
            return Ok(Vec::new());
        }
        let Some(mut used) = self.used_without(app, dropped)? else { return Ok(Vec::new()) };
        used.extend(made.secrets.clone());
        let unused = old.into_iter().filter(|old| {
            let id = (old.value.name.clone(), old.value.version);
            !used.contains(&id)
        });
        Ok(unused.map(|old| Write::remove(Kind::Secret, old.key, old.generation)).collect())
    }

    fn used(&self, app: &AppKey) -> Result<Option<BTreeSet<(EnvName, u32)>>, StoreError> {
        self.used_without(app, &[])
    }

    /// The versions that kept Releases use. `None`: a Release cannot be read, so nobody knows.
    fn used_without(
        &self,
        app: &AppKey,
        dropped: &[String],
    ) -> Result<Option<BTreeSet<(EnvName, u32)>>, StoreError> {
        let releases = self.store.list::<Release>(&format!("{app}/"))?;
        if !releases.damaged.is_empty() {
            return Ok(None);
        }
        let kept = releases.found.into_iter().filter(|stored| !dropped.contains(&stored.key));
        Ok(Some(kept.flat_map(|stored| stored.value.secrets).collect()))
    }

    /// Seals a value that is not an App's, for the place it is to be stored at.
    pub(crate) fn seal(&self, place: &str, value: &Secret) -> Result<Sealed, UserError> {
        let sealed = self.key_for_sealing()?.seal(place, value);
        Ok(sealed.map_err(|source| KeyError::Io { path: self.file.clone(), source })?)
    }

    /// Opens what was sealed for that place.
    pub(crate) fn open(&self, place: &str, sealed: &Sealed) -> Result<Secret, UserError> {
        let opened = self.key_for_opening()?.open(place, sealed);
        opened.map_err(|_| self.does_not_open(place))
    }

    /// What is wrong with the vault, for people. It reads everything.
    pub(crate) fn check(&self) -> Result<Vec<String>, StoreError> {
        let listing = self.store.list::<Version>("")?;
        let logins = self.store.list::<StoredLogin>("")?;
        let damaged = listing.damaged.iter().chain(&logins.damaged);
        let mut wrong: Vec<String> = damaged.map(ToString::to_string).collect();
        let secrets = listing.found.into_iter().map(|stored| (stored.key, stored.value.sealed));
        let logins = logins.found.into_iter();
        let logins = logins.map(|stored| (registries::place(&stored.key), stored.value.sealed));
        let all: Vec<_> = secrets.chain(logins).collect();
        match Key::read(&self.file) {
            Ok(Some(key)) => {
                let shut = all.iter().filter(|(place, sealed)| key.open(place, sealed).is_err());
                wrong.extend(shut.map(|(place, _)| self.does_not_open(place).to_string()));
            }
            Ok(None) if all.is_empty() => {}
            Ok(None) => {
                wrong.push(UserError::from(KeyError::Missing(self.file.clone())).to_string())
            }
            Err(error) => wrong.push(UserError::from(error).to_string()),
        }
        Ok(wrong)
    }

    /// The key, as it is in its file; made if nothing was sealed yet.
    fn key_for_sealing(&self) -> Result<Key, UserError> {
        let mut known = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        let key = match Key::read(&self.file)? {
            Some(key) => key,
            None if self.nothing_is_sealed()? => Key::make(&self.file)?,
            None => return Err(KeyError::Missing(self.file.clone()).into()),
        };
        *known = Some(key.clone());
        Ok(key)
    }

    fn nothing_is_sealed(&self) -> Result<bool, StoreError> {
        let empty = |kind| Ok::<_, StoreError>(self.store.keys(kind, "")?.is_empty());
        Ok(empty(Kind::Secret)? && empty(Kind::Login)?)
    }

    fn key_for_opening(&self) -> Result<Key, UserError> {
        let mut known = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = &*known {
            return Ok(key.clone());
        }
        let key = Key::read(&self.file)?;
        let key = key.ok_or_else(|| KeyError::Missing(self.file.clone()))?;
        *known = Some(key.clone());
        Ok(key)
    }

    fn does_not_open(&self, place: &str) -> UserError {
        UserError::new(
            Code::SecretsLocked,
            format!("secret {place} does not open with the key in {}", self.file.display()),
            "put the key file back from a backup, or set the secret again",
        )
    }
}

impl Secrets for Vault {
    fn value(&self, app: &AppKey, name: &EnvName, version: u32) -> Result<Secret, UserError> {
        let place = place(app, name, version);
        let stored = self.store.get::<Version>(&place)?.ok_or_else(|| {
            UserError::new(
                Code::SecretUnset,
                format!("version {version} of secret {name} of app {app} is gone"),
                format!("`stead secrets set {} {name}` gives it a new value", app.app),
            )
        })?;
        let key = self.key_for_opening()?;
        key.open(&place, &stored.value.sealed).map_err(|_| self.does_not_open(&place))
    }
}

/// Where a version is stored, which it is sealed for.
fn place(app: &AppKey, name: &EnvName, version: u32) -> String {
    format!("{app}/{name}/{version:06}")
}

#[cfg(test)]
mod tests;

//! The book of registries: logins, sealed as secrets are, and mirrors.
//!
//! # Guarantees
//! - A password leaves the book through [`RegistryBook::login`] only; no error speaks of it.
//! - What is written is what the next pull goes by.
//!
//! It does not know whether a registry exists, nor who may write.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stead_core::api::{LoginRequest, LoginView, RegistryView};
use stead_core::error::UserError;
use stead_core::registry::{Login, Mirror, MirrorAddress, RegistryBook, RegistryHost};
use stead_core::time::Time;

use crate::secrets::{Sealed, Vault};
use crate::store::{Document, Kind, Store, StoreError, Write};

/// A login, as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StoredLogin {
    user: String,
    set: Time,
    by: String,
    pub(crate) sealed: Sealed,
}

impl Document for StoredLogin {
    const KIND: Kind = Kind::Login;
}

/// The mirrors of a registry, as they are stored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Mirrors {
    mirrors: Vec<Mirror>,
}

impl Document for Mirrors {
    const KIND: Kind = Kind::Mirrors;
}

/// What the operator said of registries.
pub(crate) struct Registries {
    store: Arc<Store>,
    vault: Arc<Vault>,
}

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Registries")
    }
}

/// How often a change is made anew when others commit at the same time.
const ATTEMPTS: usize = 50;

impl Registries {
    pub(crate) fn new(store: Arc<Store>, vault: Arc<Vault>) -> Self {
        Self { store, vault }
    }

    /// Keeps a login, instead of any before it.
    pub(crate) async fn log_in(
        &self,
        host: &RegistryHost,
        request: &LoginRequest,
        by: &str,
        now: Time,
    ) -> Result<(), UserError> {
        let sealed = self.vault.seal(&place(host), &request.password)?;
        let login = StoredLogin { user: request.user.clone(), set: now, by: by.to_owned(), sealed };
        Ok(self.store.commit(vec![Write::set(host.as_str(), &login)?]).await?)
    }

    /// Forgets a login. False: there was none.
    pub(crate) async fn log_out(&self, host: &RegistryHost) -> Result<bool, UserError> {
        // Also one that cannot be read.
        let known = self.store.keys(Kind::Login, host.as_str())?;
        if !known.iter().any(|key| key == host.as_str()) {
            return Ok(false);
        }
        self.store.commit(vec![Write::clear(Kind::Login, host.as_str())]).await?;
        Ok(true)
    }

    /// Adds a mirror behind those that are there, or changes the one that is.
    pub(crate) async fn add_mirror(
        &self,
        host: &RegistryHost,
        mirror: &Mirror,
    ) -> Result<(), UserError> {
        self.change_mirrors(host, |mirrors| {
            match mirrors.iter_mut().find(|known| known.address == mirror.address) {
                Some(known) => *known = mirror.clone(),
                None => mirrors.push(mirror.clone()),
            }
        })
        .await
        .map(drop)
    }

    /// Removes a mirror. False: there was none at this address.
    pub(crate) async fn remove_mirror(
        &self,
        host: &RegistryHost,
        address: &MirrorAddress,
    ) -> Result<bool, UserError> {
        self.change_mirrors(host, |mirrors| mirrors.retain(|known| known.address != *address)).await
    }

    /// False: nothing changed.
    async fn change_mirrors(
        &self,
        host: &RegistryHost,
        change: impl Fn(&mut Vec<Mirror>),
    ) -> Result<bool, UserError> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let stored = self.store.get::<Mirrors>(host.as_str())?;
            let before = stored.as_ref().map(|stored| stored.value.mirrors.clone());
            let mut mirrors = before.clone().unwrap_or_default();
            change(&mut mirrors);
            if mirrors == before.unwrap_or_default() {
                return Ok(false);
            }
            let write = match stored {
                Some(seen) if mirrors.is_empty() => {
                    Write::remove(Kind::Mirrors, seen.key, seen.generation)
                }
                Some(seen) => Write::replace(&seen, &Mirrors { mirrors })?,
                None => Write::create(host.as_str(), &Mirrors { mirrors })?,
            };
            match self.store.commit(vec![write]).await {
                Ok(()) => return Ok(true),
                Err(error @ StoreError::Conflict { .. }) => last = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.expect("every attempt ended with a conflict").into())
    }

    /// Everything but passwords.
    pub(crate) fn list(&self) -> Result<Vec<RegistryView>, StoreError> {
        let mut views = BTreeMap::new();
        let empty = |host: RegistryHost| RegistryView { host, login: None, mirrors: Vec::new() };
        for stored in self.store.list::<StoredLogin>("")?.found {
            let Ok(host) = stored.key.parse::<RegistryHost>() else { continue };
            let StoredLogin { user, set, by, .. } = stored.value;
            let view = views.entry(host.clone()).or_insert_with(|| empty(host));
            view.login = Some(LoginView { user, set, by });
        }
        for stored in self.store.list::<Mirrors>("")?.found {
            let Ok(host) = stored.key.parse::<RegistryHost>() else { continue };
            let view = views.entry(host.clone()).or_insert_with(|| empty(host));
            view.mirrors = stored.value.mirrors;
        }
        Ok(views.into_values().collect())
    }
}

impl RegistryBook for Registries {
    fn login(&self, host: &RegistryHost) -> Result<Option<Login>, UserError> {
        let Some(stored) = self.store.get::<StoredLogin>(host.as_str())? else { return Ok(None) };
        let StoredLogin { user, sealed, .. } = stored.value;
        Ok(Some(Login { user, password: self.vault.open(&place(host), &sealed)? }))
    }

    fn mirrors(&self, host: &RegistryHost) -> Result<Vec<Mirror>, UserError> {
        let stored = self.store.get::<Mirrors>(host.as_str())?;
        Ok(stored.map(|stored| stored.value.mirrors).unwrap_or_default())
    }
}

/// What a password is sealed for. No secret of an App has such a place.
pub(crate) fn place(host: impl fmt::Display) -> String {
    format!("login/{host}")
}

#[cfg(test)]
mod tests {
    use stead_core::error::Code;
    use stead_core::secret::Secret;

    use super::*;

    fn open(dir: &std::path::Path) -> Registries {
        let store = Arc::new(Store::open(&dir.join("state.db")).unwrap());
        let vault = Arc::new(Vault::new(Arc::clone(&store), dir.join("secrets.key")));
        Registries::new(store, vault)
    }

    fn host(text: &str) -> RegistryHost {
        text.parse().unwrap()
    }

    fn request(password: &str) -> LoginRequest {
        LoginRequest { user: "ci".into(), password: Secret::new(password.into()).unwrap() }
    }

    #[tokio::test]
    async fn a_login_is_kept_for_its_host_alone_and_on_no_disk_in_clear() {
        let dir = tempfile::tempdir().unwrap();
        let book = open(dir.path());
        let ghcr = host("ghcr.io");
        assert_eq!(book.login(&ghcr), Ok(None));
        book.log_in(&ghcr, &request("hunter2-first"), "eve", Time(1)).await.unwrap();
        book.log_in(&ghcr, &request("hunter2-second"), "eve", Time(2)).await.unwrap();
        let login = book.login(&ghcr).unwrap().unwrap();
        assert_eq!((login.user.as_str(), login.password.expose()), ("ci", "hunter2-second"));
        assert_eq!(book.login(&host("ghcr.io:443")), Ok(None));
        let list = book.list().unwrap();
        assert_eq!(list[0].login.as_ref().unwrap().set, Time(2));
        assert!(!format!("{list:?} {book:?}").contains("hunter2"));
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(7).any(|part| part == b"hunter2"), "a password is on the disk");
        }
        assert_eq!(book.log_out(&ghcr).await, Ok(true));
        assert_eq!(book.log_out(&ghcr).await, Ok(false));
        assert_eq!((book.login(&ghcr), book.list().unwrap()), (Ok(None), Vec::new()));
    }

    #[tokio::test]
    async fn a_login_that_was_moved_or_lost_its_key_does_not_open() {
        let dir = tempfile::tempdir().unwrap();
        let book = open(dir.path());
        book.log_in(&host("a.example"), &request("x"), "eve", Time(1)).await.unwrap();
        let moved = book.store.get::<StoredLogin>("a.example").unwrap().unwrap().value;
        let write = Write::create("b.example", &moved).unwrap();
        book.store.commit(vec![write]).await.unwrap();
        assert_eq!(book.login(&host("b.example")).unwrap_err().code, Code::SecretsLocked);
        assert_eq!(book.vault.check().unwrap().len(), 1, "doctor says so");
        // With the key gone no other is made: the one login would be lost without a word.
        std::fs::remove_file(dir.path().join("secrets.key")).unwrap();
        let refused = book.log_in(&host("c.example"), &request("y"), "eve", Time(1)).await;
        assert_eq!(refused.unwrap_err().code, Code::SecretsLocked);
    }

    #[tokio::test]
    async fn mirrors_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let book = open(dir.path());
        let hub = host("docker.io");
        let mirror = |text: &str, tags| Mirror { address: text.parse().unwrap(), tags };
        for (text, tags) in [("a.example", false), ("b.example/hub", false), ("a.example", true)] {
            book.add_mirror(&hub, &mirror(text, tags)).await.unwrap();
        }
        let expected = vec![mirror("a.example", true), mirror("b.example/hub", false)];
        assert_eq!(book.mirrors(&hub), Ok(expected));
        assert_eq!(book.mirrors(&host("ghcr.io")), Ok(Vec::new()));
        let gone = "a.example".parse().unwrap();
        assert_eq!(book.remove_mirror(&hub, &gone).await, Ok(true));
        assert_eq!(book.remove_mirror(&hub, &gone).await, Ok(false));
        assert_eq!(book.mirrors(&hub), Ok(vec![mirror("b.example/hub", false)]));
    }
}

//! Tokens: made, found and ended.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stead_core::api::{Role, TokenRequest, TokenView};
use stead_core::error::{Code, UserError};
use stead_core::name::NamespaceName;
use stead_core::time::{Micros, Time};

use super::Caller;
use crate::store::{Document, Kind, Store, StoreError, Write};

/// Id of the token that the first start makes.
pub(crate) const BOOTSTRAP: &str = "bootstrap";
/// How long it is valid.
const BOOTSTRAP_TTL: Micros = Micros::from_secs(24 * 3600);
/// Longest life of a token.
const LONGEST: Micros = Micros::from_secs(10 * 366 * 24 * 3600);

/// A token as it is stored. The secret itself is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) namespace: Option<NamespaceName>,
    pub(crate) created: Time,
    pub(crate) expires: Time,
    sha256: [u8; 32],
}

impl Document for Token {
    const KIND: Kind = Kind::Token;
}

impl Token {
    pub(crate) fn view(&self, secret: Option<String>) -> TokenView {
        TokenView {
            id: self.id.clone(),
            name: self.name.clone(),
            role: self.role,
            namespace: self.namespace.clone(),
            expires: self.expires,
            secret,
        }
    }
}

/// That the first start has made its token; there is never another one.
#[derive(Serialize, Deserialize)]
struct Bootstrapped(Time);

impl Document for Bootstrapped {
    const KIND: Kind = Kind::Meta;
}

/// The tokens.
pub(crate) struct Tokens {
    store: Arc<Store>,
    /// Where the bootstrap token is handed over.
    file: PathBuf,
}

impl Tokens {
    /// Tokens in `store`; the bootstrap token is handed over in `file`.
    pub(crate) fn new(store: Arc<Store>, file: PathBuf) -> Self {
        Self { store, file }
    }

    /// At the first start of all: makes the bootstrap token and writes it to its file.
    pub(crate) async fn bootstrap(&self, now: Time) -> Result<(), BootstrapError> {
        if self.store.get::<Bootstrapped>(BOOTSTRAP)?.is_some() {
            return Ok(());
        }
        let request = TokenRequest {
            name: BOOTSTRAP.to_owned(),
            role: Role::Admin,
            namespace: None,
            ttl_secs: BOOTSTRAP_TTL.0 / 1_000_000,
        };
        let (token, secret) = make(BOOTSTRAP.to_owned(), &request, now)?;
        write_secret(&self.file, &secret)?;
        let writes =
            vec![Write::set(BOOTSTRAP, &token)?, Write::create(BOOTSTRAP, &Bootstrapped(now))?];
        self.store.commit(writes).await?;
        Ok(())
    }

    /// Makes a token. The bootstrap token is used up by the first admin token it makes.
    pub(crate) async fn create(
        &self,
        request: &TokenRequest,
        by: &Caller,
        now: Time,
    ) -> Result<TokenView, UserError> {
        let longest = LONGEST.0 / 1_000_000;
        if request.ttl_secs == 0 || request.ttl_secs > longest {
            return Err(UserError::new(
                Code::BadRequest,
                format!("a token's life is 1 to {longest} seconds, not {}", request.ttl_secs),
                "name a life within that",
            ));
        }
        let mut id = random::<6>().map_err(no_randomness)?.iter().fold(String::new(), hex);
        id.insert(0, 't');
        let (token, secret) = make(id.clone(), request, now).map_err(no_randomness)?;
        let mut writes = vec![Write::create(id, &token)?];
        let heir = by.token.as_deref() == Some(BOOTSTRAP) && request.role == Role::Admin;
        if heir {
            writes.push(Write::clear(Kind::Token, BOOTSTRAP));
        }
        self.store.commit(writes).await?;
        if heir && let Err(error) = std::fs::remove_file(&self.file) {
            tracing::warn!(%error, "file of the used bootstrap token cannot be removed");
        }
        Ok(token.view(Some(secret)))
    }

    /// Whose secret this is, if it is one and has not expired.
    pub(crate) fn find(&self, secret: &str, now: Time) -> Result<Option<Caller>, StoreError> {
        let Some(id) = secret.strip_prefix("stead_").and_then(|rest| rest.split_once('_')) else {
            return Ok(None);
        };
        let Some(token) = self.store.get::<Token>(id.0)?.map(|stored| stored.value) else {
            return Ok(None);
        };
        let given: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
        if !same(&given, &token.sha256) || token.expires <= now {
            return Ok(None);
        }
        Ok(Some(Caller {
            name: format!("token {}", token.name),
            role: token.role,
            namespace: token.namespace,
            token: Some(token.id),
        }))
    }

    /// Every token, expired ones included.
    pub(crate) fn list(&self) -> Result<Vec<TokenView>, StoreError> {
        let listing = self.store.list::<Token>("")?;
        Ok(listing.found.iter().map(|stored| stored.value.view(None)).collect())
    }

    /// Ends a token. False if there is none.
    pub(crate) async fn revoke(&self, id: &str) -> Result<bool, StoreError> {
        let known = self.store.keys(Kind::Token, id)?.iter().any(|key| key == id);
        if known {
            self.store.commit(vec![Write::clear(Kind::Token, id)]).await?;
        }
        Ok(known)
    }
}

/// Why the bootstrap token cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file cannot be written, or the kernel gives no randomness.
    #[error("bootstrap token cannot be written")]
    Io(#[from] std::io::Error),
}

fn make(id: String, request: &TokenRequest, now: Time) -> std::io::Result<(Token, String)> {
    let random = random::<32>()?.iter().fold(String::new(), hex);
    let secret = format!("stead_{id}_{random}");
    let token = Token {
        id,
        name: request.name.clone(),
        role: request.role,
        namespace: request.namespace.clone(),
        created: now,
        expires: now + Micros::from_secs(request.ttl_secs),
        sha256: Sha256::digest(secret.as_bytes()).into(),
    };
    Ok((token, secret))
}

/// Compares without telling by its time how far the two agree.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let differing = a.iter().zip(b).fold(0u8, |seen, (a, b)| seen | (a ^ b));
    std::hint::black_box(differing) == 0
}

fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn hex(mut text: String, byte: &u8) -> String {
    write!(text, "{byte:02x}").expect("writing to a String cannot fail");
    text
}

fn no_randomness(error: std::io::Error) -> UserError {
    UserError::new(
        Code::MachineUnfit,
        format!("/dev/urandom cannot be read: {error}"),
        "the machine must have it",
    )
}

/// Never readable by others, not even for a moment.
fn write_secret(file: &Path, secret: &str) -> std::io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut open = std::fs::OpenOptions::new();
    let mut out = open.write(true).create_new(true).mode(0o600).open(file)?;
    writeln!(out, "{secret}")?;
    out.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn store(dir: &Path) -> Arc<Store> {
        Arc::new(Store::open(&dir.join("state.db")).unwrap())
    }

    fn request(role: Role, ttl_secs: u64) -> TokenRequest {
        TokenRequest { name: "ci".into(), role, namespace: None, ttl_secs }
    }

    #[tokio::test]
    async fn the_bootstrap_token_works_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bootstrap-token");
        let tokens = Tokens::new(store(dir.path()), file.clone());
        tokens.bootstrap(Time(0)).await.unwrap();
        let secret = std::fs::read_to_string(&file).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let caller = tokens.find(secret.trim(), Time(1)).unwrap().unwrap();
        assert_eq!(caller.role, Role::Admin);
        tokens.create(&request(Role::Viewer, 9), &caller, Time(1)).await.unwrap();
        assert!(tokens.find(secret.trim(), Time(1)).unwrap().is_some(), "a viewer is no heir");
        let heir = tokens.create(&request(Role::Admin, 9), &caller, Time(1)).await.unwrap();
        assert_eq!(tokens.find(secret.trim(), Time(1)).unwrap(), None);
        assert!(tokens.find(&heir.secret.unwrap(), Time(1)).unwrap().is_some());
        assert!(!file.exists(), "what is of no more use does not lie around");
        tokens.bootstrap(Time(2)).await.unwrap();
        assert!(!file.exists(), "it is made at the first start only");
    }

    #[tokio::test]
    async fn a_token_ends_and_another_secret_is_not_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let tokens = Tokens::new(Arc::clone(&store), dir.path().join("bootstrap-token"));
        let made =
            tokens.create(&request(Role::Viewer, 1), &Caller::root(), Time(0)).await.unwrap();
        let secret = made.secret.unwrap();
        assert!(tokens.find(&secret, Time(999_999)).unwrap().is_some());
        assert_eq!(tokens.find(&secret, Time(1_000_000)).unwrap(), None, "expired");
        let mut other = secret.clone();
        let last = other.pop().unwrap();
        other.push(if last == '0' { '1' } else { '0' });
        for wrong in [other.as_str(), "", "stead_", "stead_x_y", &secret[..20]] {
            assert_eq!(tokens.find(wrong, Time(0)).unwrap(), None, "{wrong}");
        }
        assert!(tokens.list().unwrap().iter().all(|token| token.secret.is_none()));
        let stored = std::fs::read(dir.path().join("state.db-wal")).unwrap();
        let random = secret.rsplit('_').next().unwrap().as_bytes();
        assert!(!stored.windows(random.len()).any(|part| part == random), "only its sum is stored");
        assert!(tokens.revoke(&made.id).await.unwrap());
        assert_eq!(tokens.find(&secret, Time(0)).unwrap(), None);
        assert!(!tokens.revoke(&made.id).await.unwrap());
        assert_eq!(
            tokens
                .create(&request(Role::Viewer, 0), &Caller::root(), Time(0))
                .await
                .unwrap_err()
                .code,
            Code::BadRequest
        );
    }
}

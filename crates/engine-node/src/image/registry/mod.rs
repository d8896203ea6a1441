//! A client of image registries.
//!
//! Promises: credentials are sent to the registry's own origin and its own token realm, never
//! after a redirect, and never to another registry that mirrors it; addresses out of reach are refused; every answer is bounded in size and
//! every wait in time; what fails in passing is tried again with growing pauses. Does not
//! know what manifests mean, nor where blobs are kept.
//!
//! Protocol: OCI distribution specification 1.1, "Pull".

mod address;
mod auth;
mod authorize;
mod blob;
mod credentials;
mod docker;
mod incoming;
mod remote;
mod repository;
mod retry;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use reqwest::{Client, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use stead_core::registry::{
    DOCKER_HUB, Login, NoRegistryBook, RegistryBook, RegistryChecked, RegistryHost,
};

use self::address::{Guarded, Reach};
pub(super) use self::blob::BlobStream;
use self::remote::Place;
pub(super) use self::remote::Remote;
use self::repository::Repository;
use super::error::ImageError;
use super::reference::Reference;

const DOCKER_HUB_ORIGIN: &str = "https://registry-1.docker.io";

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Logins and mirrors that the operator gave.
    pub book: Arc<dyn RegistryBook>,
    /// A file as `docker login` writes it, for registries that the book has no login for.
    pub credentials: Option<PathBuf>,
    /// Registries that the operator trusts.
    pub trusted: Vec<TrustedRegistry>,
    /// A PEM file of authorities trusted besides the system's.
    pub authorities: Option<PathBuf>,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long an answer or the next part of it may take to arrive.
    pub stall_timeout: Duration,
    /// How often a request is tried before giving up.
    pub attempts: u32,
    /// The pause after the first failure; it doubles with each further one.
    pub first_pause: Duration,
    /// The longest pause, also when the registry asks for a longer one: then the request fails.
    pub longest_pause: Duration,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            book: Arc::new(NoRegistryBook),
            credentials: None,
            trusted: Vec::new(),
            authorities: None,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            attempts: 5,
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(30),
        }
    }
}

/// A registry that may be on a private network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedRegistry {
    /// The host as written in references, with its port.
    pub host: String,
    /// It is spoken to without TLS.
    pub plain_http: bool,
}

/// How often a mirror is tried: there is another place to go.
const MIRROR_ATTEMPTS: u32 = 2;

/// Opens repositories, and remembers their tokens.
pub(super) struct Registry {
    options: RegistryOptions,
    /// One client per [`Reach`], made when first wanted: reading certificates takes long.
    clients: [OnceLock<Client>; 3],
    repositories: Mutex<HashMap<(RegistryHost, String, u32), Opened>>,
}

/// A repository, and the login that its tokens were had with.
struct Opened {
    login: Option<Login>,
    repository: Arc<Repository>,
}

impl Registry {
    pub(super) fn new(options: RegistryOptions) -> Self {
        Self { options, clients: Default::default(), repositories: Mutex::default() }
    }

    /// The places that have the image which a reference names. Connects to nothing yet.
    pub(super) fn remote(&self, reference: &Reference) -> Result<Arc<Remote>, ImageError> {
        let (host, name) = (reference.host(), reference.repository());
        let mut mirrors = Vec::new();
        for mirror in self.options.book.mirrors(host).map_err(ImageError::Book)? {
            let attempts = self.options.attempts.min(MIRROR_ATTEMPTS);
            let at_mirror = mirror.address.repository(name);
            let address = mirror.address.to_string();
            match self.repository(&mirror.address.host, at_mirror, attempts) {
                Ok(repository) => mirrors.push(Place::mirror(repository, address, mirror.tags)),
                Err(error) => tracing::warn!(mirror = address, %error, "a mirror is passed over"),
            }
        }
        let repository = self.repository(host, name.to_owned(), self.options.attempts)?;
        Ok(Arc::new(Remote::new(mirrors, repository)))
    }

    /// Whether a registry answers, and accepts a login.
    pub(super) async fn check(
        &self,
        host: &RegistryHost,
        login: Option<&Login>,
    ) -> Result<RegistryChecked, ImageError> {
        self.open(host, String::new(), MIRROR_ATTEMPTS)?.check(login).await
    }

    fn repository(
        &self,
        host: &RegistryHost,
        name: String,
        attempts: u32,
    ) -> Result<Arc<Repository>, ImageError> {
        let login = self.options.book.login(host).map_err(ImageError::Book)?;
        let mut repositories = self.repositories.lock().expect("no holder panics");
        let key = (host.clone(), name, attempts);
        if let Some(known) = repositories.get(&key).filter(|known| known.login == login) {
            return Ok(Arc::clone(&known.repository));
        }
        let repository = Arc::new(self.open(host, key.1.clone(), attempts)?);
        repositories.insert(key, Opened { login, repository: Arc::clone(&repository) });
        Ok(repository)
    }

    fn open(
        &self,
        host: &RegistryHost,
        name: String,
        attempts: u32,
    ) -> Result<Repository, ImageError> {
        let (origin, reach) = self.origin(host.as_str())?;
        let options = RegistryOptions { attempts, ..self.options.clone() };
        Ok(Repository::new(options, self.client(reach)?, reach, origin, host.clone(), name))
    }

    fn origin(&self, host: &str) -> Result<(Url, Reach), ImageError> {
        let parse = |text: &str| {
            Url::parse(text).map_err(|error| ImageError::Unreachable {
                host: host.to_owned(),
                reason: error.to_string(),
            })
        };
        if host == DOCKER_HUB {
            return Ok((parse(DOCKER_HUB_ORIGIN)?, Reach::Public));
        }
        let trusted = self.options.trusted.iter().find(|t| t.host.eq_ignore_ascii_case(host));
        let secure = parse(&format!("https://{host}"))?;
        let name = secure.host_str().unwrap_or_default();
        let is_loopback = name == "localhost"
            || name.ends_with(".localhost")
            || name
                .trim_matches(['[', ']'])
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        let (plain_http, reach) = match trusted {
            Some(trusted) => (trusted.plain_http, Reach::Trusted),
            None if is_loopback => (true, Reach::Loopback),
            None => (false, Reach::Public),
        };
        Ok((if plain_http { parse(&format!("http://{host}"))? } else { secure }, reach))
    }

    fn client(&self, reach: Reach) -> Result<Client, ImageError> {
        let slot = &self.clients[reach as usize];
        if let Some(client) = slot.get() {
            return Ok(client.clone());
        }
        let client = Client::builder()
            .tls_backend_preconfigured(self.tls()?)
            .dns_resolver(Guarded(reach))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            // Also when another crate's features add these: a proxy would do the connecting
            // that `Guarded` is to guard, and digests are of what was stored.
            .no_proxy()
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .connect_timeout(self.options.connect_timeout)
            .user_agent(concat!("stead/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| ImageError::Io {
                what: "the HTTP client could not be made".into(),
                source: std::io::Error::other(error),
            })?;
        Ok(slot.get_or_init(|| client).clone())
    }

    fn tls(&self) -> Result<rustls::ClientConfig, ImageError> {
        let mut roots = rustls::RootCertStore::empty();
        // A damaged certificate among the system's must not take the others down.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = &self.options.authorities {
            let bad = |reason: String| ImageError::BadCredentials { path: path.clone(), reason };
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|e| bad(e.to_string()))?;
                roots.add(certificate).map_err(|e| bad(e.to_string()))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring supports the default protocol versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(config)
    }
}

/// Reads a registry's challenge, for `super::fuzzing`: a token comes from nobody but the
/// registry, whatever it says.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn read_challenge(value: reqwest::header::HeaderValue) {
    let headers = [(reqwest::header::WWW_AUTHENTICATE, value)].into_iter().collect();
    let origin: Url = "https://registry.example.com".parse().expect("it is a URL");
    for challenge in auth::challenges(&headers) {
        let auth::Challenge::Bearer { realm, .. } = challenge else { continue };
        let Ok(realm) = realm.parse::<Url>() else { continue };
        if auth::realm_belongs(&origin, &realm) {
            let host = realm.host_str().expect("it was compared");
            assert!(host == "example.com" || host.ends_with(".example.com"), "{realm}");
            assert_eq!(realm.scheme(), "https");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_public_name_that_leads_here_is_not_connected_to() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let registry = Registry::new(RegistryOptions::default());
        let repository = Repository::new(
            RegistryOptions::default(),
            registry.client(Reach::Public).unwrap(),
            Reach::Public,
            format!("http://localhost:{port}").parse().unwrap(),
            "registry.example".parse().unwrap(),
            "web".into(),
        );
        let error = repository.resolve("1").await.unwrap_err();
        assert!(matches!(error, ImageError::AddressRefused { .. }), "{error}");
    }

    #[test]
    fn hosts_decide_how_they_are_reached() {
        let trusted = |host: &str, plain_http| TrustedRegistry { host: host.into(), plain_http };
        let registry = Registry::new(RegistryOptions {
            trusted: vec![trusted("reg.lan:5000", true), trusted("localhost:5443", false)],
            ..RegistryOptions::default()
        });
        for (host, origin, reach) in [
            ("docker.io", "https://registry-1.docker.io/", Reach::Public),
            ("ghcr.io", "https://ghcr.io/", Reach::Public),
            ("localhost:5000", "http://localhost:5000/", Reach::Loopback),
            ("127.0.0.7", "http://127.0.0.7/", Reach::Loopback),
            ("[::1]:5000", "http://[::1]:5000/", Reach::Loopback),
            ("reg.lan:5000", "http://reg.lan:5000/", Reach::Trusted),
            ("reg.lan:5001", "https://reg.lan:5001/", Reach::Public),
            ("localhost:5443", "https://localhost:5443/", Reach::Trusted),
            ("localhost.example", "https://localhost.example/", Reach::Public),
        ] {
            let (url, got) = registry.origin(host).unwrap();
            assert_eq!((url.as_str(), got), (origin, reach), "{host}");
        }
    }
}

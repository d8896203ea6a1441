//! Certificates and TLS.
//!
//! Promises: one certificate that cannot be read takes no other down, and one that could be
//! read before stays in force until its files are whole again.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::config::CertificateFiles;

/// The TLS side of a gateway.
#[derive(Debug)]
pub(crate) struct Tls {
    files: Vec<CertificateFiles>,
    certificates: Arc<Certificates>,
    pub(crate) config: Arc<ServerConfig>,
}

#[derive(Debug, Default)]
struct Certificates(ArcSwap<Vec<Certificate>>);

#[derive(Debug, Clone)]
struct Certificate {
    hosts: Vec<String>,
    /// When its files changed last.
    changed: Option<SystemTime>,
    /// `None`: it could never be read.
    key: Option<Arc<CertifiedKey>>,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("file cannot be read as PEM")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("certificate file holds no certificate")]
    Empty,
    #[error("key and certificate do not serve")]
    Key(#[from] rustls::Error),
}

impl Tls {
    /// TLS with the certificates in `files`.
    pub(crate) fn new(files: Vec<CertificateFiles>) -> Result<Self, rustls::Error> {
        let certificates = Arc::new(Certificates::default());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(certificates.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let tls = Self { files, certificates, config: Arc::new(config) };
        tls.reload();
        Ok(tls)
    }

    /// Reads the files that changed. Reads files: not for a task's thread.
    pub(crate) fn reload(&self) {
        let before = self.certificates.0.load();
        let now: Vec<Certificate> = self
            .files
            .iter()
            .enumerate()
            .map(|(index, files)| renewed(files, before.get(index)))
            .collect();
        self.certificates.0.store(Arc::new(now));
    }
}

fn renewed(files: &CertificateFiles, before: Option<&Certificate>) -> Certificate {
    let modified = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    let changed = modified(&files.chain).max(modified(&files.key));
    match before {
        Some(before) if before.changed == changed => return before.clone(),
        _ => {}
    }
    let key = match read(files) {
        Ok(key) => Some(Arc::new(key)),
        Err(error) => {
            let chain = files.chain.display();
            tracing::error!(%error, %chain, "certificate cannot be used; the one before stays");
            before.and_then(|before| before.key.clone())
        }
    };
    Certificate { hosts: files.hosts.clone(), changed, key }
}

fn read(files: &CertificateFiles) -> Result<CertifiedKey, Unusable> {
    let chain = CertificateDer::pem_file_iter(&files.chain)?.collect::<Result<Vec<_>, _>>()?;
    if chain.is_empty() {
        return Err(Unusable::Empty);
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match()?;
    Ok(certified)
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let certificates = self.0.load();
        let usable = || certificates.iter().filter(|certificate| certificate.key.is_some());
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let named = name.and_then(|name| {
            usable().find(|certificate| certificate.hosts.iter().any(|host| is_for(host, &name)))
        });
        named.or_else(|| usable().find(|c| c.hosts.is_empty())).and_then(|c| c.key.clone())
    }
}

/// Whether a certificate for `host` serves `name`, which is in lower case.
fn is_for(host: &str, name: &str) -> bool {
    match host.strip_prefix("*.") {
        Some(domain) => {
            name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain))
        }
        None => host.eq_ignore_ascii_case(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_covers_one_label() {
        assert!(is_for("*.Example.com", "a.example.com"));
        assert!(is_for("A.example.com", "a.example.com"));
        assert!(!is_for("*.example.com", "a.b.example.com"));
        assert!(!is_for("*.example.com", "example.com"));
    }

    #[test]
    fn a_broken_certificate_takes_no_other_down_and_keeps_its_last() {
        let dir = tempfile::tempdir().unwrap();
        let pair = rcgen::generate_simple_self_signed(vec!["h".to_owned()]).unwrap();
        let files = |name: &str| CertificateFiles {
            hosts: vec![],
            chain: dir.path().join(format!("{name}.crt")),
            key: dir.path().join(format!("{name}.key")),
        };
        let (good, broken) = (files("good"), files("broken"));
        std::fs::write(&good.chain, pair.cert.pem()).unwrap();
        std::fs::write(&good.key, pair.signing_key.serialize_pem()).unwrap();
        std::fs::write(&broken.chain, "nonsense").unwrap();
        let tls = Tls::new(vec![broken, good.clone()]).unwrap();
        let usable = || -> Vec<bool> {
            tls.certificates.0.load().iter().map(|certificate| certificate.key.is_some()).collect()
        };
        assert_eq!(usable(), [false, true]);
        std::fs::remove_file(&good.chain).unwrap();
        tls.reload();
        assert_eq!(usable(), [false, true], "the last good one stays");
    }
}

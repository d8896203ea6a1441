//! TLS, with both protocols by ALPN.

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use stead_gateway::{CertificateFiles, Gateway};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::kit::*;

/// A gateway with a certificate for [`HOST`], and what its clients trust.
pub struct Https {
    pub gateway: Gateway,
    roots: rustls::RootCertStore,
}

impl Https {
    pub async fn start(control: &Control) -> Self {
        let pair = rcgen::generate_simple_self_signed(vec![HOST.to_owned()]).unwrap();
        let [chain, key] = ["chain.pem", "key.pem"].map(|name| control.dir.path().join(name));
        std::fs::write(&chain, pair.cert.pem()).unwrap();
        std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
        let mut config = control.config();
        config.https = vec!["127.0.0.1:0".parse().unwrap()];
        config.certificates = vec![CertificateFiles { hosts: vec![HOST.into()], chain, key }];
        let mut roots = rustls::RootCertStore::empty();
        roots.add(pair.cert.der().clone()).unwrap();
        Self { gateway: control.gateway_with(config).await, roots }
    }

    /// A connection for the protocol `alpn`.
    pub async fn connect(&self, alpn: &str) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.into()];
        let stream = TcpStream::connect(self.gateway.https_addrs()[0]).await.unwrap();
        let name = ServerName::try_from(HOST).unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn.as_bytes()));
        stream
    }

    /// An HTTP/2 client.
    pub async fn h2(&self) -> hyper::client::conn::http2::SendRequest<Boxed> {
        let stream = TokioIo::new(self.connect("h2").await);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_and_http1_over_tls() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let https = Https::start(&control).await;

    let mut sender = https.h2().await;
    let request = http::Request::get(format!("https://{HOST}/headers")).body(empty()).unwrap();
    let response = within(sender.send_request(request)).await.unwrap();
    let seen = within(response.into_body().collect()).await.unwrap().to_bytes();
    let seen = String::from_utf8(seen.to_vec()).unwrap();
    assert!(seen.contains("x-forwarded-proto: https\n"), "{seen}");
    assert!(seen.contains(&format!("host: {HOST}\n")), "{seen}");

    let mut stream = https.connect("http/1.1").await;
    let ask = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut all = String::new();
    within(stream.read_to_string(&mut all)).await.unwrap();
    assert!(all.ends_with(app.container.as_str()), "{all}");
}

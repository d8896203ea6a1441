//! TLS, with both protocols by ALPN.

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use stead_gateway::CertificateFiles;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::kit::*;

#[tokio::test(flavor = "multi_thread")]
async fn h2_and_http1_over_tls() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let pair = rcgen::generate_simple_self_signed(vec![HOST.to_owned()]).unwrap();
    let (chain, key) = (control.dir.path().join("chain.pem"), control.dir.path().join("key.pem"));
    std::fs::write(&chain, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let mut config = control.config();
    config.https = vec!["127.0.0.1:0".parse().unwrap()];
    config.certificates = vec![CertificateFiles { hosts: vec![HOST.into()], chain, key }];
    let gateway = control.gateway_with(config).await;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(pair.cert.der().clone()).unwrap();
    let connect = |alpn: &'static [u8]| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let addr = gateway.https_addrs()[0];
        async move {
            let stream = TcpStream::connect(addr).await.unwrap();
            let name = ServerName::try_from(HOST).unwrap();
            TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
        }
    };

    let stream = connect(b"h2").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(format!("https://{HOST}/headers")).body(empty()).unwrap();
    let response = within(sender.send_request(request)).await.unwrap();
    let seen = within(response.into_body().collect()).await.unwrap().to_bytes();
    let seen = String::from_utf8(seen.to_vec()).unwrap();
    assert!(seen.contains("x-forwarded-proto: https\n"), "{seen}");
    assert!(seen.contains(&format!("host: {HOST}\n")), "{seen}");

    let mut stream = connect(b"http/1.1").await;
    let ask = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut all = String::new();
    within(stream.read_to_string(&mut all)).await.unwrap();
    assert!(all.ends_with(app.container.as_str()), "{all}");
}

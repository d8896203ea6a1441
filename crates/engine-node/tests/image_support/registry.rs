//! Debian's docker-registry, run for one test.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Client, Url};
use tempfile::TempDir;

use super::{TestImage, digest};

pub struct Registry {
    process: Child,
    /// `127.0.0.1:PORT`.
    pub host: String,
    scheme: &'static str,
    _folder: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    pub async fn start() -> Self {
        Self::start_with("http", "", "").await
    }

    /// Speaks TLS with this certificate.
    pub async fn start_tls(certificate: &Path, key: &Path) -> Self {
        let tls = format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            certificate.display(),
            key.display()
        );
        Self::start_with("https", &tls, "").await
    }

    /// Wants the name `user` and the password in the bcrypt file `htpasswd`.
    pub async fn start_with_password(htpasswd: &Path) -> Self {
        let auth =
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", htpasswd.display());
        Self::start_with("http", "", &auth).await
    }

    async fn start_with(scheme: &'static str, http: &str, more: &str) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        // Somebody else may take the port between asking for it and the registry's bind.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let host = format!("127.0.0.1:{port}");
            let config = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
                 http:\n  addr: {host}\n{http}{more}",
                folder.path().join("data").display()
            );
            let file = folder.path().join("config.yml");
            fs::write(&file, config).unwrap();
            let mut process = Command::new("docker-registry")
                .arg("serve")
                .arg(&file)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("docker-registry is installed (apt-get install docker-registry)");
            if answers(&mut process, &host).await {
                return Self { process, host, scheme, _folder: folder };
            }
            let mut said = String::new();
            process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            assert!(said.contains("address already in use"), "docker-registry ended: {said}");
        }
        panic!("no free port in ten tries");
    }

    pub fn reference(&self, name: &str) -> stead_engine_node::image::Reference {
        format!("{}/{name}", self.host).parse().unwrap()
    }

    /// Pushes an image under a tag, the way the specification has it.
    pub async fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        for blob in image.blobs().into_iter().skip(1) {
            self.push_blob(repository, blob).await;
        }
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        self.push_manifest(repository, tag, media_type, &image.manifest).await;
    }

    pub async fn push_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) {
        let url = self.url(&format!("/v2/{repository}/manifests/{tag}"));
        let request = client().put(url).header("Content-Type", media_type).body(bytes.to_vec());
        let response = request.send().await.unwrap();
        assert!(response.status().is_success(), "{:?}", response.text().await);
    }

    pub async fn push_blob(&self, repository: &str, blob: &[u8]) {
        let client = client();
        let start = self.url(&format!("/v2/{repository}/blobs/uploads/"));
        let response = client.post(start.clone()).send().await.unwrap();
        let location = response.headers()["location"].to_str().unwrap().to_owned();
        let mut url = start.join(&location).unwrap();
        url.query_pairs_mut().append_pair("digest", digest(blob).as_str());
        let response = client.put(url).body(blob.to_vec()).send().await.unwrap();
        assert!(response.status().is_success(), "{:?}", response.text().await);
    }

    fn url(&self, path: &str) -> Url {
        format!("{}://{}{path}", self.scheme, self.host).parse().unwrap()
    }
}

/// Waits until the process accepts connections; false if it ended.
async fn answers(process: &mut Child, host: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if process.try_wait().unwrap().is_some() {
            return false;
        }
        // The port may be somebody else's for a moment; then the process will have ended.
        if tokio::net::TcpStream::connect(host).await.is_ok() {
            return process.try_wait().unwrap().is_none();
        }
        assert!(Instant::now() < deadline, "docker-registry does not answer");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn client() -> Client {
    // Only the test's own client needs it; the library brings its provider along.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().tls_danger_accept_invalid_certs(true).build().unwrap()
}

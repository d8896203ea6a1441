//! Credentials in a file as `docker login` writes it, and from the programs it names.
//!
//! Promises: the content of the file, and what a program answers, show up in no message; a
//! program is named by the file alone, started without a shell, and has a deadline. Does not
//! know in which order credentials are looked for beyond this file.
//!
//! Formats: docker's `config.json`; the protocol of docker-credential-helpers.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use stead_core::registry::{DOCKER_HUB, Login, RegistryHost};
use stead_core::secret::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::super::error::ImageError;
use super::credentials::Credentials;

/// How Docker Hub is called in the file and by the programs.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// How long a program may take. It may ask a service in the network.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest answer of a program, bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// The user that says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// What is of use in the file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

impl ConfigFile {
    /// Reads the file; `None` if there is none.
    pub(super) async fn read(path: &Path) -> Result<Option<Self>, ImageError> {
        let text = match tokio::fs::read(path).await {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(bad(path, &error.to_string())),
        };
        // serde's own message could quote a password.
        let file = serde_json::from_slice(&text);
        file.map(Some).map_err(|_| bad(path, "it is not the JSON that `docker login` writes"))
    }

    /// The credentials for `host` that stand in the file, at `path`, itself.
    pub(super) fn entry(
        &self,
        path: &Path,
        host: &RegistryHost,
    ) -> Result<Option<Credentials>, ImageError> {
        let Some((_, auth)) = self.auths.iter().find(|(key, _)| is_for(key, host)) else {
            return Ok(None);
        };
        if !auth.identitytoken.is_empty() {
            let token = Secret::new(auth.identitytoken.clone());
            let token = token.map_err(|_| bad(path, "an identity token in it is no text"))?;
            return Ok(Some(Credentials::Identity(token)));
        }
        let (user, password) = if !auth.username.is_empty() {
            (auth.username.clone(), auth.password.clone())
        } else if auth.auth.is_empty() {
            return Ok(None);
        } else {
            let decoded = BASE64_STANDARD.decode(auth.auth.trim()).ok();
            let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = decoded.as_deref().and_then(|pair| pair.split_once(':'));
            let (user, password) =
                pair.ok_or_else(|| bad(path, "\"auth\" is not base64 of USER:PASSWORD"))?;
            (user.to_owned(), password.trim_end_matches('\0').to_owned())
        };
        let password = Secret::new(password);
        let password = password.map_err(|_| bad(path, "a password in it is empty or no text"))?;
        Ok(Some(Credentials::Login(Login { user, password })))
    }

    /// The credentials for `host` from the program that the file names for it, or for all.
    pub(super) async fn ask_helper(
        &self,
        host: &RegistryHost,
    ) -> Result<Option<Credentials>, ImageError> {
        let own = self.cred_helpers.iter().find(|(key, _)| is_for(key, host));
        let server = match host.as_str() {
            DOCKER_HUB => DOCKER_HUB_KEY,
            other => other,
        };
        match (own, self.creds_store.as_str()) {
            (Some((_, name)), _) => ask(name, server).await,
            (None, "") => Ok(None),
            (None, name) => match ask(name, server).await {
                // The file of a laptop names the laptop's own store: what needs no
                // credentials must go on working without it.
                Err(ImageError::Helper { missing: true, program, .. }) => {
                    tracing::warn!(program, "the store of credentials is not installed here");
                    Ok(None)
                }
                other => other,
            },
        }
    }
}

fn bad(path: &Path, reason: &str) -> ImageError {
    ImageError::BadCredentials { path: path.to_owned(), reason: reason.to_owned() }
}

/// Keys are hosts, or URLs in old files; Docker Hub has a key of its own.
fn is_for(key: &str, host: &RegistryHost) -> bool {
    let bare = key.strip_prefix("https://").or(key.strip_prefix("http://")).unwrap_or(key);
    let key_host = bare.split('/').next().unwrap_or_default();
    key_host.parse::<RegistryHost>().is_ok_and(|key_host| key_host == *host)
}

/// Asks the program `docker-credential-NAME` about `server`.
async fn ask(name: &str, server: &str) -> Result<Option<Credentials>, ImageError> {
    let program = format!("docker-credential-{name}");
    let failed =
        |reason: String| ImageError::Helper { program: program.clone(), reason, missing: false };
    let word = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || !name.chars().all(word) {
        return Err(failed("that is no name of a program".into()));
    }
    match tokio::time::timeout(PATIENCE, run(&program, server)).await {
        Err(_) => Err(failed(format!("it gave no answer within {} s", PATIENCE.as_secs()))),
        Ok(Err(error)) => Err(ImageError::Helper {
            missing: error.kind() == std::io::ErrorKind::NotFound,
            program: program.clone(),
            reason: error.to_string(),
        }),
        Ok(Ok((worked, answer))) => read_answer(worked, &answer).map_err(failed),
    }
}

/// Whether the program ended well, and what it wrote. It ends with the future.
async fn run(program: &str, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut command = Command::new(program);
    command
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    // The caller stands still until the program has been loaded.
    let spawning = tokio::task::spawn_blocking(move || command.spawn());
    let mut child = spawning.await.map_err(std::io::Error::other)??;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not listen says so by its answer.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER + 1).read_to_end(&mut answer).await?;
    }
    if answer.len() as u64 > MAX_ANSWER {
        return Err(std::io::Error::other("its answer is too long"));
    }
    Ok((child.wait().await?.success(), answer))
}

fn read_answer(worked: bool, answer: &[u8]) -> Result<Option<Credentials>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    if !worked {
        // The one failure that has a fixed text, and is none.
        let said = String::from_utf8_lossy(answer);
        return match said.contains("credentials not found") {
            true => Ok(None),
            false => Err("it failed; run it by hand to see why".into()),
        };
    }
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|_| "its answer is not the JSON expected")?;
    let Ok(secret) = Secret::new(answer.secret) else { return Ok(None) };
    Ok(Some(match answer.username.as_str() {
        TOKEN_USER => Credentials::Identity(secret),
        _ => Credentials::Login(Login { user: answer.username, password: secret }),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lookup(text: &str, host: &str) -> Result<Option<Credentials>, ImageError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let config = ConfigFile::read(file.path()).await?.unwrap();
        config.entry(file.path(), &host.parse().unwrap())
    }

    #[tokio::test]
    async fn keys_are_hosts_or_urls_and_match_exactly() {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "reg.example:5000": {"username": "u", "password": "p:q"},
            "https://old.example/v2/": {"auth": "YTpiOmM="},
            "azure.example": {"auth": "MDA6AA==", "identitytoken": "t0ken"},
            "empty.example": {}
        }, "credsStore": "desktop"}"#;
        let found = async |host: &str| match lookup(text, host).await.unwrap() {
            Some(Credentials::Login(login)) => {
                Some((login.user, login.password.expose().to_owned()))
            }
            Some(Credentials::Identity(token)) => Some(("token".into(), token.expose().to_owned())),
            None => None,
        };
        assert_eq!(found("docker.io").await, Some(("hub".into(), "pw".into())));
        assert_eq!(found("reg.example:5000").await, Some(("u".into(), "p:q".into())));
        assert_eq!(found("old.example").await, Some(("a".into(), "b:c".into())));
        assert_eq!(found("azure.example").await, Some(("token".into(), "t0ken".into())));
        for stranger in ["reg.example", "example", "empty.example", "evil-old.example"] {
            assert_eq!(found(stranger).await, None, "{stranger}");
        }
        let missing = ConfigFile::read(Path::new("/nonexistent/config.json")).await;
        assert!(missing.unwrap().is_none());
    }

    #[tokio::test]
    async fn damage_is_reported_without_the_secret() {
        for text in [
            r#"{"auths": {"r": {"auth": 5, "x": "s3cret"}}}"#,
            r#"{"auths": {"r": {"auth": "s3cret"}}}"#,
            r#"{"auths": {"r": {"identitytoken": "s3cret\u0000"}}}"#,
            "s3cret",
        ] {
            let error = lookup(text, "r").await.unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn answers_of_programs_are_read() {
        let login = |user: &str, password: &str| {
            let password = Secret::new(password.into()).unwrap();
            Ok(Some(Credentials::Login(Login { user: user.into(), password })))
        };
        let read = |worked, text: &str| read_answer(worked, text.as_bytes());
        let good = r#"{"ServerURL": "x", "Username": "u", "Secret": "s3cret"}"#;
        assert_eq!(read(true, good), login("u", "s3cret"));
        let token = r#"{"ServerURL": "x", "Username": "<token>", "Secret": "t0ken"}"#;
        let expected = Credentials::Identity(Secret::new("t0ken".into()).unwrap());
        assert_eq!(read(true, token), Ok(Some(expected)));
        assert_eq!(read(false, "credentials not found in native keychain\n"), Ok(None));
        for (worked, text) in [(false, "s3cret"), (true, "s3cret"), (true, "{\"Secret\": 1}")] {
            let error = read(worked, text).unwrap_err();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[tokio::test]
    async fn only_programs_of_that_name_are_run() {
        for name in ["", "../../bin/true", "a b", "x;id", "$(id)"] {
            let error = ask(name, "reg.example").await.unwrap_err();
            assert!(matches!(error, ImageError::Helper { missing: false, .. }), "{name}: {error}");
        }
        let file = ConfigFile {
            auths: BTreeMap::new(),
            cred_helpers: [("own.example".to_owned(), "of-nobody".to_owned())].into(),
            creds_store: "of-nobody-either".into(),
        };
        let own = file.ask_helper(&"own.example".parse().unwrap()).await.unwrap_err();
        assert!(matches!(own, ImageError::Helper { missing: true, .. }), "{own}");
        let any = file.ask_helper(&"other.example".parse().unwrap()).await.unwrap();
        assert_eq!(any, None, "what needs no credentials goes on");
    }
}

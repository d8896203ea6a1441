//! Credentials from a file as `docker login` writes it.
//!
//! Promises: the file is read anew each time, and its content shows up in no message. Reads
//! `auths` alone: credential helpers are programs, and stead runs none. Does not know where
//! credentials are sent.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::super::error::ImageError;
use super::super::reference::DOCKER_HUB;

/// A name and a password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// The credentials for `host` (as in references) in the file at `path`; none if the file does
/// not exist.
pub(super) async fn find(path: &Path, host: &str) -> Result<Option<Credentials>, ImageError> {
    let bad =
        |reason: &str| ImageError::BadCredentials { path: path.to_owned(), reason: reason.into() };
    let text = match tokio::fs::read(path).await {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(bad(&error.to_string())),
    };
    // serde's own message could quote a password.
    let file: ConfigFile = serde_json::from_slice(&text)
        .map_err(|_| bad("it is not JSON with an \"auths\" object"))?;
    let Some((_, auth)) = file.auths.iter().find(|(key, _)| is_for(key, host)) else {
        return Ok(None);
    };
    if !auth.username.is_empty() {
        let (user, password) = (auth.username.clone(), auth.password.clone());
        return Ok(Some(Credentials { user, password }));
    }
    if auth.auth.is_empty() {
        return match auth.identitytoken.is_empty() {
            true => Ok(None),
            false => Err(bad("it holds an identity token for this registry, expected a password")),
        };
    }
    let decoded =
        BASE64_STANDARD.decode(auth.auth.trim()).ok().and_then(|b| String::from_utf8(b).ok());
    let pair = decoded.as_deref().and_then(|pair| pair.split_once(':'));
    let (user, password) = pair.ok_or_else(|| bad("\"auth\" is not base64 of USER:PASSWORD"))?;
    Ok(Some(Credentials { user: user.into(), password: password.trim_end_matches('\0').into() }))
}

/// Keys are hosts, or URLs in old files; Docker Hub has a key of its own.
fn is_for(key: &str, host: &str) -> bool {
    let bare = key.strip_prefix("https://").or(key.strip_prefix("http://")).unwrap_or(key);
    let key_host = bare.split('/').next().unwrap_or_default();
    let key_host = match key_host {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        other => other,
    };
    key_host.eq_ignore_ascii_case(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lookup(text: &str, host: &str) -> Result<Option<Credentials>, ImageError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        find(file.path(), host).await
    }

    #[tokio::test]
    async fn keys_are_hosts_or_urls_and_match_exactly() {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "reg.example:5000": {"username": "u", "password": "p:q"},
            "https://old.example/v2/": {"auth": "YTpiOmM="},
            "empty.example": {}
        }, "credsStore": "desktop"}"#;
        let user = async |host| lookup(text, host).await.unwrap().map(|c| (c.user, c.password));
        assert_eq!(user("docker.io").await, Some(("hub".into(), "pw".into())));
        assert_eq!(user("reg.example:5000").await, Some(("u".into(), "p:q".into())));
        assert_eq!(user("old.example").await, Some(("a".into(), "b:c".into())));
        for stranger in ["reg.example", "example", "empty.example", "evil-old.example"] {
            assert_eq!(user(stranger).await, None, "{stranger}");
        }
        assert_eq!(find(Path::new("/nonexistent/config.json"), "x").await.unwrap(), None);
    }

    #[tokio::test]
    async fn damage_is_reported_without_the_secret() {
        for text in [
            r#"{"auths": {"r": {"auth": 5, "x": "s3cret"}}}"#,
            r#"{"auths": {"r": {"auth": "s3cret"}}}"#,
            r#"{"auths": {"r": {"identitytoken": "s3cret"}}}"#,
            "s3cret",
        ] {
            let error = lookup(text, "r").await.unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
    }
}

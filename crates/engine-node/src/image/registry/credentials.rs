//! Which credentials a registry gets.
//!
//! Promises: they are looked up anew each time they are asked for, in one order: the
//! platform's own logins, the entries of the docker config, the programs that it names. What
//! one registry has is never given for another. Does not know where credentials are sent.

use stead_core::registry::{Login, RegistryHost};
use stead_core::secret::Secret;

use super::super::error::ImageError;
use super::RegistryOptions;
use super::docker::ConfigFile;

/// What a registry is told about who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    /// A name and a password.
    Login(Login),
    /// A token that the registry's token service takes in place of them.
    Identity(Secret),
}

/// The credentials for `host`, if there are any.
pub(super) async fn find(
    options: &RegistryOptions,
    host: &RegistryHost,
) -> Result<Option<Credentials>, ImageError> {
    if let Some(login) = options.book.login(host).map_err(ImageError::Book)? {
        return Ok(Some(Credentials::Login(login)));
    }
    let Some(path) = &options.credentials else { return Ok(None) };
    let Some(file) = ConfigFile::read(path).await? else { return Ok(None) };
    match file.entry(path, host)? {
        Some(found) => Ok(Some(found)),
        None => file.ask_helper(host).await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stead_core::error::UserError;
    use stead_core::registry::{Mirror, RegistryBook};

    use super::*;

    #[derive(Debug)]
    struct OneLogin;

    impl RegistryBook for OneLogin {
        fn login(&self, host: &RegistryHost) -> Result<Option<Login>, UserError> {
            let password = Secret::new("own".into()).unwrap();
            Ok((host.as_str() == "a.example").then(|| Login { user: "own".into(), password }))
        }
        fn mirrors(&self, _: &RegistryHost) -> Result<Vec<Mirror>, UserError> {
            Ok(Vec::new())
        }
    }

    #[tokio::test]
    async fn the_platform_s_own_login_comes_first() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = r#"{"auths": {"a.example": {"username": "file", "password": "f"},
                                 "b.example": {"username": "file", "password": "f"}}}"#;
        std::fs::write(file.path(), text).unwrap();
        let options = RegistryOptions {
            book: Arc::new(OneLogin),
            credentials: Some(file.path().to_owned()),
            ..RegistryOptions::default()
        };
        let user = async |host: &str| match find(&options, &host.parse().unwrap()).await.unwrap() {
            Some(Credentials::Login(login)) => login.user,
            other => format!("{other:?}"),
        };
        assert_eq!(user("a.example").await, "own");
        assert_eq!(user("b.example").await, "file");
        assert_eq!(user("c.example").await, "None");
    }
}

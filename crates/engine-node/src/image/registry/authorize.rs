//! How a repository answers when it is asked who it is.
//!
//! Promises: credentials are looked up when they are wanted, and go to the registry's own
//! origin or its own token service; several requests that are told the same ask once. Does
//! not know what is requested.
//!
//! Protocol: the distribution project's "Token Authentication Specification"; for identity
//! tokens its "OAuth2 Token Authentication", RFC 6749 section 6.

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Response, Url};
use serde::Deserialize;
use stead_core::registry::Login;

use super::super::error::ImageError;
use super::auth::{self, Challenge};
use super::credentials::{self, Credentials};
use super::repository::{MAX_ANSWER, Repository};
use super::retry::Failure;

impl Repository {
    /// Answers a 401 to a request that carried `used`.
    pub(super) async fn authorize(
        &self,
        used: Option<HeaderValue>,
        response: Response,
    ) -> Result<(), Failure> {
        let mut current = self.authorization.lock().await;
        if *current != used {
            // Another request was told the same, and has answered.
            return Ok(());
        }
        let credentials = match (&self.login, &self.name) {
            (Some(login), _) => Some(login.clone()),
            (None, Some(_)) => credentials::find(&self.options, &self.host).await?,
            (None, None) => None,
        };
        let challenges = auth::challenges(response.headers());
        let bearer = challenges.iter().find(|c| matches!(c, Challenge::Bearer { .. }));
        let value = match (bearer.or(challenges.first()), credentials) {
            (Some(Challenge::Bearer { realm, service, scope }), credentials) => {
                let realm: Url = realm.parse().map_err(|_| self.foreign(realm))?;
                let token =
                    self.token(realm, service.as_deref(), scope.as_deref(), credentials).await?;
                format!("Bearer {token}")
            }
            (Some(Challenge::Basic), Some(Credentials::Login(login))) => {
                use base64::Engine as _;
                let pair = format!("{}:{}", login.user, login.password.expose());
                format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(pair))
            }
            (Some(Challenge::Basic), Some(Credentials::Identity(_))) => {
                let reason = "it wants a password, and there is only an identity token";
                return Err(self.denied(reason).into());
            }
            (Some(Challenge::Basic), None) => {
                return Err(self.denied("it wants credentials, and there are none").into());
            }
            (None, _) => return Err(self.denied("it says not how to authenticate").into()),
        };
        let mut value = HeaderValue::try_from(value)
            .map_err(|_| self.denied("its token cannot be sent in a header"))?;
        value.set_sensitive(true);
        *current = Some(value);
        Ok(())
    }

    async fn token(
        &self,
        mut realm: Url,
        service: Option<&str>,
        scope: Option<&str>,
        credentials: Option<Credentials>,
    ) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        if !auth::realm_belongs(&self.origin, &realm) {
            return Err(self.foreign(realm.as_str()).into());
        }
        let own_scope = self.name.as_ref().map(|name| format!("repository:{name}:pull"));
        // The registry as a whole needs none; some name one all the same, and refuse it then.
        let scope = own_scope.as_deref().map(|own| scope.unwrap_or(own));
        let wishes = [("service", service), ("scope", scope)];
        let wishes = wishes.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let request = match credentials {
            Some(Credentials::Identity(token)) => {
                let mut form = realm.clone();
                let fixed = [("grant_type", "refresh_token"), ("client_id", "stead")];
                form.query_pairs_mut()
                    .clear()
                    .extend_pairs(fixed.into_iter().chain(wishes))
                    .append_pair("refresh_token", token.expose());
                let body = form.query().unwrap_or_default().to_owned();
                let request = self.client.post(realm.clone());
                request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
            }
            credentials => {
                realm.query_pairs_mut().extend_pairs(wishes);
                let request = self.client.get(realm.clone());
                match credentials {
                    Some(Credentials::Login(Login { user, password })) => {
                        request.basic_auth(user, Some(password.expose()))
                    }
                    _ => request,
                }
            }
        };
        let response = self.send(&realm, request).await?;
        let status = response.status();
        if status.is_redirection() {
            let reason = "it would take the credentials elsewhere".into();
            return Err(ImageError::BadRedirect { registry: self.host.to_string(), reason }.into());
        }
        if !status.is_success() {
            return Err(self.failure(realm.path(), response).await);
        }
        let body = self.body(response, "token", MAX_ANSWER).await?;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|_| self.odd("its token service's answer is not the JSON expected"))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        Ok(token.ok_or_else(|| self.odd("its token service's answer holds no token"))?)
    }

    fn foreign(&self, realm: &str) -> ImageError {
        ImageError::ForeignRealm { registry: self.host.to_string(), realm: realm.to_owned() }
    }
}

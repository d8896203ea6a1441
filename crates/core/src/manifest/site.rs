//! How a site is served: what a person may say of a folder of static files.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::quantity::Span;
use super::text::{HeaderName, SitePath};

/// The App is a folder of static files, which the gateway serves by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct Site {
    /// The page that answers a path which is no file of the site, such as index.html for an
    /// App that routes in the browser. Paths whose last part has a dot are not answered with it.
    /// Left out: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<SitePath>,
    /// The page that is sent with status 404. Left out: 404.html, if the site has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_found: Option<SitePath>,
    /// For how long browsers and proxies use a file without asking again.
    pub cache: SiteCache,
    /// Headers added to every answer of the site.
    pub headers: BTreeMap<HeaderName, String>,
}

/// For how long browsers and proxies use a file without asking again. 0s: they keep it, and
/// ask each time whether it has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct SiteCache {
    /// Pages: what leads to the other files should be what was deployed last.
    pub pages: Span,
    /// Other files.
    pub files: Span,
    /// Files whose names change with their content, such as app.1f3a9b2c.js.
    pub hashed: Span,
}

impl Default for SiteCache {
    fn default() -> Self {
        Self { pages: Span::ZERO, files: Span::ZERO, hashed: Span::MAX }
    }
}

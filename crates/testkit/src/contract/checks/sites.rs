//! Checks of sites: images of files that a gateway serves.

use stead_core::engine::ImageInfo;
use stead_core::error::Code;
use stead_core::manifest::Site;

use super::super::parcel::{Parcel, digest_of};
use super::super::stage::{Stage, Verdict};
use super::{equal, refused};

/// A site of one page.
async fn site(stage: &Stage) -> Result<ImageInfo, String> {
    let page = "hello";
    let index = serde_json::json!({"version": 1, "entries": {"/index.html": {
        "file": "site/index.html", "type": "text/html", "size": page.len(),
        "sha256": digest_of(page.as_bytes()),
    }}});
    let files = [("/site/index.html", page), ("/site.json", &index.to_string())];
    stage.composed(&[&Parcel::new(&files)]).await
}

pub(super) async fn a_site_is_found_once_its_image_is_here(stage: &mut Stage) -> Verdict {
    let before = stage.engine().site(&digest_of(b"no image"), &Site::default()).await;
    equal("the site of an image that is not here", &before, &Ok(None))?;
    let image = site(stage).await?;
    let found = stage.engine().site(&image.digest, &Site::default()).await;
    match found {
        Ok(Some(_)) => Ok(()),
        other => Err(format!("the site of an image that is here: {other:?}")),
    }
}

pub(super) async fn a_site_that_lacks_a_page_is_refused(stage: &mut Stage) -> Verdict {
    let image = site(stage).await?;
    let rules = serde_json::json!({"fallback": "missing.html"});
    let rules: Site = serde_json::from_value(rules).expect("they are rules");
    let answer = stage.engine().site(&image.digest, &rules).await;
    refused("a site without that page", answer, Code::SiteUnfit).map(drop)
}

//! Image references as people write them: `nginx`, `ghcr.io/team/web:1.4`,
//! `localhost:5000/web@sha256:…`.
//!
//! Promises: what parses can be put into a URL path and a file name as it is. Does not know
//! whether the image exists, nor how its registry is reached.

use std::fmt;
use std::str::FromStr;

use stead_core::ids::Digest;
use stead_core::registry::{BadHost, DOCKER_HUB, RegistryHost};

/// The grammar's limit for host and repository together, in bytes.
const MAX_NAME: usize = 255;
/// The grammar's limit for a tag, in bytes.
const MAX_TAG: usize = 128;

/// A parsed image reference, with Docker Hub's defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    host: RegistryHost,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image reference {text:?} is malformed: {reason}")]
pub struct BadReference {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Reference {
    /// The registry's host, with its port if one was written.
    pub fn host(&self) -> &RegistryHost {
        &self.host
    }

    /// The repository within the registry, such as `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` when neither tag nor digest was written.
    pub fn tag(&self) -> Option<&str> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag),
            (None, Some(_)) => None,
            (None, None) => Some("latest"),
        }
    }

    /// The digest, if the reference names one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = self.tag() {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = BadReference;

    fn from_str(text: &str) -> Result<Self, BadReference> {
        parse(text).map_err(|reason| BadReference { text: text.to_owned(), reason })
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.contains("://") {
        return Err("write it without a scheme, such as registry.example/web:1.4".into());
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|e| e.to_string())?)),
        None => (text, None),
    };
    let (host, path) = match rest.split_once('/') {
        Some((host, path)) if is_host(host) => (host, path),
        _ => (DOCKER_HUB, rest),
    };
    let host: RegistryHost = host.parse().map_err(|error: BadHost| error.to_string())?;
    // A colon can only start the tag here: the host and its port are gone.
    let (repository, tag) = match path.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (path, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    check_repository(repository)?;
    let repository = if host.as_str() == DOCKER_HUB && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    if host.as_str().len() + 1 + repository.len() > MAX_NAME {
        return Err(format!("a name has at most {MAX_NAME} characters"));
    }
    Ok(Reference { host, repository, tag: tag.map(str::to_owned), digest })
}

/// Docker's rule: the first part is a host when it cannot be a folder on Docker Hub.
fn is_host(part: &str) -> bool {
    part.contains(['.', ':', '[']) || part == "localhost"
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let good = tag.bytes().enumerate().all(|(i, b)| word(b) || (i > 0 && (b == b'.' || b == b'-')));
    if tag.is_empty() || tag.len() > MAX_TAG || !good {
        return Err(format!(
            "tag {tag:?} must be 1 to {MAX_TAG} letters, digits, \"_\", \".\" or \"-\", \
             and not start with \".\" or \"-\""
        ));
    }
    Ok(())
}

fn check_repository(repository: &str) -> Result<(), String> {
    if repository.is_empty() {
        return Err("the name of the repository is missing".into());
    }
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!(
            "a repository is written in lower case, such as {:?}",
            repository.to_ascii_lowercase()
        ));
    }
    for part in repository.split('/') {
        if !is_path_component(part) {
            return Err(format!(
                "{part:?} must be lower-case letters and digits, separated by \".\", \"_\", \
                 \"__\" or dashes"
            ));
        }
    }
    Ok(())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` of the distribution specification.
fn is_path_component(part: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends_well =
        bytes.first().copied().is_some_and(word) && bytes.last().copied().is_some_and(word);
    ends_well
        && bytes.split(|&b| word(b)).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn docker_hub_is_the_default() {
        assert_eq!(ok("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(ok("nginx:1.27-alpine"), "docker.io/library/nginx:1.27-alpine");
        assert_eq!(ok("team/web"), "docker.io/team/web:latest");
        assert_eq!(ok("index.docker.io/nginx"), "docker.io/library/nginx:latest");
        assert_eq!(ok("docker.io/nginx:1"), "docker.io/library/nginx:1");
    }

    #[test]
    fn hosts_ports_and_digests_are_told_apart() {
        let digest = Digest::from_sha256([7; 32]);
        assert_eq!(ok("localhost/web"), "localhost/web:latest");
        assert_eq!(ok("localhost:5000/a/b__c/d-e:x"), "localhost:5000/a/b__c/d-e:x");
        assert_eq!(ok("[::1]:5000/web"), "[::1]:5000/web:latest");
        assert_eq!(ok("GHCR.io/team/web:1"), "ghcr.io/team/web:1");
        let by_digest: Reference = format!("reg.example/web@{digest}").parse().unwrap();
        assert_eq!((by_digest.tag(), by_digest.digest()), (None, Some(&digest)));
        let both: Reference = format!("reg.example/web:1@{digest}").parse().unwrap();
        assert_eq!((both.tag(), both.digest()), (Some("1"), Some(&digest)));
        assert_eq!(ok(&both.to_string()), both.to_string());
    }

    #[test]
    fn malformed_ones_say_what_is_wrong() {
        for (text, hint) in [
            ("", "missing"),
            ("Nginx", "lower case"),
            ("Team/web", "lower case"),
            ("https://reg.example/web", "scheme"),
            ("reg.example/", "missing"),
            ("reg.example/../web", "\"..\""),
            ("reg.example/a//b", "\"\""),
            ("reg.example/web:", "tag"),
            ("reg.example/web:-x", "tag"),
            ("reg.example:99999/web", "port"),
            ("[::1/web", "\"[\""),
            ("[zz]:1/web", "IPv6"),
            ("-a.example/web", "host"),
            ("web@sha512:00", "sha256"),
            ("web@", "sha256"),
            ("a.-b.example/web", "host"),
            ("web/-a", "\"-a\""),
            ("web a", "\"web a\""),
            ("web?x=y", "web?x=y"),
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(error.reason.contains(hint), "{text}: {error}");
        }
        assert!("a".repeat(300).parse::<Reference>().is_err());
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics_and_round_trips(text in "[a-zA-Z0-9:/@._\\[\\]-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().unwrap();
                proptest::prop_assert_eq!(again.to_string(), reference.to_string());
            }
        }
    }
}

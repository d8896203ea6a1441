//! Typed ids. A number that means one thing cannot be passed where another is wanted.

use std::fmt;
use std::str::FromStr;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// A number, also one written as text: as the key of a map JSON has no other form, and inside
/// a flattened or tagged type serde does not read it back by itself.
struct Number;

impl Visitor<'_> for Number {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        text.parse().map_err(E::custom)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $type:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[derive(Serialize, ToSchema)]
        #[serde(transparent)]
        pub struct $type(pub $inner);

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Number).and_then(|number| {
                    <$inner>::try_from(number).map(Self).map_err(D::Error::custom)
                })
            }
        }

        impl $type {
            /// The one that follows.
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $type {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

number!(
    /// How often an intent has changed. Only rises; an older one is refused everywhere.
    Generation(u64)
);
number!(
    /// Number of a Release within its App, from 1.
    ReleaseNo(u32)
);
number!(
    /// Number of a Rollout within its App, from 1.
    RolloutNo(u32)
);
number!(
    /// Position of an Instance within its App, from 0. Keeps its IP and volumes over upgrades.
    Ordinal(u32)
);

macro_rules! text {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $type(pub String);

        impl $type {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text!(
    /// A Sandbox on one machine. Never used again once its Sandbox is gone.
    SandboxId
);
text!(
    /// A Container. Never used again once its Container is gone.
    ContainerId
);

/// A SHA-256 digest in the text form of the OCI image specification: `sha256:` and 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct Digest(String);

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest {0:?} is not supported: expected \"sha256:\" and 64 lower-case hex digits")]
pub struct BadDigest(pub String);

impl Digest {
    /// The digest whose SHA-256 sum is `hash`.
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        use fmt::Write;
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in hash {
            write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        }
        Self(text)
    }

    /// The whole digest, algorithm included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hex digits.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// The first 12 hex digits, for people.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

impl FromStr for Digest {
    type Err = BadDigest;
    fn from_str(text: &str) -> Result<Self, BadDigest> {
        match text.strip_prefix("sha256:") {
            Some(hex)
                if hex.len() == 64
                    && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(BadDigest(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = BadDigest;
    fn try_from(text: String) -> Result<Self, BadDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_sha256_only() {
        let digest = Digest::from_sha256([0xab; 32]);
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert_eq!(digest.short(), "abababababab");
        for bad in ["", "sha256:", "sha512:00", "sha256:XYZ", &digest.to_string().to_uppercase()] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_number_is_read_back_wherever_it_stands() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "phase")]
        enum Phase {
            Held { each: std::collections::BTreeMap<Ordinal, ReleaseNo> },
        }
        let held = Phase::Held { each: [(Ordinal(1), ReleaseNo(2))].into() };
        let json = serde_json::to_string(&held).unwrap();
        assert_eq!(json, r#"{"phase":"Held","each":{"1":2}}"#);
        assert_eq!(serde_json::from_str::<Phase>(&json).unwrap(), held);
        assert!(serde_json::from_str::<Ordinal>("-1").is_err());
        assert!(serde_json::from_str::<Ordinal>("4294967296").is_err());
        assert!(serde_json::from_str::<Ordinal>(r#""x""#).is_err());
    }
}

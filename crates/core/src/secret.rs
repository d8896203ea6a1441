//! A value that nobody shall read by accident.
//!
//! It promises that `Debug`, errors and logs never show it, that it is written over when it is
//! dropped, and that it is serialised only where a field asks for [`expose`] by name. It does
//! not know how values are kept.

use std::fmt;

use serde::{Deserialize, Deserializer, Serializer};
use zeroize::Zeroizing;

/// Longest value in bytes: room for a key with its chain of certificates, and well within what
/// Linux passes to a program as one variable.
pub const LONGEST: usize = 64 << 10;

/// The value of a secret: text without NUL, not empty, at most [`LONGEST`] bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

/// Why a text cannot be a secret. It does not say what the text was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a text of 1 to {LONGEST} bytes without NUL")]
pub struct BadSecret;

impl Secret {
    /// Takes a text over. One that is refused is written over too.
    ///
    /// # Errors
    /// [`BadSecret`] if it is empty, too long or holds a NUL.
    pub fn new(text: String) -> Result<Self, BadSecret> {
        let text = Zeroizing::new(text);
        let fits = !text.is_empty() && text.len() <= LONGEST && !text.contains('\0');
        if fits { Ok(Self(text)) } else { Err(BadSecret) }
    }

    /// The value itself. Every caller of this is a place to look at twice.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    /// The error of serde shows what it found: it is replaced.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let bad = |BadSecret| serde::de::Error::custom(BadSecret);
        let text = String::deserialize(from).map_err(|_| bad(BadSecret))?;
        Self::new(text).map_err(bad)
    }
}

/// For `#[serde(serialize_with = …)]` of a request that carries a value.
///
/// # Errors
/// Those of the serialiser.
pub fn expose<S: Serializer>(secret: &Secret, into: S) -> Result<S::Ok, S::Error> {
    into.serialize_str(secret.expose())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_shows_nowhere() {
        let secret = Secret::new("hunter2".to_owned()).unwrap();
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "Secret(…) Some(Secret(…))");
        for wrong in ["12345", "[\"hunter2\"]", "{\"hunter2\": 1}", "\"hunter2\\u0000\"", "\"\""] {
            let error = serde_json::from_str::<Secret>(wrong).unwrap_err().to_string();
            assert!(error.starts_with("expected a text"), "{error}");
            assert!(!error.contains("hunter2") && !error.contains("12345"), "{error}");
        }
        assert_eq!(serde_json::from_str::<Secret>("\"hunter2\"").unwrap(), secret);
    }

    #[test]
    fn a_value_has_a_length() {
        assert!(Secret::new("x".repeat(LONGEST)).is_ok());
        assert_eq!(Secret::new("x".repeat(LONGEST + 1)), Err(BadSecret));
        assert_eq!(Secret::new(String::new()), Err(BadSecret));
    }
}

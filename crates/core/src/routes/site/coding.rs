//! Content codings: which of those at hand a client would rather have (RFC 9110, 12.5.3).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a variant is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Coding {
    /// Brotli.
    #[serde(rename = "br")]
    Brotli,
    /// Zstandard.
    #[serde(rename = "zstd")]
    Zstd,
    /// gzip.
    #[serde(rename = "gzip")]
    Gzip,
}

impl Coding {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Brotli, Self::Zstd, Self::Gzip];

    /// As it stands in `Content-Encoding`.
    pub const fn token(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }
}

impl fmt::Display for Coding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.token())
    }
}

/// A coding that sites do not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the coding is none of br, zstd and gzip")]
pub struct UnknownCoding;

impl FromStr for Coding {
    type Err = UnknownCoding;

    fn from_str(text: &str) -> Result<Self, UnknownCoding> {
        let known = |coding: &Self| text.eq_ignore_ascii_case(coding.token());
        let gzip = text.eq_ignore_ascii_case("x-gzip").then_some(Self::Gzip);
        Self::ALL.into_iter().find(known).or(gzip).ok_or(UnknownCoding)
    }
}

/// The coding to answer `accepted` in, of those for which `held` gives a size: the one the
/// client likes best, and of several the smallest. `None`: as it is, which is also what a
/// client gets that refuses everything.
pub(super) fn choose(accepted: &str, held: impl Fn(Coding) -> Option<u64>) -> Option<Coding> {
    let (mut named, mut any, mut identity) = ([None; Coding::ALL.len()], None, None);
    for part in accepted.split(',') {
        let (name, weight) = part.split_once(';').unwrap_or((part, ""));
        let (name, weight) = (name.trim(), quality(weight));
        match name.parse::<Coding>() {
            Ok(coding) => named[coding as usize] = Some(weight),
            Err(UnknownCoding) if name == "*" => any = Some(weight),
            Err(UnknownCoding) if name.eq_ignore_ascii_case("identity") => identity = Some(weight),
            Err(UnknownCoding) => {}
        }
    }
    let likes = |coding: Coding| named[coding as usize].or(any).unwrap_or(0);
    let best = Coding::ALL
        .into_iter()
        .filter_map(|coding| Some((coding, held(coding)?)))
        .filter(|(coding, _)| likes(*coding) > 0)
        .max_by_key(|(coding, size)| (likes(*coding), std::cmp::Reverse(*size)));
    // What is not named is acceptable, but nothing that is named is liked less.
    best.map(|(coding, _)| coding).filter(|coding| likes(*coding) >= identity.unwrap_or(0))
}

/// The weight in `;q=0.8`, in thousandths; 1000 without one, 0 for one that is malformed.
fn quality(parameters: &str) -> u16 {
    let named = |parameter: &str| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim().to_owned())
    };
    let Some(text) = parameters.split(';').find_map(named) else { return 1000 };
    let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
    let fits = decimals.len() <= 3 && decimals.bytes().all(|byte| byte.is_ascii_digit());
    match (whole, fits) {
        ("1", true) if decimals.bytes().all(|byte| byte == b'0') => 1000,
        ("0", true) => format!("{decimals:0<3}").parse().unwrap_or(0),
        _ => 0,
    }
}

//! Rules: which requests ask for a certain Release, by what they carry.
//!
//! Promises: header names without regard to case, everything else to the letter; cookies and
//! parameters are found wherever they stand. Allocates nothing per request. Knows nothing of
//! whether the Release can be had.

use http::header::{self, HeaderMap, HeaderName};
use stead_core::ids::ReleaseNo;
use stead_core::routes::{self, Match};

/// What rules look at of a request.
#[derive(Clone, Copy)]
pub(crate) struct Carried<'a> {
    pub(crate) headers: &'a HeaderMap,
    /// Encoded, as it came.
    pub(crate) query: Option<&'a str>,
}

/// A rule, ready to be asked.
pub(crate) struct Rule {
    pub(crate) release: ReleaseNo,
    when: Vec<Mark>,
}

enum Mark {
    Header(HeaderName, Option<Box<str>>),
    Cookie(Box<str>, Option<Box<str>>),
    Parameter(Box<str>, Option<Box<str>>),
}

impl Rule {
    pub(crate) fn new(rule: &routes::Rule) -> Self {
        let when = rule.when.iter().filter_map(Mark::new).collect();
        Self { release: rule.release, when }
    }

    /// Whether a request that carries this asks for the Release.
    pub(crate) fn fits(&self, carried: &Carried<'_>) -> bool {
        self.when.iter().any(|mark| mark.is_on(carried))
    }
}

impl Mark {
    /// `None` for a header name that no request can have.
    fn new(wanted: &Match) -> Option<Self> {
        let value = wanted.value().map(Box::from);
        Some(match wanted {
            Match::Header { name, .. } => Self::Header(name.as_str().parse().ok()?, value),
            Match::Cookie { name, .. } => Self::Cookie(name.as_str().into(), value),
            Match::Query { name, .. } => Self::Parameter(name.as_str().into(), value),
        })
    }

    fn is_on(&self, carried: &Carried<'_>) -> bool {
        match self {
            Self::Header(name, wanted) => carried
                .headers
                .get_all(name)
                .iter()
                .any(|value| wanted.as_ref().is_none_or(|wanted| value == wanted.as_bytes())),
            Self::Cookie(name, wanted) => cookies(carried.headers, name)
                .any(|value| wanted.as_ref().is_none_or(|wanted| value == &**wanted)),
            Self::Parameter(name, wanted) => {
                let pairs = carried.query.unwrap_or_default().split('&');
                pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).any(|(key, value)| {
                    reads(key, name) && wanted.as_ref().is_none_or(|wanted| reads(value, wanted))
                })
            }
        }
    }
}

/// Every value of the cookie `name`, in the order a client sends them: the closest path first.
pub(crate) fn cookies<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let fields = headers.get_all(header::COOKIE).iter().filter_map(|field| field.to_str().ok());
    let pairs = fields.flat_map(|field| field.split(';'));
    pairs.filter_map(move |pair| {
        let (key, value) = pair.trim_matches([' ', '\t']).split_once('=')?;
        (key == name).then_some(value)
    })
}

/// Whether `encoded`, a part of a query, says `plain` (WHATWG URL, 5.1: `+` is a space).
fn reads(encoded: &str, plain: &str) -> bool {
    let mut rest = encoded.as_bytes().iter();
    let decoded = std::iter::from_fn(|| {
        Some(match *rest.next()? {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                match rest.as_slice() {
                    [high, low, ..] => match (digit(*high), digit(*low)) {
                        (Some(high), Some(low)) => {
                            rest.nth(1);
                            (high * 16 + low) as u8
                        }
                        _ => b'%',
                    },
                    _ => b'%',
                }
            }
            byte => byte,
        })
    });
    decoded.eq(plain.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(when: &str) -> Rule {
        let text = format!(r#"{{"release": 2, "when": [{when}]}}"#);
        Rule::new(&serde_json::from_str(&text).unwrap())
    }

    fn fits(rule: &Rule, fields: &[(&str, &str)], query: &str) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        rule.fits(&Carried { headers: &headers, query: Some(query) })
    }

    #[test]
    fn headers_match_by_name_and_value() {
        let any = rule(r#"{"header": {"name": "X-Gray"}}"#);
        assert!(fits(&any, &[("x-gray", "")], ""));
        assert!(!fits(&any, &[("x-grey", "")], ""));
        let yes = rule(r#"{"header": {"name": "x-gray", "value": "yes"}}"#);
        assert!(fits(&yes, &[("x-gray", "no"), ("X-Gray", "yes")], ""));
        assert!(!fits(&yes, &[("x-gray", "Yes")], ""));
    }

    #[test]
    fn cookies_are_found_among_others() {
        let gray = rule(r#"{"cookie": {"name": "gray", "value": "a=b"}}"#);
        assert!(fits(&gray, &[("cookie", "x=1; gray=a=b")], ""));
        assert!(fits(&gray, &[("cookie", "x=1"), ("cookie", "gray=a=b;y")], ""));
        for other in ["gray=a", "agray=a=b", "gray", "Gray=a=b", "x=gray=a=b"] {
            assert!(!fits(&gray, &[("cookie", other)], ""), "{other}");
        }
        assert!(fits(&rule(r#"{"cookie": {"name": "gray"}}"#), &[("cookie", "gray=")], ""));
    }

    #[test]
    fn parameters_are_compared_decoded() {
        let gray = rule(r#"{"query": {"name": "gr/ay", "value": "1&2% +"}}"#);
        for query in ["gr/ay=1%262%25+%2B", "a=b&gr%2fay=1%262%20%2b&gr%2Fay=1%262%%20%2b&c"] {
            assert!(fits(&gray, &[], query), "{query}");
        }
        for query in
            ["", "gr/ay", "gr/ay=1", "gr/ay=1&2% %2B", "b=gr/ay=1%262%25+%2B", "gr/ay=1%262%25++"]
        {
            assert!(!fits(&gray, &[], query), "{query}");
        }
        let any = rule(r#"{"query": {"name": "gray"}}"#);
        assert!(fits(&any, &[], "gray") && fits(&any, &[], "x=1&gray=") && !fits(&any, &[], "gra"));
    }

    #[test]
    fn any_of_several_is_enough_and_none_fits_nothing() {
        let both = rule(r#"{"header": {"name": "x"}}, {"query": {"name": "x"}}"#);
        assert!(fits(&both, &[("x", "")], "") && fits(&both, &[], "x"));
        assert!(!fits(&both, &[("y", "")], "y"));
        assert!(!fits(&rule(""), &[("x", "")], "x"));
    }
}

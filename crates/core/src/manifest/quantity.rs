//! Quantities as people write them: `500m` of a CPU, `256Mi` of memory, `1m30s`, `25%`.
//!
//! Each has one canonical text, which is also its form in JSON. Reading is exact: nothing is
//! rounded, and a value that does not fit is refused.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::openapi::{self, RefOr};
use utoipa::{PartialSchema, ToSchema};

use super::problem::BadValue;
use crate::error::Code;

/// A number where JSON has one, for quantities that need no unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Whole(u64),
    Decimal(f64),
}

impl From<Written> for String {
    fn from(written: Written) -> Self {
        match written {
            Written::Text(text) => text,
            Written::Whole(number) => number.to_string(),
            Written::Decimal(number) => number.to_string(),
        }
    }
}

/// Gives a quantity the serde form and the schema of its text.
macro_rules! as_text {
    ($type:ident, $json:tt, $pattern:literal, $examples:tt) => {
        impl TryFrom<Written> for $type {
            type Error = BadValue;
            fn try_from(written: Written) -> Result<Self, BadValue> {
                String::from(written).parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }

        impl PartialSchema for $type {
            fn schema() -> RefOr<openapi::Schema> {
                let text = openapi::ObjectBuilder::new().schema_type(openapi::Type::String);
                text.pattern(Some($pattern)).examples(json!($examples).as_array().cloned()).into()
            }
        }

        impl ToSchema for $type {}

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": $json, "pattern": $pattern, "examples": $examples })
            }
        }
    };
}

/// The number before a unit, and the unit.
fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// A share of processors, in thousandths of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct Cpu(u32);

as_text!(Cpu, ["string", "number"], r"^([0-9]+m|[0-9]+(\.[0-9]{1,3})?)$", ["500m", 0.5, 2]);

impl Cpu {
    /// So many thousandths of a processor.
    pub const fn from_millis(millis: u32) -> Self {
        Self(millis)
    }

    /// In thousandths of a processor.
    pub const fn millis(self) -> u32 {
        self.0
    }
}

impl FromStr for Cpu {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let (whole, rest) = split(text);
        let millis = match rest {
            "m" => whole.parse().ok(),
            "" => whole.parse().ok().and_then(|n: u32| n.checked_mul(1000)),
            _ => rest
                .strip_prefix('.')
                .filter(|digits| (1..=3).contains(&digits.len()))
                .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|digits| format!("{whole}{digits:0<3}").parse().ok())
                .filter(|_| !whole.is_empty()),
        };
        millis.map(Self).ok_or_else(|| {
            let expected = "an amount of CPU such as 500m, 0.5 or 2";
            BadValue::text(Code::ManifestQuantity, expected, text)
        })
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            millis if millis % 1000 == 0 => write!(f, "{}", millis / 1000),
            millis => write!(f, "{millis}m"),
        }
    }
}

/// An amount of memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct Memory(u64);

as_text!(Memory, ["string", "integer"], r"^[0-9]+([KMGT]i|[kMGT])?$", ["256Mi", "1Gi", "128M"]);

/// Units of memory, in the order in which a text is chosen for an amount.
const MEMORY_UNITS: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("Ki", 1 << 10),
    ("k", 1_000),
];

impl Memory {
    /// So many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Memory {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let (number, unit) = split(text);
        let factor = match unit {
            "" => Some(1),
            _ => MEMORY_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor),
        };
        let bytes = factor.and_then(|factor| number.parse::<u64>().ok()?.checked_mul(factor));
        bytes.map(Self).ok_or_else(|| {
            let expected = "an amount of memory such as 256Mi, 1Gi or 128M";
            let bad = BadValue::text(Code::ManifestQuantity, expected, text);
            match unit.trim().to_ascii_lowercase().chars().next().filter(|c| "kmgt".contains(*c)) {
                Some(unit) if !number.is_empty() => {
                    let unit = unit.to_ascii_uppercase();
                    bad.hint(format!("write {number}{unit}i, whole and without a space"))
                }
                _ => bad,
            }
        })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, factor): &&(&str, u64)| self.0 != 0 && self.0.is_multiple_of(*factor);
        match MEMORY_UNITS.iter().find(fits) {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A length of time in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(u64);

as_text!(Span, "string", r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$", ["250ms", "5s", "1m30s"]);

const SPAN_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);
    /// The longest accepted: a year.
    pub const MAX: Self = Self(365 * 24 * 3_600_000);

    /// So many milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// So many seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000))
    }

    /// In milliseconds.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// The same length as the standard library's type.
    pub const fn duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl From<Span> for crate::time::Micros {
    fn from(span: Span) -> Self {
        Self::from_millis(span.0)
    }
}

impl TryFrom<String> for Span {
    type Error = BadValue;
    fn try_from(text: String) -> Result<Self, BadValue> {
        text.parse()
    }
}

/// Reads `1m30s`: whole numbers, units from long to short, each at most once.
fn parse_span(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0_u64;
    let mut units = SPAN_UNITS.iter();
    while !rest.is_empty() {
        let (number, after) = split(rest);
        let length = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(length);
        let (_, factor) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(*factor)?)?;
        rest = after;
    }
    (!text.is_empty() && total <= Span::MAX.0).then_some(total)
}

impl FromStr for Span {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        parse_span(text).map(Self).ok_or_else(|| {
            let expected = "a duration such as 250ms, 5s or 1m30s, at most a year";
            let bad = BadValue::text(Code::ManifestQuantity, expected, text);
            match text.parse::<u64>() {
                Ok(number) => bad.hint(format!("give the unit: {number}s or {number}ms")),
                Err(_) => bad,
            }
        })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (unit, factor) in SPAN_UNITS {
            if rest >= factor {
                write!(f, "{}{unit}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

/// What is waited for before a rollout goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pause {
    /// So long; nothing with no time at all.
    For(Span),
    /// Until a person promotes it.
    Manual,
}

as_text!(
    Pause,
    "string",
    r"^(manual|([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?)$",
    ["0s", "30s", "manual"]
);

/// The word for [`Pause::Manual`].
const MANUAL: &str = "manual";

impl TryFrom<String> for Pause {
    type Error = BadValue;
    fn try_from(text: String) -> Result<Self, BadValue> {
        text.parse()
    }
}

impl FromStr for Pause {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        if text == MANUAL {
            return Ok(Self::Manual);
        }
        text.parse().map(Self::For).map_err(|bad: BadValue| BadValue {
            expected: "a duration such as 30s, or manual".to_owned(),
            ..bad
        })
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For(span) => span.fmt(f),
            Self::Manual => f.write_str(MANUAL),
        }
    }
}

/// A number of Instances, or a share of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub enum Amount {
    /// So many.
    Count(u32),
    /// Per cent, 0 to 100.
    Percent(u8),
}

as_text!(Amount, ["string", "integer"], r"^([0-9]+|[0-9]{1,2}%|100%)$", [1, "25%"]);

impl Amount {
    /// How many that is of `total`; a share is rounded down.
    pub fn of(self, total: u32) -> u32 {
        self.rounded(total, |hundredths| hundredths / 100)
    }

    /// How many that is of `total`; a share is rounded up.
    pub fn of_rounded_up(self, total: u32) -> u32 {
        self.rounded(total, |hundredths| hundredths.div_ceil(100))
    }

    fn rounded(self, total: u32, whole: fn(u64) -> u64) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(share) => {
                u32::try_from(whole(u64::from(total) * u64::from(share))).unwrap_or(u32::MAX)
            }
        }
    }
}

impl FromStr for Amount {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let (number, unit) = split(text);
        let amount = match unit {
            "" => number.parse().ok().map(Self::Count),
            "%" => number.parse().ok().filter(|share| *share <= 100).map(Self::Percent),
            _ => None,
        };
        amount.ok_or_else(|| {
            let expected = "a number of Instances such as 1, or a share such as 25%";
            BadValue::text(Code::ManifestQuantity, expected, text)
        })
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(share) => write!(f, "{share}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cpu_is_read_exactly() {
        for (text, millis, canonical) in
            [("500m", 500, "500m"), ("0.5", 500, "500m"), ("2", 2000, "2"), ("1.25", 1250, "1250m")]
        {
            let cpu: Cpu = text.parse().unwrap();
            assert_eq!((cpu.millis(), cpu.to_string().as_str()), (millis, canonical), "{text}");
        }
        for bad in ["", "m", ".5", "1.", "0.0005", "-1", "1 m", "two", "1e3", "99999999"] {
            assert!(bad.parse::<Cpu>().is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_knows_binary_and_decimal_units() {
        for (text, bytes, canonical) in [
            ("256Mi", 256 << 20, "256Mi"),
            ("1024Mi", 1 << 30, "1Gi"),
            ("128M", 128_000_000, "128M"),
            ("1000", 1000, "1k"),
            ("1025", 1025, "1025"),
            ("0", 0, "0"),
        ] {
            let memory: Memory = text.parse().unwrap();
            assert_eq!((memory.bytes(), memory.to_string().as_str()), (bytes, canonical), "{text}");
        }
        for bad in ["", "Mi", "1.5Gi", "256MB", "256 Mi", "256mi", "-1", "99999999Ti"] {
            assert!(bad.parse::<Memory>().is_err(), "{bad}");
        }
        let hint = "256mb".parse::<Memory>().unwrap_err().hint.unwrap();
        assert!(hint.contains("256Mi"), "{hint}");
    }

    #[test]
    fn a_span_needs_its_units_in_order() {
        for (text, millis, canonical) in [
            ("250ms", 250, "250ms"),
            ("5s", 5_000, "5s"),
            ("1m30s", 90_000, "1m30s"),
            ("90s", 90_000, "1m30s"),
            ("1h1ms", 3_600_001, "1h1ms"),
            ("0s", 0, "0s"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!((span.millis(), span.to_string().as_str()), (millis, canonical), "{text}");
        }
        for bad in ["", "5", "s", "5 s", "30s1m", "5s5s", "1.5s", "-5s", "5d", "999999h", "5S"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        assert!("5".parse::<Span>().unwrap_err().hint.unwrap().contains("5s"));
    }

    #[test]
    fn an_amount_rounds_its_share_down() {
        assert_eq!("25%".parse::<Amount>().unwrap().of(7), 1);
        assert_eq!("100%".parse::<Amount>().unwrap().of(7), 7);
        assert_eq!("3".parse::<Amount>().unwrap().of(2), 3);
        for bad in ["", "%", "101%", "-1", "1.5", "half"] {
            assert!(bad.parse::<Amount>().is_err(), "{bad}");
        }
    }

    #[test]
    fn json_may_hold_numbers_where_no_unit_is_needed() {
        assert_eq!(serde_json::from_str::<Cpu>("0.5").unwrap(), Cpu(500));
        assert_eq!(serde_json::from_str::<Amount>("2").unwrap(), Amount::Count(2));
        assert!(serde_json::from_str::<Span>("5").is_err());
        assert!(serde_json::from_str::<Memory>("-5").is_err());
    }

    proptest! {
        #[test]
        fn every_quantity_reads_what_it_writes(cpu in any::<u32>(), bytes in any::<u64>(), ms in 0..Span::MAX.0) {
            prop_assert_eq!(Cpu(cpu).to_string().parse::<Cpu>().unwrap(), Cpu(cpu));
            prop_assert_eq!(Memory(bytes).to_string().parse::<Memory>().unwrap(), Memory(bytes));
            prop_assert_eq!(Span(ms).to_string().parse::<Span>().unwrap(), Span(ms));
        }
    }
}

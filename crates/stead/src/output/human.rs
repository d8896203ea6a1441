//! Times and sizes as people read them.

use std::time::{SystemTime, UNIX_EPOCH};

use stead_core::time::{Micros, Time};

/// The present, by the machine's clock.
pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(Micros::from(since).0)
}

/// How long ago `then` was, in its largest unit.
pub(crate) fn ago(now: Time, then: Time) -> String {
    format!("{} ago", length(now.since(then)))
}

/// A length of time in its largest one or two units: for lists, where rough is enough.
pub(crate) fn length(length: Micros) -> String {
    let secs = length.0 / 1_000_000;
    match secs {
        0 => "0s".to_owned(),
        1..60 => format!("{secs}s"),
        60..3_600 => format!("{}m", secs / 60),
        3_600..86_400 => format!("{}h{:02}m", secs / 3_600, secs / 60 % 60),
        _ => format!("{}d", secs / 86_400),
    }
}

/// A moment as RFC 3339 in UTC, to the millisecond.
pub(crate) fn stamp(at: Time) -> String {
    let micros = i64::try_from(at.0).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_microsecond(micros) {
        Ok(stamp) => format!("{stamp:.3}"),
        Err(_) => format!("{} µs", at.0),
    }
}

/// An amount of bytes in binary units with three digits.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if amount < 1000.0 {
            break;
        }
        amount /= 1024.0;
        unit = next;
    }
    let decimals = if amount < 10.0 { 2 } else { usize::from(amount < 100.0) };
    format!("{amount:.decimals$} {unit}")
}

/// A processor share, in thousandths of one, as the manifest writes it.
pub(crate) fn cpu(millis: u64) -> String {
    format!("{millis}m")
}

/// `text` on one line and without control characters: what an App or an image says must
/// not steer the terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .filter_map(|c| match c {
            '\n' | '\t' => Some(' '),
            c if c.is_control() => None,
            c => Some(c),
        })
        .collect()
}

/// An image's reference for a list: a digest is shortened, or left out beside a tag.
pub(crate) fn image(reference: &str) -> String {
    let Some((name, digest)) = reference.split_once("@sha256:") else {
        return reference.to_owned();
    };
    let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if tagged { name.to_owned() } else { format!("{name}@{}", digest.get(..12).unwrap_or(digest)) }
}

/// A value or a dash.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_rough() {
        for (secs, text) in [(0, "0s"), (59, "59s"), (61, "1m"), (3_700, "1h01m"), (200_000, "2d")]
        {
            assert_eq!(length(Micros::from_secs(secs)), text);
        }
        assert_eq!(ago(Time(5_000_000), Time(9_000_000)), "0s ago", "a clock may step back");
    }

    #[test]
    fn sizes_have_three_digits() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (34_500_000, "32.9 MiB"),
            (1 << 30, "1.00 GiB"),
            (1023 << 20, "1.00 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn an_image_is_named_shortly() {
        let digest = "sha256:131b6a5bd72aa57ab772482c88e2d07381f8c91b729c4be8546a7cd3da8cece9";
        for (reference, text) in [
            ("box:5000/web".to_owned(), "box:5000/web"),
            (format!("box:5000/web:1@{digest}"), "box:5000/web:1"),
            (format!("box:5000/web@{digest}"), "box:5000/web@131b6a5bd72a"),
        ] {
            assert_eq!(image(&reference), text);
        }
    }

    #[test]
    fn a_moment_is_utc() {
        assert_eq!(stamp(Time(1_700_000_000_123_456)), "2023-11-14T22:13:20.123Z");
    }
}

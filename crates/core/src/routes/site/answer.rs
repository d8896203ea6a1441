//! Whether all of a file is sent, a part, or nothing: preconditions and ranges
//! (RFC 9110, sections 13 and 14).
//!
//! Several ranges in one request are answered with the whole, as every server may: only
//! download managers of old ask for them, and a few ranges can be made to cost much.

use std::ops::RangeInclusive;

/// What a request says about which bytes it wants, and under which conditions. Several fields
/// of one name are joined by commas. Dates are in seconds since the Unix epoch; one that is not
/// a date counts as left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked<'a> {
    /// `If-Match`.
    pub if_match: Option<&'a str>,
    /// `If-None-Match`.
    pub if_none_match: Option<&'a str>,
    /// `If-Modified-Since`.
    pub if_modified_since: Option<u64>,
    /// `If-Unmodified-Since`.
    pub if_unmodified_since: Option<u64>,
    /// `Range`. None for any method but GET.
    pub range: Option<&'a str>,
    /// `If-Range`, when it is an entity tag.
    pub if_range: Option<&'a str>,
    /// `If-Range`, when it is a date.
    pub if_range_date: Option<u64>,
}

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// 200: everything.
    Whole,
    /// 206: these bytes, counted from 0.
    Part(RangeInclusive<u64>),
    /// 304: the client has it.
    NotModified,
    /// 412: it is not what the client takes it for.
    Failed,
    /// 416: there are no such bytes.
    Unsatisfiable,
}

/// What is sent of `size` bytes with the entity tag `etag`, last changed at `modified`.
///
/// Dates are compared for being the same, as nginx does, not for being later: a rollback makes
/// a file older than what clients have of it, and they must get it nevertheless.
pub fn answer(asked: &Asked<'_>, etag: &str, modified: u64, size: u64) -> Answer {
    // The order is that of RFC 9110, 13.2.2.
    match (asked.if_match, asked.if_unmodified_since) {
        (Some(tags), _) if !names(tags, etag, is_same) => return Answer::Failed,
        (None, Some(date)) if date < modified => return Answer::Failed,
        _ => {}
    }
    match (asked.if_none_match, asked.if_modified_since) {
        (Some(tags), _) if names(tags, etag, is_alike) => return Answer::NotModified,
        (None, Some(date)) if date == modified => return Answer::NotModified,
        _ => {}
    }
    let fresh = match (asked.if_range, asked.if_range_date) {
        (Some(tag), _) => is_same(tag.trim(), etag),
        (None, Some(date)) => date == modified,
        (None, None) => true,
    };
    match asked.range.filter(|_| fresh) {
        Some(range) => part(range, size),
        None => Answer::Whole,
    }
}

/// Whether a list of entity tags, or `*`, names `etag`.
fn names(tags: &str, etag: &str, fits: fn(&str, &str) -> bool) -> bool {
    // Ours have no comma inside their quotes, so one that has is cut and does not fit.
    tags.trim() == "*" || tags.split(',').any(|tag| fits(tag.trim(), etag))
}

/// The strong comparison: a weak tag is the same as nothing.
fn is_same(tag: &str, etag: &str) -> bool {
    tag == etag
}

/// The weak comparison.
fn is_alike(tag: &str, etag: &str) -> bool {
    tag.strip_prefix("W/").unwrap_or(tag) == etag
}

/// The part that `range` asks for. What is not understood counts as left out.
fn part(range: &str, size: u64) -> Answer {
    let Some((unit, set)) = range.split_once('=') else { return Answer::Whole };
    let set = set.trim();
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return Answer::Whole;
    }
    let Some((first, last)) = set.split_once('-') else { return Answer::Whole };
    match (number(first), number(last)) {
        (Written::Wrong, _) | (_, Written::Wrong) => Answer::Whole,
        (Written::Nothing, Written::Nothing) => Answer::Whole,
        (Written::Number(first), Written::Number(last)) if first > last => Answer::Whole,
        (Written::Number(first), _) if first >= size => Answer::Unsatisfiable,
        (Written::Number(first), Written::Number(last)) => Answer::Part(first..=last.min(size - 1)),
        (Written::Number(first), Written::Nothing) => Answer::Part(first..=size - 1),
        // The last so many.
        (Written::Nothing, Written::Number(count)) if count == 0 || size == 0 => {
            Answer::Unsatisfiable
        }
        (Written::Nothing, Written::Number(count)) => {
            Answer::Part(size.saturating_sub(count)..=size - 1)
        }
    }
}

enum Written {
    Nothing,
    Number(u64),
    Wrong,
}

/// A number of digits alone; one that is too large is as good as the largest.
fn number(text: &str) -> Written {
    let text = text.trim();
    match text {
        "" => Written::Nothing,
        _ if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Written::Number(text.parse().unwrap_or(u64::MAX))
        }
        _ => Written::Wrong,
    }
}

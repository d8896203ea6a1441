//! Reads along with HTTP/1 and stops what two parsers could read in two ways.
//!
//! hyper is lenient where HTTP/1 has been an opening for request smuggling, and does not tell:
//! it takes a bare LF for a line's end, and drops `Content-Length` beside `Transfer-Encoding`.
//! The scanner follows the same bytes from message to message and refuses: a bare LF, folded
//! fields, `Content-Length` with `Transfer-Encoding` or with another value than before, an
//! encoding other than one `chunked`, and any encoding in HTTP/1.0 (RFC 9112, 6.3 and 11.2).
//!
//! Promises: nothing is held back or copied, but for a line that comes in pieces. What the
//! scanner lets pass is still hyper's to judge.
//!
//! After a request with `Upgrade` the bytes may be of another protocol: the scanner stops
//! there and is told how to go on.

use std::ops::Range;

/// Longest line of a chunk's size or a trailer.
const CHUNK_LINE: usize = 4 << 10;

/// Follows one HTTP/1 connection.
#[derive(Debug)]
pub(crate) struct Scanner {
    state: State,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    head: Head,
    head_limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    RequestLine,
    Field,
    /// Bytes of a body or a chunk still to come, its line end included.
    Body(u64),
    ChunkData(u64),
    ChunkSize,
    Trailer,
    /// The message asked for another protocol.
    Undecided,
    /// Too long to be parsed: hyper refuses it.
    TooLong,
}

#[derive(Debug, Default)]
struct Head {
    bytes: usize,
    http10: bool,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

/// What the scanner found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// All bytes may pass.
    Pass,
    /// This many bytes may pass; what follows waits for a decision.
    Hold(usize),
    /// These bytes are a line that must be refused, or its end; those before it may pass.
    Refuse(Range<usize>, &'static str),
}

impl Scanner {
    /// A scanner at the beginning of a connection, for heads of up to `head_limit` bytes.
    pub(crate) fn new(head_limit: usize) -> Self {
        Self { state: State::RequestLine, line: Vec::new(), head: Head::default(), head_limit }
    }

    /// A head has begun and not ended.
    pub(crate) fn in_head(&self) -> bool {
        match self.state {
            State::RequestLine => !self.line.is_empty(),
            State::Field => true,
            _ => false,
        }
    }

    /// A body has begun and not ended.
    pub(crate) fn in_body(&self) -> bool {
        !self.in_head() && !matches!(self.state, State::RequestLine | State::Undecided)
    }

    /// What follows waits for a decision.
    pub(crate) fn undecided(&self) -> bool {
        self.state == State::Undecided
    }

    /// It stays HTTP/1.
    pub(crate) fn resume(&mut self) {
        if self.undecided() {
            self.state = State::RequestLine;
        }
    }

    /// Follows `bytes`.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> Scan {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.state {
                State::TooLong => return Scan::Pass,
                State::Undecided => return Scan::Hold(at),
                State::Body(left) | State::ChunkData(left) => {
                    let taken = left.min(rest.len() as u64);
                    at += taken as usize;
                    self.state = match (self.state, left - taken) {
                        (State::Body(_), 0) => self.message_ended(),
                        (State::Body(_), left) => State::Body(left),
                        (_, 0) => State::ChunkSize,
                        (_, left) => State::ChunkData(left),
                    };
                }
                State::RequestLine | State::Field | State::ChunkSize | State::Trailer => {
                    let Some(end) = memchr::memchr(b'\n', rest) else {
                        return match self.keep(rest) {
                            Ok(()) => Scan::Pass,
                            Err(why) => Scan::Refuse(at..bytes.len(), why),
                        };
                    };
                    if let Err(why) = self.line_ended(&rest[..end]) {
                        return Scan::Refuse(at..at + end + 1, why);
                    }
                    at += end + 1;
                }
            }
        }
        Scan::Pass
    }

    /// Keeps the beginning of a line.
    fn keep(&mut self, part: &[u8]) -> Result<(), &'static str> {
        let in_chunk = matches!(self.state, State::ChunkSize | State::Trailer);
        let length = self.line.len() + part.len();
        if in_chunk && length > CHUNK_LINE {
            return Err("chunk line too long");
        }
        if !in_chunk && self.head.bytes + length > self.head_limit {
            self.line = Vec::new();
            self.state = State::TooLong;
            return Ok(());
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    /// A line has ended; `last` is what came of it last, without LF.
    fn line_ended(&mut self, last: &[u8]) -> Result<(), &'static str> {
        if self.line.is_empty() {
            let line = last.strip_suffix(b"\r").ok_or("bare LF")?;
            return self.line(line);
        }
        let mut whole = std::mem::take(&mut self.line);
        whole.extend_from_slice(last);
        let line = whole.strip_suffix(b"\r").ok_or("bare LF")?;
        self.line(line)
    }

    fn line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        match self.state {
            State::RequestLine if line.is_empty() => {} // allowed between messages
            State::RequestLine => {
                self.head = Head { bytes: line.len(), ..Head::default() };
                self.head.http10 = line.ends_with(b"HTTP/1.0");
                self.state = State::Field;
            }
            State::Field if line.is_empty() => self.state = self.head_ended()?,
            State::Field => {
                self.head.bytes += line.len();
                self.field(line)?;
            }
            State::ChunkSize => {
                let size = chunk_size(line)?;
                self.state = if size == 0 {
                    State::Trailer
                } else {
                    State::ChunkData(size.checked_add(2).ok_or("chunk too large")?)
                };
            }
            State::Trailer if line.is_empty() => self.state = self.message_ended(),
            State::Trailer => {
                if matches!(line[0], b' ' | b'\t') {
                    return Err("folded field");
                }
            }
            State::Body(_) | State::ChunkData(_) | State::Undecided | State::TooLong => {}
        }
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), &'static str> {
        if matches!(line[0], b' ' | b'\t') {
            return Err("folded field");
        }
        let Some(colon) = memchr::memchr(b':', line) else { return Ok(()) }; // hyper refuses it
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        match name.len() {
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.head.upgrade = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = number(value, 10).ok_or("bad Content-Length")?;
                if self.head.length.replace(length).is_some_and(|before| before != length) {
                    return Err("differing Content-Length");
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.head.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err("Transfer-Encoding is not one \"chunked\"");
                }
                self.head.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn head_ended(&mut self) -> Result<State, &'static str> {
        match (self.head.chunked, self.head.length) {
            (true, Some(_)) => Err("Content-Length with Transfer-Encoding"),
            (true, None) if self.head.http10 => Err("Transfer-Encoding in HTTP/1.0"),
            (true, None) => Ok(State::ChunkSize),
            (false, Some(length)) if length > 0 => Ok(State::Body(length)),
            (false, _) => Ok(self.message_ended()),
        }
    }

    fn message_ended(&self) -> State {
        if self.head.upgrade { State::Undecided } else { State::RequestLine }
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, &'static str> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    number(&line[..digits], 16).ok_or("bad chunk size")
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    // from_str_radix accepts a sign; here only digits count.
    if !digits.iter().all(|byte| char::from(*byte).is_digit(radix)) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `text` whole and byte by byte, and expects the same verdict.
    fn verdict(text: &str) -> Result<Scanner, &'static str> {
        let mut whole = Scanner::new(8192);
        let first = match whole.scan(text.as_bytes()) {
            Scan::Refuse(_, why) => Err(why),
            Scan::Pass | Scan::Hold(_) => Ok(whole),
        };
        let mut bytewise = Scanner::new(8192);
        let mut second = Ok(());
        for byte in text.as_bytes() {
            if let Scan::Refuse(line, why) = bytewise.scan(std::slice::from_ref(byte)) {
                assert_eq!(line, 0..1);
                second = Err(why);
                break;
            }
        }
        assert_eq!(
            first.as_ref().map(|s| s.state),
            second.map(|()| bytewise.state).as_ref().copied()
        );
        first
    }

    #[test]
    fn well_formed_messages_pass_one_after_the_other() {
        let text = "\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n\
            POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\na\nb\
            POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n\
            5;ext=1\r\n\n\n\n\n\n\r\nA\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n\
            GET / HTTP/1.0\r\n\r\n";
        assert_eq!(verdict(text).unwrap().state, State::RequestLine);
    }

    #[test]
    fn ambiguity_is_refused() {
        let head = "POST / HTTP/1.1\r\nHost: h\r\n";
        for (rest, why) in [
            (
                "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "Content-Length with Transfer-Encoding",
            ),
            (
                "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
                "Content-Length with Transfer-Encoding",
            ),
            ("Content-Length: 1\r\nContent-Length: 2\r\n\r\n", "differing Content-Length"),
            ("Content-Length: 1, 1\r\n\r\n", "bad Content-Length"),
            ("Content-Length: +1\r\n\r\n", "bad Content-Length"),
            ("Content-Length: \r\n\r\n", "bad Content-Length"),
            ("Content-Length: 99999999999999999999\r\n\r\n", "bad Content-Length"),
            (
                "Transfer-Encoding: gzip, chunked\r\n\r\n",
                "Transfer-Encoding is not one \"chunked\"",
            ),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                "Transfer-Encoding is not one \"chunked\"",
            ),
            ("Transfer-Encoding: xchunked\r\n\r\n", "Transfer-Encoding is not one \"chunked\""),
            ("X: y\n\r\n", "bare LF"),
            ("X: y\r\n\n", "bare LF"),
            ("X: y\r\n z\r\n\r\n", "folded field"),
            ("Transfer-Encoding: chunked\r\n\r\n1\nx\r\n", "bare LF"),
            ("Transfer-Encoding: chunked\r\n\r\n-1\r\n", "bad chunk size"),
            ("Transfer-Encoding: chunked\r\n\r\n\r\n", "bad chunk size"),
            ("Transfer-Encoding: chunked\r\n\r\nffffffffffffffff0\r\n", "bad chunk size"),
            ("Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "chunk too large"),
            ("Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n c\r\n\r\n", "folded field"),
        ] {
            assert_eq!(verdict(&format!("{head}{rest}")).unwrap_err(), why, "{rest:?}");
        }
        assert_eq!(
            verdict("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap_err(),
            "Transfer-Encoding in HTTP/1.0"
        );
    }

    #[test]
    fn what_follows_an_upgrade_waits() {
        let request = "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
        let mut scanner = Scanner::new(8192);
        assert_eq!(scanner.scan(format!("{request}\n\n").as_bytes()), Scan::Hold(request.len()));
        assert!(scanner.undecided() && !scanner.in_head() && !scanner.in_body());
        scanner.resume();
        assert_eq!(scanner.scan(b"\n"), Scan::Refuse(0..1, "bare LF"));
    }

    #[test]
    fn what_is_refused_begins_with_its_own_line() {
        let body = "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\na\r\r";
        for (line, why) in [("\n", "bare LF"), ("GET\n", "bare LF")] {
            let text = format!("{body}{line}\r\n");
            let refused = body.len()..body.len() + line.len();
            assert_eq!(Scanner::new(8192).scan(text.as_bytes()), Scan::Refuse(refused, why));
        }
    }

    #[test]
    fn places_are_known() {
        let mut scanner = Scanner::new(8192);
        for (part, head, body) in [
            ("", false, false),
            ("GET", true, false),
            (" / HTTP/1.1\r\n", true, false),
            ("Content-Length: 4\r\n", true, false),
            ("\r\n", false, true),
            ("abc", false, true),
            ("d", false, false),
        ] {
            assert_eq!(scanner.scan(part.as_bytes()), Scan::Pass);
            assert_eq!((scanner.in_head(), scanner.in_body()), (head, body), "{part:?}");
        }
    }

    #[test]
    fn a_head_beyond_the_limit_is_left_to_hyper_and_not_kept() {
        let mut scanner = Scanner::new(100);
        assert_eq!(scanner.scan(b"GET / HTTP/1.1\r\nX: "), Scan::Pass);
        for _ in 0..100 {
            assert_eq!(scanner.scan(&[b'a'; 64]), Scan::Pass);
        }
        assert!(scanner.line.is_empty());
    }
}

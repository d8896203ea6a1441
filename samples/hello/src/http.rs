//! As much HTTP/1.1 as the service needs: one request after another on a connection.
//! It does not defend itself: the gateway in front does.

use std::io::{self, BufRead, Read, Write};
use std::net::TcpStream;

/// More than any client here sends; beyond it the connection is given up.
const MAX_LINE: u64 = 16 << 10;

/// The head of a request; the body is still in the reader.
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// The next request, or `None` when the client is done.
    ///
    /// # Errors
    /// When the connection breaks or what arrives is not HTTP.
    pub(crate) fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let start = line(reader)?;
        if start.is_empty() {
            return Ok(None);
        }
        let mut words = start.split(' ');
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            return Err(malformed("the request line"));
        };
        let mut headers = Vec::new();
        loop {
            let line = line(reader)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| malformed("a header"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Some(Self { method: method.to_owned(), target: target.to_owned(), headers }))
    }

    /// The value of a header; `name` in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether the client asked for the connection to end after this request.
    pub(crate) fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// Reads the body to its end and says how long it was, in bytes.
    ///
    /// # Errors
    /// When the connection breaks or a chunk is malformed.
    pub(crate) fn discard_body(&self, reader: &mut impl BufRead) -> io::Result<u64> {
        let chunked = self
            .header("transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        if !chunked {
            let length = self.header("content-length").unwrap_or("0");
            return skip(reader, length.parse().map_err(|_| malformed("the content length"))?);
        }
        let mut total = 0;
        loop {
            let size = line(reader)?;
            let size = size.split(';').next().unwrap_or_default();
            let size = u64::from_str_radix(size, 16).map_err(|_| malformed("a chunk size"))?;
            total += skip(reader, size)?;
            // After a chunk its line break; after the last one the end of the (empty) trailers.
            line(reader)?;
            if size == 0 {
                return Ok(total);
            }
        }
    }
}

/// An answer with a text body.
pub(crate) struct Response {
    status: u16,
    body: String,
}

impl Response {
    pub(crate) fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, body: body.into() }
    }

    /// Writes the whole answer at once, with the version in `X-Version` and the time of the start
    /// in `X-Started`.
    ///
    /// # Errors
    /// When the client is gone.
    pub(crate) fn write(
        &self,
        mut stream: &TcpStream,
        version: &str,
        started: u128,
    ) -> io::Result<()> {
        let reason = if self.status == 200 { "OK" } else { "Other" };
        let text = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: text/plain\r\nX-Version: {version}\r\n\
             X-Started: {started}\r\nContent-Length: {}\r\n\r\n{}",
            self.status,
            self.body.len(),
            self.body
        );
        stream.write_all(text.as_bytes())
    }
}

/// One line without its end; empty at the end of the stream.
fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.by_ref().take(MAX_LINE).read_line(&mut line)?;
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}

fn skip(reader: &mut impl BufRead, length: u64) -> io::Result<u64> {
    let read = io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
    if read == length { Ok(read) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is malformed"))
}

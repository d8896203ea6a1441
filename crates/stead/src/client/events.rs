//! Server-sent events, as far as the API uses them (WHATWG HTML, 9.2.6): `data` lines,
//! joined by line ends, closed by an empty line. Comments keep the connection alive.

use anyhow::Result;
use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

/// Largest single event accepted, in bytes.
const LARGEST_EVENT: usize = 4 << 20;

/// A stream of events, each a JSON document.
pub(crate) struct EventStream {
    body: Incoming,
    lines: Lines,
}

impl EventStream {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, lines: Lines::default() }
    }

    /// The next event; `None` when the stream ended or broke off. May be dropped while it
    /// waits without losing anything.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(data) = self.lines.take_event()? {
                return Ok(Some(serde_json::from_str(&data)?));
            }
            match self.body.frame().await {
                // A server that was killed ends its streams without a closing chunk.
                None | Some(Err(_)) => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.lines.pending.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// Collects bytes into lines and lines into events.
#[derive(Default)]
struct Lines {
    pending: BytesMut,
    data: Option<String>,
}

impl Lines {
    fn take_event(&mut self) -> Result<Option<String>> {
        while let Some(end) = self.pending.iter().position(|b| *b == b'\n') {
            let raw = self.pending.split_to(end + 1);
            let line = std::str::from_utf8(&raw[..end])?.trim_end_matches('\r');
            if line.is_empty() {
                if let Some(data) = self.data.take() {
                    return Ok(Some(data));
                }
            } else if let Some(value) = line.strip_prefix("data:") {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match &mut self.data {
                    None => self.data = Some(value.to_owned()),
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                }
            }
        }
        let size = self.pending.len() + self.data.as_ref().map_or(0, String::len);
        anyhow::ensure!(size <= LARGEST_EVENT, "the platform sent an event of more than 4 MiB");
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(chunks: &[&str]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut events = Vec::new();
        for chunk in chunks {
            lines.pending.extend_from_slice(chunk.as_bytes());
            while let Some(event) = lines.take_event().unwrap() {
                events.push(event);
            }
        }
        events
    }

    #[test]
    fn events_are_put_together_across_chunks() {
        assert_eq!(feed(&["da", "ta: {\"a\"", ":1}\n", "\ndata:2\n\n"]), ["{\"a\":1}", "2"]);
    }

    #[test]
    fn comments_names_and_ids_carry_no_data() {
        assert_eq!(feed(&[": ping\n\nevent: x\nid: 3\ndata: a\ndata: b\r\n\r\n"]), ["a\nb"]);
        assert!(feed(&["data: unfinished\n"]).is_empty());
    }
}

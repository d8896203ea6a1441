//! The frames of `exec`: what the two ends say to each other once `POST …/exec` was
//! upgraded to [`PROTOCOL`].
//!
//! A frame is one byte of type, four bytes of length (big-endian) and that many bytes. The
//! [`ExecRequest`](crate::engine::ExecRequest) itself travels as JSON in the query parameter
//! `request`, so that it can be refused with an ordinary answer before the upgrade.

/// The token of the `Upgrade` header.
pub const PROTOCOL: &str = "stead-exec/1";

/// Longest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

const HEAD: usize = 5;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Client: bytes for standard input.
    Stdin(Vec<u8>),
    /// Server: bytes of standard output, or of the terminal.
    Stdout(Vec<u8>),
    /// Server: bytes of standard error.
    Stderr(Vec<u8>),
    /// Client: the terminal has so many rows and columns.
    Resize(u16, u16),
    /// Client: standard input ends.
    StdinEnd,
    /// Server: the command ended with this code. The last frame.
    Exit(i32),
}

/// Why bytes are not a frame. The connection is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frame of type {kind} and {length} bytes is not one of stead-exec/1")]
pub struct BadFrame {
    /// Its type byte.
    pub kind: u8,
    /// Its length field.
    pub length: u32,
}

impl Frame {
    /// Appends the frame's bytes to `out`. A payload above [`MAX_PAYLOAD`] goes out as
    /// several frames.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Frame::Stdin(data) => bytes(0, data, out),
            Frame::Stdout(data) => bytes(1, data, out),
            Frame::Stderr(data) => bytes(2, data, out),
            Frame::Resize(rows, cols) => {
                bytes(3, &[rows.to_be_bytes(), cols.to_be_bytes()].concat(), out);
            }
            Frame::StdinEnd => bytes(4, &[], out),
            Frame::Exit(code) => bytes(5, &code.to_be_bytes(), out),
        }
    }

    /// Takes the first frame off `buffer`; `None` while it is not complete.
    ///
    /// # Errors
    /// [`BadFrame`] for an unknown type or an impossible length.
    pub fn decode(buffer: &mut Vec<u8>) -> Result<Option<Frame>, BadFrame> {
        let Some((head, rest)) = buffer.split_first_chunk::<HEAD>() else { return Ok(None) };
        let [kind, length @ ..] = *head;
        let length = u32::from_be_bytes(length);
        let bad = BadFrame { kind, length };
        let size = usize::try_from(length).ok().filter(|n| *n <= MAX_PAYLOAD).ok_or(bad)?;
        let Some(payload) = rest.get(..size) else { return Ok(None) };
        let frame = match (kind, payload) {
            (0, data) => Frame::Stdin(data.to_vec()),
            (1, data) => Frame::Stdout(data.to_vec()),
            (2, data) => Frame::Stderr(data.to_vec()),
            (3, &[a, b, c, d]) => {
                Frame::Resize(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
            }
            (4, []) => Frame::StdinEnd,
            (5, &[a, b, c, d]) => Frame::Exit(i32::from_be_bytes([a, b, c, d])),
            _ => return Err(bad),
        };
        buffer.drain(..HEAD + size);
        Ok(Some(frame))
    }
}

fn bytes(kind: u8, payload: &[u8], out: &mut Vec<u8>) {
    let mut chunks = payload.chunks(MAX_PAYLOAD);
    let mut chunk = chunks.next().unwrap_or_default();
    loop {
        let length = u32::try_from(chunk.len()).expect("a chunk is at most MAX_PAYLOAD");
        out.push(kind);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(chunk);
        match chunks.next() {
            Some(next) => chunk = next,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire_however_it_is_cut() {
        let frames = [
            Frame::Stdin(b"ls\n".to_vec()),
            Frame::Stdout(vec![]),
            Frame::Stderr(vec![0, 255]),
            Frame::Resize(24, 80),
            Frame::StdinEnd,
            Frame::Exit(-1),
        ];
        let mut wire = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut wire));
        let mut buffer = Vec::new();
        let mut got = Vec::new();
        for byte in wire {
            buffer.push(byte);
            got.extend(Frame::decode(&mut buffer).unwrap());
        }
        assert_eq!(got, frames);
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_large_payload_is_split_and_a_hostile_head_refused() {
        let data = vec![7; MAX_PAYLOAD + 1];
        let mut wire = Vec::new();
        Frame::Stdout(data.clone()).encode(&mut wire);
        let mut got = Vec::new();
        while let Some(Frame::Stdout(part)) = Frame::decode(&mut wire).unwrap() {
            got.extend(part);
        }
        assert_eq!(got, data);
        for head in [[9, 0, 0, 0, 0], [0, 255, 255, 255, 255], [4, 0, 0, 0, 1]] {
            let mut buffer = head.to_vec();
            buffer.push(0);
            assert!(Frame::decode(&mut buffer).is_err(), "{head:?}");
        }
    }
}

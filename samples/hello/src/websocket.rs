//! A WebSocket that echoes each message (RFC 6455): enough for a load generator to see whether
//! an upgraded connection lives. No fragments, no extensions, messages under 64 KiB.

use std::io::{self, BufRead, Read, Write};
use std::net::TcpStream;

/// Constant of RFC 6455, section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Accepts the upgrade and echoes until the client closes.
///
/// # Errors
/// When the connection breaks.
pub(crate) fn echo(
    mut reader: impl BufRead,
    mut stream: &TcpStream,
    key: &str,
    version: &str,
) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         X-Version: {version}\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        accept_key(key)
    )?;
    loop {
        let (opcode, message) = read_frame(&mut reader)?;
        let reply = if opcode == PING { PONG } else { opcode };
        let mut frame = vec![0x80 | reply];
        match u8::try_from(message.len()) {
            Ok(short) if short < 126 => frame.push(short),
            _ => {
                frame.push(126);
                let length = u16::try_from(message.len()).map_err(|_| too_long())?;
                frame.extend(length.to_be_bytes());
            }
        }
        frame.extend(&message);
        stream.write_all(&frame)?;
        if opcode == CLOSE {
            return Ok(());
        }
    }
}

fn read_frame(reader: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    reader.read_exact(&mut head)?;
    let length = match head[1] & 0x7f {
        127 => return Err(too_long()),
        126 => {
            let mut length = [0; 2];
            reader.read_exact(&mut length)?;
            usize::from(u16::from_be_bytes(length))
        }
        short => usize::from(short),
    };
    let mut mask = [0; 4];
    reader.read_exact(&mut mask)?;
    let mut message = vec![0; length];
    reader.read_exact(&mut message)?;
    for (byte, mask) in message.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok((head[0] & 0x0f, message))
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the message is longer than 64 KiB")
}

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key`.
fn accept_key(key: &str) -> String {
    base64(&sha1(format!("{key}{GUID}").as_bytes()))
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            if digit <= chunk.len() {
                text.push(ALPHABET[(group >> (18 - 6 * digit)) as usize & 63] as char);
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// SHA-1 (FIPS 180-4, section 6.1), which the handshake prescribes; it protects nothing here.
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut padded = message.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend((message.len() as u64 * 8).to_be_bytes());

    let mut hash = [0x6745_2301_u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    for block in padded.chunks_exact(64) {
        let mut words = [0_u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        for t in 16..80 {
            words[t] = (words[t - 3] ^ words[t - 8] ^ words[t - 14] ^ words[t - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = hash;
        for (t, word) in words.into_iter().enumerate() {
            let (f, k) = match t {
                0..20 => ((b & c) | (!b & d), 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let next =
                a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, part) in hash.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(part);
        }
    }
    let mut digest = [0; 20];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(hash) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_is_the_one_of_the_rfc() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}

//! Digests of what is held, read or written.
//!
//! Promises: a digest is of exactly the bytes that passed, whose memory is not needed at once.
//! Does not know what they are, nor what digest they should have.

use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};
use stead_core::ids::Digest;

/// Bytes read at once.
const BUFFER: usize = 64 << 10;

/// The digest of `bytes`.
pub(crate) fn digest_of(bytes: impl AsRef<[u8]>) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

/// The digest of all that `input` gives.
///
/// # Errors
/// When it cannot be read to its end.
pub(crate) fn digest_from(mut input: impl Read) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(Digest::from_sha256(hash.finalize().into())),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Counts and hashes what is written through it.
pub(crate) struct Hashing<W> {
    out: W,
    hash: Sha256,
    size: u64,
}

impl<W> Hashing<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, hash: Sha256::new(), size: 0 }
    }

    /// Digest and size, bytes, of what `out` took.
    pub(crate) fn finish(self) -> (Digest, u64) {
        (Digest::from_sha256(self.hash.finalize().into()), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte of the rest at a time, and each time only when asked again.
    struct Haltingly<'a>(&'a [u8], bool);

    impl Read for Haltingly<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                Err(io::ErrorKind::Interrupted.into())
            } else {
                self.0.read(&mut buffer[..1])
            }
        }
    }

    #[test]
    fn however_bytes_come_their_digest_is_the_same() {
        // FIPS 180-2, appendix B.1.
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_of("abc").to_string(), abc);
        assert_eq!(digest_from(Haltingly(b"abc", false)).unwrap().to_string(), abc);
        let long = vec![7; 3 * BUFFER + 1];
        assert_eq!(digest_from(&long[..]).unwrap(), digest_of(&long));
        let mut out = Hashing::new(Vec::new());
        out.write_all(&long).unwrap();
        assert_eq!(out.out, long);
        assert_eq!(out.finish(), (digest_of(&long), long.len() as u64));
    }

    #[test]
    fn what_was_not_taken_does_not_count() {
        let mut room = [0; 3];
        let mut out = Hashing::new(&mut room[..]);
        assert!(out.write_all(b"abcd").is_err());
        assert_eq!(out.finish(), (digest_of("abc"), 3));
    }

    #[test]
    fn a_reader_that_fails_has_no_digest() {
        let folder = std::fs::File::open("/").unwrap();
        assert!(digest_from(b"abc".chain(folder)).is_err());
    }
}

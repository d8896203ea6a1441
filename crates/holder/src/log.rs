//! Writes what a Container prints to its log file, in the format of Kubernetes' CRI:
//! `2026-11-20T10:43:42.123456789Z stdout F the line`, with `P` for a piece of a long line.
//!
//! Promises: the Container never waits for the disk's sake. When the disk is full, lines are lost
//! and counted. The file is rotated by size.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};

use stead_holder::wire::LogFile;

use crate::sys;

/// A line longer than this is written in pieces.
const LONGEST_LINE: usize = 16 * 1024;

/// How much is taken from a pipe at once.
pub(crate) const CHUNK: usize = 16 * 1024;

/// One output of the Container.
pub(crate) struct Stream {
    name: &'static str,
    pipe: Option<OwnedFd>,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
}

/// The log of one Container.
pub(crate) struct Log {
    about: LogFile,
    file: File,
    size: u64,
    lost_lines: u64,
    pub(crate) streams: [Stream; 2],
}

impl Log {
    /// Opens the file for appending, and takes the reading ends of stdout and stderr, which must
    /// be non-blocking.
    pub(crate) fn open(about: LogFile, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&about.path)?;
        let size = file.metadata()?.len();
        let stream = |name, pipe| Stream { name, pipe: Some(pipe), partial: Vec::new() };
        let streams = [stream("stdout", stdout), stream("stderr", stderr)];
        Ok(Self { about, file, size, lost_lines: 0, streams })
    }

    /// Lines lost so far.
    pub(crate) fn lost_lines(&self) -> u64 {
        self.lost_lines
    }

    /// The pipe of a stream that is still open.
    pub(crate) fn pipe(&self, stream: usize) -> Option<&OwnedFd> {
        self.streams[stream].pipe.as_ref()
    }

    /// Takes one chunk from a stream. `false` when nothing was there.
    pub(crate) fn pump(&mut self, stream: usize, chunk: &mut [u8]) -> bool {
        let source = &mut self.streams[stream];
        let Some(pipe) = &source.pipe else { return false };
        let got = match sys::read(pipe.as_fd(), chunk) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Ok(0) | Err(_) => 0,
            Ok(got) => got,
        };
        let mut text = Vec::new();
        let lines = if got == 0 {
            source.pipe = None;
            source.end(&mut text)
        } else {
            source.take(&chunk[..got], &mut text)
        };
        self.append(&text, lines);
        got > 0
    }

    /// Takes everything that is left, once nobody can write any more.
    pub(crate) fn drain(&mut self, chunk: &mut [u8]) {
        for stream in 0..self.streams.len() {
            while self.pump(stream, chunk) {}
            let mut text = Vec::new();
            let lines = self.streams[stream].end(&mut text);
            self.streams[stream].pipe = None;
            self.append(&text, lines);
        }
    }

    fn append(&mut self, text: &[u8], lines: u64) {
        if text.is_empty() {
            return;
        }
        if self.size > 0 && self.size + text.len() as u64 > self.about.max_bytes {
            self.rotate();
        }
        if self.file.write_all(text).is_ok() {
            self.size += text.len() as u64;
        } else {
            self.lost_lines += lines;
            // Half a line would confuse every reader.
            let _ = self.file.set_len(self.size);
        }
    }

    /// `log` becomes `log.1`, `log.1` becomes `log.2`, and the oldest goes.
    fn rotate(&mut self) {
        let path = &self.about.path;
        let numbered = |n: u32| if n == 0 { path.clone() } else { format!("{path}.{n}") };
        let oldest = self.about.files.max(1) - 1;
        let _ = fs::remove_file(numbered(oldest));
        for n in (0..oldest).rev() {
            let _ = fs::rename(numbered(n), numbered(n + 1));
        }
        // Without a new file the old one goes on growing, which loses nothing.
        if let Ok(file) = OpenOptions::new().create(true).append(true).open(path) {
            self.file = file;
            self.size = 0;
        }
    }
}

impl Stream {
    /// Adds the lines that `bytes` completes to `text`; returns how many.
    fn take(&mut self, bytes: &[u8], text: &mut Vec<u8>) -> u64 {
        let time = timestamp(sys::now());
        let mut lines = 0;
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = &rest[..end];
            self.entry(&time, 'F', line, text);
            lines += 1;
            rest = &rest[end + 1..];
        }
        while self.partial.len() + rest.len() >= LONGEST_LINE {
            let (piece, later) = rest.split_at(LONGEST_LINE - self.partial.len());
            self.entry(&time, 'P', piece, text);
            lines += 1;
            rest = later;
        }
        self.partial.extend_from_slice(rest);
        lines
    }

    /// The last line, should it have no end.
    fn end(&mut self, text: &mut Vec<u8>) -> u64 {
        if self.partial.is_empty() {
            return 0;
        }
        self.entry(&timestamp(sys::now()), 'F', &[], text);
        1
    }

    fn entry(&mut self, time: &str, tag: char, line: &[u8], text: &mut Vec<u8>) {
        // Writing to a vector cannot fail.
        let _ = write!(text, "{time} {} {tag} ", self.name);
        text.append(&mut self.partial);
        text.extend_from_slice(line);
        text.push(b'\n');
        self.partial = Vec::new();
    }
}

/// RFC 3339 with nanoseconds, UTC.
fn timestamp(nanoseconds: u64) -> String {
    let (seconds, fraction) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    let (year, month, day) = date(seconds / 86_400);
    let second = seconds % 86_400;
    let mut text = String::with_capacity(30);
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:09}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60,
    );
    text
}

/// The date of a day counted from 1970-01-01: Howard Hinnant's `civil_from_days`.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        folder: std::path::PathBuf,
        stdout: OwnedFd,
        log: Log,
    }

    impl Fixture {
        fn new(name: &str, max_bytes: u64) -> Self {
            let folder = std::env::temp_dir().join(format!("holder-{}-{name}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let (out, stdout) = sys::pipe().unwrap();
            let (err, _) = sys::pipe().unwrap();
            sys::set_nonblocking(out.as_fd()).unwrap();
            let path = folder.join("log").to_str().unwrap().to_owned();
            let log = Log::open(LogFile { path, max_bytes, files: 3 }, out, err).unwrap();
            Self { folder, stdout, log }
        }

        fn print(&mut self, text: &[u8]) {
            sys::write(self.stdout.as_fd(), text).unwrap();
            while self.log.pump(0, &mut [0; CHUNK]) {}
        }

        /// The lines without their times.
        fn lines(&self, suffix: &str) -> Vec<String> {
            let text = fs::read_to_string(self.folder.join(format!("log{suffix}"))).unwrap();
            text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        let mut all = Fixture::new("pieces", 1 << 20);
        all.print(b"one\ntw");
        all.print(b"o\nthree");
        assert_eq!(all.lines(""), ["stdout F one", "stdout F two"]);
        all.log.drain(&mut [0; CHUNK]);
        assert_eq!(all.lines(""), ["stdout F one", "stdout F two", "stdout F three"]);
    }

    #[test]
    fn a_long_line_is_split() {
        let mut all = Fixture::new("long", 1 << 20);
        all.print(&[b'x'; LONGEST_LINE + 5]);
        all.print(b"\n");
        let lines = all.lines("");
        assert_eq!(lines[0].len(), "stdout P ".len() + LONGEST_LINE);
        assert_eq!(lines[1], "stdout F xxxxx");
    }

    #[test]
    fn files_are_rotated_and_the_oldest_goes() {
        let mut all = Fixture::new("rotate", 60);
        for line in [&b"first\n"[..], b"second\n", b"third\n", b"fourth\n"] {
            all.print(line);
        }
        assert_eq!(all.lines(""), ["stdout F fourth"]);
        assert_eq!(all.lines(".1"), ["stdout F third"]);
        assert_eq!(all.lines(".2"), ["stdout F second"]);
        assert!(!all.folder.join("log.3").exists());
    }

    #[test]
    fn a_full_disk_loses_lines_and_counts_them() {
        let mut all = Fixture::new("full", 1 << 20);
        all.log.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        all.print(b"a\nb\n");
        assert_eq!(all.log.lost_lines(), 2);
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(timestamp(1_795_171_422_000_000_007), "2026-11-20T10:43:42.000000007Z");
        assert_eq!(timestamp(951_782_400_000_000_000), "2000-02-29T00:00:00.000000000Z");
    }
}

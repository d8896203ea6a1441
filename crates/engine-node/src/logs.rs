//! Reading what Containers wrote. The holders write the files; see `stead-holder`.
//!
//! Lines are in the CRI form `TIME STREAM F|P TEXT`, one file per Container, rotated by
//! size with `.1`, `.2` … behind the current one. A reader that follows notices new files
//! and rotation by looking: files are looked at a few times a second, which costs nothing
//! to those who write.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use stead_core::engine::{LogLine, LogQuery};
use stead_core::error::{Code, UserError};
use stead_core::ids::{ContainerId, Ordinal};
use stead_core::name::AppKey;
use tokio::sync::mpsc;

/// How often a reader that follows looks for more.
const LOOK: Duration = Duration::from_millis(100);
/// Containers of an Instance whose output is kept after they are gone.
const KEPT: usize = 20;
/// Lines given per Container where no number is asked for.
const DEFAULT_TAIL: usize = 1000;

/// The folder of an App's output.
pub(crate) fn folder(data_dir: &Path, app: &AppKey) -> PathBuf {
    data_dir.join("logs").join(app.namespace.as_str()).join(app.app.as_str())
}

/// The name of a Container's current file.
pub(crate) fn file_name(ordinal: Ordinal, container: &ContainerId) -> String {
    format!("{ordinal}@{container}.log")
}

fn parse_name(name: &str) -> Option<(Ordinal, ContainerId)> {
    let (ordinal, container) = name.strip_suffix(".log")?.split_once('@')?;
    Some((ordinal.parse().ok()?, ContainerId(container.to_owned())))
}

/// One Container's current file, and how far it was read.
struct Source {
    path: PathBuf,
    instance: Ordinal,
    container: ContainerId,
    file: BufReader<std::fs::File>,
    inode: u64,
    /// The beginning of a line whose end is not written yet.
    partial: Vec<u8>,
}

impl Source {
    fn open(path: PathBuf, instance: Ordinal, container: ContainerId) -> std::io::Result<Self> {
        let file = std::fs::File::open(&path)?;
        let inode = file.metadata()?.ino();
        let file = BufReader::new(file);
        Ok(Self { path, instance, container, file, inode, partial: Vec::new() })
    }

    /// Lines that came since the last call.
    fn read(&mut self, lines: &mut Vec<LogLine>) -> std::io::Result<()> {
        loop {
            self.rest(lines)?;
            let current = match std::fs::metadata(&self.path) {
                Ok(current) => current.ino(),
                Err(_) => return Ok(()),
            };
            if current == self.inode {
                return Ok(());
            }
            // Rotated: what was still written to the old file has been read above.
            self.rest(lines)?;
            *self =
                Self::open(std::mem::take(&mut self.path), self.instance, self.container.clone())?;
        }
    }

    fn rest(&mut self, lines: &mut Vec<LogLine>) -> std::io::Result<()> {
        loop {
            if self.file.read_until(b'\n', &mut self.partial)? == 0 {
                return Ok(());
            }
            if self.partial.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.partial);
                lines.extend(parse(&line, self.instance, &self.container));
            }
        }
    }
}

fn parse(line: &[u8], instance: Ordinal, container: &ContainerId) -> Option<LogLine> {
    let line = String::from_utf8_lossy(line);
    let mut parts = line.trim_end_matches('\n').splitn(4, ' ');
    let (time, stream, _flag) = (parts.next()?, parts.next()?, parts.next()?);
    Some(LogLine {
        time: time.to_owned(),
        stream: stream.to_owned(),
        instance,
        container: container.clone(),
        text: parts.next().unwrap_or_default().to_owned(),
    })
}

/// What is in an App's folder. One that is not there yet holds nothing.
fn entries(
    folder: &Path,
) -> std::io::Result<impl Iterator<Item = std::io::Result<std::fs::DirEntry>>> {
    match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        entries => entries.map(Some),
    }
    .map(|entries| entries.into_iter().flatten())
}

/// Deletes an Instance's files of Containers of long ago: all but the newest [`KEPT`] and those
/// of Containers that are still held.
pub(crate) fn trim(folder: &Path, instance: Ordinal, held: &[ContainerId]) -> std::io::Result<()> {
    let mut files: BTreeMap<ContainerId, (SystemTime, Vec<PathBuf>)> = BTreeMap::new();
    for entry in entries(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        // Rotated ones have a number behind the name.
        let current = name.to_str().and_then(|name| name.rfind(".log").map(|at| &name[..at + 4]));
        let Some((ordinal, container)) = current.and_then(parse_name) else { continue };
        // A file may be rotated away under our eyes.
        let Ok(written) = entry.metadata().and_then(|meta| meta.modified()) else { continue };
        if ordinal == instance && !held.contains(&container) {
            let (newest, paths) = files.entry(container).or_insert((written, Vec::new()));
            *newest = written.max(*newest);
            paths.push(entry.path());
        }
    }
    let mut files: Vec<_> = files.into_values().collect();
    files.sort_by_key(|(written, _)| std::cmp::Reverse(*written));
    for path in files.iter().skip(KEPT).flat_map(|(_, paths)| paths) {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// The lines asked for, oldest first; with `follow`, every later line as well.
pub(crate) fn read(
    folder: &Path,
    query: LogQuery,
) -> Result<BoxStream<'static, LogLine>, UserError> {
    let mut sources = BTreeMap::new();
    let mut first = Vec::new();
    let tail = query.tail.unwrap_or(DEFAULT_TAIL);
    find(folder, query, &mut sources).map_err(|error| unreadable(folder, &error))?;
    for source in sources.values_mut() {
        let mut lines = rotated(&source.path, source.instance, &source.container, tail);
        source.read(&mut lines).map_err(|error| unreadable(folder, &error))?;
        let skip = lines.len().saturating_sub(tail);
        first.extend(lines.into_iter().skip(skip));
    }
    first.sort_by(|a, b| a.time.cmp(&b.time));
    let history = futures_util::stream::iter(first);
    if !query.follow {
        return Ok(history.boxed());
    }
    let (sender, receiver) = mpsc::channel(256);
    tokio::spawn(follow(folder.to_owned(), query, sources, sender));
    let news = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|line| (line, receiver))
    });
    Ok(history.chain(news).boxed())
}

/// Lines of the file before the current one, when the tail may reach into it.
fn rotated(path: &Path, instance: Ordinal, container: &ContainerId, tail: usize) -> Vec<LogLine> {
    let mut before = path.as_os_str().to_owned();
    before.push(".1");
    let Ok(mut file) = std::fs::File::open(before) else { return Vec::new() };
    // A line has at least some 40 bytes; the last ones are far enough back at 4 KiB each.
    let length = file.metadata().map_or(0, |meta| meta.len());
    let back = u64::try_from(tail).unwrap_or(u64::MAX).saturating_mul(4096).min(length);
    if file.seek(SeekFrom::Start(length - back)).is_err() {
        return Vec::new();
    }
    let mut lines = BufReader::new(file).split(b'\n');
    if back < length {
        lines.next();
    }
    lines.map_while(Result::ok).filter_map(|line| parse(&line, instance, container)).collect()
}

async fn follow(
    folder: PathBuf,
    query: LogQuery,
    mut sources: BTreeMap<PathBuf, Source>,
    sender: mpsc::Sender<LogLine>,
) {
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = sender.closed() => return,
        }
        let mut lines = Vec::new();
        let looked = find(&folder, query, &mut sources);
        let read = sources.values_mut().try_for_each(|source| source.read(&mut lines));
        if let Err(error) = looked.and(read) {
            tracing::warn!(folder = %folder.display(), %error, "logs cannot be read");
        }
        lines.sort_by(|a, b| a.time.cmp(&b.time));
        for line in lines {
            if sender.send(line).await.is_err() {
                return;
            }
        }
    }
}

/// Opens the files that are not open yet.
fn find(
    folder: &Path,
    query: LogQuery,
    sources: &mut BTreeMap<PathBuf, Source>,
) -> std::io::Result<()> {
    for entry in entries(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some((instance, container)) = name.to_str().and_then(parse_name) else { continue };
        let wanted = query.instance.is_none_or(|only| only == instance);
        let path = entry.path();
        if wanted && !sources.contains_key(&path) {
            match Source::open(path.clone(), instance, container) {
                // It has just been deleted or rotated away.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                source => sources.insert(path, source?),
            };
        }
    }
    sources.retain(|path, _| path.exists());
    Ok(())
}

fn unreadable(folder: &Path, error: &std::io::Error) -> UserError {
    UserError::new(
        Code::EngineFailed,
        format!("logs under {} cannot be read: {error}", folder.display()),
        "look at the data folder's disk with `stead doctor`",
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn write(path: &Path, lines: &[&str]) {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        for line in lines {
            writeln!(file, "{line}").unwrap();
        }
    }

    #[tokio::test]
    async fn lines_of_all_containers_come_by_time_and_new_ones_follow() {
        let folder = tempfile::tempdir().unwrap();
        let one = folder.path().join(file_name(Ordinal(0), &ContainerId("a".into())));
        let two = folder.path().join(file_name(Ordinal(1), &ContainerId("b".into())));
        write(
            &one,
            &["2026-01-01T00:00:01Z stdout F first", "2026-01-01T00:00:03Z stderr F third"],
        );
        write(&two, &["2026-01-01T00:00:02Z stdout F second word"]);
        let query = LogQuery { follow: true, ..LogQuery::default() };
        let mut lines = read(folder.path(), query).unwrap();
        for text in ["first", "second word", "third"] {
            assert_eq!(lines.next().await.unwrap().text, text);
        }
        // A rotation, then a new file: nothing is lost and nothing comes twice.
        write(&one, &["2026-01-01T00:00:04Z stdout F fourth"]);
        std::fs::rename(&one, one.with_extension("log.1")).unwrap();
        write(&one, &["2026-01-01T00:00:05Z stdout F fifth"]);
        for text in ["fourth", "fifth"] {
            assert_eq!(lines.next().await.unwrap().text, text);
        }
    }

    #[test]
    fn output_of_long_ago_goes_with_what_was_rotated_and_what_is_held_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = |instance, number: usize| {
            let id = ContainerId(format!("app-0-1.1.0.{number}"));
            folder.path().join(file_name(Ordinal(instance), &id))
        };
        let begun = SystemTime::now() - Duration::from_secs(1000);
        for number in 0..KEPT + 3 {
            for path in [path(0, number), path(0, number).with_extension("log.1"), path(1, number)]
            {
                let file = std::fs::File::create(path).unwrap();
                file.set_modified(begun + Duration::from_secs(number as u64)).unwrap();
            }
        }
        trim(folder.path(), Ordinal(0), &[ContainerId("app-0-1.1.0.0".into())]).unwrap();
        let gone: Vec<usize> = (0..KEPT + 3).filter(|n| !path(0, *n).exists()).collect();
        assert_eq!(gone, [1, 2]);
        assert!(!path(0, 1).with_extension("log.1").exists());
        assert!(path(0, 0).with_extension("log.1").exists());
        assert!((0..KEPT + 3).all(|n| path(1, n).exists()), "another Instance's");
    }

    #[tokio::test]
    async fn a_tail_is_of_each_container_and_an_instance_can_be_chosen() {
        let folder = tempfile::tempdir().unwrap();
        for ordinal in [0, 1] {
            let path = folder.path().join(file_name(Ordinal(ordinal), &ContainerId("c".into())));
            write(&path, &["t1 stdout F one", "t2 stdout F two"]);
        }
        let query = LogQuery { instance: Some(Ordinal(1)), tail: Some(1), follow: false };
        let lines: Vec<LogLine> = read(folder.path(), query).unwrap().collect().await;
        assert_eq!(lines.len(), 1);
        assert_eq!((lines[0].instance, lines[0].text.as_str()), (Ordinal(1), "two"));
    }
}

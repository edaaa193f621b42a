//! Pulls a sample of files from both daemons, and compares what arrives.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::client::words_for;
use super::difference::{Aspect, Difference, Seen};
use super::error::ShadowError;
use super::observer::{Observer, compare_ends, impossible};
use super::record::{Format, text};
use super::sample::Chosen;
use super::view::View;

/// The maximum size of a batch, in bytes, unless one file alone is larger.
const BATCH: u64 = 256 << 20;
/// The maximum number of files of a batch.
const BATCH_FILES: usize = 1000;
/// The maximum size of all files of the small batch, in bytes.
const SMALL: u64 = 4 << 20;
/// The maximum number of files of the small batch.
const SMALL_FILES: usize = 20;

/// How the small batch is pulled, beside the usual way.
pub(super) const VARIANTS: [&str; 5] = ["-z", "--protocol=30", "--protocol=29", "--protocol=29 -z", "--inplace -W"];

/// Splits a sample into parts that are pulled one after the other.
pub(super) fn batches(chosen: &[Chosen]) -> Vec<&[Chosen]> {
    let mut batches = Vec::new();
    let mut rest = chosen;
    while !rest.is_empty() {
        let mut size = 0_u64;
        let fits = |file: &&Chosen| {
            size = size.saturating_add(file.size);
            size <= BATCH
        };
        let count = rest.iter().take(BATCH_FILES).take_while(fits).count().max(1);
        let (batch, after) = rest.split_at(count);
        batches.push(batch);
        rest = after;
    }
    batches
}

/// Returns the smallest files of a sample.
pub(super) fn small(chosen: &[Chosen]) -> Vec<Chosen> {
    let mut files = chosen.to_vec();
    files.sort_by_key(|file| file.size);
    files.truncate(SMALL_FILES);
    let mut size = 0_u64;
    files.retain(|file| {
        size = size.saturating_add(file.size);
        size <= SMALL
    });
    files.sort();
    files
}

/// The directory that the old daemon's files were pulled into.
pub(super) fn old_dir(observer: &Observer) -> PathBuf {
    observer.scratch.join("old")
}

/// Pulls a batch from both daemons with these options, and compares the files. Returns why that is impossible, if it is.
pub(super) fn compare(
    observer: &Observer,
    module: &str,
    batch: &[Chosen],
    options: &str,
) -> Result<(Seen, Option<String>), ShadowError> {
    let names = write_names(observer, batch)?;
    let dirs = [old_dir(observer), observer.scratch.join("new")];
    dirs.iter().try_for_each(|dir| make_empty(dir))?;
    let (old, new) = observer.both(|side| {
        let dest = if side.which == super::side::Which::Old { &dirs[0] } else { &dirs[1] };
        // Directories of any mode can be removed again.
        let mut words: Vec<String> = "-lpt --chmod=u+rwX --from0".split(' ').map(str::to_owned).collect();
        words.extend(options.split_whitespace().map(str::to_owned));
        words.push(format!("--files-from={}", names.display()));
        let words = words_for(side, &words, module, "", Some(dest));
        observer.client.run(side.which, &words, None, &mut |_| Ok(()))
    })?;
    observer.check_alive(&old, &new, module)?;
    let mut seen = Seen::default();
    if let Some(why) = impossible(&old, &new)? {
        return Ok((seen, Some(why)));
    }
    compare_ends(options, &old, &new, &mut seen);
    if old.is_whole() && new.is_whole() {
        for file in batch {
            compare_file(&dirs, &file.path, &mut seen)?;
        }
    }
    Ok((seen, None))
}

/// A view of the files of a batch, by their names.
pub(super) fn names_view(observer: &Observer, batch: &[Chosen], options: &str) -> Result<View, ShadowError> {
    let names = write_names(observer, batch)?;
    let mut view = View::new(&format!("{options} --files-from"), options);
    view.options.push("--from0".to_owned());
    view.options.push(format!("--files-from={}", names.display()));
    Ok(view)
}

/// A view of what a client with `-c` would do with files that it has already.
pub(super) fn checksum_view(observer: &Observer, batch: &[Chosen]) -> Result<View, ShadowError> {
    let mut view = names_view(observer, batch, "-tc")?;
    view.subject = "-c".to_owned();
    view.format = Format::Changes;
    view.dest = Some(old_dir(observer));
    Ok(view)
}

/// A view of what `--delete` would do with a destination that has some files of the module, one of them changed, and others.
pub(super) fn delete_view(observer: &Observer, batch: &[Chosen]) -> Result<View, ShadowError> {
    let dest = old_dir(observer);
    if let Some(file) = batch.first() {
        let path = below(&dest, &file.path);
        let appended = fs::OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write_all(b"changed"));
        // A file that was not sent cannot be changed either.
        appended.or_else(
            |error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(failed(&path, error)) },
        )?;
    }
    let extra = dest.join("extra.shadow");
    fs::create_dir_all(&extra)
        .and_then(|()| fs::write(extra.join("file"), ""))
        .map_err(|error| failed(&extra, error))?;
    let mut view = View::new("-aH --delete over an older copy", "-aH --delete");
    view.subject = "--delete".to_owned();
    view.format = Format::Changes;
    view.dest = Some(dest);
    Ok(view)
}

/// Writes the names of a batch, each ended by NUL.
fn write_names(observer: &Observer, batch: &[Chosen]) -> Result<PathBuf, ShadowError> {
    let path = observer.scratch.join("names");
    let names: Vec<u8> = batch.iter().flat_map(|file| [&file.path[..], b"\0"].concat()).collect();
    fs::write(&path, names).map_err(|error| failed(&path, error))?;
    Ok(path)
}

fn make_empty(dir: &Path) -> Result<(), ShadowError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(dir, error)),
        _ => fs::create_dir(dir).map_err(|error| failed(dir, error)),
    }
}

fn compare_file(dirs: &[PathBuf; 2], name: &[u8], seen: &mut Seen) -> Result<(), ShadowError> {
    let [old, new] = [0, 1].map(|side| below(&dirs[side], name));
    let shown = text(name);
    let (here, there) = (facts(&old)?, facts(&new)?);
    let (Some(here), Some(there)) = (&here, &there) else {
        let word = |facts: &Option<fs::Metadata>| if facts.is_some() { "sent" } else { "not sent" };
        seen.compare(&shown, Aspect::Content, word(&here), word(&there));
        return Ok(());
    };
    if here.mtime() == there.mtime() {
        let fraction = |facts: &fs::Metadata| format!(".{:09}", facts.mtime_nsec());
        seen.compare(&shown, Aspect::Fraction, &fraction(here), &fraction(there));
    }
    if here.len() != there.len() {
        let size = |facts: &fs::Metadata| format!("{} bytes", facts.len());
        seen.compare(&shown, Aspect::Content, &size(here), &size(there));
    } else if let Some(at) = first_difference(&old, &new)? {
        let bytes = format!("{} bytes", here.len());
        seen.add(Difference::new(shown, Aspect::Content, &bytes, format!("{bytes}, different from byte {at} on")));
    }
    Ok(())
}

/// Returns the facts of a regular file. `None` if there is none.
fn facts(path: &Path) -> Result<Option<fs::Metadata>, ShadowError> {
    match path.symlink_metadata() {
        Ok(facts) => Ok(facts.is_file().then_some(facts)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, error)),
    }
}

/// Returns the position of the first byte that differs.
fn first_difference(old: &Path, new: &Path) -> Result<Option<u64>, ShadowError> {
    let open = |path: &Path| File::open(path).map_err(|error| failed(path, error));
    let (mut old_file, mut new_file) = (open(old)?, open(new)?);
    let (mut a, mut b) = (vec![0; 256 << 10], vec![0; 256 << 10]);
    let mut at = 0;
    loop {
        let count = old_file.read(&mut a).map_err(|error| failed(old, error))?;
        if count == 0 {
            return Ok(None);
        }
        new_file.read_exact(&mut b[..count]).map_err(|error| failed(new, error))?;
        if a[..count] != b[..count] {
            let same = a.iter().zip(&b).take(count).take_while(|(a, b)| a == b).count();
            return Ok(Some(at + same as u64));
        }
        at += count as u64;
    }
}

fn below(dir: &Path, name: &[u8]) -> PathBuf {
    dir.join(std::ffi::OsStr::from_bytes(name))
}

fn failed(path: &Path, source: io::Error) -> ShadowError {
    ShadowError::Scratch { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, size: u64) -> Chosen {
        Chosen { path: path.into(), size }
    }

    #[test]
    fn batches_are_bounded_and_large_files_are_alone() {
        let sizes = |files: &[Chosen]| {
            let sizes = |batch: &&[Chosen]| batch.iter().map(|file| file.size >> 20).collect::<Vec<_>>();
            batches(files).iter().map(sizes).collect::<Vec<_>>()
        };
        let files = [1000, 100, 100, 100, 5, 2000].map(|size| file("x", size << 20));
        assert_eq!(sizes(&files), [vec![1000], vec![100, 100], vec![100, 5], vec![2000]]);
        assert_eq!(batches(&vec![file("x", 0); 2001]).len(), 3);
        assert!(batches(&[]).is_empty());
    }

    #[test]
    fn the_small_batch_has_the_smallest_files() {
        let files: Vec<_> = (0..30).map(|n| file(&format!("{n:02}"), n)).collect();
        assert_eq!(small(&files), files[..20]);
        assert!(small(&[file("x", SMALL + 1)]).is_empty());
    }

    #[test]
    fn contents_sizes_and_missing_files_are_compared() {
        let scratch = tempfile::tempdir().unwrap();
        let dirs = ["old", "new"].map(|name| scratch.path().join(name));
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        let put = |side: usize, name: &str, content: &[u8]| fs::write(dirs[side].join(name), content).unwrap();
        let long = vec![1; 600_000];
        let mut other = long.clone();
        other[500_000] = 2;
        for (name, old, new) in [("same", &long, &long), ("other", &long, &other), ("size", &long, &vec![])] {
            put(0, name, old);
            put(1, name, new);
        }
        put(0, "missing", b"");
        let mut seen = Seen::default();
        ["same", "other", "size", "missing", "nowhere"]
            .iter()
            .for_each(|name| compare_file(&dirs, name.as_bytes(), &mut seen).unwrap());
        let found: Vec<_> = seen.differences.iter().filter(|difference| difference.aspect == Aspect::Content).collect();
        let new: Vec<_> = found.iter().map(|difference| &difference.new[..]).collect();
        assert_eq!(new, ["600000 bytes, different from byte 500000 on", "0 bytes", "not sent"]);
    }
}

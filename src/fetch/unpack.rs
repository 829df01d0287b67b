//! A verified archive becomes a folder: `.tar` or `.tar.gz`, told apart by what is in it. It is unpacked beside, and gets
//! its name when it is complete.
//!
//! An archive can be hostile although its digest is right: whoever registered it chose that. So nothing of it is written
//! outside the folder, there are no devices, no owners, no setuid, and its size is limited.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use flate2::read::MultiGzDecoder;
use serde::Serialize;
use tar::{Archive, Entry, EntryType};
use tokio_util::sync::CancellationToken;

use super::partial::Partial;
use super::{CHUNK, Digest, Failure, Kind, Request, beside, stopped, sync_folder_of};

/// In an unpacked folder: the digest of the archive that it came from.
const MARKER: &str = ".palisade-digest";
/// More files than any model has.
const ENTRIES: u64 = 1_000_000;
/// As much as may stand between two files: names, attributes.
const HEADERS: u64 = 1024 * 1024;

/// What was in an archive.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Unpacked {
    /// Files, folders and links.
    pub entries: u64,
    /// The files' bytes.
    pub bytes: u64,
}

/// The digest of the archive that this folder was unpacked from.
pub(super) fn marker(folder: &Path) -> Option<Digest> {
    fs::read_to_string(folder.join(MARKER)).ok()?.trim().parse().ok()
}

/// Unpacks it, gives the folder its name, and removes the archive.
pub(super) fn unpack(
    mut partial: Partial,
    request: &Request,
    digest: Digest,
    stop: &CancellationToken,
) -> Result<Unpacked, Failure> {
    let to = &request.to;
    replaceable(to)?;
    let staging = beside(to, ".unpacking");
    let unpacked = clear(&staging)
        .and_then(|()| partial.rewound().map_err(|e| Failure::read(to, &e)))
        .and_then(|archive| extract(archive, &staging, request.max_bytes, stop))
        .and_then(|unpacked| finish(&staging, to, digest).map(|()| unpacked));
    match unpacked {
        Ok(unpacked) => {
            partial.remove();
            Ok(unpacked)
        }
        Err(failure) => {
            // It is said already what is wrong.
            let _ = clear(&staging);
            if failure.kind == Kind::Refused {
                partial.remove();
            }
            Err(failure)
        }
    }
}

/// Only what was made here is replaced.
fn replaceable(to: &Path) -> Result<(), Failure> {
    let ours = match fs::read_dir(to) {
        Ok(mut entries) => entries.next().is_none() || marker(to).is_some(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if ours {
        return Ok(());
    }
    let message = format!("{} is there, and was not unpacked by this command: it is not replaced", to.display());
    Err(Failure::new(Kind::Usage, message, "give a folder that is not there yet, or remove it"))
}

fn clear(folder: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::write(folder, &error)),
        _ => Ok(()),
    }
}

fn finish(staging: &Path, to: &Path, digest: Digest) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::write(to, &error);
    fs::write(staging.join(MARKER), format!("{digest}\n")).map_err(failed)?;
    // One call for all of its files: they lie on the disk before the folder has its name.
    let synced = File::open(staging).and_then(|folder| Ok(rustix::fs::syncfs(folder)?));
    synced.map_err(failed)?;
    let old = beside(to, ".old");
    clear(&old)?;
    if marker(to).is_some() {
        fs::rename(to, &old).map_err(failed)?;
    }
    fs::rename(staging, to).and_then(|()| sync_folder_of(to)).map_err(failed)?;
    clear(&old)
}

/// Reads no more than it is allowed to: a header in an archive may say that a name is gigabytes long.
struct Metered<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let left = self.left.get().checked_sub(n as u64);
        self.left.set(left.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?);
        Ok(n)
    }
}

fn extract(archive: &mut File, to: &Path, max: u64, stop: &CancellationToken) -> Result<Unpacked, Failure> {
    fs::create_dir(to).map_err(|e| Failure::write(to, &e))?;
    let left = Rc::new(Cell::new(HEADERS));
    let inner = decoded(archive).map_err(|e| unreadable(&e))?;
    let mut archive = Archive::new(Metered { inner, left: Rc::clone(&left) });
    let mut unpacked = Unpacked::default();
    let mut entries = archive.entries().map_err(|e| unreadable(&e))?;
    loop {
        stopped(stop, 0)?;
        left.set(HEADERS);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(|e| unreadable(&e))?;
        unpacked.entries += 1;
        if unpacked.entries > ENTRIES {
            return Err(unsafe_entry("", &format!("there are more than {ENTRIES} entries")));
        }
        left.set(HEADERS.saturating_add(entry.size()));
        unpacked.bytes = unpacked.bytes.saturating_add(place(&mut entry, to, max - unpacked.bytes, stop)?);
    }
    if unpacked.entries == 0 {
        return Err(unreadable(&io::Error::other("there is nothing in it")));
    }
    Ok(unpacked)
}

fn decoded(archive: &mut File) -> io::Result<Box<dyn Read + '_>> {
    let mut magic = [0; 2];
    let n = archive.read(&mut magic)?;
    archive.seek(SeekFrom::Start(0))?;
    let archive = BufReader::with_capacity(CHUNK, archive);
    Ok(if n == 2 && magic == [0x1f, 0x8b] { Box::new(MultiGzDecoder::new(archive)) } else { Box::new(archive) })
}

fn unreadable(error: &io::Error) -> Failure {
    let next = "only .tar and .tar.gz can be unpacked: tar -czf model.tar.gz -C FOLDER .";
    Failure::new(Kind::Refused, format!("the archive cannot be unpacked: {error}"), next)
}

fn unsafe_entry(name: &str, why: &str) -> Failure {
    let name: String = name.chars().take(200).collect();
    Failure::new(
        Kind::Refused,
        format!("the archive is refused at {name:?}: {why}"),
        "pack the model's files and folders alone: tar -czf model.tar.gz -C FOLDER .",
    )
}

/// Puts one entry where it belongs, and says how many bytes it has.
fn place<R: Read>(entry: &mut Entry<'_, R>, to: &Path, max: u64, stop: &CancellationToken) -> Result<u64, Failure> {
    let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    let refused = |why: &str| unsafe_entry(&name, why);
    let path = entry.path().map_err(|_| refused("it has no name"))?.into_owned();
    let parts = inside(&path).ok_or_else(|| refused("it is outside of the folder"))?;
    let kind = entry.header().entry_type();
    let Some((last, parents)) = parts.split_last() else {
        // The folder itself: `tar -C FOLDER .` has it.
        return if kind == EntryType::Directory { Ok(0) } else { Err(refused("it has no name")) };
    };
    if parts.first().is_some_and(|first| first.as_os_str() == MARKER) {
        return Err(refused("this name is for the archive's digest"));
    }
    let folder = folders(to, parents).map_err(|e| e.unwrap_or_else(|| refused("a file or link is in its way")))?;
    let target = folder.join(last);
    match kind {
        EntryType::Directory => {
            folders(&folder, std::slice::from_ref(last))
                .map_err(|e| e.unwrap_or_else(|| refused("a file or link is in its way")))?;
            Ok(0)
        }
        EntryType::Regular | EntryType::Continuous => {
            let size = entry.size();
            if size > max {
                return Err(refused(&format!("{size} bytes are more than --max-bytes leaves: {max}")));
            }
            write(entry, &target, stop).map(|()| size)
        }
        EntryType::Symlink => {
            let link = entry.link_name().ok().flatten().ok_or_else(|| refused("it links to nothing"))?;
            if !stays_inside(&link, parents.len()) {
                return Err(refused("it links to a place outside of the folder"));
            }
            symlink(&link, &target).map_err(|e| exists(&e, &name).unwrap_or_else(|| Failure::write(&target, &e)))?;
            Ok(0)
        }
        _ => Err(refused("it is neither a file, a folder, nor a symbolic link")),
    }
}

/// The names of a path that stays below where it begins.
fn inside(path: &Path) -> Option<Vec<PathBuf>> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(PathBuf::from(part)),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts)
}

/// Whether a link `depth` folders deep leads nowhere else. All `..` stand at its beginning, where they leave real folders:
/// behind a name, which may be a link itself, they could lead anywhere.
fn stays_inside(link: &Path, depth: usize) -> bool {
    let mut up = 0;
    let mut named = false;
    for component in link.components() {
        match component {
            Component::Normal(_) => named = true,
            Component::CurDir => {}
            Component::ParentDir if !named => up += 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    up <= depth
}

/// Real folders, each made if it is not there. `Err(None)`: something else is there, a link above all.
fn folders(from: &Path, names: &[PathBuf]) -> Result<PathBuf, Option<Failure>> {
    let mut folder = from.to_owned();
    for name in names {
        folder.push(name);
        match fs::create_dir(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let there = fs::symlink_metadata(&folder).map_err(|e| Failure::read(&folder, &e))?;
                if !there.is_dir() {
                    return Err(None);
                }
            }
            Err(error) => return Err(Some(Failure::write(&folder, &error))),
        }
    }
    Ok(folder)
}

/// A new file: one that is there, or a link, is never written through.
fn write<R: Read>(entry: &mut Entry<'_, R>, target: &Path, stop: &CancellationToken) -> Result<(), Failure> {
    let executable = entry.header().mode().is_ok_and(|mode| mode & 0o100 != 0);
    let mode = if executable { 0o755 } else { 0o644 };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(target).map_err(|e| {
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        exists(&e, &name).unwrap_or_else(|| Failure::write(target, &e))
    })?;
    let (mut buffer, mut left) = (vec![0; CHUNK], entry.size());
    loop {
        stopped(stop, 0)?;
        let n = entry.read(&mut buffer).map_err(|e| unreadable(&e))?;
        left = left.saturating_sub(n as u64);
        match n {
            0 if left == 0 => return Ok(()),
            0 => return Err(unreadable(&io::ErrorKind::UnexpectedEof.into())),
            _ => {}
        }
        file.write_all(&buffer[..n]).map_err(|e| Failure::write(target, &e))?;
    }
}

fn exists(error: &io::Error, name: &str) -> Option<Failure> {
    (error.kind() == io::ErrorKind::AlreadyExists).then(|| unsafe_entry(name, "it is there twice"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_may_go_up_only_as_far_as_it_is_deep_and_never_behind_a_name() {
        for (link, depth) in [("a", 0), ("./a/b", 0), ("../a", 1), ("../../a/b", 2), ("..", 1), (".", 0)] {
            assert!(stays_inside(Path::new(link), depth), "{link}");
        }
        // The last one: if `d` is a link to `.`, `d/../..` is not where it seems to be.
        for (link, depth) in [("..", 0), ("../../a", 1), ("/etc", 9), ("a/../../b", 1), ("d/..", 3)] {
            assert!(!stays_inside(Path::new(link), depth), "{link}");
        }
    }

    #[test]
    fn a_name_stays_below_the_folder() {
        let names = |path: &str| inside(Path::new(path)).map(|parts| parts.len());
        assert_eq!([names("a/b"), names("./a"), names(".")], [Some(2), Some(1), Some(0)]);
        for path in ["../a", "a/../../b", "/etc/passwd", "a/.."] {
            assert_eq!(names(path), None, "{path}");
        }
    }
}

//! `PATH.partial`: what is there of an artifact, locked, hashed as it grows.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Digest, Event, Failure, Kind, Request, Watch, beside, hash_all, sync_folder_of};

/// How often a lock that somebody else holds is asked for.
const LOCK: Duration = Duration::from_millis(200);

/// The part that is there.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    hash: Sha256,
    length: u64,
    kept: u64,
    pieced: bool,
    max: u64,
    note: Note,
}

/// Of what it is the beginning; in `PATH.partial.note`. No URL: it may hold a signature.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    digest: Option<String>,
    /// What `If-Range` takes.
    validator: Option<String>,
}

impl Partial {
    /// Opens what an earlier run left, or makes it. Waits while another process writes it.
    pub(super) async fn open(request: &Request, watch: &mut Watch<'_>) -> Result<Self, Failure> {
        let path = beside(&request.to, ".partial");
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|e| Failure::write(folder, &e))?;
        }
        let mut file = locked(&path, watch).await?;
        let note = fs::read(note_of(&path)).ok().and_then(|note| serde_json::from_slice(&note).ok());
        let ours = Note { digest: request.digest.map(|digest| digest.to_string()), validator: None };
        let note = note.filter(|note: &Note| note.digest == ours.digest);
        let mut hash = Sha256::new();
        let length = match note {
            Some(_) => hash_all(&path, &mut file, &mut hash, &watch.stop)?,
            None => 0,
        };
        let note = note.unwrap_or(ours);
        let mut partial =
            Self { path, file, hash, length, kept: length, pieced: length > 0, max: request.max_bytes, note };
        if length == 0 {
            partial.restart()?;
        }
        Ok(partial)
    }

    /// Forgets all of it.
    pub(super) fn restart(&mut self) -> Result<(), Failure> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|e| Failure::write(&self.path, &e))?;
        (self.length, self.kept, self.pieced, self.hash) = (0, 0, false, Sha256::new());
        self.validate_by(None)
    }

    /// Notes by what the server can be asked whether it still has the same.
    pub(super) fn validate_by(&mut self, validator: Option<String>) -> Result<(), Failure> {
        self.note.validator = validator;
        let path = note_of(&self.path);
        let text = serde_json::to_vec(&self.note).unwrap_or_default();
        fs::write(&path, text).map_err(|e| Failure::write(&path, &e))
    }

    /// Appends what came.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let length = self.length.saturating_add(bytes.len() as u64);
        self.allow(length)?;
        if let Err(error) = self.file.write_all(bytes) {
            let failure = Failure::write(&self.path, &error);
            // A full disk would hurt others, too.
            self.discard();
            let message = format!("{}, after {} bytes", failure.message, self.length);
            return Err(Failure { message, ..failure });
        }
        self.hash.update(bytes);
        self.length = length;
        Ok(())
    }

    /// Whether so many bytes may come.
    pub(super) fn allow(&self, length: u64) -> Result<(), Failure> {
        if length <= self.max {
            return Ok(());
        }
        self.discard();
        Err(Failure::new(
            Kind::Refused,
            format!("the artifact has {length} bytes or more, and --max-bytes is {}: nothing is kept", self.max),
            "is it the right one? If so, give a larger --max-bytes",
        ))
    }

    /// The next bytes come from another answer than these.
    pub(super) fn continues(&mut self) {
        self.pieced = true;
    }

    /// Whether it did not come in one answer of this process.
    pub(super) fn is_pieced(&self) -> bool {
        self.pieced
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// How much of it was there when it was opened.
    pub(super) fn kept(&self) -> u64 {
        self.kept
    }

    pub(super) fn validator(&self) -> Option<&str> {
        self.note.validator.as_deref()
    }

    /// Whether a server can be asked for the rest. What has neither a validator nor a digest could become two halves of
    /// different artifacts, and nobody would notice.
    pub(super) fn can_continue(&self) -> bool {
        self.length > 0 && (self.note.validator.is_some() || self.note.digest.is_some())
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.hash)
    }

    /// The file itself, from its beginning.
    pub(super) fn rewound(&mut self) -> io::Result<&mut File> {
        self.file.seek(SeekFrom::Start(0))?;
        Ok(&mut self.file)
    }

    /// Gives it its name. It lies on the disk before, and its name after.
    pub(super) fn publish(self, to: &Path) -> Result<(), Failure> {
        let renamed = self.file.sync_all().and_then(|()| fs::rename(&self.path, to));
        renamed.and_then(|()| sync_folder_of(to)).map_err(|e| Failure::write(to, &e))?;
        let _ = fs::remove_file(note_of(&self.path));
        Ok(())
    }

    /// What is empty is of no use to the next run.
    pub(super) fn leave(self) {
        if self.length == 0 {
            self.discard();
        }
    }

    /// Removes it. What cannot be removed is found, and hashed, by the next run.
    pub(super) fn remove(self) {
        self.discard();
    }

    fn discard(&self) {
        for path in [&self.path, &note_of(&self.path)] {
            if let Err(error) = fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!("{} cannot be removed: {error}", path.display());
            }
        }
    }
}

fn note_of(partial: &Path) -> PathBuf {
    beside(partial, ".note")
}

/// The file, with a lock that ends with the process.
async fn locked(path: &Path, watch: &mut Watch<'_>) -> Result<File, Failure> {
    let mut told = false;
    loop {
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = opened.map_err(|e| Failure::write(path, &e))?;
        match file.try_lock() {
            // Whoever had the lock before may have renamed or removed it.
            Ok(()) if same(&file, path) => return Ok(file),
            Ok(()) => continue,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(Failure::write(path, &error)),
        }
        if !told {
            let why = format!("another process writes {}", path.display());
            (watch.tell)(Event::Waiting { why, span: LOCK });
            told = true;
        }
        tokio::select! {
            () = tokio::time::sleep(LOCK) => {}
            () = watch.stop.cancelled() => return Err(Failure::stopped(0)),
        }
    }
}

fn same(file: &File, path: &Path) -> bool {
    let id = |metadata: io::Result<fs::Metadata>| metadata.ok().map(|m| (m.dev(), m.ino()));
    let held = id(file.metadata());
    held.is_some() && held == id(fs::symlink_metadata(path))
}

//! A model's artifact is brought to a file, or unpacked into a folder, and is there only if it is the right one.
//!
//! ```text
//! PATH there with this digest? ─▶ done
//!   └▶ PATH.partial: locked, what is there hashed ─▶ download the rest ─▶ digest ─▶ fsync ─▶ rename, or unpack and rename
//! ```
//!
//! What is hashed is what lies on the disk: bytes of an earlier run are read again. Nothing gets the name PATH before
//! its digest was compared, and a rename is all or nothing.

mod answer;
mod download;
mod failure;
mod partial;
mod source;
mod unpack;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

pub use failure::{Failure, Kind};
pub use source::{Digest, Source};
pub use unpack::Unpacked;

use partial::Partial;

/// As much as is in memory at once.
const CHUNK: usize = 64 * 1024;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where it is.
    pub source: Source,
    /// What it must be. `None`: whatever comes is taken.
    pub digest: Option<Digest>,
    /// What gets it: a file, or with `unpack` a folder.
    pub to: PathBuf,
    /// The artifact is an archive.
    pub unpack: bool,
    /// The most that is downloaded, and the most that is unpacked.
    pub max_bytes: u64,
    /// How long nothing may come.
    pub idle: Duration,
    /// How often it is tried again without getting on.
    pub retries: u32,
    /// The file with the token that the server asks for.
    pub token: Option<PathBuf>,
}

/// What goes on, for people.
#[derive(Clone, Debug)]
pub enum Event {
    /// Bytes come. `have` are there already; `total` is what the server says.
    Started {
        /// Bytes that were there before.
        have: u64,
        /// How many it will be.
        total: Option<u64>,
    },
    /// So many more are there.
    Bytes(u64),
    /// It does not go on right now.
    Waiting {
        /// Why.
        why: String,
        /// For how long at most.
        span: Duration,
    },
}

/// Whom to tell, and who may end it.
pub struct Watch<'a> {
    /// Is told what goes on.
    pub tell: &'a mut (dyn FnMut(Event) + Send),
    /// Ends it: what is there is kept.
    pub stop: CancellationToken,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("stop", &self.stop).finish_non_exhaustive()
    }
}

/// What became of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fetched {
    /// The file or folder.
    pub path: PathBuf,
    /// Of all bytes of the artifact.
    pub digest: Digest,
    /// It was there already, and nothing was done.
    pub present: bool,
    /// The artifact's bytes; not known of a folder that was there.
    pub bytes: Option<u64>,
    /// Those of them that an earlier run had brought.
    pub resumed_from: u64,
    /// How often the server was asked.
    pub requests: u32,
    /// What was in the archive.
    pub unpacked: Option<Unpacked>,
}

/// Brings it.
///
/// # Errors
/// Says what is wrong, and what to do. After each but [`Kind::WrongDigest`] the same call goes on from what is there.
pub async fn fetch(request: &Request, watch: &mut Watch<'_>) -> Result<Fetched, Failure> {
    if let Some(present) = present(request, &watch.stop)? {
        return Ok(present);
    }
    let mut partial = Partial::open(request, watch).await?;
    // Whoever held the lock may have made just this.
    if let Some(present) = present(request, &watch.stop)? {
        partial.remove();
        return Ok(present);
    }
    let (mut requests, mut anew) = (0, false);
    while request.digest.is_none_or(|wanted| wanted != partial.digest()) {
        if requests > 0 {
            if request.digest.is_none() {
                break;
            }
            // Two ends of different artifacts, or what a crash of the node tore: one more try, with nothing of it.
            if anew || !partial.is_pieced() {
                return Err(wrong_digest(request, partial));
            }
            tracing::warn!("the digest of what was brought in pieces is wrong: all of it is brought anew");
            partial.restart()?;
            anew = true;
        }
        requests += match bring(request, &mut partial, watch).await {
            Ok(requests) => requests,
            Err(failure) => {
                partial.leave();
                return Err(failure);
            }
        };
    }
    let resumed_from = partial.kept();
    let (digest, bytes) = (partial.digest(), partial.length());
    let unpacked = if request.unpack {
        Some(unpack::unpack(partial, request, digest, &watch.stop)?)
    } else {
        partial.publish(&request.to)?;
        None
    };
    let path = request.to.clone();
    Ok(Fetched { path, digest, present: false, bytes: Some(bytes), resumed_from, requests, unpacked })
}

async fn bring(request: &Request, partial: &mut Partial, watch: &mut Watch<'_>) -> Result<u32, Failure> {
    match &request.source {
        Source::File(path) => copy(path, partial, watch).map(|()| 1),
        Source::Http(url) => download::download(url, request, partial, watch).await,
    }
}

fn wrong_digest(request: &Request, partial: Partial) -> Failure {
    let (found, bytes) = (partial.digest(), partial.length());
    partial.remove();
    let expected = request.digest.map(|digest| digest.to_string()).unwrap_or_default();
    Failure::new(
        Kind::WrongDigest,
        format!("{} has {bytes} bytes with the digest {found}, not {expected}: they are removed", request.source),
        "is the source what was registered? Its bytes changed, or the digest is of something else: palisade model show",
    )
}

/// From a file: always all of it.
fn copy(path: &Path, partial: &mut Partial, watch: &mut Watch<'_>) -> Result<(), Failure> {
    let failed = |error: &io::Error| Failure::read(path, error);
    let mut file = File::open(path).map_err(|e| failed(&e))?;
    let metadata = file.metadata().map_err(|e| failed(&e))?;
    if !metadata.is_file() {
        return Err(Failure::new(
            Kind::Usage,
            format!("{} is no file: a folder has no digest", path.display()),
            "pack it (tar -cf model.tar -C FOLDER .), register the archive's digest, and fetch it with --unpack",
        ));
    }
    partial.restart()?;
    (watch.tell)(Event::Started { have: 0, total: Some(metadata.len()) });
    let mut buffer = vec![0; CHUNK];
    loop {
        stopped(&watch.stop, partial.length())?;
        let n = file.read(&mut buffer).map_err(|e| failed(&e))?;
        if n == 0 {
            return Ok(());
        }
        partial.append(&buffer[..n])?;
        (watch.tell)(Event::Bytes(n as u64));
    }
}

/// What is there already, if it is right.
fn present(request: &Request, stop: &CancellationToken) -> Result<Option<Fetched>, Failure> {
    let (to, Some(digest)) = (&request.to, request.digest) else { return Ok(None) };
    let bytes = if request.unpack {
        if unpack::marker(to) != Some(digest) {
            return Ok(None);
        }
        None
    } else {
        match to.metadata() {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(Failure::new(Kind::Usage, format!("{} is a folder", to.display()), "give a file")),
            Err(_) => return Ok(None),
        }
        let mut file = File::open(to).map_err(|e| Failure::read(to, &e))?;
        let mut hash = Sha256::new();
        let bytes = hash_all(to, &mut file, &mut hash, stop)?;
        if Digest::of(&hash) != digest {
            return Ok(None);
        }
        Some(bytes)
    };
    let path = to.clone();
    Ok(Some(Fetched { path, digest, present: true, bytes, resumed_from: 0, requests: 0, unpacked: None }))
}

/// Hashes a file from where it stands to its end.
fn hash_all(path: &Path, file: &mut File, hash: &mut Sha256, stop: &CancellationToken) -> Result<u64, Failure> {
    let (mut buffer, mut bytes) = (vec![0; CHUNK], 0);
    loop {
        stopped(stop, bytes)?;
        let n = file.read(&mut buffer).map_err(|e| Failure::read(path, &e))?;
        if n == 0 {
            return Ok(bytes);
        }
        hash.update(&buffer[..n]);
        bytes += n as u64;
    }
}

fn stopped(stop: &CancellationToken, kept: u64) -> Result<(), Failure> {
    if stop.is_cancelled() { Err(Failure::stopped(kept)) } else { Ok(()) }
}

/// `PATH.ending`, in the same folder: a rename from there stays on its file system.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// What is written to a folder, names above all, outlives a crash from here on.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

//! Why an artifact is not there.

use std::io;
use std::path::Path;

/// What kind of failure it is: the command's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It cannot be meant.
    Usage,
    /// There is nothing at the source.
    NotFound,
    /// The source, or a limit, says no: repeating does not help.
    Refused,
    /// It is out of reach: repeating may help, and goes on from what is there.
    Unavailable,
    /// What came is something else. Nothing of it is left.
    WrongDigest,
    /// Anything else, such as a full disk.
    Failed,
}

/// A failure, and what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its kind.
    pub kind: Kind,
    /// What went wrong.
    pub message: String,
    /// What to do next.
    pub next: String,
}

impl Failure {
    /// A failure with what to do.
    pub fn new(kind: Kind, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self { kind, message: message.into(), next: next.into() }
    }

    /// A source, or what is there already, that cannot be read.
    pub(super) fn read(path: &Path, error: &io::Error) -> Self {
        let message = format!("{} cannot be read: {error}", path.display());
        match error.kind() {
            io::ErrorKind::NotFound => Self::new(Kind::NotFound, message, "is its volume mounted here?"),
            io::ErrorKind::PermissionDenied => {
                Self::new(Kind::Refused, message, "may this user read it? In a pod: runAsUser, fsGroup")
            }
            _ => Self::new(Kind::Failed, message, "look at the volume, and try again"),
        }
    }

    /// Something that cannot be written.
    pub(super) fn write(path: &Path, error: &io::Error) -> Self {
        let message = format!("{} cannot be written: {error}", path.display());
        let next = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "the volume is full: give it more room (sizeLimit of an emptyDir), and with --unpack for archive and contents"
            }
            io::ErrorKind::PermissionDenied => "may this user write there? In a pod: runAsUser, fsGroup",
            io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only: --to a path in a volume",
            io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices => {
                "a mount cannot be renamed: --to a path inside the volume, not the volume itself"
            }
            _ => "look at the volume, and try again",
        };
        Self::new(Kind::Failed, message, next)
    }

    /// Somebody asked it to end.
    pub(super) fn stopped(kept: u64) -> Self {
        Self::new(
            Kind::Unavailable,
            format!("stopped by a signal; {kept} bytes are kept"),
            "the same command goes on from there",
        )
    }
}

//! `palisade fetch` as an init container runs it: the real program against a web server that cuts connections, forgets
//! ranges, changes its mind, or says nothing at all.

#[path = "fetch/archives.rs"]
mod archives;
#[path = "fetch/downloads.rs"]
mod downloads;
#[path = "support/ran.rs"]
#[allow(dead_code, reason = "its errors are read as text here")]
mod ran;
#[path = "fetch/server.rs"]
mod server;
#[path = "fetch/tls.rs"]
mod tls;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use ran::{Ran, finish};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

/// A folder of its own, and the artifact that is wanted there.
struct Place {
    folder: tempfile::TempDir,
    digest: String,
}

impl Place {
    fn of(artifact: &[u8]) -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), digest: digest(artifact) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// How much of a file there is.
    fn length(&self, name: &str) -> u64 {
        std::fs::metadata(self.path(name)).map_or(0, |metadata| metadata.len())
    }

    /// `palisade fetch` to PATH, by the variables that a version's pods have.
    fn command(&self, source: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        command.env_clear().env("PALISADE_MODEL_URI", source).env("PALISADE_MODEL_DIGEST", &self.digest);
        command.args(["fetch", "-o", "json", "--to"]).arg(self.path("model")).args(args);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn fetch(&self, source: &str, args: &[&str]) -> Ran {
        finish(&mut self.command(source, args)).await
    }

    /// The files that are there, by name.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).expect("the folder");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[track_caller]
    fn has(&self, artifact: &[u8]) {
        assert_eq!(self.names(), ["model"], "and nothing else is left");
        assert!(std::fs::read(self.path("model")).expect("the model") == artifact, "its bytes");
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Bytes without a pattern: a piece at the wrong place is another artifact.
fn artifact(length: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

// ---------------------------------------------------------------- files and arguments

#[tokio::test]
async fn a_file_is_copied_verified_and_left_alone_when_it_is_there() {
    let model = artifact(300_000, 1);
    let place = Place::of(&model);
    let volume = Place::of(&model);
    std::fs::write(volume.path("a b"), &model).expect("a source");
    let source = format!("file://{}", text(&volume.path("a b")));
    let ran = place.fetch(&source, &[]).await.is(0).json();
    assert_eq!((&ran["present"], &ran["bytes"]), (&false.into(), &300_000.into()));
    place.has(&model);
    // There already: not even the source is looked at.
    std::fs::remove_file(volume.path("a b")).expect("it was there");
    assert_eq!(place.fetch(&source, &[]).await.is(0).json()["present"], true);
    // Another file at its place is replaced, once the right one is complete.
    std::fs::write(place.path("model"), b"of yesterday").expect("it is ours");
    place.fetch(&source, &[]).await.is(5);
    std::fs::write(volume.path("a b"), &model).expect("a source");
    place.fetch(&text(&volume.path("a b")), &[]).await.is(0);
    place.has(&model);
}

#[tokio::test]
async fn a_wrong_digest_has_its_own_exit_code_and_leaves_nothing() {
    let place = Place::of(b"what was registered");
    let volume = Place::of(b"");
    std::fs::write(volume.path("m"), b"something else").expect("a source");
    let ran = place.fetch(&text(&volume.path("m")), &[]).await;
    ran.is(9).says("wrong_digest").says(&digest(b"something else")).says("they are removed");
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_with_what_to_do() {
    let place = Place::of(b"m");
    let volume = Place::of(b"m");
    for (source, code, says) in [
        ("s3://models/churn/7", 2, "presign it"),
        ("gs://models/churn/7", 2, "mount the bucket"),
        ("ftp://models/churn", 2, "http://"),
        ("", 2, "PALISADE_MODEL_URI"),
        ("/no/such/file", 5, "volume mounted"),
        (&text(volume.folder.path()), 2, "--unpack"),
    ] {
        place.fetch(source, &[]).await.is(code).says(says);
    }
    let mut command = place.command("/m", &[]);
    finish(command.env_remove("PALISADE_MODEL_DIGEST")).await.is(2).says("there is no digest");
    place.fetch("/m", &["--digest", "sha256:abc"]).await.is(2).says("64 lower-case");
    place.fetch("http://127.0.0.1:1/m", &["--bearer-token-file", "/t"]).await.is(2).says("not https");
    // A variable that cannot be parsed is not repeated: it may hold a password.
    let ran = place.fetch("https://ada:secret@[/m", &[]).await;
    assert!(!ran.is(2).err.contains("secret"), "{ran:?}");
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[tokio::test]
async fn without_a_digest_it_takes_what_comes_only_if_told_so_and_says_what_came() {
    let model = artifact(1000, 2);
    let (place, volume) = (Place::of(&model), Place::of(&model));
    std::fs::write(volume.path("m"), &model).expect("a source");
    let mut command = place.command(&text(&volume.path("m")), &["--insecure-no-digest"]);
    let ran = finish(command.env_remove("PALISADE_MODEL_DIGEST")).await.is(0).json();
    assert_eq!(ran["digest"], digest(&model));
    place.has(&model);
}

#[tokio::test]
async fn a_full_disk_is_told_and_is_not_kept_full() {
    let model = artifact(3_000_000, 3);
    let (place, volume) = (Place::of(&model), Place::of(&model));
    std::fs::write(volume.path("m"), &model).expect("a source");
    let script =
        "mount -t tmpfs -o size=1m none \"$1\" || exit 77; shift; \"$@\"; status=$?; ls -A \"$TO\" >&2; exit $status";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", script, "sh"]).arg(place.folder.path());
    command.arg(env!("CARGO_BIN_EXE_palisade")).args(["fetch", "--to"]).arg(place.path("model"));
    command.args(["--source", &text(&volume.path("m")), "--digest", &place.digest]).env("TO", place.folder.path());
    let ran = finish(&mut command).await;
    if ran.code == 77 || ran.err.contains("unshare") {
        // A user namespace may be forbidden: there is no other way to a disk that is full.
        eprintln!("SKIPPED: no file system of its own can be mounted here: {}", ran.err);
        return;
    }
    ran.is(1).says("cannot be written: No space left").says("the volume is full");
    assert!(!ran.err.contains("\nmodel"), "{ran:?}");
}

//! Archives: what they become, and what hostile ones do not.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

use super::{Place, Ran, digest, text};

/// An entry with exactly this name: the library would refuse to write most of these.
fn entry(kind: EntryType, name: &str, link: &str, body: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(body.len() as u64);
    header.set_mode(0o6755);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str, body: &[u8]) -> Vec<u8> {
    entry(EntryType::Regular, name, "", body)
}

fn link(name: &str, to: &str) -> Vec<u8> {
    entry(EntryType::Symlink, name, to, b"")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Fetches `archive`, whose digest is right.
async fn unpack(place: &Place, archive: &[u8], args: &[&str]) -> Ran {
    let volume = Place::of(b"");
    std::fs::write(volume.path("a"), archive).expect("a source");
    let digest = digest(archive);
    let all = [&["--unpack", "--digest", &digest], args].concat();
    place.fetch(&text(&volume.path("a")), &all).await
}

#[tokio::test]
async fn an_archive_becomes_a_folder_and_the_next_one_takes_its_place() {
    let place = Place::of(b"");
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    builder.append_data(&mut header, &long, &b"hello"[..]).expect("memory");
    let with_long_name = builder.into_inner().expect("memory");
    let one = [
        entry(EntryType::Directory, "./", "", b""),
        file("./bin/run", b"#!"),
        link("bin/go", "../bin/run"),
        with_long_name,
    ];
    let ran = unpack(&place, &gzip(&one.concat()), &[]).await.is(0).json();
    assert_eq!((&ran["unpacked"]["entries"], &ran["unpacked"]["bytes"]), (&4.into(), &7.into()), "{ran}");
    let read = |name: &str| std::fs::read(place.path("model").join(name)).expect(name);
    assert_eq!((read("bin/run"), read("bin/go"), read(&long)), (b"#!".to_vec(), b"#!".to_vec(), b"hello".to_vec()));
    let mode = |name: &str| std::fs::metadata(place.path("model").join(name)).expect(name).permissions().mode();
    assert_eq!([mode("bin/run") & 0o7777, mode(&long) & 0o7777], [0o755, 0o644], "without setuid");

    let again = unpack(&place, &gzip(&one.concat()), &[]).await.is(0).json();
    assert_eq!(again["present"], true);
    let two = archive(&[file("only", b"2")]);
    unpack(&place, &two, &[]).await.is(0);
    assert_eq!(read("only"), b"2");
    assert!(!place.path("model/bin").exists(), "nothing of the former one");
    assert_eq!(place.names(), ["model"], "nothing beside it");
}

#[tokio::test]
async fn a_folder_of_somebody_else_is_not_replaced() {
    let place = Place::of(b"");
    std::fs::create_dir(place.path("model")).expect("it is ours");
    std::fs::write(place.path("model/precious"), b"!").expect("it is ours");
    unpack(&place, &archive(&[file("a", b"1")]), &[]).await.is(2).says("not replaced");
    assert!(place.path("model/precious").exists());
    // An empty one is nobody's.
    let empty = Place::of(b"");
    std::fs::create_dir(empty.path("model")).expect("it is ours");
    unpack(&empty, &archive(&[file("a", b"1")]), &[]).await.is(0);
}

#[tokio::test]
async fn nothing_of_a_hostile_archive_is_left_inside_or_outside() {
    let outside = Place::of(b"");
    let target = text(&outside.path("owned"));
    for (what, entries) in [
        ("a way up", vec![file("../owned", b"x")]),
        ("a way up, behind a name", vec![file("a/../../owned", b"x")]),
        ("an absolute name", vec![file(&target, b"x")]),
        ("a link out", vec![link("l", "../../owned")]),
        ("an absolute link", vec![link("l", &target)]),
        ("a file through a link", vec![link("l", "."), file("l/x", b"x")]),
        ("a file over a link", vec![link("l", "x"), file("l", b"x")]),
        ("a link that turns back behind a link", vec![link("a/b/d", "../.."), link("a/b/e", "d/../..")]),
        ("a hard link out", vec![entry(EntryType::Link, "h", "/etc/passwd", b"")]),
        ("a device", vec![entry(EntryType::Char, "null", "", b"")]),
        ("a pipe", vec![entry(EntryType::Fifo, "pipe", "", b"")]),
        ("a name twice", vec![file("a", b"1"), file("a", b"2")]),
        ("our own marker", vec![file(".palisade-digest", b"sha256:0")]),
        ("a link for our own marker", vec![link("./.palisade-digest", "x")]),
    ] {
        let place = Place::of(b"");
        let bytes = archive(&[vec![file("first", b"1")], entries].concat());
        let ran = unpack(&place, &bytes, &[]).await;
        assert_eq!(ran.code, 3, "{what}: {ran:?}");
        assert!(place.names().is_empty(), "{what}: {:?}", place.names());
        assert!(outside.names().is_empty(), "{what}");
        assert!(!Path::new("owned").exists() && !std::env::temp_dir().join("owned").exists(), "{what}");
    }
}

#[tokio::test]
async fn what_is_no_archive_is_refused() {
    let whole = gzip(&archive(&[file("a", &[7; 100_000])]));
    for bytes in
        [b"no archive at all".to_vec(), vec![1; 2048], vec![0; 2048], vec![], whole[..whole.len() / 2].to_vec()]
    {
        let place = Place::of(b"");
        unpack(&place, &bytes, &[]).await.is(3).says("cannot be unpacked").says("tar -czf");
        assert!(!place.path("model").exists());
    }
}

#[tokio::test]
async fn an_archive_that_grows_beyond_the_limit_is_refused_before_it_fills_the_disk() {
    let place = Place::of(b"");
    let bomb = gzip(&archive(&[file("zeros", &vec![0; 20_000_000])]));
    assert!(bomb.len() < 50_000);
    unpack(&place, &bomb, &["--max-bytes", "1M"]).await.is(3).says("--max-bytes");
    let many = gzip(&archive(&(0..5).map(|i| file(&format!("f{i}"), &[0; 300_000])).collect::<Vec<_>>()));
    unpack(&place, &many, &["--max-bytes", "1M"]).await.is(3).says("--max-bytes");
    unpack(&place, &many, &["--max-bytes", "1500k"]).await.is(0);
}

/// Names may be longer than a header: they come as a body of their own, which would be read into memory whole.
#[tokio::test]
async fn a_name_of_gigabytes_does_not_fill_the_memory() {
    let place = Place::of(b"");
    let name = entry(EntryType::GNULongName, "././@LongLink", "", &vec![b'a'; 64_000_000]);
    let bytes = gzip(&archive(&[name, file("a", b"1")]));
    unpack(&place, &bytes, &[]).await.is(3).says("file too large");
}

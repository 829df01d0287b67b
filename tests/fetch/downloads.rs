//! What a network does to a download, and what becomes of it.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader};

use super::server::{Reply, Server};
use super::{Place, artifact, digest};

const TAG: &str = "\"v1\"";
/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

async fn until(what: &str, check: impl Fn() -> bool) {
    let began = Instant::now();
    while !check() {
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_cut_connection_goes_on_where_it_stopped() {
    let model = artifact(2_000_000, 10);
    let (place, body) = (Place::of(&model), model.clone());
    let server = Server::start(move |n, asked| {
        let reply = Reply::ranged(asked, &body, TAG);
        if n < 3 { reply.cut_after(500_000) } else { reply }
    })
    .await;
    let ran = place.fetch(&server.url("/m"), &[]).await.is(0).json();
    assert_eq!(ran["requests"], 4, "{ran}");
    place.has(&model);
    let froms: Vec<_> = server.asked().iter().map(super::server::Asked::from).collect();
    assert_eq!(froms[0], None);
    assert!(froms[1].is_some_and(|from| from > 0) && froms[1] < froms[2] && froms[2] < froms[3], "{froms:?}");
    assert!(server.asked()[1..].iter().all(|asked| asked.headers.get("if-range").is_some_and(|tag| tag == TAG)));
}

#[tokio::test]
async fn a_server_without_ranges_is_asked_for_all_of_it_again() {
    let model = artifact(600_000, 11);
    let (place, body) = (Place::of(&model), model.clone());
    let server = Server::start(move |n, _| {
        let reply = Reply { body: body.clone(), ..Reply::status(200) };
        if n == 0 { reply.cut_after(400_000) } else { reply }
    })
    .await;
    assert_eq!(place.fetch(&server.url("/m"), &[]).await.is(0).json()["requests"], 2);
    place.has(&model);
}

#[tokio::test]
async fn an_artifact_that_was_replaced_meanwhile_is_not_mixed_with_the_former_one() {
    let (old, new) = (artifact(600_000, 12), artifact(500_000, 13));
    let place = Place::of(&new);
    let body = new.clone();
    let server = Server::start(move |n, asked| match n {
        0 => Reply::ranged(asked, &old, TAG).cut_after(300_000),
        _ => Reply::ranged(asked, &body, "\"v2\""),
    })
    .await;
    assert_eq!(place.fetch(&server.url("/m"), &[]).await.is(0).json()["requests"], 2);
    place.has(&new);
}

/// No tag, no date, and ranges: two halves of different artifacts are put together, and nobody but the digest notices.
#[tokio::test]
async fn pieces_that_do_not_fit_are_brought_anew_once() {
    let (old, new) = (artifact(600_000, 14), artifact(600_000, 15));
    let place = Place::of(&new);
    let body = new.clone();
    let untagged = |asked: &_, body: &[u8]| {
        let mut reply = Reply::ranged(asked, body, TAG);
        reply.headers.retain(|(name, _)| *name != "etag");
        reply
    };
    let server = Server::start(move |n, asked| match n {
        0 => untagged(asked, &old).cut_after(300_000),
        _ => untagged(asked, &body),
    })
    .await;
    let ran = place.fetch(&server.url("/m"), &[]).await;
    ran.is(0).says("brought anew");
    assert_eq!(ran.is(0).json()["requests"], 3);
    place.has(&new);
}

#[tokio::test]
async fn a_wrong_digest_never_leaves_the_file() {
    let (place, other) = (Place::of(b"what was registered"), artifact(100_000, 16));
    let server = Server::start(move |_, asked| Reply::ranged(asked, &other, TAG)).await;
    place.fetch(&server.url("/m"), &[]).await.is(9);
    assert!(place.names().is_empty(), "{:?}", place.names());
    assert_eq!(server.asked().len(), 1, "what came in one piece is not asked for again");
}

#[tokio::test]
async fn a_body_that_is_always_cut_ends_with_the_budget_and_the_next_run_goes_on() {
    let model = artifact(400_000, 17);
    let (place, body) = (Place::of(&model), model.clone());
    let server = Server::start(move |n, asked| {
        let reply = Reply::ranged(asked, &body, TAG);
        if n < 3 { reply.cut_after(100_000) } else { reply }
    })
    .await;
    let ran = place.fetch(&server.url("/m"), &["--retries", "2"]).await;
    ran.is(6).says("are kept, after 3 requests").says("goes on from there");
    assert_eq!(place.names(), ["model.partial", "model.partial.note"], "not the model itself");
    let ran = place.fetch(&server.url("/m"), &[]).await.is(0).json();
    assert_eq!(ran["requests"], 1, "{ran}");
    assert!(ran["resumedFrom"].as_u64().is_some_and(|from| from > 0), "{ran}");
    place.has(&model);
}

/// As a cache in between may: a shorter range than was asked for is an answer, too.
#[tokio::test]
async fn a_server_that_gives_less_than_was_asked_for_is_asked_for_the_rest() {
    let model = artifact(400_000, 29);
    let (place, body) = (Place::of(&model), model.clone());
    let server = Server::start(move |n, asked| {
        let mut reply = Reply::ranged(asked, &body, TAG);
        if n == 0 {
            return reply.cut_after(100_000);
        }
        reply.body.truncate(100_000);
        reply
    })
    .await;
    assert_eq!(place.fetch(&server.url("/m"), &[]).await.is(0).json()["requests"], 4);
    place.has(&model);
}

/// Chunks without an announced length: the end is known only by the last chunk.
#[tokio::test]
async fn a_chunked_body_without_its_last_chunk_is_not_complete() {
    let model = artifact(200_000, 18);
    let (place, body) = (Place::of(&model), model.clone());
    let server = Server::start(move |n, asked| {
        let mut reply = Reply::ranged(asked, &body, TAG);
        let from = asked.from().unwrap_or(0);
        let part = if n == 0 { &body[..150_000] } else { &body[from..] };
        let mut chunked = format!("{:x}\r\n", part.len()).into_bytes();
        chunked.extend_from_slice(part);
        chunked.extend_from_slice(if n == 0 { b"\r\n" } else { b"\r\n0\r\n\r\n" });
        reply.body = chunked;
        reply.with("transfer-encoding", "chunked")
    })
    .await;
    assert_eq!(place.fetch(&server.url("/m"), &[]).await.is(0).json()["requests"], 2);
    place.has(&model);
}

#[tokio::test]
async fn a_server_that_goes_silent_is_asked_again() {
    let model = artifact(300_000, 19);
    let (place, body) = (Place::of(&model), model.clone());
    let server = Server::start(move |n, asked| {
        let reply = Reply::ranged(asked, &body, TAG);
        match n {
            0 => reply.cut_after(100_000).hanging(),
            _ => reply,
        }
    })
    .await;
    let ran = place.fetch(&server.url("/m"), &["--idle-timeout", "500ms"]).await;
    ran.is(0).says("nothing came for 500ms");
    place.has(&model);

    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/m", silent.local_addr().expect("an address"));
    let other = Place::of(b"x");
    other.fetch(&url, &["--idle-timeout", "100ms", "--retries", "1"]).await.is(6).says("nothing came");
    let ran = other.fetch(&url, &["--timeout", "300ms"]).await;
    ran.is(6).says("--timeout");
}

#[tokio::test]
async fn what_a_server_says_decides_whether_it_is_asked_again() {
    for (status, code, says) in [
        (404, 5, "palisade model show"),
        (401, 3, "--bearer-token-file"),
        (403, 3, "presigned URL"),
        (501, 3, "curl -I"),
    ] {
        let server = Server::start(move |_, _| Reply::status(status)).await;
        let place = Place::of(b"m");
        place.fetch(&server.url("/m?X-Signature=secret"), &[]).await.is(code).says(says).says(&status.to_string());
        let ran = place.fetch(&server.url("/m?X-Signature=secret"), &[]).await;
        assert!(!ran.err.contains("secret"), "a signature is not shown: {ran:?}");
        assert_eq!(server.asked().len(), 2, "{status} is not asked again");
        assert!(!place.names().contains(&"model".to_owned()));
    }
    for status in [429, 500, 503] {
        let model = artifact(1000, 20);
        let (place, body) = (Place::of(&model), model.clone());
        let server = Server::start(move |n, asked| match n {
            0 => Reply::status(status),
            _ => Reply::ranged(asked, &body, TAG),
        })
        .await;
        place.fetch(&server.url("/m"), &[]).await.is(0);
        place.has(&model);
    }
}

#[tokio::test]
async fn a_server_that_asks_for_patience_gets_it() {
    let model = artifact(1000, 21);
    let (place, body) = (Place::of(&model), model.clone());
    let server = Server::start(move |n, asked| match n {
        0 => Reply::status(503).with("retry-after", "2"),
        _ => Reply::ranged(asked, &body, TAG),
    })
    .await;
    let began = Instant::now();
    place.fetch(&server.url("/m"), &[]).await.is(0);
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn redirects_are_followed_but_not_in_circles() {
    let model = artifact(1000, 22);
    let (place, body) = (Place::of(&model), model.clone());
    let server = Server::start(move |_, asked| match asked.path.as_str() {
        "/m" => Reply::status(302).with("location", "/there"),
        "/circle" => Reply::status(302).with("location", "/circle"),
        _ => Reply::ranged(asked, &body, TAG),
    })
    .await;
    let other = Place::of(&model);
    other.fetch(&server.url("/circle"), &[]).await.is(3).says("place to place");
    assert!(server.asked().len() < 10, "{}", server.asked().len());
    place.fetch(&server.url("/m"), &[]).await.is(0);
    place.has(&model);
}

#[tokio::test]
async fn more_than_is_allowed_is_refused_whether_it_is_announced_or_not() {
    let model = artifact(100_000, 23);
    for chunked in [false, true] {
        let (place, body) = (Place::of(&model), model.clone());
        let server = Server::start(move |_, asked| {
            let mut reply = Reply::ranged(asked, &body, TAG);
            if chunked {
                reply.body = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
                reply = reply.with("transfer-encoding", "chunked");
            }
            reply
        })
        .await;
        place.fetch(&server.url("/m"), &["--max-bytes", "50k"]).await.is(3).says("--max-bytes is 50000");
        assert!(place.names().is_empty(), "{:?}", place.names());
        place.fetch(&server.url("/m"), &["--max-bytes", "100k"]).await.is(0);
    }
}

#[tokio::test]
async fn a_signal_ends_it_and_the_next_run_goes_on() {
    let model = artifact(500_000, 24);
    let (place, body) = (Place::of(&model), model.clone());
    let server = Server::start(move |n, asked| {
        let reply = Reply::ranged(asked, &body, TAG);
        if n == 0 { reply.cut_after(200_000).hanging() } else { reply }
    })
    .await;
    let url = server.url("/m");
    let mut child = place.command(&url, &[]).stderr(Stdio::piped()).spawn().expect("it runs");
    until("its part is there", || place.length("model.partial") >= 200_000).await;
    let pid = rustix::process::Pid::from_raw(child.id().expect("it runs").try_into().expect("a PID")).expect("a PID");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is ours");
    let mut said = BufReader::new(child.stderr.take().expect("piped")).lines();
    assert_eq!(child.wait().await.expect("it ends").code(), Some(6));
    let mut all = String::new();
    while let Some(line) = said.next_line().await.expect("UTF-8") {
        all += &line;
    }
    assert!(all.contains("200000 bytes are kept"), "{all}");
    let ran = place.fetch(&url, &[]).await.is(0).json();
    assert_eq!(ran["resumedFrom"], 200_000);
    place.has(&model);
}

/// Killed, or its node crashed: what lies there may be torn.
#[tokio::test]
async fn what_an_earlier_run_left_is_hashed_and_torn_bytes_do_not_stay() {
    let model = artifact(500_000, 25);
    let (place, body) = (Place::of(&model), model.clone());
    let server = Server::start(move |n, asked| {
        let reply = Reply::ranged(asked, &body, TAG);
        if n == 0 { reply.cut_after(200_000) } else { reply }
    })
    .await;
    place.fetch(&server.url("/m"), &["--retries", "0"]).await.is(6);
    let mut bytes = std::fs::read(place.path("model.partial")).expect("it was kept");
    bytes[1000] ^= 1;
    std::fs::write(place.path("model.partial"), bytes).expect("it is ours");
    place.fetch(&server.url("/m"), &[]).await.is(0).says("brought anew");
    place.has(&model);
}

#[tokio::test]
async fn what_was_left_of_another_version_is_not_gone_on_with() {
    let (one, two) = (artifact(500_000, 26), artifact(500_000, 27));
    let place = Place::of(&one);
    let (first, second) = (one.clone(), two.clone());
    let server = Server::start(move |_, asked| match asked.path.as_str() {
        "/1" => Reply::ranged(asked, &first, TAG).cut_after(200_000),
        _ => Reply::ranged(asked, &second, TAG),
    })
    .await;
    place.fetch(&server.url("/1"), &["--retries", "0"]).await.is(6);
    let ran = place.fetch(&server.url("/2"), &["--digest", &digest(&two)]).await.is(0).json();
    assert_eq!((ran["resumedFrom"].as_u64(), ran["requests"].as_u64()), (Some(0), Some(1)));
    place.has(&two);
}

#[tokio::test]
async fn two_at_once_bring_it_once() {
    let model = artifact(500_000, 28);
    let (place, body) = (Place::of(&model), model.clone());
    let (release, released) = tokio::sync::watch::channel(false);
    let server = Server::start(move |n, asked| {
        let reply = Reply::ranged(asked, &body, TAG);
        // The first one is held up until the second one waits for it.
        if n == 0 { reply.cut_after(100_000).held_until(&released) } else { reply }
    })
    .await;
    let url = server.url("/m");
    let start = || {
        let mut command = place.command(&url, &["--idle-timeout", "5m"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs")
    };
    let first = start();
    until("the first has its part", || place.length("model.partial") >= 100_000).await;
    let mut second = start();
    let mut said = BufReader::new(second.stderr.take().expect("piped")).lines();
    loop {
        let line = tokio::time::timeout(PATIENCE, said.next_line()).await.expect("it says that it waits");
        if line.expect("UTF-8").expect("it waits, and does not end").contains("another process writes") {
            break;
        }
    }
    release.send_replace(true);
    let (first, second) = tokio::join!(first.wait_with_output(), second.wait_with_output());
    let (first, second) = (first.expect("it ends"), second.expect("it ends"));
    assert_eq!((first.status.code(), second.status.code()), (Some(0), Some(0)), "{first:?} {second:?}");
    let second: serde_json::Value = serde_json::from_slice(&second.stdout).expect("JSON");
    assert_eq!(second["present"], true, "{second}");
    assert_eq!(server.asked().len(), 2, "one cut, one to its end: both of the first process");
    place.has(&model);
}

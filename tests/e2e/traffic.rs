//! Clients that ask a model server for predictions all the time, each by itself, and count what they got.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::Request;
use kube::Client;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How long one request may take: a model server that starts beside it needs both cores.
const LIMIT: Duration = Duration::from_secs(20);
const QUESTION: &str = r#"{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP64","data":[5.1,3.5,1.4,0.2]}]}"#;

/// How a request gets to a server.
#[derive(Clone)]
pub enum Way {
    /// To its address, from the network of our node.
    Address(String),
    /// To a Service, by a path of the API server, which chooses one of its pods each time: from anywhere.
    Proxy(Client, String),
}

/// What one request came to.
enum Answer {
    Body(u16, String),
    /// The server closed a connection that had been used before, without a byte of an answer: what every client of HTTP
    /// must expect of an idle connection, and what it asks again for.
    Stale,
}

async fn ask(stream: &mut TcpStream, used: bool, text: &str) -> Result<Answer, String> {
    let stale = |error: String| if used { Ok(Answer::Stale) } else { Err(error) };
    if let Err(error) = stream.write_all(text.as_bytes()).await {
        return stale(format!("not sent: {error}"));
    }
    let mut answer = Vec::new();
    loop {
        if let Some(found) = parse(&answer)? {
            return Ok(found);
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(0) if answer.is_empty() => return stale("closed without an answer".to_owned()),
            Ok(0) => return Err(format!("closed after {} bytes of an answer", answer.len())),
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if answer.is_empty() => return stale(error.to_string()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// An answer, once it is complete.
fn parse(bytes: &[u8]) -> Result<Option<Answer>, String> {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Ok(None) };
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no status")?;
    let header = |name: &str| {
        head.lines().filter_map(|line| line.split_once(": ")).find(|(key, _)| key.eq_ignore_ascii_case(name))
    };
    let length: usize = header("content-length").and_then(|(_, value)| value.parse().ok()).ok_or("no length")?;
    Ok((body.len() >= length).then(|| Answer::Body(status, body[..length].to_owned())))
}

/// A page, by one request.
pub async fn get(way: &Way, path: &str) -> Result<String, String> {
    let page = async {
        match way {
            Way::Address(address) => {
                let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
                let text = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
                match ask(&mut stream, false, &text).await? {
                    Answer::Body(200, body) => Ok(body),
                    Answer::Body(status, body) => Err(format!("{status}: {body}")),
                    Answer::Stale => Err("closed".to_owned()),
                }
            }
            Way::Proxy(client, base) => through(client, Request::get(format!("{base}{path}")).body(Vec::new())).await,
        }
    };
    tokio::time::timeout(LIMIT, page).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

async fn through(client: &Client, request: axum::http::Result<Request<Vec<u8>>>) -> Result<String, String> {
    client.request_text(request.expect("a request")).await.map_err(|error| error.to_string())
}

/// The version that an answer is by: what it says, and what its output says, agree.
fn version_of(status: u16, body: &str) -> Result<i64, String> {
    if status != 200 {
        return Err(format!("{status}: {body}"));
    }
    let answer: Value = serde_json::from_str(body).map_err(|error| format!("{error}: {body}"))?;
    let said: i64 = answer["model_version"].as_str().and_then(|v| v.parse().ok()).ok_or_else(|| body.to_owned())?;
    // Version 1 calls this flower 0, version 2 calls it 10.
    match answer["outputs"][0]["data"][0].as_f64() {
        Some(0.0) if said == 1 => Ok(1),
        Some(10.0) if said == 2 => Ok(2),
        _ => Err(format!("an answer by no version: {body}")),
    }
}

/// Asks once, over a connection that is kept for the next time if it is one of those.
async fn predict(way: &Way, kept: Option<&mut Option<TcpStream>>, tally: &Tally) -> Result<i64, String> {
    let path = "/v2/models/iris/infer";
    let address = match way {
        Way::Address(address) => address,
        Way::Proxy(client, base) => {
            let request = Request::post(format!("{base}{path}")).header("Content-Type", "application/json");
            return version_of(200, &through(client, request.body(QUESTION.into())).await?);
        }
    };
    let keep = kept.is_some();
    let connection = if keep { "keep-alive" } else { "close" };
    let length = QUESTION.len();
    let text = format!(
        "POST {path} HTTP/1.1\r\nHost: iris\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: {connection}\r\n\r\n{QUESTION}"
    );
    let mut none = None;
    let slot = kept.unwrap_or(&mut none);
    loop {
        let used = slot.is_some();
        let mut stream = match slot.take() {
            Some(stream) => stream,
            None => TcpStream::connect(address).await.map_err(|error| format!("not connected: {error}"))?,
        };
        match ask(&mut stream, used, &text).await? {
            Answer::Stale => tally.lock().reconnects += 1,
            Answer::Body(status, body) => {
                *slot = keep.then_some(stream);
                return version_of(status, &body);
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Answers by version, since the last look, to clients that connect anew each time.
    pub fresh: BTreeMap<i64, usize>,
    /// The same, to clients that keep their connection.
    pub kept: BTreeMap<i64, usize>,
    pub failures: Vec<String>,
    /// How often a kept connection had been closed meanwhile.
    pub reconnects: usize,
    /// The slowest answer.
    pub slowest: Duration,
}

#[derive(Clone, Default)]
struct Tally(Arc<Mutex<Counts>>);

impl Tally {
    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().expect("not poisoned")
    }

    fn note(&self, keeps: bool, took: Duration, answer: Result<i64, String>) {
        let mut counts = self.lock();
        counts.slowest = counts.slowest.max(took);
        match answer {
            Ok(version) => {
                let versions = if keeps { &mut counts.kept } else { &mut counts.fresh };
                *versions.entry(version).or_default() += 1;
            }
            Err(error) => counts.failures.push(error),
        }
    }
}

/// Clients that go on until they are stopped.
pub struct Traffic {
    tally: Tally,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Traffic {
    /// So many clients with a new connection for each request, and as many that keep theirs, where there is one to keep.
    pub fn start(way: &Way, each: usize) -> Traffic {
        let (tally, stop) = (Tally::default(), Arc::<AtomicBool>::default());
        let mut clients = JoinSet::new();
        for number in 0..2 * each {
            let (tally, stop, way) = (tally.clone(), Arc::clone(&stop), way.clone());
            clients.spawn(async move {
                let (keeps, mut kept) = (number < each && matches!(way, Way::Address(_)), None);
                while !stop.load(Ordering::Relaxed) {
                    let slot = keeps.then_some(&mut kept);
                    let began = Instant::now();
                    let answer = tokio::time::timeout(LIMIT, predict(&way, slot, &tally)).await;
                    tally.note(keeps, began.elapsed(), answer.unwrap_or_else(|_| Err("no answer in time".to_owned())));
                    tokio::time::sleep(Duration::from_millis(25)).await;
                }
            });
        }
        Traffic { tally, stop, clients }
    }

    /// What came since the last look.
    pub fn look(&self) -> Counts {
        std::mem::take(&mut self.tally.lock())
    }

    /// Waits until each client has had several answers.
    pub async fn flows(&self) {
        let answered = || {
            let counts = self.tally.lock();
            counts.fresh.values().chain(counts.kept.values()).sum::<usize>()
        };
        let (before, began) = (answered(), Instant::now());
        while answered() < before + 10 * self.clients.len() {
            assert!(began.elapsed() < super::world::patience(), "no answers: {:?}", self.tally.lock());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn end(mut self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
        self.tally.lock().clone()
    }
}

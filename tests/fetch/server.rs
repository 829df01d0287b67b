//! A web server of the tests' own, that does what each of them wants.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What a client asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

impl Asked {
    /// Where the wanted range begins.
    pub fn from(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// How it is answered.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// So many bytes of the body are sent, whatever was announced.
    pub cut: Option<usize>,
    /// Then the connection stays open, and nothing comes.
    pub hang: bool,
    /// It does so until this is true.
    pub held: Option<watch::Receiver<bool>>,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// As a web server answers that has `body` under `tag`, with ranges.
    pub fn ranged(asked: &Asked, body: &[u8], tag: &str) -> Self {
        let same = asked.headers.get("if-range").is_none_or(|wanted| wanted == tag);
        let total = body.len();
        match asked.from() {
            Some(from) if same && from >= total => Self::status(416).with("content-range", format!("bytes */{total}")),
            Some(from) if same => {
                let reply = Self { body: body[from..].to_vec(), ..Self::status(206) };
                reply.with("content-range", format!("bytes {from}-{}/{total}", total - 1)).with("etag", tag)
            }
            _ => Self { body: body.to_vec(), ..Self::status(200) }.with("etag", tag),
        }
    }

    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    pub fn hanging(mut self) -> Self {
        self.hang = true;
        self
    }

    pub fn held_until(mut self, released: &watch::Receiver<bool>) -> Self {
        self.held = Some(released.clone());
        self
    }
}

type Script = dyn Fn(usize, &Asked) -> Reply + Send + Sync;

/// A server that runs until it is dropped.
pub struct Server {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// `script` is given how many requests came before, and the request.
    pub async fn start(script: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(None, script).await
    }

    pub async fn with(
        tls: Option<tokio_rustls::TlsAcceptor>,
        script: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (script, seen): (Arc<Script>, _) = (Arc::new(script), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, seen, tls) = (Arc::clone(&script), Arc::clone(&seen), tls.clone());
                tokio::spawn(connection(stream, tls, script, seen));
            }
        });
        Self { address, asked, task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// All that was asked for, in order.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<tokio_rustls::TlsAcceptor>,
    script: Arc<Script>,
    seen: Arc<Mutex<Vec<Asked>>>,
) {
    match tls {
        None => answer(stream, script, seen).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                answer(stream, script, seen).await;
            }
        }
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, script: Arc<Script>, seen: Arc<Mutex<Vec<Asked>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8_lossy(&head);
    let mut lines = head.lines();
    let path = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    let asked = Asked { path, headers };
    let before = {
        let mut seen = seen.lock().expect("no panic");
        seen.push(asked.clone());
        seen.len() - 1
    };
    let reply = script(before, &asked);
    let mut text = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(name, _)| *name == "content-length" || *name == "transfer-encoding") {
        text += &format!("content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        text += &format!("{name}: {value}\r\n");
    }
    let body = &reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())];
    // A client that has seen enough is none that has to be told more.
    let _ = stream.write_all(format!("{text}\r\n").as_bytes()).await;
    let _ = stream.write_all(body).await;
    let _ = stream.flush().await;
    if let Some(mut released) = reply.held {
        let _ = released.wait_for(|released| *released).await;
    }
    if reply.hang {
        std::future::pending::<()>().await;
    }
    let _ = stream.shutdown().await;
}

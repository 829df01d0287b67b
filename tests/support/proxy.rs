//! A TCP proxy that understands just enough of the Postgres wire protocol to lose things on purpose.
//!
//! ```text
//! client ──batch (up to Sync or a simple query)──▶ rule? ──▶ server
//!        ◀──────────────messages up to ReadyForQuery──────────
//! ```
//!
//! A client's messages are held until their batch is complete, so that a rule decides about a whole statement: the
//! batch that executes SQL containing the rule's text. Prepared statements are followed from Parse to Bind.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

/// What happens to the statement that a rule fits.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The server gets it and answers; the answer is swallowed and the client's connection reset.
    LoseAnswer,
    /// The server never gets it; the client's connection is reset.
    LoseRequest,
    /// The client's connection is reset at once; the server gets the statement when the handle says `deliver`:
    /// a packet that took its time.
    LateRequest,
    /// The server gets it and answers, the client hears nothing until the handle says `deliver`.
    HangAnswer,
    /// Neither side hears anything until the handle says `deliver`, which then lets it pass.
    HangRequest,
    /// It is passed on after a while.
    Delay(Duration),
    /// Half of the answer arrives, then the connection is reset.
    TruncateAnswer,
}

#[derive(Debug)]
struct Rule {
    text: String,
    /// Fires when this many fitting statements are still to come, counting it: 1 is the next one.
    countdown: usize,
    fault: Fault,
    shared: Arc<Fired>,
}

#[derive(Debug)]
struct Fired {
    fired: watch::Sender<bool>,
    /// The server's reply was seen (whether or not the client got it).
    answered: watch::Sender<bool>,
    deliver: Notify,
}

/// One rule, to be waited for.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Fired>);

impl Handle {
    /// Waits until the fault has struck.
    pub async fn fired(&self) {
        let mut fired = self.0.fired.subscribe();
        fired.wait_for(|fired| *fired).await.expect("the proxy runs");
    }

    /// Waits until the server has answered the statement that the fault struck.
    pub async fn answered(&self) {
        let mut answered = self.0.answered.subscribe();
        answered.wait_for(|answered| *answered).await.expect("the proxy runs");
    }

    pub fn has_fired(&self) -> bool {
        *self.0.fired.borrow()
    }

    /// Lets go of what is held.
    pub fn deliver(&self) {
        self.0.deliver.notify_one();
    }
}

#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    rules: Arc<Mutex<Vec<Rule>>>,
    /// Statements that fitted no rule, for tests that count round trips.
    seen: Arc<Mutex<Vec<String>>>,
    /// Ends with the value: so do all connections.
    _alive: watch::Sender<()>,
}

impl Proxy {
    /// In front of the Postgres that listens on `port` of 127.0.0.1.
    pub async fn start(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let own = listener.local_addr().expect("an address").port();
        let (alive, gone) = watch::channel(());
        let rules = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let proxy = Proxy { port: own, rules: rules.clone(), seen: seen.clone(), _alive: alive };
        tokio::spawn(async move {
            let mut stopped = gone.clone();
            loop {
                tokio::select! {
                    _ = stopped.changed() => return,
                    client = listener.accept() => {
                        let Ok((client, _)) = client else { return };
                        let connection = Connection { rules: rules.clone(), seen: seen.clone(), statements: HashMap::new() };
                        let mut gone = gone.clone();
                        tokio::spawn(async move {
                            tokio::select! {
                                _ = gone.changed() => {}
                                _ = connection.run(client, port) => {}
                            }
                        });
                    }
                }
            }
        });
        proxy
    }

    /// The same URL by way of the proxy.
    pub fn url(&self, direct: &str) -> String {
        let (scheme, rest) = direct.split_once("://").expect("a URL");
        let (authority, path) = rest.split_once('/').expect("a database");
        let (user, _) = authority.split_once('@').expect("a user");
        let path = path.split('?').next().unwrap_or_default();
        format!("{scheme}://{user}@127.0.0.1:{}/{path}?sslmode=disable", self.port)
    }

    /// The next statement that contains `text` meets the fault.
    pub fn on_next(&self, text: &str, fault: Fault) -> Handle {
        self.on(text, 1, fault)
    }

    /// The n-th statement from now (1 is the next) that contains `text` meets the fault, once.
    pub fn on(&self, text: &str, nth: usize, fault: Fault) -> Handle {
        assert!(nth > 0, "the first statement is number 1");
        let shared = Arc::new(Fired {
            fired: watch::channel(false).0,
            answered: watch::channel(false).0,
            deliver: Notify::new(),
        });
        let rule = Rule { text: text.to_owned(), countdown: nth, fault, shared: shared.clone() };
        self.rules.lock().expect("not poisoned").push(rule);
        Handle(shared)
    }

    /// The statements that passed, oldest first.
    pub fn statements(&self) -> Vec<String> {
        self.seen.lock().expect("not poisoned").clone()
    }
}

/// A message of the protocol: type byte and everything behind it, its length included.
struct Message(Vec<u8>);

impl Message {
    fn kind(&self) -> u8 {
        self.0[0]
    }

    fn body(&self) -> &[u8] {
        &self.0[5..]
    }

    async fn read(from: &mut TcpStream) -> io::Result<Message> {
        let mut head = [0; 5];
        from.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if !(4..1 << 30).contains(&length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = head.to_vec();
        bytes.resize(length + 1, 0);
        from.read_exact(&mut bytes[5..]).await?;
        Ok(Message(bytes))
    }
}

/// The zero-terminated text at the start, and what follows it.
fn text(bytes: &[u8]) -> (String, &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    (String::from_utf8_lossy(&bytes[..end]).into_owned(), bytes.get(end + 1..).unwrap_or_default())
}

struct Connection {
    rules: Arc<Mutex<Vec<Rule>>>,
    seen: Arc<Mutex<Vec<String>>>,
    /// Prepared statements by name.
    statements: HashMap<String, String>,
}

impl Connection {
    async fn run(mut self, mut client: TcpStream, port: u16) -> io::Result<()> {
        client.set_nodelay(true)?;
        let Some(startup) = startup(&mut client).await? else {
            return Ok(());
        };
        let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
        server.set_nodelay(true)?;
        server.write_all(&startup).await?;
        let greeting = answer(&mut server).await?;
        client.write_all(&greeting).await?;
        loop {
            let Some((batch, sql)) = self.batch(&mut client, &mut server).await? else {
                return server.shutdown().await; // the client said goodbye
            };
            match self.rule(sql) {
                None => {
                    server.write_all(&batch).await?;
                    let reply = answer(&mut server).await?;
                    client.write_all(&reply).await?;
                }
                Some((fault, shared)) => strike(fault, &shared, &batch, &mut client, &mut server).await?,
            }
        }
    }

    /// The client's messages up to Sync or a simple query, and the SQL that they execute. The server may end the
    /// connection meanwhile (pg_terminate_backend); the client is told.
    async fn batch(&mut self, client: &mut TcpStream, server: &mut TcpStream) -> io::Result<Option<(Vec<u8>, String)>> {
        let (mut bytes, mut sql, mut portal) = (Vec::new(), String::new(), String::new());
        loop {
            if bytes.is_empty() {
                let mut peek = [0; 1];
                tokio::select! {
                    ready = client.readable() => ready?,
                    got = server.peek(&mut peek) => {
                        if got? > 0 {
                            let message = Message::read(server).await?;
                            client.write_all(&message.0).await?;
                            continue;
                        }
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
            let message = Message::read(client).await?;
            match message.kind() {
                b'X' => return Ok(None),
                b'Q' => sql.push_str(&text(message.body()).0),
                b'P' => {
                    let (name, rest) = text(message.body());
                    self.statements.insert(name, text(rest).0);
                }
                b'B' => {
                    let (_, rest) = text(message.body());
                    portal = self.statements.get(&text(rest).0).cloned().unwrap_or_default();
                }
                b'E' => sql.push_str(&portal),
                _ => {}
            }
            bytes.extend_from_slice(&message.0);
            if matches!(message.kind(), b'Q' | b'S') {
                return Ok(Some((bytes, sql)));
            }
        }
    }

    /// The fault that this statement meets.
    fn rule(&self, sql: String) -> Option<(Fault, Arc<Fired>)> {
        let mut rules = self.rules.lock().expect("not poisoned");
        let mut found = None;
        if !sql.is_empty() {
            for (place, rule) in rules.iter_mut().enumerate() {
                if sql.contains(&rule.text) {
                    rule.countdown -= 1;
                    if rule.countdown == 0 {
                        found = Some(place);
                        break;
                    }
                }
            }
        }
        match found {
            Some(place) => {
                let rule = rules.remove(place);
                Some((rule.fault, rule.shared))
            }
            None => {
                if !sql.is_empty() {
                    self.seen.lock().expect("not poisoned").push(sql);
                }
                None
            }
        }
    }
}

async fn strike(
    fault: Fault,
    shared: &Fired,
    batch: &[u8],
    client: &mut TcpStream,
    server: &mut TcpStream,
) -> io::Result<()> {
    let reset = |client: &TcpStream| client.set_zero_linger();
    let lost = || io::Error::from(io::ErrorKind::ConnectionReset);
    match fault {
        Fault::LoseRequest => {
            reset(client)?;
            shared.fired.send_replace(true);
            Err(lost())
        }
        Fault::LoseAnswer | Fault::TruncateAnswer => {
            server.write_all(batch).await?;
            let reply = answer(server).await?;
            if matches!(fault, Fault::TruncateAnswer) {
                client.write_all(&reply[..reply.len() / 2]).await?;
                client.shutdown().await?;
            } else {
                reset(client)?;
            }
            shared.answered.send_replace(true);
            shared.fired.send_replace(true);
            Err(lost())
        }
        Fault::LateRequest => {
            // The caller's task drops the client's socket only when this returns: shut it down by hand.
            reset(client)?;
            client.shutdown().await?;
            shared.fired.send_replace(true);
            shared.deliver.notified().await;
            server.write_all(batch).await?;
            answer(server).await?;
            shared.answered.send_replace(true);
            Err(lost())
        }
        Fault::HangAnswer => {
            server.write_all(batch).await?;
            let reply = answer(server).await?;
            shared.answered.send_replace(true);
            shared.fired.send_replace(true);
            shared.deliver.notified().await;
            client.write_all(&reply).await
        }
        Fault::HangRequest => {
            shared.fired.send_replace(true);
            shared.deliver.notified().await;
            pass(batch, shared, client, server).await
        }
        Fault::Delay(time) => {
            shared.fired.send_replace(true);
            tokio::time::sleep(time).await;
            pass(batch, shared, client, server).await
        }
    }
}

async fn pass(batch: &[u8], shared: &Fired, client: &mut TcpStream, server: &mut TcpStream) -> io::Result<()> {
    server.write_all(batch).await?;
    let reply = answer(server).await?;
    shared.answered.send_replace(true);
    client.write_all(&reply).await
}

/// The client's startup message. Encryption is declined; a cancel request is not one and ends the connection.
async fn startup(client: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    const SSL: u32 = 80877103;
    const GSS: u32 = 80877104;
    const CANCEL: u32 = 80877102;
    loop {
        let length = client.read_u32().await?;
        if !(8..1 << 16).contains(&length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut rest = vec![0; length as usize - 4];
        client.read_exact(&mut rest).await?;
        match u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]) {
            SSL | GSS => client.write_all(b"N").await?,
            CANCEL => return Ok(None),
            _ => return Ok(Some([length.to_be_bytes().to_vec(), rest].concat())),
        }
    }
}

/// The server's messages up to and including ReadyForQuery.
async fn answer(server: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let message = Message::read(server).await?;
        bytes.extend_from_slice(&message.0);
        if message.kind() == b'Z' {
            return Ok(bytes);
        }
    }
}

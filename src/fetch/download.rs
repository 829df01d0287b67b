//! From a web server: asked again, from where we stand, until all of it is there or the budget is used up.

use std::error::Error as _;
use std::path::Path;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, IF_RANGE, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};

use super::answer::{self, Answer};
use super::partial::Partial;
use super::{Event, Failure, Kind, Request, Source, Watch};
use crate::retry::Backoff;

/// How long a server may take to take a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How often it may send us elsewhere.
const REDIRECTS: usize = 5;
/// A server that asks for more patience is asked earlier.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);
/// So much in one answer is getting on: the budget of retries begins anew.
const GOT_ON: u64 = 1024 * 1024;

/// How one request ended.
enum End {
    Done,
    /// What is there is of no use: at once, from the beginning.
    StartOver,
    Again {
        why: String,
        after: Option<Duration>,
    },
}

/// Downloads what is missing, and says how many requests it took.
pub(super) async fn download(
    url: &Url,
    request: &Request,
    partial: &mut Partial,
    watch: &mut Watch<'_>,
) -> Result<u32, Failure> {
    let client = client()?;
    let stop = watch.stop.clone();
    let budget = || Backoff::new(Duration::from_millis(500), Duration::from_secs(15), request.retries);
    let (mut requests, mut tries) = (0, budget());
    loop {
        requests += 1;
        let before = partial.length();
        let end = tokio::select! {
            end = ask(&client, url, request, partial, watch.tell) => end?,
            () = stop.cancelled() => return Err(Failure::stopped(partial.length())),
        };
        if partial.length().saturating_sub(before) >= GOT_ON {
            tries = budget();
        }
        let (why, after) = match end {
            End::Done => return Ok(requests),
            End::StartOver => {
                partial.restart()?;
                ("the server cannot go on from there".to_owned(), Some(Duration::ZERO))
            }
            End::Again { why, after } => (why, after),
        };
        let Some(backoff) = tries.next_wait() else {
            return Err(Failure::new(
                Kind::Unavailable,
                format!("{}: {why}; {} bytes are kept, after {requests} requests", request.source, partial.length()),
                "the same command goes on from there",
            ));
        };
        let span = after.map_or(backoff, |after| after.min(RETRY_AFTER_MAX).max(backoff));
        (watch.tell)(Event::Waiting { why, span });
        tokio::select! {
            () = tokio::time::sleep(span) => {}
            () = stop.cancelled() => return Err(Failure::stopped(partial.length())),
        }
    }
}

/// The roots are the system's; `SSL_CERT_FILE` and `SSL_CERT_DIR` name others, `HTTPS_PROXY` and `NO_PROXY` a proxy.
fn client() -> Result<Client, Failure> {
    let redirects = Policy::custom(|attempt| {
        let secure = attempt.previous().last().is_some_and(|from| from.scheme() == "https");
        if attempt.previous().len() > REDIRECTS {
            attempt.error("it sends us from place to place")
        } else if secure && attempt.url().scheme() != "https" {
            attempt.error("it sends us from https to http")
        } else {
            attempt.follow()
        }
    });
    let built = Client::builder()
        .user_agent(concat!("palisade/", env!("CARGO_PKG_VERSION")))
        .redirect(redirects)
        .connect_timeout(CONNECT)
        .referer(false)
        .build();
    built.map_err(|error| {
        let message = format!("TLS cannot be set up: {}", causes(&error));
        Failure::new(Kind::Failed, message, "are there root certificates? SSL_CERT_FILE names a file with them")
    })
}

async fn ask(
    client: &Client,
    url: &Url,
    request: &Request,
    partial: &mut Partial,
    tell: &mut (dyn FnMut(Event) + Send),
) -> Result<End, Failure> {
    let offset = if partial.can_continue() { partial.length() } else { 0 };
    // Compressed on the way it would have another digest and other ranges.
    let mut get = client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
    if offset > 0 {
        get = get.header(RANGE, format!("bytes={offset}-"));
        if let Some(validator) = partial.validator() {
            get = get.header(IF_RANGE, validator);
        }
    }
    if let Some(path) = &request.token {
        get = get.bearer_auth(token(path, url)?);
    }
    let response = match tokio::time::timeout(request.idle, get.send()).await {
        Err(_) => return Ok(idle(request)),
        Ok(Err(error)) => return trouble(request, error),
        Ok(Ok(response)) => response,
    };
    let status = response.status();
    let total = match answer::read(status, response.headers(), offset) {
        Answer::Whole { total, validator } => {
            partial.restart()?;
            partial.validate_by(validator)?;
            total
        }
        Answer::Rest { total } => {
            partial.continues();
            total
        }
        Answer::Complete => return Ok(End::Done),
        Answer::StartOver => return Ok(End::StartOver),
        Answer::Later(after) => return Ok(End::Again { why: format!("it answers {status}"), after }),
        Answer::No(kind, next) => {
            return Err(Failure::new(kind, format!("{} answers {status}", request.source), next));
        }
    };
    tell(Event::Started { have: partial.length(), total });
    partial.allow(total.unwrap_or(0))?;
    body(response, total, request, partial, tell).await
}

async fn body(
    mut response: Response,
    total: Option<u64>,
    request: &Request,
    partial: &mut Partial,
    tell: &mut (dyn FnMut(Event) + Send),
) -> Result<End, Failure> {
    loop {
        match tokio::time::timeout(request.idle, response.chunk()).await {
            Err(_) => return Ok(idle(request)),
            Ok(Err(error)) => return trouble(request, error),
            Ok(Ok(Some(bytes))) => {
                partial.append(&bytes)?;
                tell(Event::Bytes(bytes.len() as u64));
            }
            Ok(Ok(None)) => break,
        }
    }
    match total {
        Some(total) if partial.length() < total => {
            let why = format!("it ended after {} of {total} bytes", partial.length());
            Ok(End::Again { why, after: None })
        }
        _ => Ok(End::Done),
    }
}

fn idle(request: &Request) -> End {
    End::Again { why: format!("nothing came for {:?}", request.idle), after: None }
}

/// What the network says; each of it may pass, but for what we refuse ourselves.
fn trouble(request: &Request, error: reqwest::Error) -> Result<End, Failure> {
    let error = error.without_url();
    let why = causes(&error);
    if error.is_redirect() || error.is_builder() {
        let next = "is the source right? Give the URL that it leads to";
        return Err(Failure::new(Kind::Refused, format!("{}: {why}", request.source), next));
    }
    Ok(End::Again { why, after: None })
}

/// An error with what caused it: reqwest's own words say little.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        cause = error.source();
    }
    text
}

/// Read each time: a mounted token is renewed. It never goes over a connection that others can read, and is not sent on
/// when another host is redirected to.
fn token(path: &Path, url: &Url) -> Result<String, Failure> {
    if url.scheme() != "https" {
        let message = format!("{} is not https: the token is not sent there", Source::Http(url.clone()));
        return Err(Failure::new(Kind::Usage, message, "give an https:// source, or leave out --bearer-token-file"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| Failure::read(path, &e))?;
    let token = text.trim();
    if token.is_empty() || !token.chars().all(|c| c.is_ascii_graphic()) {
        let message = format!("{} holds no token: one line of visible ASCII characters", path.display());
        return Err(Failure::new(Kind::Usage, message, "look at the file; only the token itself is in it"));
    }
    Ok(token.to_owned())
}

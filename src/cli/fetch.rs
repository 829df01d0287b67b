//! `palisade fetch`: a model's artifact, verified, for init containers.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::output::{OutputArgs, visible};
use super::{Context, Error, Output};
use crate::clock::{Clock, Moment};
use crate::crd::Span;
use crate::fetch::{self, Digest, Event, Failure, Fetched, Kind, Request, Source, Watch};

/// Download a model's artifact, and verify it
///
/// Made for an init container: a version's pods have source and digest in PALISADE_MODEL_URI and PALISADE_MODEL_DIGEST, so
/// that `palisade fetch --to /models/churn.bin` is enough. PATH is there only if the digest is right, and complete: the
/// bytes are written to PATH.partial, hashed, and renamed. What was cut off goes on where it stopped, in the next run, too.
/// If PATH is there already with the right digest, nothing is done.
///
/// TLS trusts the system's roots, or those of SSL_CERT_FILE. Exit code 9: what came has another digest.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  palisade fetch --to /models/churn.bin
  palisade fetch --to /models/churn --unpack                # a .tar or .tar.gz becomes a folder
  palisade fetch --to churn.bin --source https://models.example/churn/7 --digest sha256:…")]
pub(super) struct Args {
    /// The file that it becomes; with --unpack the folder
    #[arg(long, value_name = "PATH")]
    to: PathBuf,

    /// Where it is: a path, file://, http:// or https://
    // Parsed later: a variable that cannot be meant must not be printed, for it may hold a password.
    #[arg(long, value_name = "URI", env = "PALISADE_MODEL_URI", hide_env_values = true)]
    source: Option<String>,

    /// What it must be: sha256: and 64 hexadecimal digits
    #[arg(long, value_name = "DIGEST", env = "PALISADE_MODEL_DIGEST")]
    digest: Option<Digest>,

    /// Take whatever comes: without a digest nobody notices another artifact
    #[arg(long)]
    insecure_no_digest: bool,

    /// The artifact is a .tar or .tar.gz: unpack it once it is verified
    #[arg(long)]
    unpack: bool,

    /// A file with a token, sent to the source as `Authorization: Bearer`; over https only, never to another host
    #[arg(long, value_name = "PATH")]
    bearer_token_file: Option<PathBuf>,

    /// The most that is downloaded, and the most that is unpacked: 500Mi, 20Gi
    #[arg(long, value_name = "BYTES", default_value = "100Gi", value_parser = bytes)]
    max_bytes: u64,

    /// How long all of it may take [default: as long as it takes]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,

    /// How long nothing may come before the server is asked again
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = idle)]
    idle_timeout: Span,

    /// How often it is tried again in a row; who gets on by 1 MiB begins anew
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(..1000))]
    retries: u32,

    #[command(flatten)]
    output: OutputArgs,
}

impl Args {
    pub(super) fn output(&self) -> Output {
        self.output.output
    }
}

fn idle(text: &str) -> Result<Span, String> {
    super::process::between(text, Duration::from_millis(100), Duration::from_secs(3600))
}

/// As Kubernetes writes sizes, in whole numbers.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: Option<u64> = match unit {
        "" => Some(1),
        "k" => Some(1000),
        "M" => Some(1_000_000),
        "G" => Some(1_000_000_000),
        "T" => Some(1_000_000_000_000),
        "Ki" => Some(1 << 10),
        "Mi" => Some(1 << 20),
        "Gi" => Some(1 << 30),
        "Ti" => Some(1 << 40),
        _ => None,
    };
    let bytes = number.parse::<u64>().ok().zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| "a size is a whole number with a unit, such as 500Mi or 20Gi".into())
}

pub(super) async fn run(args: Args, context: Context) -> Result<(), Error> {
    let (output, timeout) = (args.output, args.timeout);
    let request = request(args)?;
    // As the first process of a container it would not end by a signal that it does not handle.
    context.stop_on_signals()?;
    let mut progress = Progress::new(context.clock.clone());
    let mut tell = |event| progress.on(event);
    let mut watch = Watch { tell: &mut tell, stop: context.stop.clone() };
    let span = timeout.map_or(Duration::MAX, Span::duration);
    let fetched = tokio::time::timeout(span, fetch::fetch(&request, &mut watch)).await;
    progress.end();
    let fetched = fetched.unwrap_or_else(|_| {
        let message = format!("{} is not there after --timeout {span:?}; what came is kept", request.source);
        Err(Failure::new(Kind::Unavailable, message, "the same command goes on from there"))
    })?;
    output.show(&fetched, |_| draw(&fetched))
}

fn request(args: Args) -> Result<Request, Error> {
    let Args {
        to,
        source,
        digest,
        insecure_no_digest,
        unpack,
        bearer_token_file,
        max_bytes,
        idle_timeout,
        retries,
        ..
    } = args;
    let source = source.filter(|source| !source.is_empty()).ok_or_else(|| {
        Error::usage_next(
            "there is no source",
            "give --source, or set PALISADE_MODEL_URI as each version's pods have it",
        )
    })?;
    let source: Source = source.parse().map_err(|why| Error::usage_next(format!("--source: {why}"), "see --help"))?;
    if digest.is_none() && !insecure_no_digest {
        return Err(Error::usage_next(
            "there is no digest: nobody would notice that another artifact came",
            "give --digest, or set PALISADE_MODEL_DIGEST as each version's pods have it",
        ));
    }
    if to.file_name().is_none() {
        return Err(Error::usage(format!("--to {} is not the path of a file or folder to make", to.display())));
    }
    // A slash at its end would make PATH/.partial of PATH.partial.
    let to: PathBuf = to.components().collect();
    let idle = idle_timeout.duration();
    Ok(Request { source, digest, to, unpack, max_bytes, idle, retries, token: bearer_token_file })
}

fn draw(fetched: &Fetched) -> String {
    let Fetched { path, digest, present, bytes, resumed_from, unpacked, .. } = fetched;
    let path = path.display();
    if *present {
        return format!("{path} is there already: {digest}\n");
    }
    let mut text = format!("{path} is there: {digest}, {} bytes", bytes.unwrap_or_default());
    if *resumed_from > 0 {
        text += &format!(", {resumed_from} of them from an earlier run");
    }
    if let Some(unpacked) = unpacked {
        text += &format!("; unpacked {} entries, {} bytes", unpacked.entries, unpacked.bytes);
    }
    text + "\n"
}

/// What a person sees meanwhile: a bar on a terminal, else a line every few seconds, for `kubectl logs`.
struct Progress {
    clock: Clock,
    bar: Option<ProgressBar>,
    have: u64,
    total: Option<u64>,
    said: Moment,
}

impl Progress {
    const EVERY: Duration = Duration::from_secs(5);

    fn new(clock: Clock) -> Self {
        let said = clock.now();
        let terminal = std::io::stderr().is_terminal();
        let bar = terminal.then(|| {
            let bar = ProgressBar::no_length();
            let look = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}";
            bar.set_style(ProgressStyle::with_template(look).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { clock, bar, have: 0, total: None, said }
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Started { have, total } => {
                (self.have, self.total) = (have, total);
                match &self.bar {
                    Some(bar) => {
                        bar.set_message("");
                        bar.set_position(have);
                        total.map_or_else(|| bar.unset_length(), |total| bar.set_length(total));
                    }
                    None => self.say("downloading"),
                }
            }
            Event::Bytes(n) => {
                self.have += n;
                match &self.bar {
                    Some(bar) => bar.set_position(self.have),
                    None if self.clock.now().since(self.said) >= Self::EVERY => self.say("downloading"),
                    None => {}
                }
            }
            Event::Waiting { why, span } => match &self.bar {
                Some(bar) => bar.set_message(visible(&why)),
                None => tracing::warn!(bytes = self.have, "waiting for up to {span:.1?}: {why}"),
            },
        }
    }

    fn say(&mut self, what: &str) {
        self.said = self.clock.now();
        match self.total {
            Some(total) => tracing::info!(bytes = self.have, total, "{what}: {}%", percent(self.have, total)),
            None => tracing::info!(bytes = self.have, "{what}"),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn percent(have: u64, total: u64) -> u64 {
    have.saturating_mul(100).checked_div(total).unwrap_or(100)
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let Failure { kind, message, next } = failure;
        match kind {
            Kind::Usage => Self::usage_next(message, next),
            Kind::NotFound => Self::not_found_next(message, next),
            Kind::Refused => Self::rejected_next(message, next),
            Kind::Unavailable => Self::unavailable_next(message, next),
            Kind::WrongDigest => Self::wrong_digest_next(message, next),
            Kind::Failed => Self::failed_next(message, next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_in_kubernetes() {
        assert_eq!(["1", "2k", "3Ki", "1Mi", "100Gi"].map(bytes), [1, 2000, 3072, 1 << 20, 100 << 30].map(Ok));
        for text in ["", "0", "Gi", "1.5Gi", "1KB", "-1", "99999999Ti"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}

//! `palisade history`: the story of one resource, in fence order.

use serde::Serialize;

use super::output::{OutputArgs, Style, Tone, one_line, or_dash, pairs, table};
use super::resource::Resource;
use super::{Database, Error, Output};
use crate::store::Entry;

/// Show the story of a resource: grants, applied writes and refused writes, in the order of their fences
///
/// Each token is a grant; below it stand the writes under it, by their number, with what was written or why it was
/// refused. The order is the fences', not the clock's: a write of an old owner stands below its own grant, however late
/// it came. The times are the database's.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  palisade history shop/churn
  palisade history shop/churn --limit 1000 -o json | jq '.entries[] | select(.outcome == \"rejected\")'")]
pub(super) struct Args {
    /// What is owned; NAMESPACE/NAME stands for deployment/NAMESPACE/NAME
    resource: Resource,

    /// The newest so many entries
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,

    #[command(flatten)]
    database: Database,

    #[command(flatten)]
    output: OutputArgs,
}

impl Args {
    pub(super) fn output(&self) -> Output {
        self.output.output
    }
}

/// A resource with its story.
#[derive(Debug, Serialize)]
pub(super) struct Story {
    pub resource: String,
    pub entries: Vec<Entry>,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let Args { resource, limit, database, output } = args;
    let store = database.store("palisade history")?;
    let resource = resource.lease(&store).await?.resource;
    let entries = store.history(&resource, limit.into()).await?;
    let full = entries.len() == limit as usize;
    let story = Story { resource, entries };
    output.show(&story, |style| {
        let mut text = draw(&story, style);
        if full {
            text += &format!("the newest {limit} are shown: --limit shows more\n");
        }
        text
    })
}

/// What a line is about: it decides its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Token,
    Applied,
    Rejected,
}

pub(super) fn draw(story: &Story, style: Style) -> String {
    if story.entries.is_empty() {
        return format!("nothing is recorded of {}: it was cleaned away\n", one_line(&story.resource));
    }
    let mut lines = Vec::new();
    let mut rows = Vec::new();
    let mut token = None;
    for (at, entry) in story.entries.iter().enumerate() {
        if entry.outcome == "granted" {
            lines.push(Line::Token);
            rows.push(granted(entry));
            token = Some(entry.token);
            continue;
        }
        if token != Some(entry.token) {
            // Its grant is older than what is shown, or never was: somebody made the token up.
            lines.push(Line::Token);
            rows.push(heading(entry));
            token = Some(entry.token);
        }
        let last = story.entries.get(at + 1).is_none_or(|next| next.outcome == "granted" || next.token != entry.token);
        lines.push(if entry.outcome == "rejected" { Line::Rejected } else { Line::Applied });
        rows.push(written(entry, last, style));
    }
    let text = table(["TIME", "FENCE", "WHAT", "WORKER", "DETAIL"], rows);
    let mut text = text.lines();
    let mut drawn = style.paint(Tone::Faint, text.next().unwrap_or_default()) + "\n";
    for (line, kind) in text.zip(lines) {
        drawn += &match kind {
            Line::Token => style.paint(Tone::Strong, line),
            Line::Applied => line.replacen('✔', &style.paint(Tone::Good, "✔"), 1),
            Line::Rejected => style.paint(Tone::Bad, line),
        };
        drawn.push('\n');
    }
    drawn
}

fn time(entry: &Entry) -> String {
    format!("{:.3}", entry.at)
}

fn granted(entry: &Entry) -> [String; 5] {
    let worker = entry.worker.clone().unwrap_or_default();
    let reason = entry.reason.clone().unwrap_or_default();
    [time(entry), entry.token.to_string(), entry.kind.clone(), or_dash(one_line(&worker)), one_line(&reason)]
}

fn heading(entry: &Entry) -> [String; 5] {
    let what = if entry.worker.is_some() { "granted earlier" } else { "never granted" };
    [String::new(), entry.token.to_string(), what.to_owned(), String::new(), String::new()]
}

fn written(entry: &Entry, last: bool, style: Style) -> [String; 5] {
    let branch = if last { style.glyph("└─", "`-") } else { style.glyph("├─", "|-") };
    let applied = entry.outcome != "rejected";
    let mark = if applied { style.glyph("✔", "ok") } else { style.glyph("✘", "no") };
    let sequence = entry.sequence.map_or_else(|| "-".to_owned(), |sequence| format!("/{sequence}"));
    let detail = match (&entry.reason, entry.current_token) {
        (Some(reason), Some(newest)) if entry.token != newest => {
            format!("{}: {reason}; the newest token was {newest}", entry.outcome)
        }
        (Some(reason), _) => format!("{}: {reason}", entry.outcome),
        (None, _) => entry.result.as_ref().map(told).unwrap_or_default(),
    };
    let worker = or_dash(one_line(entry.worker.as_deref().unwrap_or_default()));
    [time(entry), format!("{branch} {mark} {sequence}"), one_line(&entry.kind), worker, one_line(&detail)]
}

/// What a write did. Which plan was current then is for its caller, who compares; -o json has it.
fn told(result: &serde_json::Value) -> String {
    let mut result = result.clone();
    if let Some(result) = result.as_object_mut() {
        result.retain(|key, _| key != "plan" && key != "step_age_ms");
    }
    pairs(&result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(token: i64, sequence: Option<i64>, kind: &str, outcome: &str, reason: Option<&str>) -> Entry {
        Entry {
            at: "2026-01-02T03:04:05.678Z".parse().expect("a time"),
            token,
            sequence,
            kind: kind.into(),
            outcome: outcome.into(),
            worker: (token < 9).then(|| "worker-a".into()),
            reason: reason.map(Into::into),
            current_token: reason.map(|_| 8),
            result: (outcome == "applied").then(|| serde_json::json!({"alias": "champion", "version": 2})),
        }
    }

    #[test]
    fn writes_hang_below_their_token_and_a_made_up_token_says_so() {
        let story = Story {
            resource: "deployment/shop/churn".into(),
            entries: vec![
                entry(7, None, "grant", "granted", None),
                entry(7, Some(1), "set_alias", "applied", None),
                entry(7, Some(2), "set_alias", "rejected", Some("stale")),
                entry(8, None, "takeover", "granted", None),
                entry(99, Some(1), "set_alias", "rejected", Some("not_issued")),
            ],
        };
        let fancy = draw(&story, Style { colour: false, unicode: true });
        insta::assert_snapshot!(fancy, @r"
        TIME                      FENCE    WHAT           WORKER    DETAIL
        2026-01-02T03:04:05.678Z  7        grant          worker-a
        2026-01-02T03:04:05.678Z  ├─ ✔ /1  set_alias      worker-a  alias=champion version=2
        2026-01-02T03:04:05.678Z  └─ ✘ /2  set_alias      worker-a  rejected: stale; the newest token was 8
        2026-01-02T03:04:05.678Z  8        takeover       worker-a
                                  99       never granted
        2026-01-02T03:04:05.678Z  └─ ✘ /1  set_alias      -         rejected: not_issued; the newest token was 8
        ");
        let plain = draw(&story, Style { colour: false, unicode: false });
        assert!(plain.is_ascii(), "{plain}");
        assert!(plain.contains("`- no /2"), "{plain}");
    }
}

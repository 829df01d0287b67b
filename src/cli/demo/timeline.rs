//! The story as three lanes, drawn while it happens.

use serde::Serialize;

use crate::cli::Error;
use crate::cli::output::{Style, Tone, print, visible};
use crate::clock::{Clock, Moment};

/// What happened at one moment, by lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Moments {
    /// Milliseconds since the demo began.
    pub at_ms: u64,
    /// Worker A.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub a: Option<String>,
    /// Worker B.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b: Option<String>,
    /// Postgres.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
}

/// How a worker's lane looks where nothing is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It does not run.
    Absent,
    /// It runs.
    Runs,
    /// It is stopped.
    Paused,
}

/// Characters in a lane.
const LANE: usize = 30;

/// Collects the story, and draws it for people.
#[derive(Debug)]
pub(super) struct Timeline {
    clock: Clock,
    began: Moment,
    /// `None`: only collect.
    style: Option<Style>,
    lives: [Life; 2],
    pub moments: Vec<Moments>,
}

impl Timeline {
    pub(super) fn new(clock: Clock, style: Option<Style>) -> Result<Self, Error> {
        let began = clock.now();
        if let Some(style) = style {
            let head = format!("{:>7}  {:<LANE$}{:<LANE$}{}", "time", "  worker A", "  worker B", "  Postgres");
            print(&(style.paint(Tone::Faint, &head) + "\n"))?;
        }
        Ok(Self { clock, began, style, lives: [Life::Absent; 2], moments: Vec::new() })
    }

    pub(super) fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.clock.now().since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn set(&mut self, worker: usize, life: Life) {
        if let Some(slot) = self.lives.get_mut(worker) {
            *slot = life;
        }
    }

    /// Something happened now: what each lane says, or nothing.
    pub(super) fn add(&mut self, a: &str, b: &str, database: &str) -> Result<(), Error> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let moment = Moments { at_ms: self.elapsed_ms(), a: some(a), b: some(b), database: some(database) };
        if let Some(style) = self.style {
            print(&draw(&moment, self.lives, style))?;
        }
        self.moments.push(moment);
        Ok(())
    }
}

fn draw(moment: &Moments, lives: [Life; 2], style: Style) -> String {
    let texts = [&moment.a, &moment.b, &moment.database];
    let lanes = texts.map(|text| wrap(text.as_deref().unwrap_or_default(), LANE - 4));
    let height = lanes.iter().map(Vec::len).max().unwrap_or(0);
    let mut drawn = String::new();
    for row in 0..height {
        let mut line = if row == 0 {
            // Milliseconds would promise more than a story needs.
            format!("{:>5}.{:02}s  ", moment.at_ms / 1000, moment.at_ms % 1000 / 10)
        } else {
            " ".repeat(11)
        };
        line.truncate(11);
        for (lane, lines) in lanes.iter().enumerate() {
            let said = lines.get(row);
            let mark = match (said.is_some() && row == 0, lives.get(lane)) {
                (true, _) => style.glyph("●", "*"),
                (false, Some(Life::Runs)) => style.glyph("│", "|"),
                (false, Some(Life::Paused)) => style.glyph("┊", ":"),
                (false, _) => " ",
            };
            let text = visible(said.map_or("", String::as_str));
            line += &format!("{mark} {text:<width$}", width = LANE - 2);
        }
        let line = line.trim_end();
        drawn += &paint(line, style);
        drawn.push('\n');
    }
    drawn
}

/// The word that the story is about, in its colour. Behind the padding: colours have no width.
fn paint(line: &str, style: Style) -> String {
    line.replacen("rejected", &style.paint(Tone::Bad, "rejected"), 1)
        .replacen("overwritten", &style.paint(Tone::Bad, "overwritten"), 1)
        .replacen("applied", &style.paint(Tone::Good, "applied"), 1)
}

/// Lines of at most `width` characters, broken between words; a longer word is broken too.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        for piece in word.chars().collect::<Vec<_>>().chunks(width) {
            let piece: String = piece.iter().collect();
            match lines.last_mut() {
                Some(line) if line.chars().count() + 1 + piece.chars().count() <= width => {
                    line.push(' ');
                    line.push_str(&piece);
                }
                _ => lines.push(piece),
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_stay_apart_and_a_paused_worker_is_seen_to_be() {
        let moment = Moments {
            at_ms: 2345,
            a: None,
            b: Some("takes over".into()),
            database: Some("A is silent: grants token 4294967298, which is newer".into()),
        };
        let text = draw(&moment, [Life::Paused, Life::Runs], Style { colour: false, unicode: false });
        insta::assert_snapshot!(text, @r"
            2.34s  :                             * takes over                  * A is silent: grants token
                   :                             |                               4294967298, which is newer
        ");
    }

    #[test]
    fn a_word_longer_than_its_lane_is_broken() {
        assert_eq!(wrap("ab abcdefgh c", 3), ["ab", "abc", "def", "gh", "c"].map(String::from));
    }
}

//! What comes out of a run: JSON, a table for people, and the blocks of docs/performance.md.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::{Deserialize, Serialize};

use crate::harness::{Row, number, verdict};
use crate::machine::Machine;

#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub machine: Machine,
    pub quick: bool,
    pub rows: Vec<Row>,
}

const HEAD: [&str; 8] = ["what", "clients", "value", "p50, p99", "CPU each", "WAL each", "ratio", "target"];

/// A row's cells; of several ratios each has a line of its own.
fn cells(row: &Row, between: &str) -> [String; 8] {
    let ratios = row.ratios.iter().map(|r| format!("{} of {}", number(r.value), r.to));
    let own = row.target.iter().map(|target| format!("{} {}", target.word(), verdict(row.met)));
    let targets = row
        .ratios
        .iter()
        .map(|r| r.target.map_or_else(|| "·".to_owned(), |target| format!("{} {}", target.word(), verdict(r.met))));
    [
        row.what.clone(),
        row.clients.map(|n| n.to_string()).unwrap_or_default(),
        format!("{} {}", number(row.value), row.unit),
        row.p50_ms.zip(row.p99_ms).map(|(a, b)| format!("{}, {} ms", number(a), number(b))).unwrap_or_default(),
        row.cpu_us.map(|micros| format!("{} µs", number(micros))).unwrap_or_default(),
        row.wal_bytes.map(|bytes| format!("{} B", number(bytes))).unwrap_or_default(),
        ratios.collect::<Vec<_>>().join(between),
        own.chain(targets).collect::<Vec<_>>().join(between),
    ]
}

impl Report {
    fn subjects(&self) -> Vec<&str> {
        let mut subjects: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !subjects.contains(&row.subject.as_str()) {
                subjects.push(&row.subject);
            }
        }
        subjects
    }

    fn of<'a>(&'a self, subject: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.subject == subject)
    }

    pub fn print(&self) {
        println!("{}", self.machine.line());
        for subject in self.subjects() {
            let mut table = Table::new();
            table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
            table.set_header(HEAD);
            for row in self.of(subject) {
                table.add_row(cells(row, "\n"));
            }
            for column in [1, 2, 3, 4, 5] {
                if let Some(column) = table.column_mut(column) {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
            println!("\n{subject}\n{table}");
        }
        let targets =
            self.rows.iter().flat_map(|row| row.met.into_iter().chain(row.ratios.iter().filter_map(|r| r.met)));
        let (met, missed): (Vec<bool>, Vec<bool>) = targets.partition(|met| *met);
        println!("\nTargets met: {}, missed: {}", met.len(), missed.len());
        for row in self.rows.iter().filter(|row| row.missed()) {
            println!("  missed: {}", cells(row, "; ").join("  "));
        }
    }

    /// The block of each measured subject in a page, between its two markers.
    pub fn update(&self, page: &Path) -> Result<(), String> {
        if self.quick {
            return Err("--update-docs needs full rounds: leave --quick out".into());
        }
        let mut text = fs::read_to_string(page).map_err(|e| format!("{}: {e}", page.display()))?;
        for subject in self.subjects() {
            let (begin, end) = (format!("<!-- bench {subject} begin -->"), format!("<!-- bench {subject} end -->"));
            let place = text.find(&begin).zip(text.find(&end));
            let Some((from, to)) = place.filter(|(from, to)| from < to) else {
                return Err(format!(
                    "{} has no lines {begin} and {end}: add them where the table belongs",
                    page.display()
                ));
            };
            text = format!("{}{begin}\n{}{}", &text[..from], self.markdown(subject), &text[to..]);
        }
        fs::write(page, text).map_err(|e| format!("{}: {e}", page.display()))
    }

    fn markdown(&self, subject: &str) -> String {
        let rows: Vec<_> = self.of(subject).map(|row| cells(row, "<br>")).collect();
        // A column in which nothing stands is left out.
        let used: Vec<usize> = (0..HEAD.len()).filter(|&i| rows.iter().any(|row| !row[i].is_empty())).collect();
        let mut text = format!("{}\n\n", self.machine.line());
        let mut line = |cells: &dyn Fn(usize) -> String| {
            let cells: Vec<String> = used.iter().map(|&i| cells(i)).collect();
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        };
        line(&|i| HEAD[i].to_owned());
        line(&|i| if (1..6).contains(&i) { "---:".into() } else { "---".into() });
        for row in &rows {
            line(&|i| row[i].replace("MISSED", "**missed**"));
        }
        text
    }
}

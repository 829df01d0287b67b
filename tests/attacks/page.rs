//! The tables of docs/security.md, made from the attacks. `UPDATE_GOLDEN=1` writes them.

use std::fmt::Write;
use std::path::Path;

use super::claims::{self, UNCLAIMED};
use super::cluster::{Kind, role};
use super::database::{Arena, By};
use super::expect::Expect;
use super::matrix::{self, matrix};
use super::others::others;
use super::rights::{CONTROLLER, CONTROLLER_AT_HOME, WORKER};
use super::ways::WAYS;

const PAGE: &str = "docs/security.md";
const BEGIN: &str =
    "<!-- attacks: begin (written by UPDATE_GOLDEN=1 cargo test --features failpoints --test attacks page) -->";
const END: &str = "<!-- attacks: end -->";

/// How many attacks of a subject end how.
#[derive(Default)]
struct Count {
    refused: usize,
    harmless: usize,
    limited: usize,
}

impl Count {
    fn of(outcomes: impl Iterator<Item = Expect>) -> Count {
        let mut count = Count::default();
        for outcome in outcomes {
            match outcome {
                Expect::Refused(_) => count.refused += 1,
                Expect::Harmless(_) => count.harmless += 1,
                Expect::Limited(_) => count.limited += 1,
            }
        }
        count
    }

    fn row(&self, subject: &str) -> String {
        let Count { refused, harmless, limited } = self;
        format!("| {subject} | {} | {refused} | {harmless} | {limited} |\n", refused + harmless + limited)
    }

    fn add(&mut self, other: &Count) {
        self.refused += other.refused;
        self.harmless += other.harmless;
        self.limited += other.limited;
    }
}

/// One cell: no pipe and no line break in it.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn row(name: &str, expect: Expect) -> String {
    let (name, word) = (cell(name), expect.word());
    match expect {
        Expect::Refused(parts) => format!("| {name} | {word} | {} |\n", said(parts)),
        Expect::Harmless(why) | Expect::Limited(why) => format!("| {name} | **{word}** | {} |\n", cell(why)),
    }
}

/// What a refusal says, or its SQLSTATE.
fn said(parts: &str) -> String {
    let quoted: Vec<_> = parts.split('|').map(|part| format!("`{}`", part.trim())).collect();
    quoted.join(" or ")
}

fn rights(rules: &[(&str, &[&str])], whose: &str) -> String {
    let line = |(what, verbs): &(&str, &[&str])| {
        format!("| {whose} | `{}` | {} |\n", what.trim_start_matches('/'), verbs.join(", "))
    };
    rules.iter().map(line).collect()
}

fn in_the_cluster(page: &mut String) {
    page.push_str("### What the accounts hold\n\n| account | resource | verbs |\n|---|---|---|\n");
    page.push_str(&rights(WORKER, "worker"));
    page.push_str(&rights(CONTROLLER, "controller"));
    page.push_str(&rights(
        CONTROLLER_AT_HOME,
        "controller, in Palisade's namespace; besides `get` and `update` of `palisade-epoch`",
    ));
    page.push_str("\n### A false fence, by every verb that the worker's Role holds\n\n");
    page.push_str("Each of these marks goes with each way to write, on a Deployment and on a Service that a newer owner wrote:\n\n");
    page.push_str("| what the write says | refused with |\n|---|---|\n");
    for mark in matrix::marks() {
        let _ = writeln!(page, "| {} | {} |", mark.name, said(mark.says()));
    }
    page.push_str("\n| kind | verb | ways |\n|---|---|---|\n");
    for kind in Kind::ALL {
        for (group, resource, verbs) in role() {
            if (group.as_str(), resource.as_str()) != kind.named() {
                continue;
            }
            for verb in verbs {
                let ways = matrix::ways(&verb).unwrap_or_default();
                if !ways.is_empty() {
                    let _ = writeln!(page, "| {resource} | {verb} | {} |", ways.join("; "));
                }
            }
        }
    }
    for kind in Kind::ALL {
        let changes: Vec<_> = matrix::changes(kind).iter().map(|(what, _)| *what).collect();
        let _ = write!(page, "\nOf {} they change: {}.", kind.named().1, changes.join(", "));
    }
    page.push('\n');
    for (subject, attacks) in others("NAMESPACE") {
        let _ = write!(page, "\n### {subject}\n\n| what is tried | it is | by, or why |\n|---|---|---|\n");
        attacks.iter().for_each(|attack| page.push_str(&row(&attack.name, attack.expect)));
    }
}

fn in_the_database(page: &mut String, arena: &Arena) {
    let (fences, sessions) = claims::names(arena);
    page.push_str("\n### Claims that are not the caller's, to every function that takes one\n\n");
    page.push_str("| fence | the gate says |\n|---|---|\n");
    for (name, reason) in fences {
        let _ = writeln!(page, "| {name} | {} |", said(reason));
    }
    page.push_str("\n| session | the function says |\n|---|---|\n");
    for (name, reason) in sessions {
        let _ = writeln!(page, "| {name} | {} |", said(reason));
    }
    page.push_str("\nFunctions that take neither:\n\n| function | why nobody gets around a fence by it |\n|---|---|\n");
    for (name, why) in UNCLAIMED {
        let _ = writeln!(page, "| `{name}` | {why} |");
    }
    for (subject, ways) in WAYS {
        let _ = write!(page, "\n### {subject}\n\n| what is tried | it is | by, or why |\n|---|---|---|\n",);
        ways.iter().for_each(|way| page.push_str(&row(way.name, way.expect)));
    }
}

fn counts(claims: Count) -> String {
    let mut text = "| subject | attacks | refused | harmless | limited by rights |\n|---|---|---|---|---|\n".to_owned();
    let mut total = Count::default();
    let mut add = |subject: &str, count: Count| {
        text.push_str(&count.row(subject));
        total.add(&count);
    };
    for kind in Kind::ALL {
        let (all, _) = matrix("NAMESPACE");
        let of_kind = all.iter().filter(|attack| attack.name.starts_with(&format!("{kind:?}:")));
        let subject = format!("cluster: a false fence on {}, generated from the Role", kind.named().1);
        add(&subject, Count::of(of_kind.map(|attack| attack.expect)));
    }
    for (subject, attacks) in others("NAMESPACE") {
        add(&format!("cluster: {subject}"), Count::of(attacks.iter().map(|attack| attack.expect)));
    }
    add("database: claims, generated from the catalogue", claims);
    for (subject, ways) in WAYS {
        add(&format!("database: {subject}"), Count::of(ways.iter().map(|way| way.expect)));
    }
    text.push_str(&total.row("**all**"));
    text
}

#[tokio::test]
async fn the_page_has_every_attack_with_what_becomes_of_it() {
    let mut arena = Arena::new().await;
    let mut claims = Count::default();
    for by in [By::Worker, By::Controller] {
        let (refused, harmless) = claims::planned(&mut arena, by).await;
        claims.add(&Count { refused, harmless, limited: 0 });
    }
    let mut tables = counts(claims);
    tables.push_str("\n## The attacks in the cluster\n\n");
    in_the_cluster(&mut tables);
    tables.push_str("\n## The attacks in the database\n");
    in_the_database(&mut tables, &arena);

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(&path).expect("the page");
    let (before, rest) = page.split_once(BEGIN).expect("where the tables begin");
    let (now, after) = rest.split_once(END).expect("where they end");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let whole = format!("{before}{BEGIN}\n\n{tables}\n{END}{after}");
        std::fs::write(&path, whole).expect("written");
    } else {
        assert_eq!(now.trim(), tables.trim(), "{PAGE} is not what the attacks say: UPDATE_GOLDEN=1");
    }
}

//! What the pages say of the code is held against the code: the map names every file, an invariant's test exists, a link
//! leads somewhere, the metrics and fields that are documented are those that there are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules that are called pure in ARCHITECTURE.md: they know neither the cluster's client, nor SQL, nor a runtime.
const PURE: &[&str] = &[
    "src/lease/fence.rs",
    "src/lease/term.rs",
    "src/outcome.rs",
    "src/plan.rs",
    "src/reconcile/validate.rs",
    "src/reconcile/decide.rs",
    "src/reconcile/status.rs",
    "src/worker/objects.rs",
    "src/epoch/step.rs",
    "src/fetch/source.rs",
    "src/fetch/answer.rs",
    "src/doctor/finding.rs",
    "src/doctor/facts.rs",
    "src/doctor/database.rs",
    "src/doctor/logins.rs",
    "src/doctor/activity.rs",
    "src/doctor/cluster.rs",
    "src/doctor/policies.rs",
    "src/doctor/rights.rs",
    "src/doctor/configuration.rs",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files below a folder with this ending, as paths from the root.
fn files(folder: &str, ending: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                let path = path.strip_prefix(root()).expect("below the root");
                found.insert(path.to_string_lossy().into_owned());
            }
        }
    }
    found
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn pages() -> Vec<String> {
    let top = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(str::to_owned);
    top.into_iter().chain(files("docs", ".md")).collect()
}

#[test]
fn the_map_names_every_source_file() {
    let page = read("ARCHITECTURE.md");
    let named: BTreeSet<&str> = quoted(&page).collect();
    // A folder that is named as a whole stands for its files; tests beside the code belong to it.
    let covered = |file: &str| {
        file.ends_with("tests.rs")
            || named.contains(file)
            || named.iter().any(|name| name.ends_with('/') && file.starts_with(name))
    };
    let all = files("src", ".rs")
        .into_iter()
        .chain(files("migrations", ".sql"))
        .chain(files("charts/palisade/files", ".yaml"));
    let missing: Vec<_> = all.filter(|file| !covered(file)).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md has no line for {missing:?}");
    let ours = named.iter().filter(|name| name.starts_with("src/") || name.starts_with("migrations/"));
    let gone: Vec<_> = ours.filter(|name| !root().join(name).exists()).collect();
    assert!(gone.is_empty(), "ARCHITECTURE.md names {gone:?}, which are not there");
}

#[test]
fn every_invariant_names_a_test_that_exists() {
    let page = read("ARCHITECTURE.md");
    let sources: String =
        files("src", ".rs").into_iter().chain(files("tests", ".rs")).map(|file| read(&file)).collect();
    let paragraphs: Vec<_> = page.split("\n\n").filter(|text| text.starts_with("Architecture Invariant:")).collect();
    assert!(paragraphs.len() > 20, "only {} invariants were found", paragraphs.len());
    let mut problems = Vec::new();
    for paragraph in paragraphs {
        let held = paragraph.split("Held by").nth(1).unwrap_or("");
        let named: Vec<_> = quoted(held).collect();
        if named.is_empty() && !paragraph.contains("the compiler holds it") {
            problems.push(format!("nothing holds: {paragraph}"));
        }
        let tests = named.iter().filter(|name| name.contains('_') && !name.contains(['/', '.', ' ']));
        // A test is a function, or a line of the macro that makes the policies' tests.
        let missing = tests
            .filter(|name| !sources.contains(&format!("fn {name}(")) && !sources.contains(&format!("\n    {name}: ")));
        problems.extend(missing.map(|name| format!("there is no test {name}")));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn pure_modules_import_neither_kube_nor_sqlx_nor_tokio() {
    for file in PURE {
        let text = read(file);
        let code = text.split("#[cfg(test)]").next().unwrap_or(&text);
        for line in code.lines().map(str::trim_start).filter(|line| !line.starts_with("//")) {
            for library in ["kube::", "sqlx::", "tokio::", "tokio_util::"] {
                assert!(!line.contains(library), "{file} is called pure, and says: {line}");
            }
        }
        assert!(read("ARCHITECTURE.md").lines().any(|line| line.contains(file) && line.contains("(pure)")), "{file}");
    }
}

/// GitHub's anchor of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || "- _".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_of_the_pages_leads_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = read(&page);
        let folder = Path::new(&page).parent().unwrap_or(Path::new("")).to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (path, heading) = link.split_once('#').map_or((link, None), |(path, heading)| (path, Some(heading)));
            let target = if path.is_empty() { PathBuf::from(&page) } else { folder.join(path) };
            let there = root().join(&target).exists();
            let found = heading.is_none_or(|heading| {
                let text = fs::read_to_string(root().join(&target)).unwrap_or_default();
                text.lines().any(|line| line.starts_with('#') && anchor(line.trim_start_matches('#')) == heading)
            });
            if !there || !found {
                broken.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "these links lead nowhere: {broken:?}");
}

#[test]
fn the_metrics_that_are_documented_are_those_that_there_are() {
    // From the source: what was not counted yet is not printed.
    let source: String = files("src/metrics", ".rs").iter().map(|file| read(file)).collect();
    let registered = source.split("add(").skip(1).filter(|rest| rest.trim_start().starts_with("r,"));
    let there: BTreeSet<String> =
        registered.filter_map(|rest| Some(format!("palisade_{}", rest.split('"').nth(1)?))).collect();
    let page = read("docs/operations.md");
    let table =
        page.split("## Metrics").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("a table of metrics");
    let documented: BTreeSet<String> = quoted(table)
        .filter(|name| name.starts_with("palisade_"))
        .map(|name| name.split('{').next().unwrap_or(name).trim_end_matches("_total").to_owned())
        .collect();
    assert_eq!(there, documented);
}

#[test]
fn every_field_of_a_spec_is_documented() {
    fn fields(schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        let Some(properties) = schema["properties"].as_object().filter(|_| path != "template") else {
            return found.push(path.to_owned());
        };
        for (name, schema) in properties {
            fields(schema, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, found);
        }
    }
    let crd = serde_json::to_value(palisade::crd::definition()).expect("JSON");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let page = read("docs/modeldeployment.md");
    let rows: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let mut spec = Vec::new();
    fields(&schema["spec"], "", &mut spec);
    let status = schema["status"]["properties"].as_object().expect("a status").keys().cloned();
    let missing: Vec<_> = spec.into_iter().chain(status).filter(|field| !rows.contains(field.as_str())).collect();
    assert!(missing.is_empty(), "docs/modeldeployment.md has no row for {missing:?}");
}

#[test]
fn the_examples_are_modeldeployments_without_a_mistake() {
    let examples = files("examples", ".yaml");
    assert!(examples.len() > 1, "{examples:?}");
    for file in examples {
        let object: palisade::crd::ModelDeployment =
            serde_yaml::from_str(&read(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let problems = palisade::reconcile::validate::validate(&object);
        assert!(problems.is_empty(), "{file}: {problems:?}");
    }
}

#[test]
fn every_word_that_a_condition_can_have_as_its_reason_is_documented() {
    let page = read("docs/modeldeployment.md");
    let documented: BTreeSet<&str> = quoted(&page).collect();
    let mut missing = BTreeSet::new();
    for file in files("src/reconcile", ".rs").into_iter().chain(["src/plan.rs".to_owned()]) {
        // The reasons are constants: pub const NOT_READY: &str = "NotReady";
        for line in read(&file)
            .lines()
            .filter(|line| line.trim_start().starts_with("pub const") && line.contains(": &str = \""))
        {
            let word = line.split('"').nth(1).unwrap_or_default().to_owned();
            if word.starts_with(char::is_uppercase) && !documented.contains(word.as_str()) {
                missing.insert(word);
            }
        }
    }
    assert!(missing.is_empty(), "docs/modeldeployment.md does not explain {missing:?}");
}

#[test]
fn every_finding_of_the_doctor_is_documented_and_produced_in_a_test() {
    let is_name = |text: &&str| {
        let (area, name) = text.split_once('/').unwrap_or_default();
        ["database", "cluster", "configuration"].contains(&area)
            && !name.is_empty()
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    let literals = |folder: &str| -> BTreeSet<String> {
        let text: String = files(folder, ".rs").iter().map(|file| read(file)).collect();
        text.split('"').filter(is_name).map(str::to_owned).collect()
    };
    let there = literals("src/doctor");
    assert!(there.len() > 70, "only {} were found", there.len());
    let page = read("docs/doctor.md");
    let documented: BTreeSet<String> = quoted(&page).filter(is_name).map(str::to_owned).collect();
    assert_eq!(there, documented, "src/doctor and docs/doctor.md");
    // A test names a finding where it asserts that it was made.
    let produced = literals("tests/doctor");
    let never: Vec<_> = there.difference(&produced).collect();
    assert!(never.is_empty(), "no test in tests/doctor produces {never:?}");
}

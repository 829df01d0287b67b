//! The chart's README is made of values.yaml: what stands above a value is its description.

use std::{env, fs};

use serde_json::Value;

use crate::support::helm::chart;

#[derive(Debug)]
struct Row {
    path: Vec<String>,
    description: String,
}

/// The values that have a description, in the order of the file.
fn described(text: &str) -> Vec<Row> {
    let (mut rows, mut parents, mut words): (Vec<Row>, Vec<(usize, String)>, Option<String>) =
        (Vec::new(), Vec::new(), None);
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if let Some(first) = line.strip_prefix("# -- ") {
            words = Some(first.to_owned());
        } else if let (Some(words), Some(more)) = (&mut words, line.strip_prefix("# ")) {
            *words += " ";
            *words += more;
        } else if let Some((key, _)) = line.split_once(':').filter(|_| !line.starts_with(['#', '-'])) {
            parents.retain(|(depth, _)| *depth < indent);
            parents.push((indent, key.to_owned()));
            let path = parents.iter().map(|(_, key)| key.clone()).collect();
            rows.extend(words.take().map(|description| Row { path, description }));
        }
    }
    rows
}

/// Paths to the values themselves: not into lists, and not into what is described as a whole.
fn leaves(value: &Value, path: &[String], rows: &[Row], found: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(map) if !map.is_empty() && !rows.iter().any(|row| row.path == path) => {
            for (key, value) in map {
                leaves(value, &[path, std::slice::from_ref(key)].concat(), rows, found);
            }
        }
        _ => found.push(path.to_vec()),
    }
}

fn readme(rows: &[Row], values: &Value) -> String {
    let mut text = String::from(
        "# Palisade's Helm chart

Controller, workers, admission policies, accounts with their rights, the CRD, and a Job that migrates the database. What to do on
the first day, step by step: [docs/install.md](../../docs/install.md).

```sh
helm install palisade charts/palisade --namespace palisade-system --create-namespace --wait --timeout 10m \\
  --set image.repository=registry.example/palisade,image.tag=0.1.0 --set database.existingSecret=palisade-database
helm test palisade --namespace palisade-system
```

No image is published: docs/install.md says how to build and push it. It needs Helm 3.18 or newer, Kubernetes 1.33 or newer, and Postgres 15 or newer. The values below are checked: one that is misspelled or
cannot be meant is refused before anything is installed.

| value | default | what it is |
|---|---|---|
",
    );
    for Row { path, description } in rows {
        let value = path.iter().fold(values, |value, key| &value[key]);
        let shown = value.to_string().replace('|', "\\\\|");
        text += &format!("| `{}` | `{shown}` | {} |\n", path.join("."), description.replace('|', "\\\\|"));
    }
    text + "\nThis page is made of `values.yaml`: `UPDATE_GOLDEN=1 cargo test --features failpoints --test chart readme`.\n"
}

#[test]
fn the_readme_describes_every_value_with_its_default() {
    let text = fs::read_to_string(chart().join("values.yaml")).expect("values.yaml");
    let values: Value = serde_yaml::from_str(&text).expect("YAML");
    let rows = described(&text);
    let mut found = Vec::new();
    leaves(&values, &[], &rows, &mut found);
    let missing: Vec<_> = found.iter().filter(|path| !rows.iter().any(|row| row.path == **path)).collect();
    assert!(missing.is_empty(), "these values have no description: {missing:?}");
    let path = chart().join("README.md");
    let text = readme(&rows, &values);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).expect("written");
    }
    assert!(fs::read_to_string(&path).unwrap_or_default() == text, "README.md is not of these values: UPDATE_GOLDEN=1");
}

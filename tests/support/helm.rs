//! Helm and the chart. `hack/helm.sh` builds helm where it is not in the cache.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The folder of the chart.
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/palisade")
}

/// What a run of helm left.
#[derive(Debug)]
pub struct Ran {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// Runs helm, with a home of its own: nobody's plugins and repositories are looked at.
pub fn helm(args: &[&str]) -> Ran {
    command(args).output().expect("helm can be run").into()
}

/// The same, at a cluster.
pub fn helm_at(kubeconfig: &Path, args: &[&str]) -> Ran {
    command(args).arg("--kubeconfig").arg(kubeconfig).output().expect("helm can be run").into()
}

fn command(args: &[&str]) -> Command {
    static HELM: OnceLock<(PathBuf, tempfile::TempDir)> = OnceLock::new();
    let (path, home) = HELM.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("hack/helm.sh");
        let output = Command::new(script).stdin(Stdio::null()).stderr(Stdio::inherit()).output().expect("hack/helm.sh");
        assert!(output.status.success(), "hack/helm.sh failed");
        let path = String::from_utf8(output.stdout).expect("UTF-8").trim().into();
        (path, tempfile::tempdir().expect("a folder"))
    });
    let mut command = Command::new(path);
    command.args(args).stdin(Stdio::null());
    for (variable, folder) in
        [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data"), ("HOME", "home")]
    {
        command.env(variable, home.path().join(folder));
    }
    command
}

/// `helm template` of the chart, with `--set`s and other arguments.
pub fn template(release: &str, namespace: &str, args: &[&str]) -> Ran {
    let chart = chart();
    let chart = chart.to_str().expect("UTF-8");
    helm(&[&["template", release, chart, "--namespace", namespace], args].concat())
}

/// The objects of a rendering that must succeed.
pub fn objects(release: &str, namespace: &str, args: &[&str]) -> Vec<Value> {
    let ran = template(release, namespace, args);
    assert!(ran.ok, "{args:?}: {}", ran.err);
    documents(&ran.out)
}

pub fn documents(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text)
        .map(|document| serde::Deserialize::deserialize(document).unwrap_or_else(|e| panic!("{e}: {text}")))
        .filter(|document: &Value| !document.is_null())
        .collect()
}

/// `KIND NAMESPACE/NAME`.
pub fn name_of(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    format!("{} {}/{}", text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
}

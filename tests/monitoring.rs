//! What the chart brings for people who watch: alerts, by promtool; the dashboard, by a real Prometheus that scrapes the
//! real `/metrics`.

mod support;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use palisade::clock::Clock;
use palisade::epoch;
use palisade::http::{self, Probes, Readiness};
use palisade::lease::Ended;
use palisade::metrics::{Metrics, ResultLabel};
use palisade::outcome::{Outcome, Reason, Rejection};
use palisade::reconcile::status::Standing;
use palisade::store::{Figures, Kind, Size};
use serde_json::Value;
use support::{cluster, helm};
use tokio_util::sync::CancellationToken;

const ALERTS: &str = include_str!("../charts/palisade/files/alerts.yaml");
const DASHBOARD: &str = include_str!("../charts/palisade/files/dashboard.json");
const STORIES: &str = include_str!("monitoring/alerts.yaml");
const DOCS: &str = include_str!("../docs/alerts.md");

/// A program of Prometheus.
fn program(name: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("hack/prometheus.sh");
    let output = Command::new(script).stderr(Stdio::inherit()).output().expect("the script runs");
    assert!(output.status.success(), "no Prometheus: see above");
    Path::new(String::from_utf8_lossy(&output.stdout).trim()).join(name)
}

fn alerts() -> Vec<serde_yaml::Value> {
    let file: serde_yaml::Value = serde_yaml::from_str(ALERTS).expect("YAML");
    file["groups"][0]["rules"].as_sequence().expect("rules").clone()
}

/// Each query of the dashboard, with Grafana's variables filled in.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(|target| (panel["title"].clone(), target["expr"].clone()))
    });
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    targets
        .map(|(title, expr)| (text(&title), text(&expr).replace("$__rate_interval", "1m").replace("$namespace", ".*")))
        .collect()
}

#[test]
fn each_alert_fires_in_its_story_and_not_before() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("alerts-under-test.yaml"), ALERTS).expect("written");
    std::fs::write(dir.path().join("stories.yaml"), STORIES).expect("written");
    let output = Command::new(program("promtool"))
        .args(["test", "rules", "stories.yaml"])
        .current_dir(dir.path())
        .output()
        .expect("promtool runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn each_alert_has_a_story_in_which_it_fires_one_moment_in_which_it_does_not_and_a_page() {
    let stories: serde_yaml::Value = serde_yaml::from_str(STORIES).expect("YAML");
    let (mut fires, mut rests) = (BTreeSet::new(), BTreeSet::new());
    for story in stories["tests"].as_sequence().expect("stories") {
        for moment in story["alert_rule_test"].as_sequence().expect("moments") {
            let name = moment["alertname"].as_str().expect("a name").to_owned();
            let expected = moment["exp_alerts"].as_sequence().expect("expectations");
            if expected.is_empty() {
                rests.insert(name)
            } else {
                fires.insert(name)
            };
        }
    }
    for alert in alerts() {
        let name = alert["alert"].as_str().expect("a name");
        assert!(fires.contains(name) && rests.contains(name), "{name} has no story");
        assert!(DOCS.contains(&format!("\n## {name}\n")), "{name} is not in docs/alerts.md");
        let runbook = alert["annotations"]["runbook"].as_str();
        assert_eq!(runbook, Some(&*format!("docs/alerts.md#{}", name.to_lowercase())));
    }
}

/// One of everything, so that each metric has a value.
fn live(metrics: &Arc<Metrics>) {
    let observer = metrics.observer(Duration::from_secs(10));
    let refused = Outcome::Rejected(Rejection { reason: Reason::Stale, current: None, detail: None });
    for takeover in [false, true] {
        observer.granted(takeover);
        observer.heartbeat(takeover, Duration::from_millis(3), Duration::from_secs(3));
    }
    for outcome in [Outcome::Unknown("late".into()), refused] {
        observer.wrote("set_alias", &outcome);
        metrics.cluster_wrote("apply", &outcome);
    }
    observer.ended(&Ended::Overdue { by: Duration::from_secs(1) });
    for result in [ResultLabel::Ok, ResultLabel::Error] {
        metrics.step("ready", result, Duration::from_secs(2));
        metrics.reconciled(result, Duration::from_millis(5));
    }
    metrics.surveyed();
    metrics.leads(true);
    metrics.epoch(Some(3), true);
    metrics.epoch_attention(Some(epoch::Cause::LostBranch));
    metrics.figures(&Figures { queue_depth: 7, ..Figures::default() });
    metrics.registry_refused(&[(Reason::NotIssued, 1)]);
    metrics.removed(Kind::Ledger, 3);
    metrics.sizes(&[Size { table: "event".into(), bytes: 8192 }]);
    metrics.standings(Standing::ALL.map(|standing| (standing, 2, Duration::from_secs(9))));
}

struct Prometheus {
    process: std::process::Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    /// One that scrapes this address every second.
    fn start(target: SocketAddr) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let config = format!(
            "scrape_configs:\n- job_name: palisade\n  scrape_interval: 1s\n  static_configs:\n  - targets: ['{target}']\n    labels: {{namespace: p, pod: a}}\n"
        );
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("prometheus.yml"), config).expect("written");
        let mut process = Command::new(program("prometheus"))
            .args([
                format!("--config.file={}", path("prometheus.yml")),
                format!("--storage.tsdb.path={}", path("data")),
                "--web.listen-address=127.0.0.1:0".to_owned(),
            ])
            .stderr(std::fs::File::create(path("log")).expect("a file"))
            .spawn()
            .expect("prometheus runs");
        let began = std::time::Instant::now();
        let address = loop {
            let log = std::fs::read_to_string(path("log")).expect("a log");
            let line = log.lines().find(|line| line.contains("Listening on") && line.contains("address="));
            if let Some(address) = line.and_then(|line| line.split("address=").nth(1)?.split_whitespace().next()) {
                break address.to_owned();
            }
            let ended = process.try_wait().expect("a child");
            assert!(
                ended.is_none() && began.elapsed() < Duration::from_secs(60),
                "it does not listen: {ended:?}\n{log}"
            );
            std::thread::sleep(Duration::from_millis(50));
        };
        Self { process, url: format!("http://{address}"), _dir: dir }
    }

    /// What it answers; an error is its error.
    fn ask(&self, query: &str) -> Result<String, String> {
        let output = Command::new(program("promtool"))
            .args(["query", "instant", &self.url, query])
            .output()
            .expect("promtool runs");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_query_of_the_dashboard_and_each_metric_of_an_alert_is_answered_by_the_real_metrics() {
    let (metrics, stop) = (Arc::new(Metrics::new()), CancellationToken::new());
    let pulse = http::Pulse::new(Clock::system());
    let probes = Probes { watchdog: pulse.watchdog(), readiness: Readiness::default(), metrics: Arc::clone(&metrics) };
    let server = http::serve((Ipv4Addr::LOCALHOST, 0).into(), probes, stop.clone()).await.expect("it listens");
    let counting = tokio::spawn({
        let metrics = Arc::clone(&metrics);
        async move {
            loop {
                live(&metrics);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    });
    let address = server.address;
    tokio::task::spawn_blocking(move || {
        let prometheus = Prometheus::start(address);
        let alerts = alerts().into_iter().map(|alert| {
            let text = |key: &str| alert[key].as_str().expect("a text").to_owned();
            // Whether the condition holds is promtool's business; here, whether there is anything it could hold for.
            let expr = text("expr");
            let expr = expr.split(" unless ").next().unwrap_or(&expr);
            let end = expr.rfind([')', '}']).expect("a selector") + 1;
            (text("alert"), expr[..end].to_owned())
        });
        for (title, query) in queries().into_iter().chain(alerts) {
            let began = std::time::Instant::now();
            loop {
                match prometheus.ask(&query) {
                    Ok(answer) if !answer.is_empty() => break,
                    answer if began.elapsed() > Duration::from_secs(60) => {
                        panic!("{title}: {query}: no series in 60 s: {answer:?}")
                    }
                    _ => std::thread::sleep(Duration::from_millis(200)),
                }
            }
        }
    })
    .await
    .expect("all were answered");
    counting.abort();
    stop.cancel();
}

#[test]
fn each_metric_is_on_the_dashboard_or_in_an_alert() {
    let metrics = Arc::new(Metrics::new());
    live(&metrics);
    let text = metrics.print();
    let shown = queries().into_iter().map(|(_, query)| query).collect::<String>() + ALERTS;
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(shown.contains(name), "{name} is shown nowhere");
    }
}

const ALL: [&str; 10] = [
    "--set",
    "database.existingSecret=db",
    "--set",
    "monitoring.podMonitor.enabled=true",
    "--set",
    "monitoring.prometheusRule.enabled=true",
    "--set",
    "monitoring.dashboard.enabled=true",
    "--set",
    "monitoring.labels.release=prometheus",
];

fn rendered(kind: &str) -> Vec<Value> {
    helm::objects("palisade", "palisade-system", &ALL).into_iter().filter(|object| object["kind"] == kind).collect()
}

#[test]
fn the_podmonitor_selects_the_pods_of_both_deployments_and_names_a_port_that_they_have() {
    let monitor = &rendered("PodMonitor")[0]["spec"];
    let port = &monitor["podMetricsEndpoints"][0]["port"];
    let labels = monitor["selector"]["matchLabels"].as_object().expect("labels");
    let components = monitor["selector"]["matchExpressions"][0]["values"].as_array().expect("components");
    let deployments = rendered("Deployment");
    assert_eq!(deployments.len(), 2);
    for deployment in deployments {
        let pod = &deployment["spec"]["template"];
        assert!(labels.iter().all(|(key, value)| pod["metadata"]["labels"][key] == *value), "{pod}");
        assert!(components.contains(&pod["metadata"]["labels"]["app.kubernetes.io/component"]), "{pod}");
        let ports = pod["spec"]["containers"][0]["ports"].as_array().expect("ports");
        assert!(ports.iter().any(|p| p["name"] == *port), "{ports:?}");
    }
}

#[test]
fn what_is_rendered_is_what_is_tested_and_nothing_is_rendered_unasked() {
    let rules: serde_yaml::Value = serde_yaml::from_str(ALERTS).expect("YAML");
    assert_eq!(rendered("PrometheusRule")[0]["spec"], serde_json::to_value(rules).expect("JSON"));
    let dashboard = &rendered("ConfigMap")[0];
    assert_eq!(dashboard["data"]["palisade.json"].as_str().map(str::trim), Some(DASHBOARD.trim()));
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
    let plain = helm::objects("palisade", "palisade-system", &ALL[..2]);
    let watched = ["PodMonitor", "PrometheusRule"];
    assert!(plain.iter().all(|o| watched.iter().all(|kind| o["kind"] != *kind)));
}

/// The operator's own definition of a kind, from its Go module.
fn definition(plural: &str) -> serde_yaml::Value {
    let output = Command::new("go")
        .args(["mod", "download", "-json", "github.com/prometheus-operator/prometheus-operator@v0.85.0"])
        .current_dir("/")
        .output()
        .expect("go runs");
    let module: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let dir = module["Dir"].as_str().unwrap_or_else(|| panic!("no module: {module}"));
    let path = format!("{dir}/example/prometheus-operator-crd/monitoring.coreos.com_{plural}.yaml");
    serde_yaml::from_slice(&std::fs::read(path).expect("the definition")).expect("YAML")
}

#[tokio::test]
async fn the_prometheus_operators_own_schema_takes_them() {
    let cluster = cluster::Cluster::shared();
    cluster.apply(&[definition("podmonitors"), definition("prometheusrules")]).await;
    let namespace = cluster.namespace("monitoring").await;
    for kind in ["PodMonitor", "PrometheusRule"] {
        let mut object = rendered(kind).remove(0);
        object["metadata"]["namespace"] = namespace.clone().into();
        let gvk = GroupVersionKind::gvk("monitoring.coreos.com", "v1", kind);
        let api: Api<DynamicObject> =
            Api::namespaced_with(cluster.admin().await, &namespace, &ApiResource::from_gvk(&gvk));
        let object: DynamicObject = cluster::from_json(object);
        let strict = PostParams { field_manager: None, dry_run: true };
        cluster::wait_until(&format!("{kind} is taken"), || async { api.create(&strict, &object).await.map(drop) })
            .await;
        // And it is the schema that takes it: a field of the wrong type is refused.
        let mut wrong = object.clone();
        wrong.data["spec"] = "nothing".into();
        assert!(api.create(&strict, &wrong).await.is_err(), "{kind}: anything is taken");
    }
}

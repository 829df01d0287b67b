//! What the stories act on: a cluster, Palisade's surroundings in it, and the tools of a person who uses it.
//!
//! The cluster is the node that hack/e2e.sh started (node.rs), or one of somebody's that `KUBECONFIG` names (cluster.rs).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use kube::Client;
use serde_json::{Value, json};

use super::cluster::Forward;
use super::node;
use crate::support::postgres::{Conn, Server, root};

/// As the release is installed.
pub const TTL: Duration = Duration::from_secs(8);
/// In the model server's image.
pub const PYTHON: &str = "/usr/bin/python3.11";

pub struct World {
    /// Of this run.
    pub dir: PathBuf,
    pub client: Client,
    pub place: Place,
    /// The release's namespace, and the one of the models.
    pub system: &'static str,
    pub shop: &'static str,
    pub images: Images,
    pub kubectl: PathBuf,
    helm: PathBuf,
    pub models: PathBuf,
}

/// Whose cluster it is, and what of it only one kind has: the database.
pub enum Place {
    Node(Server),
    Cluster(Forward),
}

pub struct Images {
    pub palisade: String,
    pub mlserver: String,
    pub postgres: String,
}

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run this by hack/e2e.sh"))
}

/// What names of namespaces begin with in a cluster of somebody's, where others may be taken; on a node of our own, nothing.
fn prefix() -> String {
    std::env::var("PALISADE_E2E_PREFIX").unwrap_or_default()
}

/// Whether the node is ours: then stories may act on it.
pub fn has_node() -> bool {
    prefix().is_empty()
}

/// How long anything may take: two cores, and a model server needs several seconds of both. Nodes of somebody's may have
/// to pull its image.
pub fn patience() -> Duration {
    Duration::from_secs(if has_node() { 180 } else { 600 })
}

impl World {
    /// Everything but Palisade.
    pub async fn begin() -> World {
        let place = if has_node() {
            Place::Node(tokio::task::spawn_blocking(Server::start).await.expect("Postgres"))
        } else {
            Place::Cluster(Forward::default())
        };
        let world = World {
            dir: setting("PALISADE_E2E_DIR").into(),
            // Repeats nothing: a request of a story that fails has failed.
            client: palisade::cluster::client(None, None).await.expect("a client"),
            place,
            system: (prefix() + node::SYSTEM).leak(),
            shop: (prefix() + node::SHOP).leak(),
            images: Images {
                palisade: setting("PALISADE_E2E_IMAGE"),
                mlserver: setting("PALISADE_E2E_MLSERVER_IMAGE"),
                postgres: setting("PALISADE_E2E_POSTGRES_IMAGE"),
            },
            helm: setting("PALISADE_E2E_HELM").into(),
            kubectl: setting("PALISADE_E2E_KUBECTL").into(),
            models: setting("PALISADE_E2E_MODELS").into(),
        };
        for namespace in [&world.store(), world.system, world.shop] {
            world.kubectl(&["create", "namespace", namespace]);
        }
        if let Place::Node(server) = &world.place {
            world.offer_database(server).await;
        }
        world.serve_artifacts();
        world
    }

    /// A namespace of this run.
    pub fn namespace(&self, name: &str) -> String {
        prefix() + name
    }

    /// The one of what is neither Palisade nor a model.
    pub fn store(&self) -> String {
        self.namespace("store")
    }

    // ------------------------------------------------ the release

    /// Values of the chart that name the image of Palisade.
    pub fn image(&self) -> String {
        let image = &self.images.palisade;
        let (name, key, value) = match image.split_once('@') {
            Some((name, digest)) => (name, "digest", digest),
            // A colon before the last slash is that of a port.
            None => match image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
                Some((name, tag)) => (name, "tag", tag),
                None => (image.as_str(), "tag", "latest"),
            },
        };
        format!("image.repository={name},image.{key}={value}")
    }

    /// Values of the chart that name it.
    pub fn database(&self) -> String {
        match &self.place {
            Place::Node(_) => node::DATABASE.to_owned(),
            Place::Cluster(_) => self.throwaway(),
        }
    }

    /// The chart's own Postgres. It is not to outlive anything, and needs no StorageClass then.
    pub fn throwaway(&self) -> String {
        format!("postgres.enabled=true,postgres.image={},postgres.persistence.enabled=false", self.images.postgres)
    }

    fn url(&self, login: &str) -> String {
        match &self.place {
            Place::Node(server) => server.url_of(login, "palisade"),
            Place::Cluster(forward) => forward.url_of(self, login),
        }
    }

    pub async fn sql(&self) -> Conn {
        Conn::open(&self.url("postgres")).await
    }

    // ------------------------------------------------ tools

    fn run(&self, program: &Path, args: &[&str], input: Option<&str>) -> Output {
        let mut command = Command::new(program);
        command.args(args).current_dir(root());
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        if let Some(input) = input {
            child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("written");
        }
        child.wait_with_output().expect("it ends")
    }

    #[track_caller]
    fn must(&self, program: &Path, args: &[&str], input: Option<&str>) -> String {
        let output = self.run(program, args, input);
        assert!(
            output.status.success(),
            "{} {args:?}: {}{}",
            program.display(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.must(&self.kubectl, args, None)
    }

    pub fn try_kubectl(&self, args: &[&str]) -> Output {
        self.run(&self.kubectl, args, None)
    }

    #[track_caller]
    pub fn helm(&self, args: &[&str]) -> String {
        self.must(&self.helm, args, None)
    }

    #[track_caller]
    pub fn apply(&self, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.must(&self.kubectl, &["apply", "-f", "-"], Some(&list.to_string()));
    }

    #[track_caller]
    pub fn get(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[&["get", "-o", "json"], args].concat())).expect("JSON")
    }

    /// A script of hack/, inside.
    #[track_caller]
    pub fn hack(&self, script: &str, args: &[&str]) -> String {
        self.must(&root().join("hack").join(script), args, None)
    }

    /// A command as a person types it, with kubectl in the PATH.
    #[track_caller]
    pub fn shell(&self, command: &str) -> String {
        let path = self.kubectl.parent().expect("a folder").display();
        self.must(Path::new("/bin/sh"), &["-c", &format!("PATH=\"{path}:$PATH\"; {command}")], None)
    }

    /// The program itself, as a person with the registry's login runs it.
    #[track_caller]
    pub fn palisade(&self, login: &str, args: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        command.args(args).env("DATABASE_URL", self.url(login)).env_remove("KUBECONFIG");
        let output = command.stdin(Stdio::null()).output().expect("the program starts");
        assert!(output.status.success(), "palisade {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    // ------------------------------------------------ what is seen

    /// Waits until `check` is content; how long it took. Says at last what was in the way.
    pub async fn until<F, T: std::fmt::Display>(&self, what: &str, check: impl Fn() -> F) -> Duration
    where
        F: Future<Output = Result<(), T>>,
    {
        let began = Instant::now();
        loop {
            match check().await {
                Ok(()) => return began.elapsed(),
                Err(last) => assert!(began.elapsed() < patience(), "waited in vain until {what}: {last}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Pods of a part of the release that run and are not going.
    pub fn pods(&self, namespace: &str, selector: &str) -> Vec<Value> {
        let list = self.get(&["pods", "-n", namespace, "-l", selector]);
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        let lives = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running";
        pods.into_iter().filter(lives).collect()
    }

    /// What a person wants to know of a failure.
    pub fn describe(&self) {
        for args in [
            &["get", "pods,mdep,jobs", "-A", "-o", "wide"][..],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            &[
                "logs",
                "-n",
                self.system,
                "-l",
                "app.kubernetes.io/name=palisade",
                "--tail=25",
                "--prefix",
                "--all-containers",
            ],
        ] {
            let output = self.try_kubectl(args);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let lines: Vec<&str> = text.lines().filter(|line| line.contains(&prefix())).collect();
            eprintln!("--- kubectl {}\n{}", args.join(" "), lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }

    /// What a story that failed has left behind must not trouble the next one.
    pub fn tidy(&self) {
        let two_workers = ["-n", self.system, "scale", "deployment/palisade-worker", "--replicas=2"];
        self.try_kubectl(&two_workers);
        self.try_kubectl(&["-n", self.system, "delete", "pods", "-l", "story", "--force", "--grace-period=0"]);
        let all =
            String::from_utf8(self.try_kubectl(&["-n", self.shop, "get", "mdep", "-o", "name"]).stdout).expect("names");
        for object in all.lines().filter(|object| !object.ends_with("/iris")) {
            self.try_kubectl(&["-n", self.shop, "delete", object, "--timeout=60s"]);
        }
    }

    pub fn end(&self) {
        if let Place::Node(server) = &self.place {
            server.stop();
        }
    }
}

pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("a name")
}

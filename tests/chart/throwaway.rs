//! The throwaway Postgres: its script is run here as in its pod, but for the paths and the port.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::helm::objects;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

fn start(folder: &Path, password: &str) -> Running {
    let root = rustix::process::getuid().is_root();
    let mut command = if root { Command::new("setpriv") } else { Command::new("sh") };
    if root {
        // Postgres does not run as root.
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--pdeathsig=KILL", "sh"]);
    }
    command.arg(folder.join("run.sh")).env_clear().env("PATH", "/usr/bin:/bin").env("POSTGRES_PASSWORD", password);
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).expect("a log");
    Running(
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log).spawn().expect("it starts"),
    )
}

/// As the kubelet ends a pod.
fn stop(mut running: Running) -> bool {
    let pid = i32::try_from(running.0.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a PID");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
    running.0.wait().expect("an end").success()
}

/// One on which nobody listens, below those that the kernel gives to whoever connects or asks for any.
fn free_port() -> u16 {
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(|| fastrand::u16(20_000..32_000)).find(free).expect("a port")
}

#[test]
fn the_throwaway_postgres_starts_is_migrated_with_its_logins_and_starts_again() {
    if fs::read_dir("/usr/lib/postgresql").is_err() {
        eprintln!("SKIPPED: no Postgres in /usr/lib/postgresql");
        return;
    }
    let objects = objects("palisade", "palisade-system", &["--set", "postgres.enabled=true"]);
    let of = |kind: &str| objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == "palisade-postgres");
    let port = free_port();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    for inner in ["", "lib", "tmp"] {
        fs::create_dir_all(path.join(inner)).expect("a folder");
        fs::set_permissions(path.join(inner), Permissions::from_mode(0o777)).expect("chmod");
    }
    let script = of("ConfigMap").expect("a ConfigMap")["data"]["run.sh"].as_str().expect("a script");
    let script = script.replace("/tmp", "%TMP%").replace("/var/lib/palisade", &path.join("lib").display().to_string());
    let script = script.replace("%TMP%", &path.join("tmp").display().to_string());
    let script = script.replace("listen_addresses='*'", &format!("listen_addresses=127.0.0.1 -p {port}"));
    fs::write(path.join("run.sh"), script).expect("written");

    let secret: BTreeMap<String, String> = of("Secret").expect("a Secret")["stringData"]
        .as_object()
        .expect("data")
        .iter()
        .map(|(key, value)| (key.clone(), Value::as_str(value).expect("a text").to_owned()))
        .collect();
    let url = |key: &str| secret[key].replace("palisade-postgres:5432", &format!("127.0.0.1:{port}"));
    let palisade = |key: &str, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        command.args(args).env_clear().env("DATABASE_URL", url(key)).stdin(Stdio::null());
        for part in ["controller", "worker", "registry", "reader"] {
            command.env(format!("PALISADE_{}_URL", part.to_uppercase()), url(&format!("{part}-url")));
        }
        command.output().expect("the program runs")
    };
    let log = || fs::read_to_string(path.join("log")).unwrap_or_default();

    let running = start(path, &secret["password"]);
    let done = palisade("migration-url", &["migrate", "--wait", "2m", "--create-logins"]);
    assert!(done.status.success(), "{}\n{}", String::from_utf8_lossy(&done.stderr), log());
    assert!(palisade("registry-url", &["model", "ls"]).status.success());
    assert!(stop(running), "{}", log());

    // A volume with an fsGroup comes back with rights for the group, which Postgres does not take.
    let data = path.join("lib/data");
    fs::set_permissions(&data, Permissions::from_mode(0o2770)).expect("chmod");
    let running = start(path, &secret["password"]);
    let check = palisade("migration-url", &["migrate", "--wait", "1m", "--create-logins"]);
    assert!(check.status.success(), "{}\n{}", String::from_utf8_lossy(&check.stderr), log());
    assert!(String::from_utf8_lossy(&check.stdout).contains("it was there already"));
    assert!(stop(running), "{}", log());
}

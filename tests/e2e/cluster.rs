//! What a cluster of somebody's needs instead: its pods and Services are reached through its API server alone.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::world::World;

/// The throwaway Postgres of the chart at a port of this machine, by `kubectl port-forward`.
#[derive(Default)]
pub struct Forward(Mutex<Option<(Child, u16)>>);

/// kubectl, until it ends, or until nobody holds the other end of stdin: it does not outlive this process, however that ends.
const UNTIL_WE_END: &str = r#"exec 3<&0; "$@" 3<&- & (read -r nothing <&3; kill $!) & wait $!"#;

impl Forward {
    /// A URL of the chart's Secret, as it is from here. The superuser's is what migrates.
    pub fn url_of(&self, world: &World, login: &str) -> String {
        let key = if login == "postgres" { "migration-url" } else { "registry-url" };
        let template = format!("go-template={{{{index .data \"{key}\" | base64decode}}}}");
        let url = world.kubectl(&["-n", world.system, "get", "secret", "palisade-postgres", "-o", &template]);
        url.replace("@palisade-postgres:5432", &format!("@127.0.0.1:{}", self.port(world)))
    }

    /// Begun by the first who asks, and again if it has ended.
    fn port(&self, world: &World) -> u16 {
        let mut slot = self.0.lock().expect("not poisoned");
        if let Some((child, port)) = slot.as_mut()
            && matches!(child.try_wait(), Ok(None))
        {
            return *port;
        }
        slot.insert(begin(world)).1
    }
}

fn begin(world: &World) -> (Child, u16) {
    let log = world.dir.join("port-forward.log");
    let file = fs::File::create(&log).expect("a file");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", UNTIL_WE_END, "sh"]).arg(&world.kubectl);
    command.args(["-n", world.system, "port-forward", "--address=127.0.0.1", "service/palisade-postgres", ":5432"]);
    command.stdin(Stdio::piped()).stderr(file.try_clone().expect("a file")).stdout(file);
    let mut child = command.spawn().expect("sh starts");
    let began = Instant::now();
    loop {
        let text = fs::read_to_string(&log).expect("what it said");
        let port = text
            .lines()
            .find_map(|line| line.strip_prefix("Forwarding from 127.0.0.1:")?.split(' ').next()?.parse().ok());
        if let Some(port) = port {
            return (child, port);
        }
        let runs = matches!(child.try_wait(), Ok(None));
        assert!(runs && began.elapsed() < Duration::from_secs(60), "kubectl port-forward: {text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

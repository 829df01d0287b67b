//! What the figures were measured on.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::support::postgres::Conn;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub date: String,
    pub cores: usize,
    pub cpu: String,
    pub memory_mb: u64,
    pub kernel: String,
    pub postgres: String,
    /// Of 8 KiB, one after the other, in the folder where Postgres had its data.
    pub fdatasync_per_second: f64,
    pub fdatasync_p50_ms: f64,
    pub max_connections: usize,
}

fn field(text: &str, name: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

impl Machine {
    /// # Panics
    /// If Postgres does not sync its log: then nothing that it says of writes is true of a real one.
    pub async fn look(sql: &mut Conn, dir: &Path) -> Machine {
        for (setting, wanted) in [("fsync", "on"), ("synchronous_commit", "on"), ("full_page_writes", "on")] {
            let value = sql.text(&format!("current_setting('{setting}')")).await;
            assert_eq!(value, wanted, "Postgres has {setting} = {value}: start the benchmarks by `make bench`");
        }
        let (fdatasync_per_second, fdatasync_p50_ms) = fdatasync(dir);
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        Machine {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            memory_mb: memory.split(' ').next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or_default() / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            postgres: sql.text("split_part(current_setting('server_version'), ' ', 1)").await,
            fdatasync_per_second,
            fdatasync_p50_ms,
            max_connections: sql.number("current_setting('max_connections')").await as usize,
        }
    }

    pub fn line(&self) -> String {
        format!(
            "{}: {} cores ({}), {:.1} GB, Linux {}; Postgres {} with its defaults, client and server on the same cores; \
             fdatasync {:.0} a second, {:.2} ms each.",
            self.date,
            self.cores,
            self.cpu,
            self.memory_mb as f64 / 1024.0,
            self.kernel,
            self.postgres,
            self.fdatasync_per_second,
            self.fdatasync_p50_ms,
        )
    }
}

/// As pg_test_fsync does it: one page, overwritten and synced again and again.
fn fdatasync(dir: &Path) -> (f64, f64) {
    let path = dir.join("fdatasync");
    let file = File::create(&path).expect("a file");
    let page = [7_u8; 8192];
    let (began, mut took) = (Instant::now(), Vec::new());
    while began.elapsed() < Duration::from_secs(2) {
        let one = Instant::now();
        file.write_all_at(&page, 0).expect("written");
        file.sync_data().expect("synced");
        took.push(one.elapsed());
    }
    let per_second = took.len() as f64 / began.elapsed().as_secs_f64();
    took.sort_unstable();
    fs::remove_file(path).expect("removed");
    (per_second, took[took.len() / 2].as_secs_f64() * 1e3)
}

//! The program, and what it found.

use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
    report: Value,
}

impl Ran {
    #[track_caller]
    pub fn exits(&self, code: i32) -> &Ran {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self
    }

    /// The findings of this name, of which there is one at least; all are of this severity, and explain themselves.
    #[track_caller]
    pub fn finds(&self, check: &str, severity: &str) -> String {
        let all = self.report["findings"].as_array().unwrap_or_else(|| panic!("no report: {}{}", self.out, self.err));
        let found: Vec<_> = all.iter().filter(|finding| finding["check"] == check).collect();
        assert!(!found.is_empty(), "{check} was not found: {}", self.out);
        let mut what = Vec::new();
        for finding in found {
            assert_eq!(finding["severity"], severity, "{finding}");
            let explained = ["why", "next"].iter().all(|part| finding[*part].as_str().is_some_and(|t| !t.is_empty()));
            assert_eq!(explained, severity != "ok", "{finding}");
            what.push(finding["what"].as_str().unwrap_or_default().to_owned());
        }
        what.join("\n")
    }

    /// The names of what is not as it should be.
    pub fn problems(&self) -> Vec<&str> {
        let all = self.report["findings"].as_array().into_iter().flatten();
        let wrong = all.filter(|f| f["severity"] == "warning" || f["severity"] == "error");
        wrong.filter_map(|finding| finding["check"].as_str()).collect()
    }

    /// Whether there is a finding of this name.
    pub fn has(&self, check: &str) -> bool {
        self.report["findings"].as_array().is_some_and(|all| all.iter().any(|finding| finding["check"] == check))
    }

    #[track_caller]
    pub fn lacks(&self, check: &str) -> &Ran {
        let all = self.report["findings"].as_array().into_iter().flatten();
        let found: Vec<_> = all.filter(|finding| finding["check"] == check).collect();
        assert!(found.is_empty(), "{found:?}");
        self
    }
}

/// Runs it in an environment of its own, with these variables, and reads its JSON.
pub async fn run(env: &[(&str, &str)], args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    command.env_clear().env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).kill_on_drop(true);
    command.envs(env.iter().copied()).args(["doctor", "-o", "json"]).args(args);
    let output = command.output().await.expect("the program runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(!err.contains("panicked"), "{err}");
    let report = serde_json::from_str(&out).unwrap_or_default();
    Ran { code: output.status.code().unwrap_or(-1), out, err, report }
}

/// The database only.
pub async fn database(url: &str, args: &[&str]) -> Ran {
    run(&[("DATABASE_URL", url)], &[&["--only", "database"], args].concat()).await
}

//! One scenario for each place where a fenced function asks the gate: what is there before, the write, its effect.
//!
//! The tests of the gate, of sequences, of lost answers and the mutation test all run over this one table, so a new
//! fenced function needs one entry here; `mutation` fails until it has one.

use crate::support::postgres::{Conn, Failure, Lease};

pub const UID: &str = "00000000-0000-4000-8000-000000000001";
pub const A: &str = "deployment/ns/a";
pub const B: &str = "deployment/ns/b";
pub const CONTROLLER: &str = "controller/main";

pub struct Scenario {
    pub function: &'static str,
    /// Which of the function's calls of the gate is meant, from 0.
    pub occurrence: usize,
    /// The lease that the gate asks about.
    pub resource: &'static str,
    /// What there must be before the write.
    pub setup: &'static str,
    /// The write under this sequence.
    pub call: fn(&World, i64) -> String,
    /// Another write of the same function; none where a function takes no sequence and hence keeps no ledger.
    pub other: Option<fn(&World, i64) -> String>,
    /// What the write changes, as one text.
    pub effect: &'static str,
    /// Whether a second line stands behind the gate even before the successor's first write.
    pub second_line: bool,
}

/// A database in which the write of a scenario would be applied.
pub struct World {
    /// The lease that the gate asks about.
    pub lease: Lease,
    /// Another resource's lease, of another session.
    pub peer: Lease,
}

const DEPLOYMENT: &str = "SELECT (SELECT to_jsonb(d) - 'updated_at' - 'step_started_at' FROM palisade.deployment AS d WHERE resource = 'deployment/ns/a')::text
    || '/' || (SELECT count(*) FROM palisade.queue WHERE resource = 'deployment/ns/a')::text
    || '/' || (SELECT string_agg(alias || '=' || coalesce(version::text, '') || coalesce(guard, ''), ',' ORDER BY alias) FROM palisade.alias)";
const REMOVED: &str = "UPDATE palisade.plan SET removed = true WHERE resource = 'deployment/ns/a'";

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        function: "report_progress",
        occurrence: 0,
        resource: A,
        setup: "",
        call: |w, _| format!("report_progress({}, '10 minutes')", w.lease.unnumbered()),
        other: None,
        effect: "SELECT deadline FROM palisade.progress WHERE resource = 'deployment/ns/a'",
        second_line: true, // progress has a token of its own, which the grant sets
    },
    Scenario {
        function: "release",
        occurrence: 0,
        resource: A,
        setup: "",
        call: |w, n| format!("release({})", w.lease.fence(n)),
        other: Some(|w, n| format!("release({}, '1 minute')", w.lease.fence(n))),
        effect: "SELECT (token, session) FROM palisade.lease WHERE resource = 'deployment/ns/a'",
        second_line: false,
    },
    Scenario {
        function: "check_lease",
        occurrence: 0,
        resource: A,
        setup: "",
        call: |w, _| format!("check_lease({})", w.lease.unnumbered()),
        other: None,
        effect: "SELECT ''",
        second_line: true, // it only answers
    },
    Scenario {
        function: "set_alias",
        occurrence: 0,
        resource: A,
        setup: "",
        call: |w, n| format!("set_alias({}, 'm', 'live', 1)", w.lease.fence(n)),
        other: Some(|w, n| format!("set_alias({}, 'm', 'live', 2)", w.lease.fence(n))),
        effect: "SELECT version FROM palisade.alias WHERE alias = 'live'",
        second_line: false,
    },
    Scenario {
        function: "move_guard",
        occurrence: 0,
        resource: A,
        setup: "",
        call: |w, n| {
            let (to, key) = (&w.peer, &w.peer.session.key);
            format!("move_guard({}, '{}', {}, {n}, '{key}', 'm', 'guarded')", w.lease.fence(n), to.resource, to.token)
        },
        other: Some(|w, n| {
            let (to, key) = (&w.peer, &w.peer.session.key);
            format!("move_guard({}, '{}', {}, {n}, '{key}', 'm', 'live')", w.lease.fence(n), to.resource, to.token)
        }),
        effect: "SELECT guard FROM palisade.alias WHERE alias = 'guarded'",
        second_line: false,
    },
    Scenario {
        function: "move_guard",
        occurrence: 1,
        resource: B,
        setup: "",
        call: |w, n| {
            let (to, key) = (&w.lease, &w.lease.session.key);
            format!("move_guard({}, '{}', {}, {n}, '{key}', 'm', 'guarded')", w.peer.fence(n), to.resource, to.token)
        },
        other: Some(|w, n| {
            let (to, key) = (&w.lease, &w.lease.session.key);
            format!("move_guard({}, '{}', {}, {n}, '{key}', 'm', 'live')", w.peer.fence(n), to.resource, to.token)
        }),
        effect: "SELECT guard FROM palisade.alias WHERE alias = 'guarded'",
        second_line: false,
    },
    Scenario {
        function: "put_plan",
        occurrence: 0,
        resource: CONTROLLER,
        setup: "",
        call: |w, n| put_plan(&w.lease, n, 2, r#"{"image": "two"}"#),
        other: Some(|w, n| put_plan(&w.lease, n, 3, r#"{"image": "three"}"#)),
        effect: "SELECT (generation, rollout, spec) FROM palisade.plan WHERE resource = 'deployment/ns/a'",
        second_line: false,
    },
    Scenario {
        function: "drop_plan",
        occurrence: 0,
        resource: CONTROLLER,
        setup: "UPDATE palisade.plan SET removed = true WHERE resource = 'deployment/ns/a';
                UPDATE palisade.deployment SET step = 'removed' WHERE resource = 'deployment/ns/a'",
        call: |w, n| format!("drop_plan({}, '{A}', '{UID}')", w.lease.fence(n)),
        other: Some(|w, n| format!("drop_plan({}, '{B}', '{UID}')", w.lease.fence(n))),
        effect: "SELECT count(*) FROM palisade.plan WHERE resource = 'deployment/ns/a'",
        second_line: false,
    },
    Scenario {
        function: "next_revision",
        occurrence: 0,
        resource: CONTROLLER,
        setup: "",
        call: |w, _| format!("next_revision({}, '{A}', 0)", w.lease.unnumbered()),
        other: None,
        effect: "SELECT status_revision FROM palisade.plan WHERE resource = 'deployment/ns/a'",
        second_line: false,
    },
    Scenario {
        function: "record_step",
        occurrence: 0,
        resource: A,
        setup: "",
        call: |w, n| format!("record_step({}, '{UID}', 1, 'verify', '{{}}')", w.lease.fence(n)),
        other: Some(|w, n| format!("record_step({}, '{UID}', 1, 'rollout', '{{}}')", w.lease.fence(n))),
        effect: DEPLOYMENT,
        second_line: false,
    },
    Scenario {
        function: "record_serving",
        occurrence: 0,
        resource: A,
        setup: "",
        call: |w, n| serving(&w.lease, n, 1),
        other: Some(|w, n| serving(&w.lease, n, 2)),
        effect: DEPLOYMENT,
        second_line: false,
    },
    Scenario {
        function: "record_done",
        occurrence: 0,
        resource: A,
        setup: "",
        call: |w, n| format!("record_done({}, '{UID}', 1, '{{}}')", w.lease.fence(n)),
        other: Some(|w, n| format!("record_done({}, '{UID}', 1, '{{\"other\": true}}')", w.lease.fence(n))),
        effect: DEPLOYMENT,
        second_line: false,
    },
    Scenario {
        function: "record_failure",
        occurrence: 0,
        resource: A,
        setup: "",
        call: |w, n| {
            format!("record_failure({}, '{UID}', 1, 'verify', '{{}}', 'Broken', 'it broke', NULL)", w.lease.fence(n))
        },
        other: Some(|w, n| {
            format!("record_failure({}, '{UID}', 1, 'verify', '{{}}', 'Broken', 'again', NULL)", w.lease.fence(n))
        }),
        effect: DEPLOYMENT,
        second_line: false,
    },
    Scenario {
        function: "record_removed",
        occurrence: 0,
        resource: A,
        setup: REMOVED,
        call: |w, n| format!("record_removed({}, '{UID}', 1)", w.lease.fence(n)),
        other: Some(|w, n| format!("record_removed({}, '{UID}', 2)", w.lease.fence(n))),
        effect: DEPLOYMENT,
        second_line: false,
    },
];

pub fn put_plan(lease: &Lease, sequence: i64, generation: i64, spec: &str) -> String {
    format!(
        "put_plan({}, '{A}', '{UID}', {generation}, '{spec}', false, false, '10 minutes', false)",
        lease.fence(sequence)
    )
}

fn serving(lease: &Lease, sequence: i64, version: i64) -> String {
    format!(
        "record_serving({}, '{UID}', 1, 'drain', '{{}}', 'm', {version}, 'rev-{version}', 'live')",
        lease.fence(sequence)
    )
}

/// The fenced functions that keep a ledger, each once.
pub fn numbered() -> impl Iterator<Item = &'static Scenario> {
    SCENARIOS.iter().filter(|s| s.other.is_some() && s.occurrence == 0)
}

/// A model with three versions, the alias `guarded` (of deployment a), a plan for a, its deployment row, due work.
pub async fn furnish(conn: &mut Conn) {
    conn.run(&format!(
        "INSERT INTO palisade.registered_model (name, next_version, created_at) VALUES ('m', 4, now());
         INSERT INTO palisade.model_version (model, version, source, digest, created_at)
             SELECT 'm', v, 's3://models/m/' || v, 'sha256:' || repeat(v::text, 64), now() FROM generate_series(1, 3) AS v;
         INSERT INTO palisade.alias (model, alias, version, guard, updated_at)
             VALUES ('m', 'guarded', 1, '{A}', now()), ('m', 'live', 3, '{A}', now());
         INSERT INTO palisade.plan (resource, uid, generation, rollout, spec, paused, removed, progress_ttl, token, updated_at)
             VALUES ('{A}', '{UID}', 1, 1, '{{}}', false, false, '10 minutes', 0, now());
         INSERT INTO palisade.deployment (resource, uid, rollout, step, step_started_at, state, token, updated_at)
             VALUES ('{A}', '{UID}', 1, 'seal', now(), '{{}}', 0, now());
         INSERT INTO palisade.queue (resource, due_at) VALUES ('{A}', now())"
    ))
    .await;
}

impl Scenario {
    pub async fn world(&self, conn: &mut Conn) -> World {
        furnish(conn).await;
        conn.run(self.setup).await;
        let lease = conn.owner(self.resource).await;
        let peer = conn.owner(if self.resource == B { A } else { B }).await;
        World { lease, peer }
    }

    /// Makes the write: `applied`, `rejected: stale`, … `check_lease` has no answer but an exception.
    pub async fn write(&self, conn: &mut Conn, world: &World, sequence: i64) -> Result<String, Failure> {
        let call = (self.call)(world, sequence);
        if self.function != "check_lease" {
            return conn.try_call(&call).await.map(|answer| answer.word());
        }
        match conn.try_text(&format!("SELECT palisade.{call}")).await {
            Ok(_) => Ok("applied".to_owned()),
            Err(failure) if failure.code == "PS003" => {
                let reason = failure.message.split(" is refused: ").nth(1).and_then(|rest| rest.split(' ').next());
                Ok(format!("rejected: {}", reason.unwrap_or("without a reason")))
            }
            Err(failure) => Err(failure),
        }
    }
}

/// What came of a write that its worker sent after it had been replaced.
#[derive(Debug)]
pub struct Verdict {
    pub word: String,
    /// The stale write can be seen.
    pub changed: bool,
}

impl Verdict {
    pub fn is_safe(&self) -> bool {
        self.word == "rejected: stale" && !self.changed
    }
}

/// Worker A is paused before its write; B takes over; A's write arrives before B's first.
pub async fn paused_worker(conn: &mut Conn, scenario: &Scenario) -> Verdict {
    let world = scenario.world(conn).await;
    conn.take_over(&world.lease).await;
    let before = conn.text(scenario.effect).await;
    let word = match scenario.write(conn, &world, 1).await {
        Ok(word) => word,
        Err(failure) => format!("error {}: {}", failure.code, failure.message),
    };
    let after = conn.text(scenario.effect).await;
    Verdict { word, changed: before != after }
}

//! What happened to my write: each state of a request that timed out, really produced, for every fenced statement.
//!
//! ```text
//! lost on its way ── on its way ── waiting for the gate ── running ── done ── done and asked again ── forgotten
//!                        └── overtaken by a later write, or by another owner
//! ```
//!
//! The client's connection is reset each time, so that the caller knows nothing. Then SQL and command line are asked, the
//! same fence is sent again, and the fence is abandoned; and the same by the worker library. The statements come from
//! tests/sql/scenarios.rs; the first test holds that table against the catalogue.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says so by panicking"
)]

#[path = "sql/scenarios.rs"]
#[allow(dead_code, reason = "the gate's tests use the rest")]
mod scenarios;
mod support;

use std::time::Duration;

use palisade::lease::{LeaseError, Session, SessionConfig, Settled};
use palisade::outcome::{Outcome, Reason};
use palisade::store::{OperationState, Store, StoreConfig};
use scenarios::{CONTROLLER, Scenario, UID, World, numbered};
use support::postgres::{Answer, Conn, Db, Running};
use support::proxy::{Fault, Handle, Proxy};
use support::writes::{self, Leases, Step, register, steps};

/// What a write waits for in the middle: its effect is written, its ledger row is not.
const HOLD: &str = "CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NEW; END $$;
    CREATE TRIGGER hold BEFORE INSERT ON palisade.operation FOR EACH ROW EXECUTE FUNCTION public.hold()";

// ---------------------------------------------------------------- SQL and command line

struct Stage {
    db: Db,
    proxy: Proxy,
    direct: Conn,
    /// Whoever holds a lock that the request waits for.
    holder: Conn,
}

/// One statement in a database where it would be applied.
struct Case {
    scenario: &'static Scenario,
    world: World,
    /// The effect before anything was sent.
    before: String,
}

impl Case {
    fn name(&self) -> &'static str {
        self.scenario.function
    }

    fn call(&self) -> String {
        (self.scenario.call)(&self.world, 1)
    }

    fn fence(&self) -> String {
        self.world.lease.fence(1)
    }

    /// A later write of the same owner, with nothing to do for this statement's effect.
    fn later(&self) -> String {
        let fence = self.world.lease.fence(2);
        if self.scenario.resource == CONTROLLER {
            format!("drop_plan({fence}, 'deployment/ns/none', '{UID}')")
        } else {
            format!("set_alias({fence}, 'm', 'aside', 1)")
        }
    }
}

impl Stage {
    async fn new() -> Stage {
        let db = Db::patient().await;
        let proxy = Proxy::start(db.server.port()).await;
        Stage { proxy, direct: db.connect().await, holder: db.connect().await, db }
    }

    async fn case(&mut self, scenario: &'static Scenario) -> Case {
        self.direct.clear().await;
        let world = scenario.world(&mut self.direct).await;
        let before = self.direct.text(scenario.effect).await;
        Case { scenario, world, before }
    }

    /// Sends the write into a fault. The caller learns nothing but that its connection is gone.
    async fn lose(&mut self, case: &Case, fault: Fault) -> Handle {
        let handle = self.proxy.on_next(&format!("palisade.{}(", case.name()), fault);
        let mut client = Conn::open(&self.proxy.url(&self.db.url())).await;
        let failure = client.try_call(&case.call()).await.expect_err("no answer");
        assert_eq!(failure.code, "", "{}: not the server's word: {failure:?}", case.name());
        assert!(handle.has_fired(), "{}", case.name());
        handle
    }

    /// Until a backend works on the statement and waits for a lock.
    async fn until_blocked(&mut self, function: &str) {
        let name = &self.db.name;
        self.direct
            .wait_until(&format!(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = '{name}' AND wait_event_type = 'Lock'
                 AND query LIKE '%palisade.{function}(%' AND pid <> pg_backend_pid())"
            ))
            .await;
    }

    /// The fence's state by its owner's key, without it, and by the command line: all of one mind.
    async fn asked(&mut self, case: &Case) -> Answer {
        let status = self.direct.call(&format!("operation_status({})", case.fence())).await;
        let (resource, token) = (&case.world.lease.resource, case.world.lease.token);
        let shown = self.direct.call(&format!("operation_show('{resource}', {token}, 1)")).await;
        assert_eq!(shown, status, "{}", case.name());
        let told = self.palisade(case, "show").await;
        assert_eq!(told["status"], status.outcome, "{}", case.name());
        assert_eq!(told["reason"].as_str(), status.reason.as_deref(), "{}", case.name());
        status
    }

    async fn is(&mut self, case: &Case, word: &str) -> Answer {
        let status = self.asked(case).await;
        assert_eq!(status.word(), word, "{}: {status:?}", case.name());
        status
    }

    async fn again(&mut self, case: &Case) -> Answer {
        self.direct.call(&case.call()).await
    }

    /// By the owner, then by a person.
    async fn abandon(&mut self, case: &Case) -> String {
        let word = self.direct.call(&format!("abandon({})", case.fence())).await.word();
        assert_eq!(self.palisade(case, "abandon").await["status"], word, "{}", case.name());
        word
    }

    fn command(&self, case: &Case, verb: &str) -> tokio::process::Command {
        let lease = &case.world.lease;
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_palisade"));
        command.args(["operation", verb, &lease.resource, &format!("{}/1", lease.token), "-o", "json"]);
        command.env("DATABASE_URL", self.db.url()).kill_on_drop(true);
        command
    }

    async fn palisade(&self, case: &Case, verb: &str) -> serde_json::Value {
        told(self.command(case, verb).output().await.expect("it runs"))
    }

    async fn effect(&mut self, case: &Case) -> String {
        self.direct.text(case.scenario.effect).await
    }

    async fn unchanged(&mut self, case: &Case) {
        assert_eq!(self.effect(case).await, case.before, "{}", case.name());
    }

    /// It was applied, and once.
    async fn once(&mut self, case: &Case) {
        assert_ne!(self.effect(case).await, case.before, "{}", case.name());
        let rows = format!(
            "SELECT count(*) FROM palisade.operation WHERE resource = '{}' AND sequence = 1",
            case.world.lease.resource
        );
        assert_eq!(self.direct.number(&rows).await, 1, "{}", case.name());
    }

    /// Another session asks for the same, and waits.
    async fn waiting(&mut self, function: String) -> Running {
        let running = Running::call(self.db.connect().await, function).await;
        self.direct.wait_blocked(running.pid).await;
        running
    }

    async fn hold_gate(&mut self, case: &Case) {
        let lock =
            format!("BEGIN; SELECT FROM palisade.lease WHERE resource = '{}' FOR UPDATE", case.world.lease.resource);
        self.holder.run(&lock).await;
    }
}

fn told(output: std::process::Output) -> serde_json::Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[tokio::test]
async fn the_statements_that_are_tried_are_all_that_take_a_fence() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let there = conn
        .list(
            "SELECT proname::text FROM pg_proc WHERE pronamespace = 'palisade'::regnamespace
             AND proargnames[1:pronargs] @> ARRAY['token', 'sequence', 'key'] AND strpos(prosrc, 'palisade.enter(') > 0 ORDER BY 1",
        )
        .await;
    let mut tried: Vec<_> = numbered().map(|s| s.function).collect();
    tried.sort_unstable();
    assert_eq!(tried, there);
    let mut by_the_library: Vec<_> = steps().iter().map(Step::name).collect();
    by_the_library.sort_unstable();
    by_the_library.dedup();
    assert_eq!(by_the_library, there);
}

#[tokio::test]
async fn a_request_that_never_arrived_is_pending_until_it_is_sent_again_or_closed() {
    let mut stage = Stage::new().await;
    for scenario in numbered() {
        let case = stage.case(scenario).await;
        stage.lose(&case, Fault::LoseRequest).await;
        stage.is(&case, "pending").await;
        stage.unchanged(&case).await;
        stage.again(&case).await.is("applied");
        stage.once(&case).await;
        assert_eq!(stage.abandon(&case).await, "applied", "{}: too late", case.name());

        let case = stage.case(scenario).await;
        stage.lose(&case, Fault::LoseRequest).await;
        assert_eq!(stage.abandon(&case).await, "never", "{}", case.name());
        stage.again(&case).await.is("rejected: superseded");
        stage.is(&case, "never").await;
        stage.unchanged(&case).await;
    }
}

#[tokio::test]
async fn a_request_on_its_way_is_pending_and_is_refused_on_arrival_once_it_was_closed() {
    let mut stage = Stage::new().await;
    for scenario in numbered() {
        let case = stage.case(scenario).await;
        let late = stage.lose(&case, Fault::LateRequest).await;
        stage.is(&case, "pending").await;
        assert_eq!(stage.abandon(&case).await, "never", "{}", case.name());
        late.deliver();
        late.answered().await;
        stage.is(&case, "never").await;
        stage.unchanged(&case).await;
    }
}

#[tokio::test]
async fn a_request_that_waits_for_the_gate_is_pending_and_sent_again_it_is_applied_once() {
    let mut stage = Stage::new().await;
    for scenario in numbered() {
        let case = stage.case(scenario).await;
        stage.hold_gate(&case).await;
        let late = stage.lose(&case, Fault::LateRequest).await;
        late.deliver();
        stage.until_blocked(case.name()).await;
        stage.is(&case, "pending").await;
        stage.unchanged(&case).await;
        let again = stage.waiting(case.call()).await;
        stage.holder.run("COMMIT").await;
        late.answered().await;
        let again = again.answer().await.word();
        // Whichever of the two came first, it was applied once.
        assert!(["applied", "replayed"].contains(&again.as_str()), "{}: {again}", case.name());
        stage.is(&case, "applied").await;
        stage.once(&case).await;
        assert_eq!(stage.abandon(&case).await, "applied", "{}", case.name());
    }
}

#[tokio::test]
async fn a_request_that_waits_for_the_gate_and_is_abandoned_ends_one_way_for_good() {
    let mut stage = Stage::new().await;
    let mut ends = Vec::new();
    for scenario in numbered() {
        let case = stage.case(scenario).await;
        stage.hold_gate(&case).await;
        let late = stage.lose(&case, Fault::LateRequest).await;
        late.deliver();
        stage.until_blocked(case.name()).await;
        let abandon = stage.waiting(format!("abandon({})", case.fence())).await;
        stage.holder.run("COMMIT").await;
        let word = abandon.answer().await.word();
        late.answered().await;
        stage.is(&case, &word).await;
        match word.as_str() {
            "applied" => stage.once(&case).await,
            "never" => stage.unchanged(&case).await,
            other => panic!("{}: {other} is not final", case.name()),
        }
        ends.push(word);
    }
    assert_eq!(ends.len(), numbered().count());
}

#[tokio::test]
async fn a_request_that_runs_is_pending_and_abandon_waits_for_it_and_tells_its_end() {
    let mut stage = Stage::new().await;
    stage.direct.run(HOLD).await;
    for scenario in numbered() {
        let case = stage.case(scenario).await;
        stage.holder.run("SELECT pg_advisory_lock(42)").await;
        let late = stage.lose(&case, Fault::LateRequest).await;
        late.deliver();
        stage.until_blocked(case.name()).await;
        stage.is(&case, "pending").await;
        stage.unchanged(&case).await;
        let again = stage.waiting(case.call()).await;
        let abandon = stage.waiting(format!("abandon({})", case.fence())).await;
        let person = stage.command(&case, "abandon").stdout(std::process::Stdio::piped()).spawn().expect("it runs");
        stage.until_blocked("operation_abandon").await;
        stage.is(&case, "pending").await;
        stage.holder.run("SELECT pg_advisory_unlock(42)").await;
        late.answered().await;
        again.answer().await.is("replayed");
        abandon.answer().await.is("applied");
        assert_eq!(told(person.wait_with_output().await.expect("it ends"))["status"], "applied", "{}", case.name());
        stage.is(&case, "applied").await;
        stage.once(&case).await;
    }
}

#[tokio::test]
async fn a_request_whose_backend_died_in_the_middle_left_nothing_and_can_be_sent_again_or_closed() {
    let mut stage = Stage::new().await;
    stage.direct.run(HOLD).await;
    for (n, scenario) in numbered().enumerate() {
        let case = stage.case(scenario).await;
        stage.holder.run("SELECT pg_advisory_lock(42)").await;
        let late = stage.lose(&case, Fault::LateRequest).await;
        late.deliver();
        stage.until_blocked(case.name()).await;
        let ended = format!(
            "SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity
             WHERE datname = '{}' AND wait_event = 'advisory'",
            stage.db.name
        );
        assert_eq!(stage.direct.number(&ended).await, 1, "{}", case.name());
        stage.holder.run("SELECT pg_advisory_unlock(42)").await;
        stage.is(&case, "pending").await;
        stage.unchanged(&case).await;
        if n % 2 == 0 {
            stage.again(&case).await.is("applied");
            stage.once(&case).await;
        } else {
            assert_eq!(stage.abandon(&case).await, "never", "{}", case.name());
            stage.unchanged(&case).await;
        }
    }
}

#[tokio::test]
async fn a_request_that_was_done_is_answered_with_its_first_result_however_often_it_is_sent() {
    let mut stage = Stage::new().await;
    for scenario in numbered() {
        let case = stage.case(scenario).await;
        stage.lose(&case, Fault::LoseAnswer).await;
        let status = stage.is(&case, "applied").await;
        stage.once(&case).await;
        let (after, events) =
            (stage.effect(&case).await, stage.direct.number("SELECT count(*) FROM palisade.event").await);
        for fault in [Fault::LoseAnswer, Fault::TruncateAnswer] {
            stage.lose(&case, fault).await;
        }
        let again = stage.again(&case).await;
        again.is("replayed");
        assert_eq!(again.result, status.result, "{}", case.name());
        assert_eq!(stage.effect(&case).await, after, "{}", case.name());
        assert_eq!(stage.direct.number("SELECT count(*) FROM palisade.event").await, events, "{}", case.name());
        stage.is(&case, "applied").await;
        stage.once(&case).await;
        assert_eq!(stage.abandon(&case).await, "applied", "{}", case.name());
    }
}

#[tokio::test]
async fn a_request_that_a_later_write_or_a_new_owner_overtook_is_never_applied() {
    let mut stage = Stage::new().await;
    for scenario in numbered() {
        for (takeover, reason) in [(false, "superseded"), (true, "stale")] {
            let case = stage.case(scenario).await;
            let late = stage.lose(&case, Fault::LateRequest).await;
            stage.is(&case, "pending").await;
            if takeover {
                stage.direct.take_over(&case.world.lease).await;
            } else {
                let later = case.later();
                stage.direct.call(&later).await.is("applied");
            }
            let overtaken = stage.effect(&case).await;
            stage.is(&case, "never").await; // already before it arrives
            late.deliver();
            late.answered().await;
            stage.is(&case, "never").await;
            stage.again(&case).await.is(&format!("rejected: {reason}"));
            assert_eq!(stage.abandon(&case).await, "never", "{}", case.name());
            assert_eq!(stage.effect(&case).await, overtaken, "{}", case.name());
        }
    }
}

#[tokio::test]
async fn a_request_that_is_forgotten_says_so_and_is_not_applied_a_second_time() {
    let mut stage = Stage::new().await;
    for scenario in numbered() {
        let case = stage.case(scenario).await;
        stage.lose(&case, Fault::LoseAnswer).await;
        stage.is(&case, "applied").await;
        stage.direct.take_over(&case.world.lease).await;
        forget(&mut stage.direct).await;
        let after = stage.effect(&case).await;
        stage.is(&case, "forgotten").await;
        stage.again(&case).await.is("rejected: forgotten");
        assert_eq!(stage.abandon(&case).await, "forgotten", "{}", case.name());
        assert_eq!(stage.effect(&case).await, after, "{}", case.name());
    }
}

/// Two days pass, and the leader cleans up.
async fn forget(conn: &mut Conn) {
    conn.run("UPDATE palisade.operation SET at = at - interval '2 days'").await;
    assert_ne!(conn.number("SELECT removed FROM palisade.clean('ledger', '1 day')").await, 0);
}

/// The other fence of a write that needs two is answered for itself.
#[tokio::test]
async fn the_second_fence_of_a_moved_guard_is_told_what_became_of_the_move() {
    let mut stage = Stage::new().await;
    let scenario =
        scenarios::SCENARIOS.iter().find(|s| s.function == "move_guard" && s.occurrence == 1).expect("a scenario");
    let case = stage.case(scenario).await;
    stage.lose(&case, Fault::LoseRequest).await;
    stage.is(&case, "pending").await;
    stage.lose(&case, Fault::LoseAnswer).await;
    stage.is(&case, "applied").await;
    stage.again(&case).await.is("replayed");
    stage.once(&case).await;

    let case = stage.case(scenario).await;
    let late = stage.lose(&case, Fault::LateRequest).await;
    assert_eq!(stage.abandon(&case).await, "never");
    late.deliver();
    late.answered().await;
    stage.is(&case, "never").await;
    stage.unchanged(&case).await;
    // The first one's owner may still write under its own fence: nothing was used of it.
    stage.direct.call(&format!("set_alias({}, 'm', 'guarded', 2)", case.world.peer.fence(1))).await.is("applied");
}

// ---------------------------------------------------------------- the worker library

struct Library {
    db: Db,
    proxy: Proxy,
    direct: Conn,
    holder: Conn,
    /// Dropped last: it ends the session.
    session: Session,
}

impl Library {
    async fn new() -> (Library, Leases) {
        let db = Db::patient().await;
        let proxy = Proxy::start(db.server.port()).await;
        register(&db.url()).await;
        let direct = db.connect().await;
        let timeout = Duration::from_secs(60);
        let config = StoreConfig { timeout, ..StoreConfig::new(proxy.url(&db.url()), "outcomes") };
        let store = Store::new(&config).expect("a store");
        let session = Session::open(store, SessionConfig::new("w", Duration::from_secs(600))).await.expect("a session");
        let acquire = |resource| session.acquire(resource, None);
        let leases = Leases {
            controller: acquire(writes::CONTROLLER).await.expect("a lease"),
            worker: acquire(writes::DEPLOYMENT).await.expect("a lease"),
            other: acquire(writes::OTHER).await.expect("a lease"),
        };
        (Library { holder: db.connect().await, proxy, direct, session, db }, leases)
    }

    async fn until_blocked(&mut self, function: &str) {
        self.direct
            .wait_until(&format!(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = '{}' AND wait_event_type = 'Lock'
                 AND query LIKE '%palisade.{function}(%' AND pid <> pg_backend_pid())",
                self.db.name
            ))
            .await;
    }

    async fn applied(&mut self, step: &Step) -> i64 {
        let call = step.name();
        self.direct
            .number(&format!("SELECT count(*) FROM palisade.operation WHERE kind = '{call}' AND outcome = 'applied'"))
            .await
    }
}

/// The write is in doubt: nothing else may be sent, and its fence is this one.
async fn in_doubt(leases: &Leases, step: &Step) -> i64 {
    match leases.send(step).await {
        Err(LeaseError::Unsettled { fence, name }) => {
            assert_eq!(name, step.name());
            fence.sequence
        }
        other => panic!("{}: {other:?}", step.name()),
    }
}

#[tokio::test]
async fn the_library_settles_a_write_whose_answer_never_comes_as_applied() {
    let (mut library, leases) = Library::new().await;
    for step in &steps() {
        let before = library.applied(step).await;
        let hung = library.proxy.on_next(&format!("palisade.{}(", step.name()), Fault::HangAnswer);
        tokio::select! {
            outcome = leases.send(step) => panic!("{}: {outcome:?}", step.name()),
            () = hung.fired() => {}
        }
        let sequence = in_doubt(&leases, step).await;
        let status = leases.of(step).status(sequence).await.expect("an answer");
        assert!(matches!(status, OperationState::Applied(_)), "{}: {status:?}", step.name());
        let settled = leases.of(step).settle().await.expect("an answer");
        assert!(matches!(settled, Settled::Applied(_)), "{}: {settled:?}", step.name());
        assert!(library.applied(step).await > before, "{}", step.name());
        hung.deliver();
    }
}

#[tokio::test]
async fn the_library_closes_a_write_that_never_arrived_and_its_late_request_is_refused() {
    let (mut library, leases) = Library::new().await;
    for step in &steps() {
        let before = library.applied(step).await;
        let late = library.proxy.on_next(&format!("palisade.{}(", step.name()), Fault::HangRequest);
        tokio::select! {
            outcome = leases.send(step) => panic!("{}: {outcome:?}", step.name()),
            () = late.fired() => {}
        }
        let sequence = in_doubt(&leases, step).await;
        assert_eq!(leases.of(step).status(sequence).await.expect("an answer"), OperationState::Pending);
        assert_eq!(leases.of(step).settle().await.expect("an answer"), Settled::Never, "{}", step.name());
        late.deliver();
        late.answered().await;
        assert_eq!(leases.of(step).status(sequence).await.expect("an answer"), OperationState::Never);
        assert_eq!(library.applied(step).await, before, "{}", step.name());
        let outcome = leases.send(step).await.expect("an answer");
        assert!(matches!(outcome, Outcome::Applied(_)), "{}: {outcome:?}", step.name());
    }
}

#[tokio::test]
async fn the_library_settles_a_write_that_waits_for_the_gate_one_way_for_good() {
    let (mut library, leases) = Library::new().await;
    for step in &steps() {
        let lease = leases.of(step);
        let lock = format!("BEGIN; SELECT FROM palisade.lease WHERE resource = '{}' FOR UPDATE", lease.resource());
        library.holder.run(&lock).await;
        tokio::select! {
            outcome = leases.send(step) => panic!("{}: {outcome:?}", step.name()),
            () = library.until_blocked(step.name()) => {}
        }
        let sequence = in_doubt(&leases, step).await;
        assert_eq!(lease.status(sequence).await.expect("an answer"), OperationState::Pending, "{}", step.name());
        let (settled, ()) = tokio::join!(lease.settle(), async {
            library.until_blocked("abandon").await;
            library.holder.run("COMMIT").await;
        });
        match settled.expect("an answer") {
            Settled::Applied(_) => {
                let status = lease.status(sequence).await.expect("an answer");
                assert!(matches!(status, OperationState::Applied(_)), "{}: {status:?}", step.name());
            }
            Settled::Never => {
                assert_eq!(lease.status(sequence).await.expect("an answer"), OperationState::Never);
                leases.send(step).await.expect("an answer").applied().expect("anew");
            }
            Settled::Nothing => panic!("{}", step.name()),
        }
    }
}

#[tokio::test]
async fn the_library_waits_for_a_write_that_runs_and_tells_its_end() {
    let (mut library, leases) = Library::new().await;
    library.direct.run(HOLD).await;
    for step in &steps() {
        let lease = leases.of(step);
        library.holder.run("SELECT pg_advisory_lock(42)").await;
        tokio::select! {
            outcome = leases.send(step) => panic!("{}: {outcome:?}", step.name()),
            () = library.until_blocked(step.name()) => {}
        }
        let sequence = in_doubt(&leases, step).await;
        assert_eq!(lease.status(sequence).await.expect("an answer"), OperationState::Pending, "{}", step.name());
        let (settled, ()) = tokio::join!(lease.settle(), async {
            library.until_blocked("abandon").await;
            library.holder.run("SELECT pg_advisory_unlock(42)").await;
        });
        assert!(matches!(settled.expect("an answer"), Settled::Applied(_)), "{}", step.name());
    }
}

#[tokio::test]
async fn the_library_is_told_what_is_forgotten_and_never_calls_it_rejected() {
    let (mut library, leases) = Library::new().await;
    let mut sent = Vec::new();
    for step in &steps() {
        // The answer is lost; the library asks again under the same fence, and is told the first answer.
        let lost = library.proxy.on_next(&format!("palisade.{}(", step.name()), Fault::LoseAnswer);
        let outcome = leases.send(step).await.expect("an answer");
        assert!(lost.has_fired() && matches!(outcome, Outcome::Replayed(_)), "{}: {outcome:?}", step.name());
        sent.push((step.name(), leases.of(step).resource().to_owned()));
    }
    library.direct.run("UPDATE palisade.lease SET token = token + 1, session = NULL WHERE session IS NOT NULL").await;
    forget(&mut library.direct).await;
    for lease in [&leases.controller, &leases.worker] {
        let mine = sent.iter().filter(|(_, resource)| resource == lease.resource()).count() as i64;
        assert!(mine > 0);
        for sequence in 1..=mine {
            let status = lease.status(sequence).await.expect("an answer");
            assert_eq!(status, OperationState::Forgotten, "{} {sequence}", lease.resource());
        }
    }
    assert!(library.session.alive());
}

/// The answer is lost, and until the library asks again the ledger is removed: nobody knows any more.
#[tokio::test]
async fn a_silent_write_whose_ledger_is_gone_is_unknown() {
    let (mut library, leases) = Library::new().await;
    let step = Step::Write(writes::DEPLOYMENT, writes::set_alias("spare", 1));
    let lost = library.proxy.on_next("palisade.set_alias(", Fault::LoseAnswer);
    let again = library.proxy.on_next("palisade.set_alias(", Fault::HangRequest);
    let (outcome, ()) = tokio::join!(leases.send(&step), async {
        again.fired().await;
        library
            .direct
            .run("UPDATE palisade.lease SET token = token + 1, session = NULL WHERE resource = 'deployment/team/churn'")
            .await;
        forget(&mut library.direct).await;
        again.deliver();
    });
    assert!(lost.has_fired());
    let outcome = outcome.expect("an outcome");
    assert!(matches!(&outcome, Outcome::Unknown(why) if why.contains(Reason::Forgotten.word())), "{outcome:?}");
    assert!(matches!(leases.send(&step).await, Err(LeaseError::Unsettled { .. })));
}

//! A server that is there and does not answer: the worst kind of failure, because nothing is refused. Everything that
//! waits for it must give up in time, and go on when it is back.

use std::time::Duration;

use rustix::process::Signal;

use super::arena::{Arena, Process, TTL, now, signal_to};
use super::history::FaultKind;
use super::{rules, run};

const DEPLOYMENTS: usize = 12;
/// What a busy machine may add.
const MARGIN: Duration = Duration::from_secs(20);
/// A TTL that a busy machine does not use up, where no session is to be lost.
const LASTING: Duration = Duration::from_secs(20);

async fn serving(ttl: Duration) -> (Arena, [Process; 2]) {
    let arena = Arena::start().await;
    let workers = ["w1.1", "w2.1"].map(|name| arena.worker_with(name, ttl, None, false));
    for number in 0..DEPLOYMENTS {
        arena.create(number).await;
    }
    arena.all_ready(DEPLOYMENTS, 1).await;
    (arena, workers)
}

async fn check(mut arena: Arena, kind: FaultKind) {
    let history = run::collect(&mut arena, &[kind], false).await;
    let told: Vec<String> = rules::check(&history).iter().map(ToString::to_string).collect();
    assert!(told.is_empty(), "logs: {}\n{}", arena.keep(), told.join("\n"));
}

/// Waits until all of them have said it.
async fn all_say(workers: &[Process], text: &str, within: Duration) {
    let until = now() + within.as_nanos() as u64;
    while let Some(silent) = workers.iter().find(|worker| !worker.text().contains(text)) {
        assert!(now() < until, "{} did not say {text:?} within {within:?}:\n{}", silent.name, silent.text());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_api_server_hangs_no_call_past_its_timeout_and_costs_no_session() {
    let (arena, mut workers) = serving(LASTING).await;
    let pid = arena.cluster.pid("kube-apiserver");
    for number in 0..DEPLOYMENTS {
        arena.roll(number, 2).await;
    }
    let mut sql = arena.sql().await;
    sql.wait_until("SELECT EXISTS (SELECT FROM palisade.plan AS n JOIN palisade.lease AS l USING (resource) WHERE l.session IS NOT NULL)").await;
    let alive = "SELECT id::text FROM palisade.session WHERE worker LIKE 'w%' AND closed_at IS NULL AND expires_at > clock_timestamp() ORDER BY id";
    let before = sql.list(alive).await;
    // What the workers said of calls that nobody answered, reads and writes.
    let silences = || workers.iter().map(|w| w.text().matches("silence: no answer within").count()).sum::<usize>();
    let earlier = silences();
    signal_to(pid, Signal::STOP);
    let from = now();
    // Each try has a limit of its own, shorter than the lease: several come to their end.
    let until = from + (LASTING + MARGIN).as_nanos() as u64;
    // And for longer than a session lasts, if nobody keeps it alive.
    let least = from + (LASTING + Duration::from_secs(2)).as_nanos() as u64;
    while now() < least || silences() < earlier + 5 && now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let gave_up = silences() - earlier;
    // The database is well, so every session is.
    let after = sql.list(alive).await;
    signal_to(pid, Signal::CONT);
    arena.fault(FaultKind::ApiServerFrozen, "", from, now());
    assert!(gave_up >= 5, "{gave_up} calls came to their end while the API server was frozen");
    assert_eq!(before, after, "a session was lost, though only the API server was frozen");
    sql.close().await;
    arena.all_ready(DEPLOYMENTS, 2).await;
    for worker in &mut workers {
        assert!(worker.is_running(), "{}", worker.text());
    }
    check(arena, FaultKind::ApiServerFrozen).await;
    drop(workers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_postgres_is_given_up_within_the_ttl_and_work_goes_on_when_it_is_back() {
    let (arena, mut workers) = serving(TTL).await;
    for number in 0..DEPLOYMENTS {
        arena.roll(number, 2).await;
    }
    let mut sql = arena.sql().await;
    sql.wait_until("SELECT EXISTS (SELECT FROM palisade.lease AS l WHERE l.session IS NOT NULL AND l.resource LIKE 'deployment/%')").await;
    let postmaster = arena.server.postmaster();
    signal_to(postmaster, Signal::STOP);
    let from = now();
    let backends = children(postmaster);
    backends.iter().for_each(|pid| signal_to(*pid, Signal::STOP));
    // While it is frozen: nobody waits for it any longer than a lease may last.
    all_say(&workers, "stepped down", TTL + MARGIN).await;
    let took = Duration::from_nanos(now() - from);
    tokio::time::sleep((TTL * 2).saturating_sub(took)).await;
    for worker in &mut workers {
        assert!(worker.is_running(), "{}", worker.text());
    }
    backends.iter().for_each(|pid| signal_to(*pid, Signal::CONT));
    signal_to(postmaster, Signal::CONT);
    arena.fault(FaultKind::PostgresFrozen, "", from, now());
    eprintln!("all had stepped down {took:.2?} after Postgres froze");
    sql.close().await;
    arena.all_ready(DEPLOYMENTS, 2).await;
    check(arena, FaultKind::PostgresFrozen).await;
    drop(workers);
}

/// All of Postgres but the postmaster.
fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("the postmaster");
    text.split_whitespace().map(|pid| pid.parse().expect("a PID")).collect()
}

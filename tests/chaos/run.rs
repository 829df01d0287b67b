//! The run: a hundred deployments are rolled back and forth while workers are killed and paused at random moments, and
//! at the worst ones. Then everything must be Ready, nothing is written any more, and the history keeps every rule.
//!
//! `PALISADE_CHAOS_SEED` repeats the choices of a run (not its timing), `PALISADE_CHAOS_DEPLOYMENTS` and
//! `PALISADE_CHAOS_FAULTS` change its size.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use rustix::process::Signal;

use super::arena::{Arena, CAPACITY, Process, TTL, now};
use super::history::{Call, End, FaultKind, Granted, History, Micros, Terms};
use super::{observe, rules};
use crate::support::postgres::Conn;

const WORKERS: usize = 3;

/// Between the look at the lease and the call: where a pause does the most harm. And after the call: where what was done
/// is not known yet.
const CLUSTER_POINTS: [&str; 3] = ["apply/apply/before", "switch/apply/before", "seal/seal/before"];
const REGISTRY_POINTS: [&str; 8] = [
    "apply/apply/after",
    "switch/record_serving/before",
    "ready/record_step/before",
    "drain/record_step/before",
    "done/record_done/before",
    "done/release/before",
    "switch/record_serving/after",
    "-/claim/after",
];

/// How long after a takeover is due it must have happened: two cores run a control plane, Postgres, and all of this.
const MARGIN: Duration = Duration::from_secs(20);
/// Nothing may be written for so long in the end.
const QUIET: Duration = Duration::from_secs(4);
/// How long what follows the last rollout may take: releases, their statuses, what Kubernetes' own controllers write.
const SETTLING: Duration = Duration::from_secs(60);

/// No new fault begins after this.
const CHAOS: Duration = Duration::from_secs(50);
const ALL_KINDS: [FaultKind; 5] = [
    FaultKind::Killed,
    FaultKind::Paused,
    FaultKind::StoppedAtPoint,
    FaultKind::Disconnected,
    FaultKind::PostgresCrashed,
];

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// A place that a worker process is in; when it is killed, the next one comes.
struct Slot {
    number: usize,
    born: usize,
    process: Process,
    /// Since when it has stopped itself.
    stopped: Option<u64>,
    armed: bool,
}

impl Slot {
    fn new(arena: &Arena, number: usize, born: usize, stop_at: Option<(&str, bool)>) -> Slot {
        let (point, blind) = stop_at.unzip();
        let process = arena.worker(&format!("w{number}.{born}"), point, blind.unwrap_or(false));
        Slot { number, born, process, stopped: None, armed: stop_at.is_some() }
    }

    fn replace(&mut self, arena: &Arena, stop_at: Option<(&str, bool)>) {
        *self = Slot::new(arena, self.number, self.born + 1, stop_at);
    }

    /// Notices that it has stopped itself, and wakes it up when it was long enough for a takeover.
    fn attend(&mut self, arena: &Arena) {
        match self.stopped {
            None if self.armed && self.process.is_stopped() => self.stopped = Some(now()),
            Some(since) if now() - since > (TTL + Duration::from_millis(1500)).as_nanos() as u64 => {
                self.process.signal(Signal::CONT);
                arena.fault(FaultKind::StoppedAtPoint, &self.process.name, since, now());
                (self.stopped, self.armed) = (None, false);
            }
            _ => {}
        }
    }
}

/// The choices of a run.
struct Dice {
    rng: Rng,
    /// How many workers were told to stop themselves.
    armed: usize,
}

impl Dice {
    /// Where the next worker stops itself: at a call to the cluster, to the registry, in turn. Half of them are blind
    /// then: they do not look at the clock, and only the fences keep them from doing harm.
    fn point(&mut self) -> (&'static str, bool) {
        let number = self.armed;
        self.armed += 1;
        let points = if number.is_multiple_of(2) { &CLUSTER_POINTS[..] } else { &REGISTRY_POINTS[..] };
        (points[self.rng.usize(..points.len())], number % 4 < 2)
    }
}

/// Waits, and attends to those who stop themselves.
async fn pass(arena: &Arena, slots: &mut [Slot], time: Duration) {
    let until = now() + time.as_nanos() as u64;
    while now() < until {
        slots.iter_mut().for_each(|slot| slot.attend(arena));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One fault, at random. One worker is killed or paused at a time, and one may have stopped itself: one is always left.
async fn strike(arena: &Arena, slots: &mut [Slot], dice: &mut Dice, kind: FaultKind) {
    let free: Vec<usize> = (0..slots.len()).filter(|place| !slots[*place].armed).collect();
    let place = *dice.rng.choice(&free).expect("one is armed at the most");
    let name = slots[place].process.name.clone();
    let began = now();
    match kind {
        FaultKind::Killed => {
            slots[place].process.kill();
            arena.fault(kind, &name, began, began);
            let wait = Duration::from_millis(dice.rng.u64(100..1500));
            pass(arena, slots, wait).await;
            let armed = slots.iter().any(|slot| slot.armed);
            slots[place].replace(arena, (!armed).then(|| dice.point()));
        }
        FaultKind::Paused => {
            slots[place].process.signal(Signal::STOP);
            let wait = TTL + Duration::from_millis(dice.rng.u64(600..1600));
            pass(arena, slots, wait).await;
            slots[place].process.signal(Signal::CONT);
            arena.fault(kind, &name, began, now());
        }
        FaultKind::Disconnected => {
            let mut sql = arena.sql().await;
            let ended = sql
                .number(&format!(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'palisade worker {name}'"
                ))
                .await;
            sql.close().await;
            if ended > 0 {
                arena.fault(kind, &name, began, now());
            }
        }
        FaultKind::PostgresCrashed => {
            let mut sql = None;
            tokio::task::block_in_place(|| {
                arena.server.crash();
                arena.server.start_again();
            });
            while sql.is_none() {
                let mut conn = arena.sql().await;
                let established = conn.try_text("SELECT established FROM palisade.epoch_status()").await;
                sql = established.is_ok_and(|text| text == "true").then_some(conn);
                pass(arena, slots, Duration::from_millis(100)).await;
            }
            arena.fault(kind, "", began, now());
        }
        FaultKind::StoppedAtPoint => {
            // It comes with a new worker, who stops when the point is reached.
            if slots.iter().any(|slot| slot.armed) {
                return;
            }
            slots[place].process.kill();
            arena.fault(FaultKind::Killed, &name, began, began);
            slots[place].replace(arena, Some(dice.point()));
        }
        FaultKind::PostgresFrozen | FaultKind::ApiServerFrozen => unreachable!("frozen.rs"),
    }
}

/// What is done to the system: each kind once, and then some of them again. The database crashes once.
fn kinds(rng: &mut Rng, count: usize) -> Vec<FaultKind> {
    let mut first = ALL_KINDS.to_vec();
    rng.shuffle(&mut first);
    let again = &ALL_KINDS[..ALL_KINDS.len() - 1];
    let more: Vec<_> = (first.len()..count).map(|_| again[rng.usize(..again.len())]).collect();
    [first, more].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_killed_and_paused_at_random_leave_a_history_that_keeps_every_rule() {
    // The same choices each time, unless asked otherwise: what fails today can be looked at today. Timing still varies.
    let seed = std::env::var("PALISADE_CHAOS_SEED").map_or(11, |text| text.parse().expect("a number"));
    let (count, faults) = (setting("PALISADE_CHAOS_DEPLOYMENTS", 100), setting("PALISADE_CHAOS_FAULTS", 16));
    eprintln!("PALISADE_CHAOS_SEED={seed} PALISADE_CHAOS_DEPLOYMENTS={count} PALISADE_CHAOS_FAULTS={faults}");
    let mut dice = Dice { rng: Rng::with_seed(seed), armed: 0 };
    let mut arena = Arena::start().await;
    let began = now();

    let mut slots: Vec<Slot> = (1..=WORKERS).map(|number| Slot::new(&arena, number, 1, None)).collect();
    slots[0].replace(&arena, Some(dice.point()));
    for number in 0..count {
        arena.create(number).await;
    }
    for (number, kind) in kinds(&mut dice.rng, faults).into_iter().enumerate() {
        if number >= ALL_KINDS.len() && now() - began > CHAOS.as_nanos() as u64 {
            break; // a slow machine
        }
        // Work does not run out: some are rolled to the other version, perhaps in the middle of a rollout.
        for _ in 0..count.div_ceil(8) {
            arena.roll(dice.rng.usize(..count), dice.rng.i64(1..=2)).await;
        }
        let wait = Duration::from_millis(dice.rng.u64(200..1500));
        pass(&arena, &mut slots, wait).await;
        strike(&arena, &mut slots, &mut dice, kind).await;
        eprintln!(
            "{:5.1} s: {kind:?}; {} of {count} serve version 2",
            (now() - began) as f64 / 1e9,
            arena.done(2).await
        );
    }
    // The last fault is over when the last sleeper is awake.
    for number in 0..count {
        arena.roll(number, 2).await;
    }
    pass(&arena, &mut slots, Duration::from_secs(4)).await;
    let sleeping = |slots: &[Slot]| slots.iter().any(|slot| slot.stopped.is_some());
    while sleeping(&slots) {
        pass(&arena, &mut slots, Duration::from_millis(100)).await;
    }
    let last = now();
    for slot in &mut slots {
        assert!(slot.process.is_running(), "{} ended by itself: {}", slot.process.name, slot.process.text());
    }
    arena.all_ready(count, 2).await;
    let ready = now();

    let history = collect(&mut arena, &ALL_KINDS, true).await;
    report(&history, (last - began) as f64 / 1e9, (ready - last) as f64 / 1e9);
    let violations = rules::check(&history);
    let told: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(
        violations.is_empty(),
        "seed {seed}: {} violations; logs: {}\n{}",
        told.len(),
        arena.keep(),
        told.join("\n")
    );
}

/// Waits through the quiet that must follow, and collects what everybody says.
pub async fn collect(arena: &mut Arena, expected: &[FaultKind], stale_writes: bool) -> History {
    let mut sql = arena.sql().await;
    let (quiet_version, quiet) = quiet(arena, &mut sql).await;
    arena.unwatch();
    let offset = observe::offset(&mut sql, now()).await;
    let registry = observe::registry(&mut sql).await;
    sql.close().await;
    let (calls, granted) = observe::accounts(arena.dir.path());
    let mut faults = arena.faults.lock().expect("not poisoned").clone();
    for fault in &mut faults {
        fault.from += offset;
        fault.until += offset;
    }
    let micros = |time: Duration| time.as_micros() as Micros;
    History {
        registry,
        revisions: arena.revisions.lock().expect("not poisoned").clone(),
        calls,
        granted,
        faults,
        denied: arena.denied().saturating_sub(arena.denied_before),
        terms: Terms {
            ttl: micros(TTL),
            poll: micros(Duration::from_millis(240)),
            margin: micros(MARGIN),
            capacity: CAPACITY,
            quiet,
            quiet_version,
            faults: expected.to_vec(),
            stale_writes,
        },
    }
}

/// Waits until nothing of ours was written for QUIET, or for SETTLING: then whoever checks says what it was. The cluster's
/// revision before, and from when to when.
async fn quiet(arena: &Arena, sql: &mut Conn) -> (u64, (Micros, Micros)) {
    const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    const WRITTEN: &str =
        "SELECT (SELECT count(*) FROM palisade.operation) + (SELECT count(*) FROM palisade.grant_history)";
    let began = now();
    loop {
        let (version, written, from) = (arena.version().await, sql.number(WRITTEN).await, sql.number(CLOCK).await);
        tokio::time::sleep(QUIET).await;
        let until = sql.number(CLOCK).await;
        let calm = sql.number(WRITTEN).await == written && !arena.wrote_since(version);
        if calm || now() - began > SETTLING.as_nanos() as u64 {
            return (version, (from, until));
        }
    }
}

/// Figures, for people.
fn report(history: &History, chaos: f64, settling: f64) {
    let History { registry, revisions, calls, granted, faults, .. } = history;
    let mut struck: BTreeMap<FaultKind, usize> = BTreeMap::new();
    faults.iter().for_each(|fault| *struck.entry(fault.kind).or_default() += 1);
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    registry.refusals.iter().for_each(|refusal| *reasons.entry(&refusal.reason).or_default() += 1);
    let ends = |end: End| calls.iter().filter(|call: &&Call| call.end == end).count();
    let kinds = |kind: &str| registry.grants.iter().filter(|grant| grant.kind == kind).count();
    eprintln!(
        "{chaos:.0} s of chaos, then {settling:.1} s until all were Ready\n\
         faults: {struck:?}\n\
         grants: {} + {} takeovers, {} told of; registry writes: {}; refused: {reasons:?}\n\
         calls: {} applied, {} never, {} unknown ({} settled), {} refused by the cluster's policy; object revisions: {}\n\
         writes a second: {:.0}",
        kinds("grant"),
        kinds("takeover"),
        granted
            .iter()
            .map(|grant: &Granted| (&grant.resource, grant.token))
            .collect::<std::collections::BTreeSet<_>>()
            .len(),
        registry.operations.len(),
        ends(End::Applied),
        ends(End::Never),
        ends(End::Unknown),
        calls.iter().filter(|call| call.settled.is_some()).count(),
        history.denied,
        revisions.len(),
        calls.len() as f64 / (chaos + settling),
    );
    let longest = rules::takeover_times(history).into_iter().max_by_key(|(_, took)| *took);
    if let Some((resource, took)) = longest {
        eprintln!("slowest takeover: {resource}, {:.2} s after its owner was killed or paused", took as f64 / 1e6);
    }
}

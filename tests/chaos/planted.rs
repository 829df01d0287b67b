//! The checker, checked: a history in which all is well is passed, and each planted violation is reported, as what it is.

use serde_json::json;

use super::history::*;
use super::rules::check;

const A: &str = "deployment/team/a";
/// Tokens of one epoch.
const T: i64 = 1 << 32;
const SECOND: i64 = 1_000_000;

fn grant(token: i64, session: Option<&str>, kind: &str, at: i64) -> Grant {
    Grant {
        resource: A.into(),
        token: T + token,
        session: session.map(str::to_owned),
        worker: session.map(|session| session.replace('s', "w")),
        kind: kind.into(),
        reason: None,
        former_end: None,
        at,
        commit: at,
    }
}

fn operation(token: i64, sequence: i64, kind: &str, at: i64) -> Operation {
    Operation {
        resource: A.into(),
        token: T + token,
        sequence,
        kind: kind.into(),
        outcome: "applied".into(),
        commit: at,
    }
}

fn call(process: &str, token: i64, sequence: i64, call: &str, at: i64, end: End) -> Call {
    Call {
        process: process.into(),
        resource: A.into(),
        token: T + token,
        sequence,
        call: call.into(),
        invoked: at as u64 * 1000,
        end,
        settled: None,
    }
}

fn granted(process: &str, token: i64, at: i64) -> Granted {
    Granted { process: process.into(), resource: A.into(), token: T + token, at: at as u64 * 1000 }
}

fn event(id: i64, kind: &str, data: serde_json::Value, at: i64) -> Event {
    Event { id, resource: A.into(), kind: kind.into(), data, commit: at }
}

fn revision(kind: &'static str, name: &str, version: u64, fence: Option<(i64, i64)>) -> Revision {
    Revision {
        kind,
        namespace: "team".into(),
        name: name.into(),
        deployment: "a".into(),
        uid: format!("uid of {name}"),
        version,
        fence: fence.map(|(token, sequence)| (T + token, sequence)),
        manager: "palisade-worker".into(),
        selects: Some("r1".into()),
        replicas: (1, 1),
        status: None,
        ready: false,
        deleted: false,
    }
}

fn status(version: u64, revision_: i64, token: i64, ready: bool) -> Revision {
    let body = json!({"revision": revision_, "ready": ready});
    Revision {
        status: Some((revision_, T + token, body)),
        ready,
        fence: None,
        ..revision("ModelDeployment", "a", version, None)
    }
}

/// w1 applies, is stopped before it moves the Service, and replaced by w2, which finishes. Then w1 wakes up and is refused.
fn clean() -> History {
    let takeover = Grant {
        former_end: Some(4 * SECOND),
        reason: Some("session ended".into()),
        ..grant(2, Some("s2"), "takeover", 5 * SECOND)
    };
    let registry = Registry {
        grants: vec![grant(1, Some("s1"), "grant", SECOND), takeover, grant(3, None, "release", 7 * SECOND)],
        operations: vec![
            operation(1, 1, "record_step", SECOND + 100),
            operation(2, 2, "record_step", 5 * SECOND + 100),
            operation(2, 4, "record_serving", 6 * SECOND),
            operation(2, 5, "record_done", 6 * SECOND + 100),
            operation(2, 6, "release", 7 * SECOND),
        ],
        refusals: vec![Refusal { reason: "stale".into() }],
        events: vec![
            event(1, "planned", json!({"rollout": 1}), 1),
            event(2, "step", json!({"rollout": 1, "step": "apply"}), SECOND + 100),
            event(3, "step", json!({"rollout": 1, "step": "switch"}), 5 * SECOND + 100),
            event(5, "alias", json!({"model": "m", "alias": "champion", "version": 1, "guard": A}), 6 * SECOND),
            event(4, "serving", json!({"model": "m", "version": 1, "revision": "r1", "rollout": 1}), 6 * SECOND),
            event(6, "done", json!({"rollout": 1}), 6 * SECOND + 100),
        ],
        sessions: vec![
            Session {
                id: "s1".into(),
                worker: "w1".into(),
                opened_at: 0,
                expires_at: 4 * SECOND,
                closed_at: Some(5 * SECOND),
            },
            Session { id: "s2".into(), worker: "w2".into(), opened_at: 0, expires_at: 14 * SECOND, closed_at: None },
        ],
        aliases: vec![Alias { model: "m".into(), alias: "champion".into(), version: Some(1), guard: Some(A.into()) }],
        deployments: vec![Deployment {
            resource: A.into(),
            uid: "u".into(),
            rollout: 1,
            step: "done".into(),
            serving_model: Some("m".into()),
            serving_version: Some(1),
            serving_revision: Some("r1".into()),
            failure: None,
        }],
        plans: vec![Plan { resource: A.into(), uid: "u".into(), rollout: 1, version: 1 }],
        queue: vec![],
        idle_in_transaction: 0,
    };
    let (apply, seal, serve) = ("apply Deployment team/a-r1", "seal Deployment team/a-r1", "apply Service team/a");
    let calls = vec![
        call("w1", 1, 1, "record_step", SECOND + 50, End::Applied),
        call("w1", 1, 2, apply, SECOND + 200, End::Applied),
        call("w1", 1, 3, "scale Deployment team/a-r1", 8 * SECOND, End::Never),
        call("w1", 1, 4, "record_step", 8 * SECOND, End::Never),
        Call { settled: Some(false), ..call("w1", 1, 5, "record_step", 8 * SECOND, End::Unknown) },
        call("w2", 2, 1, seal, 5 * SECOND + 10, End::Applied),
        call("w2", 2, 2, "record_step", 5 * SECOND + 50, End::Applied),
        call("w2", 2, 3, serve, 5 * SECOND + 200, End::Applied),
        call("w2", 2, 4, "record_serving", 5 * SECOND + 300, End::Applied),
        Call { settled: Some(true), ..call("w2", 2, 5, "record_done", 6 * SECOND, End::Unknown) },
        call("w2", 2, 6, "release", 6 * SECOND + 900, End::Applied),
    ];
    let by_kubernetes =
        Revision { manager: "kube-controller-manager".into(), ..revision("Deployment", "a-r1", 4, Some((2, 1))) };
    let stopped = Fault { kind: FaultKind::StoppedAtPoint, process: "w1".into(), from: 2 * SECOND, until: 8 * SECOND };
    History {
        registry,
        revisions: vec![
            revision("Deployment", "a-r1", 2, Some((1, 2))),
            revision("Deployment", "a-r1", 3, Some((2, 1))),
            by_kubernetes,
            revision("Service", "a", 5, Some((2, 3))),
            status(6, 1, 1, false),
            status(7, 2, 2, true),
        ],
        calls,
        granted: vec![granted("w1", 1, SECOND + 10), granted("w2", 2, 5 * SECOND + 5)],
        faults: vec![stopped],
        denied: 1,
        terms: Terms {
            ttl: 2 * SECOND,
            poll: SECOND,
            margin: SECOND,
            capacity: 8,
            quiet: (9 * SECOND, 12 * SECOND),
            quiet_version: 7,
            faults: vec![FaultKind::StoppedAtPoint],
            stale_writes: true,
        },
    }
}

/// Changes one thing in a history in which all is well, and expects one violation, of this rule.
#[track_caller]
fn planted(rule: Rule, plant: impl FnOnce(&mut History)) {
    let mut history = clean();
    plant(&mut history);
    let found = check(&history);
    assert_eq!(found.iter().map(|violation| violation.rule).collect::<Vec<_>>(), [rule], "{found:#?}");
}

#[test]
fn a_history_in_which_all_is_well_is_passed() {
    assert_eq!(check(&clean()), []);
}

#[test]
fn s1_a_token_that_falls_is_reported() {
    planted(Rule::S1TokensRise, |h| h.registry.grants.push(grant(2, None, "revoke", 7 * SECOND + 1)));
}

#[test]
fn s2_a_write_that_was_applied_after_a_newer_grant_is_reported() {
    planted(Rule::S2NoWriteAfterANewerGrant, |h| h.registry.operations[0].commit = 5 * SECOND + 1);
}

#[test]
fn s2_a_write_that_was_sent_after_a_newer_grant_and_acknowledged_is_reported() {
    planted(Rule::S2NoWriteAfterANewerGrant, |h| h.calls[0].invoked = 5 * SECOND as u64 * 1000 + 6000);
}

#[test]
fn s3_an_acknowledged_write_that_is_not_in_the_ledger_is_reported() {
    planted(Rule::S3AcknowledgedIsThereOnce, |h| _ = h.registry.operations.remove(1));
}

#[test]
fn s3_an_acknowledged_write_that_was_applied_twice_is_reported() {
    planted(Rule::S3AcknowledgedIsThereOnce, |h| {
        h.registry.operations.push(operation(2, 2, "record_step", 5 * SECOND + 110))
    });
}

#[test]
fn s3_an_acknowledged_write_that_is_there_as_another_one_is_reported() {
    planted(Rule::S3AcknowledgedIsThereOnce, |h| h.registry.operations[1].kind = "record_failure".into());
}

#[test]
fn s3_an_acknowledged_write_that_its_object_never_showed_is_reported() {
    let unseen = call("w2", 2, 7, "apply Service team/a", 6 * SECOND + 950, End::Applied);
    planted(Rule::S3AcknowledgedIsThereOnce, |h| h.calls.push(unseen));
}

#[test]
fn s4_a_refused_write_that_is_in_the_ledger_is_reported() {
    planted(Rule::S4FailedIsNotThere, |h| h.calls[0].end = End::Never);
}

#[test]
fn s4_a_refused_write_that_is_on_its_object_is_reported() {
    planted(Rule::S4FailedIsNotThere, |h| h.calls[7].end = End::Never);
}

#[test]
fn s4_an_unknown_write_that_was_applied_twice_is_reported() {
    planted(Rule::S4FailedIsNotThere, |h| {
        h.calls[9].settled = None;
        h.registry.operations.push(operation(2, 5, "record_done", 6 * SECOND + 110));
    });
}

#[test]
fn s4_a_write_that_nobody_sent_is_reported() {
    planted(Rule::S4FailedIsNotThere, |h| h.registry.operations.push(operation(2, 3, "set_alias", 5 * SECOND + 400)));
}

#[test]
fn s4_a_fence_on_an_object_that_nobody_sent_is_reported() {
    planted(Rule::S4FailedIsNotThere, |h| h.revisions.push(revision("Deployment", "a-r0", 1, Some((1, 9)))));
}

#[test]
fn s5_an_unknown_write_that_was_settled_wrongly_is_reported() {
    planted(Rule::S5SettledIsTrue, |h| h.calls[4].settled = Some(true));
    planted(Rule::S5SettledIsTrue, |h| h.calls[9].settled = Some(false));
}

#[test]
fn s6_a_token_with_two_holders_is_reported() {
    planted(Rule::S6OneHolder, |h| h.granted.push(granted("w3", 2, 5 * SECOND + 7)));
}

#[test]
fn s6_a_grant_that_the_database_lost_is_reported() {
    planted(Rule::S6OneHolder, |h| h.granted.push(granted("w2", 9, 8 * SECOND)));
}

#[test]
fn s7_a_takeover_before_the_former_end_is_reported() {
    planted(Rule::S7NoGrantBeforeTheEnd, |h| h.registry.grants[1].former_end = Some(5 * SECOND + 1));
}

#[test]
fn s7_a_takeover_without_a_former_end_is_reported() {
    planted(Rule::S7NoGrantBeforeTheEnd, |h| h.registry.grants[1].former_end = None);
}

#[test]
fn s7_a_renewal_that_revived_a_session_is_reported() {
    planted(Rule::S7NoGrantBeforeTheEnd, |h| h.registry.sessions[0].expires_at = 6 * SECOND);
}

#[test]
fn s7_a_grant_while_another_holds_the_lease_is_reported() {
    // A second takeover keeps the history from being dull.
    planted(Rule::S7NoGrantBeforeTheEnd, |h| {
        h.registry.grants.push(Grant { resource: "other".into(), ..h.registry.grants[1].clone() });
        h.registry.grants[1].kind = "grant".into();
    });
}

#[test]
fn s11_an_alias_that_no_event_moved_is_reported() {
    planted(Rule::S11RegistryIsTheSumOfItsEvents, |h| h.registry.aliases[0].version = Some(2));
}

#[test]
fn s11_a_serving_version_that_no_event_tells_of_is_reported() {
    planted(Rule::S11RegistryIsTheSumOfItsEvents, |h| h.registry.deployments[0].serving_model = Some("n".into()));
}

#[test]
fn s11_a_step_that_no_event_tells_of_is_reported() {
    planted(Rule::S11RegistryIsTheSumOfItsEvents, |h| _ = h.registry.events.pop());
}

#[test]
fn s12_a_fence_that_falls_is_reported() {
    planted(Rule::S12FenceNeverFalls, |h| h.revisions[2].fence = Some((T + 1, 2)));
}

#[test]
fn s12_a_fence_that_is_stripped_is_reported() {
    planted(Rule::S12FenceNeverFalls, |h| h.revisions[2].fence = None);
}

#[test]
fn s12_an_object_that_is_made_anew_under_an_older_fence_is_reported() {
    planted(Rule::S12FenceNeverFalls, |h| {
        h.revisions[2].uid = "another".into();
        h.revisions[2].fence = Some((T + 1, 2));
    });
}

#[test]
fn s12_a_status_that_changes_without_a_greater_revision_is_reported() {
    planted(Rule::S12FenceNeverFalls, |h| h.revisions[5].status.as_mut().expect("a status").0 = 1);
}

#[test]
fn s12_a_status_whose_token_falls_is_reported() {
    planted(Rule::S12FenceNeverFalls, |h| h.revisions[5].status.as_mut().expect("a status").1 = T);
}

#[test]
fn s13_a_service_that_points_elsewhere_is_reported() {
    planted(Rule::S13ClusterIsWhatIsRecorded, |h| h.revisions[3].selects = Some("r0".into()));
}

#[test]
fn s13_a_serving_version_without_pods_is_reported() {
    planted(Rule::S13ClusterIsWhatIsRecorded, |h| h.revisions[2].replicas = (0, 0));
}

#[test]
fn l1_a_takeover_that_comes_late_is_reported() {
    planted(Rule::L1TakenOverInTime, |h| h.terms.margin = -SECOND);
}

#[test]
fn l1_a_takeover_waits_for_a_free_place() {
    let mut history = clean();
    history.terms.margin = -SECOND;
    history.terms.capacity = 0;
    assert_eq!(check(&history), []);
}

#[test]
fn l1_a_lease_that_nobody_takes_over_is_reported() {
    planted(Rule::L1TakenOverInTime, |h| {
        h.faults.push(Fault { kind: FaultKind::Killed, process: "w3".into(), from: 8 * SECOND, until: 8 * SECOND });
        h.registry.grants.push(Grant {
            resource: "deployment/team/b".into(),
            worker: Some("w3".into()),
            ..grant(1, Some("s3"), "grant", SECOND)
        });
    });
}

#[test]
fn l2_a_rollout_that_is_not_done_is_reported() {
    planted(Rule::L2Settles, |h| h.registry.plans[0].version = 2);
}

#[test]
fn l2_work_that_is_still_due_is_reported() {
    planted(Rule::L2Settles, |h| h.registry.queue.push(A.into()));
}

#[test]
fn l2_a_deployment_that_is_not_ready_is_reported() {
    planted(Rule::L2Settles, |h| h.revisions[5].ready = false);
}

#[test]
fn l2_a_write_after_all_was_done_is_reported() {
    planted(Rule::L2Settles, |h| h.terms.quiet.0 = 7 * SECOND - 1);
    planted(Rule::L2Settles, |h| h.terms.quiet_version = 6);
}

#[test]
fn l3_a_connection_in_a_transaction_is_reported() {
    planted(Rule::L3NoOpenTransaction, |h| h.registry.idle_in_transaction = 1);
}

#[test]
fn l4_a_paused_worker_that_never_works_again_is_reported() {
    planted(Rule::L4WorksAgain, |h| {
        for number in 0..60 {
            h.registry
                .grants
                .push(Grant { resource: format!("other/{number}"), ..grant(1, Some("s2"), "grant", 11 * SECOND + 1) });
        }
    });
}

#[test]
fn a_history_in_which_no_fault_struck_is_reported() {
    planted(Rule::NotVacuous, |h| h.terms.faults.push(FaultKind::Killed));
}

#[test]
fn a_history_in_which_no_stale_write_was_refused_is_reported() {
    planted(Rule::NotVacuous, |h| {
        h.registry.refusals.clear();
        h.denied = 0;
    });
}

#[test]
fn a_history_in_which_nothing_was_taken_over_is_reported() {
    planted(Rule::NotVacuous, |h| {
        h.registry.grants[1].kind = "grant".into();
        h.registry.grants.insert(1, grant(1, None, "revoke", 4 * SECOND));
        h.registry.grants[0].token -= 1;
        h.registry.operations[0].token -= 1;
        h.granted[0].token -= 1;
        h.calls[..5].iter_mut().for_each(|call| call.token -= 1);
        h.revisions[0].fence = Some((T, 2));
    });
}

#[test]
fn an_account_is_read_up_to_the_line_that_the_writer_was_killed_in() {
    let text = "100\tgranted\tdeployment/team/a\t7/0\tclaim\n\
                200\tinvoke\tdeployment/team/a\t7/1\trecord_step\n\
                210\tapplied\tdeployment/team/a\t7/1\trecord_step\n\
                300\tinvoke\tdeployment/team/a\t7/2\tapply Service team/a\n\
                310\tsilent\tdeployment/team/a\t7/2\tapply Service team/a\n\
                320\trejected:stale\tdeployment/team/a\t7/2\tapply Service team/a\n\
                400\tinvoke\tdeployment/team/a\t7/3\tseal Service team/a\n\
                410\tanswer:403\tdeployment/team/a\t7/3\tseal Service team/a\n\
                420\trejected:stale\tdeployment/team/a\t7/3\tseal Service team/a\n\
                500\tinvoke\tdeployment/team/a\t7/4\trecord_done\n\
                510\tappl";
    let (calls, granted) = assemble(&parse("w1", text));
    assert_eq!(granted.len(), 1);
    let ends: Vec<_> = calls.iter().map(|call| (call.sequence, call.end)).collect();
    // Where a try got no answer, a newer token on the object does not say that it was not applied before.
    let expected = [(1, End::Applied), (2, End::Unknown), (3, End::Never), (4, End::Unknown)];
    assert_eq!(ends, expected);
    assert_eq!(calls[1].object(), Some("Service team/a"));
}

//! What no server on this machine can be: facts as they would be told elsewhere, and what is made of them.

use std::time::Duration;

use palisade::doctor::facts::{
    Activity, Answers, Backend, DatabaseFacts, Functions, Protected, Rights, Roles, Schema, Server, Target, Trip,
    Upkeep,
};
use palisade::doctor::{Finding, Severity, database};
use palisade::store::EpochStatus;

fn healthy() -> (Target, Answers) {
    let target = Target { host: "db.example:5432".into(), database: "registry".into(), near: false, verified: true };
    let server = Server {
        version: 180_000,
        text: "18.0".into(),
        standby: false,
        encoding: "UTF8".into(),
        login: "postgres".into(),
        superuser: true,
        tls: true,
        settings: Vec::new(),
        connections: 97,
        connected: 3,
        database_limit: -1,
        database_connected: 3,
        standbys: 0,
    };
    let roles = Roles {
        groups: palisade::doctor::facts::GROUPS.map(str::to_owned).to_vec(),
        owner: vec!["pg_read_all_stats".into(), "pg_signal_backend".into()],
        logins: Vec::new(),
        settings: Vec::new(),
    };
    let activity = Activity {
        sees_all: true,
        oldest: None,
        idle: None,
        prepared: Vec::new(),
        slots: Vec::new(),
        unbound: Vec::new(),
        plain: Vec::new(),
    };
    let epoch = EpochStatus {
        number: Some(1),
        established: true,
        incarnation: "7/1/2/3/4".into(),
        established_for: Some("7/1/2/3/4".into()),
        timeline: 1,
        established_timeline: Some(1),
        highest_token: 0,
    };
    let trip = Trip { took: Duration::from_millis(2), ahead_millis: 3, backend: 42 };
    let answers = Answers {
        server: Ok(server),
        schema: Ok(Schema { schema: true, migrations: true }),
        applied: Ok(Vec::new()),
        program: Vec::new(),
        functions: Ok(Functions::default()),
        roles: Ok(roles),
        epoch: Ok(epoch),
        activity: Ok(activity),
        upkeep: Ok(Upkeep { oldest_millis: None }),
        protected: Ok(Protected { tables: 0, gaps: Vec::new() }),
        rights: Ok(Rights { roles: true, schema: true, ungrantable: Vec::new() }),
        trips: Ok(vec![trip; 3]),
    };
    (target, answers)
}

/// What is found once the facts were changed.
fn found(pre: bool, change: impl FnOnce(&mut Target, &mut Answers)) -> Vec<Finding> {
    let (mut target, mut answers) = healthy();
    change(&mut target, &mut answers);
    database::check(
        &DatabaseFacts { target: Some(target), answers: Ok(answers) },
        pre,
        Duration::from_secs(7 * 24 * 3600),
    )
}

#[track_caller]
fn finds(findings: &[Finding], check: &str, severity: Severity, says: &str) {
    let finding = findings.iter().find(|f| f.check == check).unwrap_or_else(|| panic!("{check}: {findings:#?}"));
    assert_eq!(finding.severity, severity, "{finding:?}");
    assert!(finding.what.contains(says), "{finding:?}");
    assert!(!finding.why.is_empty() && !finding.next.is_empty(), "{finding:?}");
}

fn server(answers: &mut Answers) -> &mut Server {
    answers.server.as_mut().expect("facts")
}

#[test]
fn postgres_14_is_too_old_and_15_is_not() {
    let with = |version, text: &str| {
        found(true, |_, answers| (server(answers).version, server(answers).text) = (version, text.to_owned()))
    };
    finds(&with(140_012, "14.12"), "database/version-too-old", Severity::Error, "14.12");
    assert!(!with(150_000, "15.0").iter().any(|f| f.severity > Severity::Info));
}

#[test]
fn a_connection_that_leaves_the_machine_must_be_encrypted_and_verified() {
    assert!(!found(true, |_, _| {}).iter().any(|f| f.severity > Severity::Info));
    finds(&found(true, |_, a| server(a).tls = false), "database/tls-off", Severity::Warning, "db.example:5432");
    finds(&found(true, |t, _| t.verified = false), "database/tls-unverified", Severity::Warning, "nobody checks");
    let near = found(true, |t, a| (t.near, t.verified, server(a).tls) = (true, false, false));
    assert!(!near.iter().any(|f| f.check.starts_with("database/tls-")), "{near:?}");
    let others = found(true, |_, a| {
        a.activity.as_mut().expect("facts").plain = vec!["palisade worker one from 192.0.2.7".into()];
    });
    finds(&others, "database/tls-off", Severity::Warning, "192.0.2.7");
}

#[test]
fn a_clock_is_off_by_what_the_quickest_trip_says() {
    let with = |ahead_millis| {
        found(true, |_, answers| {
            let slow = Trip { took: Duration::from_secs(9), ahead_millis: 9000, backend: 42 };
            answers.trips = Ok(vec![slow, Trip { took: Duration::from_millis(2), ahead_millis, backend: 42 }]);
        })
    };
    finds(&with(1500), "database/clock-off", Severity::Warning, "1500 ms ahead of");
    finds(&with(-86_400_000), "database/clock-off", Severity::Warning, "86400000 ms behind");
    assert!(with(900).iter().any(|f| f.check == "database/clock"));
}

#[test]
fn a_connection_that_several_backends_answer_goes_through_a_pooler() {
    let findings = found(true, |_, answers| {
        if let Some(trip) = answers.trips.as_mut().ok().and_then(|trips| trips.last_mut()) {
            trip.backend = 43;
        }
    });
    finds(&findings, "database/pooler", Severity::Error, "several backends");
}

#[test]
fn a_transaction_is_old_after_a_minute() {
    let with = |millis| {
        found(true, |_, answers| {
            let backend = Backend { pid: 77, login: Some("ada".into()), application: Some("psql".into()), millis };
            answers.activity.as_mut().expect("facts").oldest = Some(backend);
        })
    };
    finds(&with(60_000), "database/transaction-old", Severity::Warning, "backend 77 (ada, psql) is 1 min old");
    assert!(with(59_000).iter().any(|f| f.check == "database/transactions"));
}

#[test]
fn a_login_without_createrole_on_postgres_16_is_told_what_it_may_not_grant() {
    let findings = found(true, |_, answers| {
        answers.schema = Ok(Schema { schema: false, migrations: false });
        let ungrantable = vec!["pg_read_all_stats".to_owned()];
        answers.rights = Ok(Rights { roles: false, schema: true, ungrantable });
    });
    finds(
        &findings,
        "database/may-not-migrate",
        Severity::Error,
        "may not make roles, may not grant pg_read_all_stats",
    );
}

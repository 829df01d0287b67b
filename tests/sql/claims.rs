//! `claim`: due work, oldest first, each piece to one worker.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::scenarios::{A, UID, furnish};
use crate::support::postgres::{Conn, Db, Running, Session};
use crate::support::proxy::Proxy;

/// Plans `deployment/ns/01` … whose work has been due for that many minutes.
async fn plans(conn: &mut Conn, count: usize) {
    conn.run(&format!(
        "INSERT INTO palisade.lease (resource, token) SELECT 'deployment/ns/' || lpad(i::text, 2, '0'), 0 FROM generate_series(1, {count}) AS i;
         INSERT INTO palisade.plan (resource, uid, generation, rollout, spec, paused, removed, progress_ttl, token, updated_at)
             SELECT 'deployment/ns/' || lpad(i::text, 2, '0'), '{UID}', 1, 1, jsonb_build_object('n', i), false, false, '10 minutes', 0, now()
             FROM generate_series(1, {count}) AS i;
         INSERT INTO palisade.queue (resource, due_at)
             SELECT 'deployment/ns/' || lpad(i::text, 2, '0'), clock_timestamp() - i * interval '1 minute' FROM generate_series(1, {count}) AS i"
    ))
    .await;
}

async fn claim(conn: &mut Conn, session: &Session, limit: usize) -> Vec<String> {
    conn.list(&format!("SELECT coalesce(resource, refused) FROM palisade.claim({}, {limit})", session.args())).await
}

#[tokio::test]
async fn claim_takes_the_oldest_due_work_first_and_no_more_than_its_limit() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    plans(&mut conn, 6).await;
    let session = conn.session("1 minute").await;
    let mut got = claim(&mut conn, &session, 2).await;
    got.sort();
    assert_eq!(got, ["deployment/ns/05", "deployment/ns/06"]);
    let mut got = claim(&mut conn, &session, 3).await;
    got.sort();
    assert_eq!(got, ["deployment/ns/02", "deployment/ns/03", "deployment/ns/04"]);
    assert_eq!(claim(&mut conn, &session, 3).await, ["deployment/ns/01"]);
    assert!(claim(&mut conn, &session, 3).await.is_empty(), "its own are not claimed again");
}

#[tokio::test]
async fn claim_takes_only_what_is_due_and_not_held_and_not_locked() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    plans(&mut conn, 4).await;
    conn.run("UPDATE palisade.queue SET due_at = clock_timestamp() + interval '1 hour' WHERE resource LIKE '%01'")
        .await;
    conn.owner("deployment/ns/02").await;
    conn.run("BEGIN; SELECT FROM palisade.lease WHERE resource = 'deployment/ns/03' FOR UPDATE").await;
    let mut other = db.connect().await;
    let session = other.session("1 minute").await;
    // No wait for the locked one: that would time out, as the lock is held throughout.
    assert_eq!(claim(&mut other, &session, 10).await, ["deployment/ns/04"]);
    conn.run("COMMIT").await;
    assert_eq!(claim(&mut other, &session, 10).await, ["deployment/ns/03"]);
}

#[tokio::test]
async fn claim_answers_token_plan_and_deployment_in_one_round_trip() {
    let db = Db::new().await;
    let mut direct = db.connect().await;
    furnish(&mut direct).await;
    direct.run(&format!("INSERT INTO palisade.lease (resource, token) VALUES ('{A}', 0)")).await;
    let session = direct.session("1 minute").await;
    let proxy = Proxy::start(db.server.port()).await;
    let mut conn = Conn::open(&proxy.url(&db.url())).await;
    let before = proxy.statements().len();
    let rows = conn.list(&format!("SELECT to_jsonb(c)::text FROM palisade.claim({}, 5) AS c", session.args())).await;
    assert_eq!(proxy.statements().len() - before, 1);
    let row: serde_json::Value = serde_json::from_str(&rows[0]).expect("JSON");
    assert_eq!(row["token"], (1_i64 << 32) + 1);
    assert_eq!((&row["plan"]["uid"], &row["plan"]["rollout"]), (&UID.into(), &1.into()));
    assert_eq!(row["deployment"]["step"], "seal");
    assert_eq!((&row["takeover"], &row["refused"]), (&false.into(), &serde_json::Value::Null));
    let deadline =
        direct.text("SELECT deadline > clock_timestamp() + interval '9 minutes' FROM palisade.progress").await;
    assert_eq!(deadline, "true", "the plan's own progress span");
}

#[tokio::test]
async fn claim_takes_over_what_an_expired_session_or_a_hung_handler_left() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    plans(&mut conn, 3).await;
    let dead = conn.owner("deployment/ns/01").await;
    let hung = conn.owner("deployment/ns/02").await;
    conn.owner("deployment/ns/03").await;
    conn.expire(&dead.session).await;
    conn.run("UPDATE palisade.progress SET deadline = clock_timestamp() WHERE resource = 'deployment/ns/02'").await;
    let session = conn.session("1 minute").await;
    let mut got = conn
        .list(&format!("SELECT concat_ws(' ', resource, token, takeover) FROM palisade.claim({}, 10)", session.args()))
        .await;
    got.sort();
    let expected = [format!("deployment/ns/01 {} t", dead.token + 1), format!("deployment/ns/02 {} t", hung.token + 1)];
    assert_eq!(got, expected);
}

/// A grant that began before the next epoch was committed, and a session that was opened then, outlive it.
#[tokio::test]
async fn a_lease_that_was_granted_while_the_epoch_was_replaced_holds_nobody_up() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    plans(&mut conn, 2).await;
    let mut early = db.connect().await;
    conn.run("BEGIN").await;
    conn.establish(2).await;
    let session = early.session("1 minute").await;
    let leases = [early.acquire(&session, "deployment/ns/01").await, early.acquire(&session, "deployment/ns/02").await];
    conn.run("COMMIT").await;
    early.call(&format!("set_alias({}, 'm', 'live', 1)", leases[0].fence(1))).await.is("rejected: stale");
    let next = conn.session("1 minute").await;
    assert!(conn.acquire(&next, "deployment/ns/01").await.token > leases[0].token);
    assert_eq!(claim(&mut conn, &next, 10).await, ["deployment/ns/02"]);
    let lost = early.call(&format!("heartbeat({})", session.args())).await.is("applied").result.clone();
    assert!(lost.expect("a result").to_string().matches("epoch ended").count() == 2);
}

#[tokio::test]
async fn claim_of_a_session_that_may_not_says_why_and_grants_nothing() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    plans(&mut conn, 2).await;
    let session = conn.session("1 minute").await;
    let thief = Session { id: session.id, key: "another key of somebody".to_owned() };
    assert_eq!(claim(&mut conn, &thief, 5).await, ["wrong_key"]);
    assert_eq!(claim(&mut conn, &Session::fresh(), 5).await, ["no_session"]);
    conn.expire(&session).await;
    assert_eq!(claim(&mut conn, &session, 5).await, ["session_expired"]);
    conn.call(&format!("close_session({})", session.args())).await.is("applied");
    assert_eq!(claim(&mut conn, &session, 5).await, ["session_closed"]);
    assert_eq!(conn.number("SELECT max(token) FROM palisade.lease").await, 0);
}

/// A lease that was granted between the unlocked choice and the lock is checked again behind the lock.
#[tokio::test]
async fn claim_does_not_grant_what_was_granted_while_it_waited() {
    let db = Db::patient().await;
    let mut conn = db.connect().await;
    plans(&mut conn, 1).await;
    let (first, second) = (conn.session("1 minute").await, conn.session("1 minute").await);
    // The second claim waits for its own session's row, with the lease locked by it.
    conn.run(&format!("BEGIN; SELECT FROM palisade.session WHERE id = '{}' FOR UPDATE", second.id)).await;
    let call = format!("first_of_claim({})", second.args());
    let mut other = db.connect().await;
    other
        .run("CREATE FUNCTION palisade.first_of_claim(id uuid, key text) RETURNS palisade.answer LANGUAGE sql
              AS $$ SELECT (coalesce(max(c.resource), 'nothing'), NULL, NULL, NULL)::palisade.answer FROM palisade.claim(id, key, 5) AS c $$")
        .await;
    let waiting = Running::call(other, call).await;
    let mut watcher = db.connect().await;
    watcher.wait_blocked(waiting.pid).await;
    assert!(claim(&mut watcher, &first, 5).await.is_empty(), "the lease is locked by the other claim");
    conn.run("COMMIT").await;
    assert_eq!(waiting.answer().await.outcome, "deployment/ns/01");
    assert!(claim(&mut watcher, &first, 5).await.is_empty());
}

#[tokio::test]
async fn eight_claiming_connections_grant_each_piece_of_work_once() {
    let db = Arc::new(Db::new().await);
    let mut conn = db.connect().await;
    plans(&mut conn, 60).await;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let mut conn = db.connect().await;
        tasks.push(tokio::spawn(async move {
            let session = conn.session("1 minute").await;
            let mut mine = Vec::new();
            // Until three times nothing was left: a locked piece of work is skipped, and may come free.
            let mut empty = 0;
            while empty < 3 {
                let got = claim(&mut conn, &session, 2).await;
                empty = if got.is_empty() { empty + 1 } else { 0 };
                mine.extend(got);
            }
            (session.id.to_string(), mine)
        }));
    }
    let mut owners = BTreeMap::new();
    for task in tasks {
        let (id, mine) = task.await.expect("a claimer");
        for resource in mine {
            assert_eq!(owners.insert(resource.clone(), id.clone()), None, "{resource} was granted twice");
        }
    }
    assert_eq!(owners.len(), 60);
    let grants = conn.text("SELECT count(*) || ' ' || count(DISTINCT resource) FROM palisade.grant_history").await;
    assert_eq!(grants, "60 60");
    for row in conn.list("SELECT resource || ' ' || session FROM palisade.lease").await {
        let (resource, session) = row.split_once(' ').expect("two words");
        assert_eq!(owners[resource], session);
    }
}

#[tokio::test]
async fn what_was_claimed_stands_behind_what_nobody_has_claimed() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    plans(&mut conn, 2).await;
    let (first, second) = (conn.session("1 minute").await, conn.session("1 minute").await);
    assert_eq!(claim(&mut conn, &first, 1).await, ["deployment/ns/02"]);
    conn.expire(&first).await;
    assert_eq!(claim(&mut conn, &second, 1).await, ["deployment/ns/01"]);
    assert_eq!(claim(&mut conn, &second, 1).await, ["deployment/ns/02"]);
}

#[tokio::test]
async fn a_released_piece_of_work_comes_back_when_it_asked_to_and_not_before() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    plans(&mut conn, 1).await;
    let session = conn.session("1 minute").await;
    let lease = conn.acquire(&session, "deployment/ns/01").await;
    conn.call(&format!("release({}, '1 hour')", lease.fence(1))).await.is("applied");
    assert!(claim(&mut conn, &session, 5).await.is_empty());
    conn.run("UPDATE palisade.queue SET due_at = due_at - interval '1 hour'").await;
    assert_eq!(claim(&mut conn, &session, 5).await, ["deployment/ns/01"]);
}

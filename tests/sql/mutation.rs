//! Takes the gate out of each fenced function in turn, and sees the paused-worker test fail.
//!
//! The functions come from the catalogue, not from a list: a new one without a scenario fails here.

use super::scenarios::{SCENARIOS, paused_worker};
use crate::support::postgres::{Conn, Db};

/// Lets everything pass, as a gate that somebody forgot would.
const OPEN_GATE: &str = "CREATE FUNCTION palisade.open_gate(p_resource text, p_token bigint, p_sequence bigint, p_key text, p_kind text, p_args bytea)
    RETURNS palisade.answer LANGUAGE sql AS $$ SELECT (NULL, NULL, p_token, NULL)::palisade.answer $$";
const GATE: &str = "palisade.enter(";

/// Each place in the schema that asks the gate: function and occurrence.
async fn gates(conn: &mut Conn) -> Vec<(String, usize)> {
    let functions = conn
        .list(&format!(
            "SELECT proname::text || ' ' || (length(prosrc) - length(replace(prosrc, '{GATE}', ''))) / length('{GATE}')
             FROM pg_proc WHERE pronamespace = 'palisade'::regnamespace AND strpos(prosrc, '{GATE}') > 0 ORDER BY proname"
        ))
        .await;
    functions
        .iter()
        .flat_map(|row| {
            let (name, count) = row.split_once(' ').expect("two words");
            let name = name.to_owned();
            (0..count.parse().expect("a number")).map(move |occurrence| (name.clone(), occurrence))
        })
        .collect()
}

#[tokio::test]
async fn the_paused_worker_test_fails_for_each_fenced_function_whose_gate_is_taken_out() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let gates = gates(&mut conn).await;
    assert!(gates.len() >= 14, "the catalogue knows the fenced functions: {gates:?}");
    conn.run(OPEN_GATE).await;
    for (function, occurrence) in gates {
        let scenario =
            SCENARIOS.iter().find(|s| s.function == function && s.occurrence == occurrence).unwrap_or_else(|| {
                panic!(
                    "{function} asks the gate (call {occurrence}), and tests/sql/scenarios.rs has no scenario for it"
                )
            });

        conn.clear().await;
        let verdict = paused_worker(&mut conn, scenario).await;
        assert!(verdict.is_safe(), "{function} as it is: {verdict:?}");

        let original = conn.text(&format!("SELECT pg_get_functiondef('palisade.{function}'::regproc)")).await;
        conn.rewrite(&function, Some(occurrence), GATE, "palisade.open_gate(").await;
        conn.clear().await;
        let verdict = paused_worker(&mut conn, scenario).await;
        assert!(!verdict.is_safe(), "{function} without its gate (call {occurrence}) passes the test: {verdict:?}");
        // Not for some other reason: the stale write is really there, unless a second line caught it.
        assert_eq!(verdict.word, "applied", "{function}");
        assert!(verdict.changed || scenario.second_line, "{function}: {verdict:?}");
        conn.run(&original).await;
    }
}

/// The other way to forget the gate: a function that takes a fence and never asks.
#[tokio::test]
async fn every_function_that_takes_a_token_and_a_key_asks_the_gate() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let without = conn
        .list(&format!(
            "SELECT proname::text FROM pg_proc WHERE pronamespace = 'palisade'::regnamespace
             AND proargnames[1:pronargs] @> ARRAY['token', 'key'] AND strpos(prosrc, '{GATE}') = 0
             AND strpos(prosrc, 'PERFORM palisade.check_lease(') = 0 ORDER BY proname" // which asks it and raises
        ))
        .await;
    // These only ask about a fence, or close it; both check the key.
    assert_eq!(without, ["abandon", "operation_status"]);
    let scenarios: Vec<_> = SCENARIOS.iter().map(|s| (s.function.to_owned(), s.occurrence)).collect();
    for known in scenarios {
        assert!(gates(&mut conn).await.contains(&known), "{known:?} has a scenario, and no gate");
    }
}

//! Breaks each rule in turn and sees its test fail.
//!
//! A test that cannot fail proves nothing. Each line here names a test and a change of the SQL that it must notice; the
//! test is run again in a process of its own, against a template database with that change (`PALISADE_TEST_BREAK`).
//! A break that does not fit the SQL any more is an error too, so the table cannot go stale.

use std::process::Stdio;
use std::sync::Arc;

use super::protect::has_icu;
use crate::support::postgres::{BREAK, Conn, PATIENCE, UNBREAKABLE, shared_server};

/// Test (below `sql::`), and how its rule is broken: `function ==> from ==> to` or `sql ==> statement`.
const BREAKS: &[(&str, &str)] = &[
    // Rule 1: the gate.
    (
        "gate::a_stale_write_is_refused_by_each_fenced_function_before_the_successors_first_write",
        "enter ==> p_token < l.token ==> false",
    ),
    (
        "gate::a_takeover_that_commits_while_a_write_waits_at_the_gate_makes_it_stale",
        "enter ==> WHERE x.resource = p_resource FOR NO KEY UPDATE ==> WHERE x.resource = p_resource",
    ),
    ("gate::a_takeover_waits_for_a_write_that_has_passed_the_gate", "enter ==> FOR NO KEY UPDATE ==> FOR KEY SHARE"),
    (
        "gate::a_takeover_waits_for_a_write_that_has_passed_the_gate",
        "enter ==> WHERE x.resource = p_resource FOR NO KEY UPDATE ==> WHERE x.resource = p_resource",
    ),
    ("gate::a_protected_row_refuses_a_token_older_than_its_own", "write_alias ==> p_token >= a.token ==> true"),
    ("gate::a_protected_row_refuses_a_token_older_than_its_own", "write_step ==> p_token >= d.token ==> true"),
    ("gate::a_protected_row_refuses_a_token_older_than_its_own", "put_plan ==> put_plan.token >= x.token ==> true"),
    (
        "gate::a_callers_collation_does_not_open_the_gate_under_another_name",
        "sql ==> ALTER TABLE palisade.lease ALTER COLUMN resource TYPE text COLLATE \"default\"",
    ),
    // Rule 2.
    (
        "gate::every_change_is_refused_unless_the_isolation_is_read_committed",
        "begin_call ==> <> 'read committed' ==> = 'none'",
    ),
    // Rule 3.
    (
        "gate::a_forged_higher_token_is_refused_as_not_issued_and_locks_nobody_out",
        "enter ==> p_token > l.token ==> false",
    ),
    (
        "gate::another_sessions_key_is_refused_and_occupies_no_sequence",
        "enter ==> s.key_hash IS DISTINCT FROM palisade.key_hash(p_key) ==> false",
    ),
    (
        "sequences::abandon_needs_the_key_that_the_token_was_granted_to",
        "may_ask ==> palisade.key_fits(h.session, p_key) ==> true",
    ),
    (
        "sessions::every_call_of_a_session_needs_its_key",
        "heartbeat ==> s.key_hash IS DISTINCT FROM palisade.key_hash(heartbeat.key) ==> false",
    ),
    (
        "sessions::every_call_of_a_session_needs_its_key",
        "close_session ==> s.key_hash IS DISTINCT FROM palisade.key_hash(close_session.key) ==> false",
    ),
    ("sessions::every_call_of_a_session_needs_its_key", "held ==> s.key_hash = palisade.key_hash(held.key) ==> true"),
    (
        "claims::claim_of_a_session_that_may_not_says_why_and_grants_nothing",
        "grant_locked ==> s.key_hash IS DISTINCT FROM palisade.key_hash(p_key) ==> false",
    ),
    // Rule 4.
    (
        "gate::an_acquirer_that_waited_decides_by_the_clock_after_the_wait",
        "grant_locked ==> clock_timestamp() ==> now()",
    ),
    (
        "gate::a_short_lease_that_was_granted_behind_a_held_lock_does_not_come_back_expired",
        "grant_locked ==> clock_timestamp() ==> now()",
    ),
    ("sessions::a_heartbeat_that_waited_beyond_the_expiry_is_refused", "heartbeat ==> clock_timestamp() ==> now()"),
    // Rule 5.
    (
        "sessions::a_heartbeat_of_an_expired_session_is_refused_and_never_revives_it",
        "heartbeat ==> s.expires_at <= v_now ==> false",
    ),
    (
        "sessions::a_takeover_for_expiry_closes_the_dead_session_in_the_same_transaction",
        "grant_locked ==> WHERE g.taken AND NOT g.alive ==> WHERE false",
    ),
    (
        "sessions::a_heartbeat_that_was_first_wins_against_a_takeover_that_waited_for_it",
        "grant_locked ==> ORDER BY x.id FOR NO KEY UPDATE ==> ORDER BY x.id",
    ),
    (
        "sessions::a_takeover_for_no_progress_leaves_the_session_open_and_its_heartbeat_tells_the_loss",
        "grant_locked ==> WHERE g.taken AND NOT g.alive ==> WHERE g.taken",
    ),
    (
        "sessions::a_takeover_for_no_progress_leaves_the_session_open_and_its_heartbeat_tells_the_loss",
        "grant_locked ==> WHERE g.taken AND g.alive ==> WHERE false",
    ),
    // Rule 6.
    (
        "sessions::every_grant_is_a_new_token_also_for_the_same_holder",
        "grant_locked ==> token = palisade.next_token(l.token, v_epoch) ==> token = greatest(l.token, v_epoch * 4294967296 + 1)",
    ),
    (
        "sessions::release_and_revoke_and_close_raise_the_token_so_that_a_running_statement_cannot_land_after_them",
        "retire_lease ==> token = l.token + 1, sequence = 0, session = NULL ==> sequence = 0",
    ),
    (
        "sessions::tokens_stay_below_two_to_the_53_and_a_used_up_counter_is_an_error",
        "next_token ==> >= 4294967294 ==> >= 4294967296",
    ),
    (
        "sessions::tokens_stay_below_two_to_the_53_and_a_used_up_counter_is_an_error",
        "sql ==> ALTER TABLE palisade.lease DROP CONSTRAINT lease_token_check",
    ),
    (
        "sessions::tokens_stay_below_two_to_the_53_and_a_used_up_counter_is_an_error",
        "sql ==> ALTER TABLE palisade.epoch DROP CONSTRAINT epoch_number_check",
    ),
    // Rules 7 and 8.
    (
        "sequences::the_same_fence_again_is_replayed_with_the_first_answer_and_changes_nothing",
        "enter ==> p_sequence <= l.sequence ==> p_sequence < l.sequence",
    ),
    (
        "sequences::the_same_fence_with_other_arguments_is_an_error_and_changes_nothing",
        "replay ==> o.args_hash IS DISTINCT FROM p_args ==> false",
    ),
    (
        "sequences::the_same_fence_in_another_function_is_an_error",
        "replay ==> IF o.kind <> p_kind OR o.args_hash IS DISTINCT FROM p_args THEN ==> IF false THEN",
    ),
    (
        "sequences::an_earlier_write_that_is_still_on_its_way_is_superseded_by_a_later_one",
        "leave ==> SET sequence = p_sequence ==> SET sequence = l.sequence",
    ),
    (
        "sequences::the_same_fence_sent_at_once_on_eight_connections_is_applied_once",
        "enter ==> WHERE x.resource = p_resource FOR NO KEY UPDATE ==> WHERE x.resource = p_resource",
    ),
    (
        "sequences::abandon_closes_a_fence_so_that_its_write_is_never_applied",
        "close_fence ==> SET sequence = p_sequence ==> SET sequence = l.sequence",
    ),
    // Upkeep: never what a fence still needs.
    (
        "upkeep::an_old_tokens_ledger_is_forgotten_after_clean_and_says_so",
        "clean_leases ==> SET ledger_from = v_upto + 1 ==> SET ledger_from = l.ledger_from",
    ),
    (
        "upkeep::the_current_tokens_ledger_is_kept_whole_however_old",
        "clean_leases ==> o.token < l.token ==> true\nclean_leases ==> h.token < v_lease.token ==> true",
    ),
    ("upkeep::clean_waits_for_nobody_and_leaves_what_is_locked_for_another_time", "clean_leases ==> SKIP LOCKED ==> "),
    (
        "upkeep::a_grant_is_kept_while_it_is_the_newest_or_its_ledger_is_kept",
        "clean_leases ==> NOT EXISTS (SELECT FROM palisade.operation AS o WHERE o.resource = v_walk.resource AND o.token = h.token) ==> true\n\
         clean_leases ==> NOT EXISTS (SELECT FROM palisade.operation AS o WHERE o.resource = h.resource AND o.token = h.token) ==> true",
    ),
    (
        "upkeep::a_grant_is_kept_while_it_is_the_newest_or_its_ledger_is_kept",
        "clean_leases ==> h.token < l.token ==> true\nclean_leases ==> h.token < v_lease.token ==> true\n\
         clean_leases ==> WHERE NOT y.old), v_lease.token) ==> WHERE NOT y.old), v_lease.token + 1)",
    ),
    (
        "upkeep::a_fence_whose_grant_was_removed_is_forgotten_and_not_a_strangers",
        "may_ask ==> OR h.resource IS NULL AND p_token < l.ledger_from ==> ",
    ),
    (
        "upkeep::a_session_that_stands_in_a_lease_is_kept_and_one_that_ended_is_closed_before_it_is_removed",
        "clean_sessions ==> AND NOT EXISTS (SELECT FROM palisade.lease AS l WHERE l.session = x.id) ==> ",
    ),
    (
        "upkeep::a_session_that_stands_in_a_lease_is_kept_and_one_that_ended_is_closed_before_it_is_removed",
        "clean_sessions ==> x.closed_at < p_before ==> x.expires_at < p_before",
    ),
    (
        "upkeep::a_write_of_a_session_that_is_gone_is_forgotten_and_not_called_stale",
        "enter ==> OR a.outcome = 'forgotten' ==> ",
    ),
    (
        "upkeep::an_event_is_kept_until_every_reader_could_see_it",
        "clean ==> AND x.xid < pg_snapshot_xmin(pg_current_snapshot()) ==> ",
    ),
    (
        "upkeep::one_call_removes_no_more_than_its_batch_and_the_next_goes_on_behind_it",
        "clean_leases ==> place := v_done; ==> place := v_walk.resource;",
    ),
    (
        "upkeep::one_call_removes_no_more_than_its_batch_and_the_next_goes_on_behind_it",
        "clean_leases ==> LIMIT p_batch - removed ==> LIMIT p_batch",
    ),
    (
        "upkeep::a_batch_of_a_years_rows_reads_no_more_than_a_batch",
        "clean_leases ==> ORDER BY x.resource LIMIT p_batch ==> ORDER BY x.resource",
    ),
    (
        "upkeep::nothing_younger_than_an_hour_is_ever_removed",
        "clean ==> NOT BETWEEN interval '1 hour' AND interval '3650 days' ==> < interval '0'",
    ),
    (
        "sequences::when_the_gate_is_shut_for_a_token_only_a_running_write_is_pending",
        "gate_is_closed ==> RETURN FOUND ==> RETURN true",
    ),
    (
        "sequences::when_the_gate_is_shut_for_a_token_only_a_running_write_is_pending",
        "gate_is_closed ==> PERFORM FROM palisade.lease AS l WHERE l.resource = p_resource FOR NO KEY UPDATE SKIP LOCKED; ==> PERFORM FROM palisade.lease AS l WHERE NOT EXISTS (SELECT FROM pg_locks AS k WHERE k.transactionid = l.xmax);",
    ),
    (
        "claims::a_lease_that_was_granted_while_the_epoch_was_replaced_holds_nobody_up",
        "grant_locked ==> WHEN l.token / 4294967296 < v_epoch THEN true ==> ",
    ),
    (
        "claims::a_lease_that_was_granted_while_the_epoch_was_replaced_holds_nobody_up",
        "claim ==> OR l.token / 4294967296 < v_epoch ==> ",
    ),
    (
        "sequences::when_the_gate_is_shut_for_a_token_only_a_running_write_is_pending",
        "operation_show ==> v_closed OR ==> ",
    ),
    (
        "sequences::a_sequence_above_what_json_carries_is_an_error_and_closes_nothing",
        "enter ==> p_sequence NOT BETWEEN 1 AND 9007199254740991 ==> p_sequence < 1",
    ),
    (
        "sequences::a_sequence_above_what_json_carries_is_an_error_and_closes_nothing",
        "close_fence ==> p_sequence NOT BETWEEN 1 AND 9007199254740991 ==> p_sequence < 1",
    ),
    (
        "sequences::a_guard_is_moved_under_exactly_the_two_fences_that_were_named",
        "move_guard ==> move_guard.to_sequence::text, move_guard.model ==> move_guard.model",
    ),
    (
        "sequences::a_guard_is_moved_under_exactly_the_two_fences_that_were_named",
        "move_guard ==> b.result := jsonb_build_object('resource', move_guard.to_resource); ==> ",
    ),
    (
        "lost_answers::when_a_late_request_was_abandoned_it_is_refused_on_arrival",
        "close_fence ==> SET sequence = p_sequence ==> SET sequence = l.sequence",
    ),
    (
        "lost_answers::when_the_answer_is_lost_the_same_fence_again_is_replayed_with_the_first_result",
        "replay ==> o.reason, p_current, o.result ==> o.reason, p_current, NULL",
    ),
    // Rule 9.
    (
        "locks::a_takeover_and_the_former_owners_close_session_do_not_deadlock",
        "close_session ==> WHERE x.id = close_session.id; ==> WHERE x.id = close_session.id FOR NO KEY UPDATE;",
    ),
    (
        "locks::guards_moved_both_ways_at_once_do_not_deadlock",
        "move_guard ==> ORDER BY l.resource FOR NO KEY UPDATE ==> ORDER BY l.resource",
    ),
    ("claims::claim_takes_only_what_is_due_and_not_held_and_not_locked", "claim ==> OF l SKIP LOCKED ==> OF l"),
    (
        "claims::claim_takes_only_what_is_due_and_not_held_and_not_locked",
        "claim ==> q.due_at <= v_now ==> true\nclaim ==> AND q.due_at <= clock_timestamp() ==> ",
    ),
    (
        "claims::claim_takes_the_oldest_due_work_first_and_no_more_than_its_limit",
        "claim ==> array_agg(c.resource ORDER BY c.turn) ==> array_agg(c.resource ORDER BY c.turn DESC)",
    ),
    (
        "claims::what_was_claimed_stands_behind_what_nobody_has_claimed",
        "claim ==> SET claimed_at = v_now ==> SET claimed_at = NULL",
    ),
    (
        "claims::claim_takes_over_what_an_expired_session_or_a_hung_handler_left",
        "claim ==> v_owners, claim.progress ==> NULL, claim.progress",
    ),
    // Rules 11 to 13.
    (
        "epochs::the_callers_asynchronous_commit_is_overridden_in_every_changing_function",
        "begin_call ==> IN ('off', 'local') ==> IN ('none')",
    ),
    (
        "sequences::every_refusal_is_a_row_that_says_which_fence_and_why",
        "refuse ==> p_current, clock_timestamp()); ==> p_current, clock_timestamp()); DELETE FROM palisade.refusal;",
    ),
    (
        "sequences::check_lease_raises_an_sqlstate_of_its_own_and_passes_for_the_owner",
        "check_lease ==> IF a.outcome IS NOT NULL THEN ==> IF false THEN",
    ),
    (
        "catalogue::every_function_of_the_api_runs_as_the_owner_with_a_fixed_search_path_and_lock_timeout",
        "sql ==> ALTER FUNCTION palisade.acquire RESET lock_timeout",
    ),
    (
        "catalogue::every_function_of_the_api_runs_as_the_owner_with_a_fixed_search_path_and_lock_timeout",
        "sql ==> ALTER FUNCTION palisade.held SET search_path = palisade, pg_catalog",
    ),
    (
        "catalogue::every_function_of_the_api_runs_as_the_owner_with_a_fixed_search_path_and_lock_timeout",
        "sql ==> ALTER FUNCTION palisade.release SECURITY INVOKER",
    ),
    (
        "catalogue::no_function_or_table_is_open_to_everybody",
        "sql ==> GRANT EXECUTE ON FUNCTION palisade.retire_lease TO PUBLIC",
    ),
    (
        "roles::each_role_can_do_what_it_was_granted_and_nothing_else",
        "sql ==> GRANT UPDATE ON palisade.lease TO palisade_worker",
    ),
    (
        "roles::each_role_can_do_what_it_was_granted_and_nothing_else",
        "sql ==> GRANT CREATE ON SCHEMA palisade TO palisade_worker",
    ),
    (
        "roles::a_workers_login_cannot_take_the_controllers_lease",
        "acquire ==> NOT pg_has_role(session_user, 'palisade_controller', 'MEMBER') ==> false",
    ),
    (
        "roles::temporary_tables_of_the_same_names_deceive_nobody",
        "enter ==> FROM palisade.lease AS x ==> FROM pg_temp.lease AS x",
    ),
    // Rule 14.
    (
        "locks::a_call_gives_up_after_its_lock_timeout_whatever_the_caller_set",
        "sql ==> ALTER FUNCTION palisade.set_alias RESET lock_timeout",
    ),
    (
        "locks::a_client_that_idles_in_a_transaction_with_a_lease_locked_is_ended_so_that_the_takeover_goes_on",
        "end_blockers ==> 'idle in transaction%' ==> 'never%'",
    ),
    // Rule 15.
    (
        "sessions::heartbeats_are_heap_only_updates_and_the_session_has_no_index_but_its_key",
        "sql ==> CREATE INDEX ON palisade.session (expires_at)",
    ),
    (
        "sessions::a_session_that_expires_later_than_its_ttl_allows_is_clamped_when_an_acquirer_sees_it",
        "grant_locked ==> x.expires_at > v_now + x.ttl ==> false",
    ),
    // Rule 16.
    (
        "protect::every_kind_of_write_to_a_protected_table_is_refused_without_the_newest_token_its_key_and_its_resource",
        "check_row ==> PERFORM palisade.check_lease( ==> PERFORM concat(",
    ),
    (
        "protect::every_kind_of_write_to_a_protected_table_is_refused_without_the_newest_token_its_key_and_its_resource",
        "check_row ==> ELSIF v_used <> check_row.resource ==> ELSIF '' <> ''",
    ),
    (
        "protect::a_row_moves_neither_from_nor_to_another_resource",
        "guard ==> SELECT * FROM palisade_old UNION ALL  ==> ",
    ),
    (
        "protect::a_row_moves_neither_from_nor_to_another_resource",
        "guard ==>  UNION ALL SELECT * FROM palisade_new ==> ",
    ),
    ("protect::a_row_moves_neither_from_nor_to_another_resource", "guard ==> SELECT ($1).* UNION ALL  ==> "),
    ("protect::a_row_moves_neither_from_nor_to_another_resource", "guard ==>  UNION ALL SELECT ($2).* ==> "),
    ("protect::truncate_is_refused_for_everybody", "guard ==> TG_OP = 'TRUNCATE' ==> false"),
    (
        "protect::truncate_is_refused_for_everybody",
        "protect ==>  UNION SELECT p.relid FROM pg_partition_tree(protect.target) AS p ==> ",
    ),
    (
        "protect::a_superuser_is_checked_too_also_with_triggers_for_replicas_only",
        "protect ==> ENABLE ALWAYS TRIGGER %I ==> ENABLE TRIGGER %I",
    ),
    (
        "protect::a_superuser_is_checked_too_also_with_triggers_for_replicas_only",
        "protect ==> 'palisade_rows AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW' ==> 'palisade_rows AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW WHEN (current_setting(''session_replication_role'') <> ''replica'')'",
    ),
    (
        "protect::a_partition_that_comes_later_is_checked_and_one_that_is_detached_keeps_what_is_its_own",
        "protect ==> palisade_rows AFTER INSERT OR UPDATE OR DELETE ==> palisade_rows AFTER UPDATE",
    ),
    (
        "protect::a_row_is_checked_as_it_is_after_all_other_triggers",
        "protect ==> palisade_rows AFTER ==> palisade_rows BEFORE",
    ),
    (
        "protect::temporary_objects_and_settings_of_the_writer_deceive_no_trigger",
        "sql ==> ALTER FUNCTION palisade.guard RESET search_path",
    ),
    (
        "protect::temporary_objects_and_settings_of_the_writer_deceive_no_trigger",
        "sql ==> ALTER FUNCTION palisade.guard RESET standard_conforming_strings",
    ),
    ("protect::names_that_the_tables_collation_calls_equal_are_two_resources", "guard ==> COLLATE \"C\" ==> "),
    (
        "protect::a_table_owners_expression_runs_as_the_writer_and_never_as_the_owner_role",
        "sql ==> ALTER FUNCTION palisade.guard SECURITY DEFINER",
    ),
    (
        "protect::what_names_a_resource_depends_on_the_row_alone_or_is_refused",
        "protect ==> EXECUTE format('CREATE INDEX ON pg_temp.palisade_probe (((%s)::text))', v_expression); ==> ",
    ),
    ("protect::a_row_without_a_resource_is_refused", "check_row ==> check_row.resource IS NULL ==> false"),
    (
        "protect::a_write_by_way_of_a_relative_is_impossible_where_a_table_inherits",
        "protect ==> v_kind = 'r' AND EXISTS ==> false AND EXISTS",
    ),
    (
        "protect::only_a_tables_owner_protects_it_and_only_its_owner_takes_that_away",
        "unprotect ==> NOT pg_has_role(c.relowner, 'USAGE') ==> false",
    ),
    (
        "protect::a_lease_is_in_use_until_the_transaction_ends_or_for_the_session",
        "use_lease ==> PERFORM palisade.check_lease( ==> PERFORM concat(",
    ),
    (
        "protect::a_takeover_waits_for_a_statement_that_waits_for_a_row_of_a_protected_table",
        "guard ==> IF v_used IS NOT NULL THEN ==> IF false THEN",
    ),
    (
        "protect::a_storm_of_takeovers_and_writes_to_a_protected_table_has_no_deadlock_and_no_stale_landing",
        "guard ==> IF v_used IS NOT NULL THEN ==> IF false THEN",
    ),
    (
        "protect::a_storm_of_takeovers_and_writes_to_a_protected_table_has_no_deadlock_and_no_stale_landing",
        "check_lease ==> IF a.outcome IS NOT NULL THEN ==> IF false THEN",
    ),
    (
        "protect::a_statement_asks_the_gate_twice_however_many_rows_it_writes",
        "guard ==> SELECT DISTINCT ( ==> SELECT ALL (",
    ),
    // Rule 17 and the registry.
    (
        "registry::a_guarded_alias_changes_only_under_its_guards_lease",
        "write_alias ==> x.guard IS NOT NULL AND x.guard IS DISTINCT FROM p_guard ==> false",
    ),
    (
        "registry::a_version_number_is_never_used_again",
        "register_version ==> SET next_version = m.next_version + 1 ==> SET next_version = (SELECT coalesce(max(v.version), 0) + 2 FROM palisade.model_version AS v)",
    ),
    (
        "registry::a_plan_is_ordered_by_generation_within_the_objects_uid",
        "put_plan ==> put_plan.generation < n.generation ==> false",
    ),
    (
        "registry::work_that_was_planned_while_the_former_work_ended_stays_queued",
        "record_done ==> AND (n.uid, n.rollout) = (record_done.uid, record_done.rollout) ==> ",
    ),
    (
        "registry::a_plain_clients_request_is_applied_at_most_once",
        "begin_request ==> IF q.id IS NULL THEN ==> IF true THEN",
    ),
    // Rule 10.
    (
        "epochs::an_epoch_that_was_withdrawn_lets_nobody_grant_or_write_until_a_larger_one_is_established",
        "withdraw_epoch ==> WHERE e.number = withdraw_epoch.number ==> WHERE false",
    ),
    (
        "epochs::a_copy_of_a_database_has_no_epoch_though_it_carries_the_row_along",
        "sql ==> CREATE OR REPLACE VIEW palisade.running_epoch AS SELECT e.number FROM palisade.established AS e WHERE e.postmaster_start = pg_postmaster_start_time() AND e.timeline = left(pg_walfile_name(pg_current_wal_lsn()), 8)",
    ),
    (
        "epochs::after_a_restart_nothing_is_granted_or_written_until_the_next_epoch_is_established",
        "sql ==> CREATE OR REPLACE VIEW palisade.running_epoch AS SELECT e.number FROM palisade.established AS e WHERE e.place = pg_relation_filepath('palisade.established') AND e.timeline = left(pg_walfile_name(pg_current_wal_lsn()), 8)",
    ),
    (
        "epochs::after_a_backends_crash_nothing_is_granted_or_written_until_the_next_epoch_is_established",
        "sql ==> ALTER TABLE palisade.established SET LOGGED",
    ),
];

#[tokio::test]
async fn each_rule_when_it_is_broken_is_noticed_by_its_test() {
    if std::env::var(BREAK).is_ok() {
        return; // a run that somebody broke by hand
    }
    let server = shared_server().await.url.clone();
    let slots = Arc::new(tokio::sync::Semaphore::new(3));
    let mut tasks = Vec::new();
    let icu = has_icu(&mut Conn::open(&server).await).await;
    for (test, rule) in BREAKS {
        if !icu && test.contains("collation") {
            continue; // nothing can be noticed where there are no such collations
        }
        let (server, slots) = (server.clone(), slots.clone());
        tasks.push(tokio::spawn(async move {
            let _slot = slots.acquire_owned().await.expect("open");
            let run = tokio::process::Command::new(std::env::current_exe().expect("this program"))
                .args(["--exact", &format!("sql::{test}"), "--test-threads", "1"])
                .env("PALISADE_TEST_SERVER", server)
                .env(BREAK, rule)
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .output();
            // One that fails by waiting in vain takes PATIENCE for it.
            let Ok(out) = tokio::time::timeout(PATIENCE * 3, run).await else {
                return Some(format!("{test}: {rule:?}: neither passes nor fails"));
            };
            let out = out.expect("this program runs");
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            match out.status.code() {
                Some(101) if said.contains("1 failed") => None,
                Some(UNBREAKABLE) => {
                    Some(format!("{test}: {rule:?} does not fit the SQL: {}", String::from_utf8_lossy(&out.stderr)))
                }
                Some(0) if said.contains("0 passed") => Some(format!("{test}: there is no such test")),
                Some(0) => Some(format!("{test}: passes, though it was broken: {rule:?}")),
                _ => Some(format!("{test}: {rule:?}: {}\n{said}{}", out.status, String::from_utf8_lossy(&out.stderr))),
            }
        }));
    }
    let mut problems = Vec::new();
    for task in tasks {
        problems.extend(task.await.expect("a run"));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

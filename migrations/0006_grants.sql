-- Who may do what. Functions are closed to everybody first: a helper that someone forgets here is closed, not open.

-- Not yet as the owner role: the runner's own table is in the schema, and belongs to whoever runs the migration.
REVOKE ALL ON ALL TABLES IN SCHEMA palisade FROM PUBLIC;
GRANT SELECT ON palisade.migration TO palisade_owner; -- for schema_version()

SET LOCAL ROLE palisade_owner;

REVOKE ALL ON SCHEMA palisade FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA palisade FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE palisade_owner IN SCHEMA palisade REVOKE ALL ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE palisade_owner REVOKE ALL ON FUNCTIONS FROM PUBLIC;

GRANT USAGE ON SCHEMA palisade TO palisade_worker, palisade_controller, palisade_registry, palisade_reader;

GRANT EXECUTE ON FUNCTION
    palisade.open_session, palisade.heartbeat, palisade.close_session, palisade.held,
    palisade.acquire, palisade.claim, palisade.report_progress, palisade.release, palisade.check_lease, palisade.use_lease, palisade.check_row,
    palisade.operation_status, palisade.abandon, palisade.epoch_status, palisade.schema_version,
    palisade.set_alias, palisade.move_guard,
    palisade.record_step, palisade.record_serving, palisade.record_done, palisade.record_failure, palisade.record_removed,
    palisade.version_show, palisade.plan_show, palisade.figures
TO palisade_worker;

GRANT EXECUTE ON FUNCTION
    palisade.open_session, palisade.heartbeat, palisade.close_session, palisade.held,
    palisade.acquire, palisade.report_progress, palisade.release, palisade.check_lease, palisade.revoke,
    palisade.operation_status, palisade.abandon, palisade.operation_show, palisade.operation_abandon,
    palisade.epoch_status, palisade.schema_version, palisade.establish_epoch, palisade.withdraw_epoch,
    palisade.put_plan, palisade.drop_plan, palisade.next_revision, palisade.observe,
    palisade.version_show, palisade.plan_show, palisade.events, palisade.figures,
    palisade.end_blockers, palisade.clean, palisade.sizes
TO palisade_controller;

GRANT EXECUTE ON FUNCTION
    palisade.register_model, palisade.register_version, palisade.put_alias, palisade.version_show
TO palisade_registry;

GRANT EXECUTE ON FUNCTION
    palisade.operation_show, palisade.epoch_status, palisade.schema_version, palisade.version_show, palisade.plan_show, palisade.events,
    palisade.figures, palisade.sizes
TO palisade_reader;

-- These run as whoever calls them, and do nothing that a table's owner could not do by hand. (A trigger's function may
-- be executed by whoever makes the trigger; nobody can call it.)
GRANT EXECUTE ON FUNCTION palisade.protect, palisade.unprotect, palisade.guard TO palisade_worker, palisade_reader;

-- Readers see everything but the keys' hashes.
GRANT SELECT ON palisade.epoch, palisade.established, palisade.lease, palisade.progress, palisade.loss, palisade.grant_history, palisade.operation,
    palisade.refusal, palisade.registered_model, palisade.model_version, palisade.alias, palisade.plan, palisade.deployment,
    palisade.queue, palisade.event, palisade.protected
TO palisade_reader;
GRANT SELECT (id, worker, ttl, expires_at, opened_at, closed_at) ON palisade.session TO palisade_reader;

-- The registry's clients read it; the controller and people at its console read all.
GRANT SELECT ON palisade.registered_model, palisade.model_version, palisade.alias TO palisade_registry;

RESET ROLE;

-- A role grant is the server's, not this database's: another database's migration may be at it in this moment.
DO $$
BEGIN
    IF NOT pg_catalog.pg_has_role('palisade_controller', 'palisade_reader', 'MEMBER') THEN
        GRANT palisade_reader TO palisade_controller;
    END IF;
EXCEPTION WHEN internal_error OR unique_violation THEN
    NULL;
END
$$;

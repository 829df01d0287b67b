-- What keeps the tables small and the gate free. The leading controller calls it.
SET LOCAL ROLE palisade_owner;

-- A paused client must not block a takeover: ends backends that have kept others waiting for a lease's row too long.
CREATE FUNCTION palisade.end_blockers(older_than interval) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
    v_count integer;
BEGIN
    IF end_blockers.older_than IS NULL OR end_blockers.older_than < interval '1 second' THEN
        RAISE EXCEPTION 'palisade: older_than is %, and must be at least 1 second', end_blockers.older_than USING ERRCODE = 'PS004';
    END IF;
    SELECT count(*) INTO v_count FROM (
        SELECT pg_terminate_backend(a.pid)
        FROM pg_catalog.pg_stat_activity AS a
        JOIN pg_catalog.pg_roles AS r ON r.oid = a.usesysid AND NOT r.rolsuper
        WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
          AND a.state LIKE 'idle in transaction%' AND a.state_change < clock_timestamp() - end_blockers.older_than
          AND EXISTS (SELECT FROM pg_catalog.pg_locks AS k
                      WHERE k.pid = a.pid AND k.relation = 'palisade.lease'::regclass AND k.mode = 'RowShareLock')
    ) AS ended;
    RETURN v_count;
END
$$;

-- One small batch; call again while it answers the batch's size. Nothing that a fence still needs is removed:
-- the ledger of a current token stays whole.
CREATE FUNCTION palisade.clean(older_than interval, batch integer DEFAULT 1000) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
DECLARE
    v_before timestamptz := clock_timestamp() - clean.older_than;
    v_count  integer;
    v_total  integer := 0;
BEGIN
    IF clean.older_than IS NULL OR clean.older_than < interval '1 hour' OR clean.batch IS NULL OR clean.batch NOT BETWEEN 1 AND 100000 THEN
        RAISE EXCEPTION 'palisade: older_than must be at least 1 hour (is %), batch between 1 and 100000 (is %)', clean.older_than, clean.batch
            USING ERRCODE = 'PS004';
    END IF;
    WITH old AS MATERIALIZED ( -- a lease that is locked now is cleaned another time: nothing waits for upkeep
        SELECT o.resource, o.token, o.sequence FROM palisade.operation AS o JOIN palisade.lease AS l ON l.resource = o.resource
        WHERE o.at < v_before AND o.token < l.token LIMIT clean.batch FOR NO KEY UPDATE OF l SKIP LOCKED
    ), marked AS (
        UPDATE palisade.lease AS l SET ledger_from = greatest(l.ledger_from, m.token + 1)
        FROM (SELECT x.resource, max(x.token) AS token FROM old AS x GROUP BY x.resource) AS m WHERE l.resource = m.resource
    )
    DELETE FROM palisade.operation AS o USING old AS x WHERE o.resource = x.resource AND o.token = x.token AND o.sequence = x.sequence;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    v_total := v_count;
    DELETE FROM palisade.refusal AS r WHERE r.id IN (SELECT x.id FROM palisade.refusal AS x WHERE x.at < v_before ORDER BY x.id LIMIT clean.batch);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    v_total := v_total + v_count;
    DELETE FROM palisade.request AS r WHERE r.id IN (SELECT x.id FROM palisade.request AS x WHERE x.at < v_before LIMIT clean.batch);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    v_total := v_total + v_count;
    DELETE FROM palisade.event AS v WHERE v.id IN (SELECT x.id FROM palisade.event AS x WHERE x.at < v_before ORDER BY x.id LIMIT clean.batch);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    v_total := v_total + v_count;
    DELETE FROM palisade.loss AS o WHERE o.ctid IN (SELECT x.ctid FROM palisade.loss AS x WHERE x.at < v_before LIMIT clean.batch);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    v_total := v_total + v_count;
    -- A session that holds nothing is forgotten; operation_status answers "forgotten" of its grants from then on.
    WITH gone AS (
        DELETE FROM palisade.session AS s WHERE s.id IN (
            SELECT x.id FROM palisade.session AS x
            WHERE x.expires_at < v_before AND NOT EXISTS (SELECT FROM palisade.lease AS l WHERE l.session = x.id) LIMIT clean.batch)
        RETURNING s.id
    )
    DELETE FROM palisade.loss AS o USING gone AS g WHERE o.session = g.id;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_total + v_count;
END
$$;

RESET ROLE;

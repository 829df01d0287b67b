-- What keeps the tables small and the gate free. The leading controller calls it.
SET LOCAL ROLE palisade_owner;

-- A paused client must not block a takeover: ends backends that have kept others waiting for a lease's row too long. One
-- that is at work may be an honest long write to a protected table: it has as long as a session can live, an hour.
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
          AND (a.state LIKE 'idle in transaction%' AND a.state_change < clock_timestamp() - end_blockers.older_than
               OR a.xact_start < clock_timestamp() - greatest(end_blockers.older_than, interval '1 hour'))
          AND EXISTS (SELECT FROM pg_catalog.pg_locks AS k
                      WHERE k.pid = a.pid AND k.relation = 'palisade.lease'::regclass AND k.mode = 'RowShareLock')
    ) AS ended;
    RETURN v_count;
END
$$;

-- What is old is removed in small batches: one call, one kind, at most `batch` rows, found by their key's order. The
-- caller remembers the place. No index on a time is needed for it, which each fenced write would pay for.

-- Ledger and grants of former tokens. Leases are walked by name, and only those are locked whose oldest row is old; one
-- that is locked now is cleaned another time. Tokens go up with time, so what is removed is always a lease's oldest part,
-- and ledger_from says where the rest begins.
CREATE FUNCTION palisade.clean_leases(p_what text, p_before timestamptz, p_batch integer, p_after text, OUT removed integer, OUT place text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_walk  record;
    v_lease record;
    v_count integer;
    v_upto  bigint;
    v_seen  integer := 0;
    v_done  text := coalesce(p_after, '');
BEGIN
    removed := 0;
    FOR v_walk IN
        SELECT l.resource, CASE p_what
            WHEN 'ledger' THEN (SELECT o.at < p_before FROM palisade.operation AS o
                WHERE o.resource = l.resource AND o.token < l.token ORDER BY o.token, o.sequence LIMIT 1)
            ELSE (SELECT h.at < p_before AND NOT EXISTS (SELECT FROM palisade.operation AS o WHERE o.resource = h.resource AND o.token = h.token)
                FROM palisade.grant_history AS h WHERE h.resource = l.resource AND h.token < l.token ORDER BY h.token LIMIT 1)
            END AS due
        FROM (SELECT x.resource, x.token FROM palisade.lease AS x WHERE x.resource > v_done ORDER BY x.resource LIMIT p_batch) AS l
    LOOP
        IF v_walk.due THEN
            SELECT l.token INTO v_lease FROM palisade.lease AS l WHERE l.resource = v_walk.resource FOR NO KEY UPDATE SKIP LOCKED;
            IF FOUND AND p_what = 'ledger' THEN
                WITH gone AS (
                    DELETE FROM palisade.operation AS o WHERE o.ctid = ANY (ARRAY(
                        SELECT x.ctid FROM (
                            SELECT h.ctid, h.at FROM palisade.operation AS h
                            WHERE h.resource = v_walk.resource AND h.token < v_lease.token
                            ORDER BY h.token, h.sequence LIMIT p_batch - removed) AS x
                        WHERE x.at < p_before))
                    RETURNING o.token
                )
                SELECT count(*), max(g.token) INTO v_count, v_upto FROM gone AS g;
            ELSIF FOUND THEN
                WITH head AS MATERIALIZED ( -- the key of a fence whose ledger is kept is proved by its grant
                    SELECT h.ctid, h.token, h.at < p_before
                           AND NOT EXISTS (SELECT FROM palisade.operation AS o WHERE o.resource = v_walk.resource AND o.token = h.token) AS old
                    FROM palisade.grant_history AS h WHERE h.resource = v_walk.resource AND h.token < v_lease.token
                    ORDER BY h.token LIMIT p_batch - removed
                ), gone AS (
                    DELETE FROM palisade.grant_history AS h WHERE h.ctid = ANY (ARRAY(
                        SELECT x.ctid FROM head AS x
                        WHERE x.token < coalesce((SELECT min(y.token) FROM head AS y WHERE NOT y.old), v_lease.token)))
                    RETURNING h.token
                )
                SELECT count(*), max(g.token) INTO v_count, v_upto FROM gone AS g;
            ELSE
                v_count := 0;
            END IF;
            IF v_count > 0 THEN
                UPDATE palisade.lease AS l SET ledger_from = v_upto + 1 WHERE l.resource = v_walk.resource AND l.ledger_from <= v_upto;
                removed := removed + v_count;
            END IF;
            IF removed >= p_batch THEN
                place := v_done; -- there may be more of this one
                RETURN;
            END IF;
        END IF;
        v_done := v_walk.resource;
        v_seen := v_seen + 1;
    END LOOP;
    place := CASE WHEN v_seen >= p_batch THEN v_done END;
END
$$;

-- Sessions are walked by id. One that expired and holds nothing is closed first: from then on nothing is written under
-- it, so that it outlives what was, if it is kept for as long as the ledger. One that still stands in a lease is kept.
CREATE FUNCTION palisade.clean_sessions(p_before timestamptz, p_batch integer, p_after uuid, OUT removed integer, OUT place text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_ids   uuid[];
    v_count integer;
BEGIN
    v_ids := ARRAY(SELECT s.id FROM palisade.session AS s WHERE s.id > p_after ORDER BY s.id LIMIT p_batch);
    UPDATE palisade.session AS s SET closed_at = clock_timestamp() WHERE s.ctid = ANY (ARRAY(
        SELECT x.ctid FROM palisade.session AS x
        WHERE x.id = ANY (v_ids) AND x.closed_at IS NULL AND x.expires_at < clock_timestamp() - interval '1 hour'
          AND NOT EXISTS (SELECT FROM palisade.lease AS l WHERE l.session = x.id)
        ORDER BY x.id FOR NO KEY UPDATE SKIP LOCKED));
    DELETE FROM palisade.loss AS o WHERE o.ctid = ANY (ARRAY(
        SELECT x.ctid FROM palisade.session AS s JOIN palisade.loss AS x ON x.session = s.id
        WHERE s.id = ANY (v_ids) AND (x.at < p_before OR s.closed_at < p_before) LIMIT p_batch));
    GET DIAGNOSTICS removed = ROW_COUNT;
    DELETE FROM palisade.session AS s WHERE s.ctid = ANY (ARRAY(
        SELECT x.ctid FROM palisade.session AS x
        WHERE x.id = ANY (v_ids) AND x.closed_at < p_before
          AND NOT EXISTS (SELECT FROM palisade.lease AS l WHERE l.session = x.id)
          AND NOT EXISTS (SELECT FROM palisade.loss AS o WHERE o.session = x.id)
        ORDER BY x.id LIMIT p_batch - removed FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS v_count = ROW_COUNT;
    removed := removed + v_count;
    place := CASE WHEN removed >= p_batch THEN p_after::text WHEN cardinality(v_ids) >= p_batch THEN v_ids[p_batch]::text END;
END
$$;

CREATE FUNCTION palisade.clean(what text, older_than interval, batch integer DEFAULT 1000, after text DEFAULT NULL, OUT removed integer, OUT place text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s'
SET enable_seqscan = off -- a table that was just filled or emptied has misleading statistics
AS $$
#variable_conflict use_column
DECLARE
    v_before timestamptz;
BEGIN
    IF clean.older_than IS NULL OR clean.older_than NOT BETWEEN interval '1 hour' AND interval '3650 days'
       OR clean.batch IS NULL OR clean.batch NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'palisade: older_than is %, and must be between 1 hour and 3650 days; batch is %, and must be between 1 and 10000',
            clean.older_than, clean.batch USING ERRCODE = 'PS004';
    END IF;
    v_before := clock_timestamp() - clean.older_than;
    IF clean.what IN ('ledger', 'history') THEN
        SELECT c.removed, c.place INTO clean.removed, clean.place FROM palisade.clean_leases(clean.what, v_before, clean.batch, clean.after) AS c;
    ELSIF clean.what = 'sessions' THEN
        SELECT c.removed, c.place INTO clean.removed, clean.place
            FROM palisade.clean_sessions(v_before, clean.batch, coalesce(clean.after, '00000000-0000-0000-0000-000000000000')::uuid) AS c;
    ELSIF clean.what = 'requests' THEN
        DELETE FROM palisade.request AS q WHERE q.ctid = ANY (ARRAY(
            SELECT x.ctid FROM palisade.request AS x WHERE x.at < v_before ORDER BY x.at LIMIT clean.batch));
        GET DIAGNOSTICS removed = ROW_COUNT;
        place := CASE WHEN removed >= clean.batch THEN '' END;
    ELSIF clean.what = 'refusals' THEN -- ids go up with time
        WITH gone AS (
            DELETE FROM palisade.refusal AS r WHERE r.ctid = ANY (ARRAY(
                SELECT x.ctid FROM (
                    SELECT h.ctid, h.at FROM palisade.refusal AS h
                    WHERE h.id > coalesce(clean.after, '0')::bigint ORDER BY h.id LIMIT clean.batch) AS x
                WHERE x.at < v_before))
            RETURNING r.id)
        SELECT count(*), CASE WHEN count(*) >= clean.batch THEN max(g.id)::text END INTO clean.removed, clean.place FROM gone AS g;
    ELSIF clean.what = 'events' THEN -- only those that every reader of events() has been able to see, in its order
        WITH gone AS (
            DELETE FROM palisade.event AS e WHERE e.ctid = ANY (ARRAY(
                SELECT x.ctid FROM (
                    SELECT h.ctid, h.xid, h.at FROM palisade.event AS h
                    WHERE (h.xid, h.id) > (split_part(coalesce(clean.after, '0/0'), '/', 1)::xid8, split_part(coalesce(clean.after, '0/0'), '/', 2)::bigint)
                    ORDER BY h.xid, h.id LIMIT clean.batch) AS x
                WHERE x.at < v_before AND x.xid < pg_snapshot_xmin(pg_current_snapshot())))
            RETURNING e.xid, e.id)
        SELECT count(*), (CASE WHEN count(*) >= clean.batch THEN (SELECT g.xid || '/' || g.id FROM gone AS g ORDER BY g.xid DESC, g.id DESC LIMIT 1) END)
            INTO clean.removed, clean.place FROM gone AS g;
    ELSE
        RAISE EXCEPTION 'palisade: what is %, and must be ledger, refusals, history, events, requests or sessions', quote_nullable(left(clean.what, 80))
            USING ERRCODE = 'PS004';
    END IF;
END
$$;

-- What the tables that grow take on the disk, with their indexes.
CREATE FUNCTION palisade.sizes() RETURNS TABLE (name text, bytes bigint)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
    SELECT c.relname::text, pg_total_relation_size(c.oid) FROM pg_catalog.pg_class AS c
    WHERE c.relnamespace = 'palisade'::regnamespace AND c.relkind = 'r'
      AND c.relname IN ('operation', 'refusal', 'grant_history', 'event', 'request', 'session', 'lease')
    ORDER BY c.relname
$$;

RESET ROLE;

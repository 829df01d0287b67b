-- Sessions, leases, fences and epochs.
--
-- Lock order, everywhere: leases by name, sessions by id, progress, protected rows by table and key, ledger.
-- Helpers without SECURITY DEFINER run as the function that called them; nobody else may call them (0006_grants.sql).
SET LOCAL ROLE palisade_owner;

-- ---------------------------------------------------------------- epochs

CREATE FUNCTION palisade.incarnation_name(
    system_id bigint, timeline integer, postmaster_start timestamptz, checkpointer_start timestamptz, database oid) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT concat_ws('/', system_id, timeline, (extract(epoch FROM postmaster_start) * 1000000)::bigint,
        (extract(epoch FROM checkpointer_start) * 1000000)::bigint, database)
$$;

-- Which incarnation of the database this is. The timeline comes from the WAL position: pg_control_checkpoint() still reads
-- the old one after a promotion. The checkpointer restarts with every crash of a backend.
CREATE FUNCTION palisade.incarnation(
    OUT system_id bigint, OUT timeline integer, OUT postmaster_start timestamptz,
    OUT checkpointer_start timestamptz, OUT database oid, OUT name text)
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    SELECT c.system_identifier INTO incarnation.system_id FROM pg_catalog.pg_control_system() AS c;
    timeline := ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer;
    postmaster_start := pg_postmaster_start_time();
    SELECT a.backend_start INTO incarnation.checkpointer_start
        FROM pg_catalog.pg_stat_get_activity(NULL) AS a WHERE a.backend_type = 'checkpointer';
    IF checkpointer_start IS NULL THEN
        RAISE EXCEPTION 'palisade: the start of the checkpointer cannot be read'
            USING ERRCODE = 'PS006', HINT = 'GRANT pg_read_all_stats TO palisade_owner';
    END IF;
    SELECT d.oid INTO incarnation.database FROM pg_catalog.pg_database AS d WHERE d.datname = current_database();
    name := palisade.incarnation_name(system_id, timeline, postmaster_start, checkpointer_start, database);
END
$$;

-- The epoch's number; no row where it was not established for this incarnation. Every call pays for it, so it is one row
-- and three comparisons. pg_stat_get_activity() would tell of a crash as well, at ten times the price.
CREATE VIEW palisade.running_epoch AS
    SELECT e.number FROM palisade.established AS e
    WHERE e.postmaster_start = pg_postmaster_start_time()
      AND e.place = pg_relation_filepath('palisade.established')
      AND e.timeline = left(pg_walfile_name(pg_current_wal_lsn()), 8);

CREATE FUNCTION palisade.current_epoch() RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$ -- not SQL: such a function is planned anew in each statement, which costs more than it does
BEGIN
    RETURN (SELECT e.number FROM palisade.running_epoch AS e);
END
$$;

-- What every function that changes something does first. A caller's own settings must not weaken it:
-- the answer may only be seen once it is durable, and the gate is only right under READ COMMITTED.
CREATE FUNCTION palisade.begin_call() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'palisade: transaction_isolation is %, and must be read committed', current_setting('transaction_isolation')
            USING ERRCODE = 'PS002', HINT = 'Call the function as a statement of its own, outside a transaction block.';
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
END
$$;

-- Programs may be started before the migration that they need has run: they ask, and wait.
CREATE FUNCTION palisade.schema_version() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
BEGIN
    RETURN (SELECT coalesce(max(m.version), 0) FROM palisade.migration AS m WHERE m.success);
END
$$;

CREATE FUNCTION palisade.epoch_status(
    OUT number bigint, OUT established boolean, OUT incarnation text, OUT established_for text,
    OUT timeline integer, OUT established_timeline integer, OUT highest_token bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
    e palisade.epoch;
    i record;
BEGIN
    SELECT * INTO i FROM palisade.incarnation();
    SELECT * INTO e FROM palisade.epoch;
    number := e.number;
    established := palisade.current_epoch() IS NOT NULL;
    incarnation := i.name;
    timeline := i.timeline;
    established_timeline := e.timeline;
    IF e.number IS NOT NULL THEN
        established_for := palisade.incarnation_name(e.system_id, e.timeline, e.postmaster_start, e.checkpointer_start, e.database);
    END IF;
    SELECT coalesce(max(l.token), 0) INTO epoch_status.highest_token FROM palisade.lease AS l;
END
$$;

CREATE FUNCTION palisade.establish_epoch(number bigint, incarnation text) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
DECLARE
    e palisade.epoch;
    i record;
BEGIN
    PERFORM palisade.begin_call();
    IF establish_epoch.number IS NULL OR establish_epoch.number < 1 OR establish_epoch.number >= 2097152 THEN
        RAISE EXCEPTION 'palisade: number is %, and must be between 1 and 2097151', establish_epoch.number USING ERRCODE = 'PS004';
    END IF;
    LOCK TABLE palisade.epoch IN SHARE ROW EXCLUSIVE MODE; -- there may be no row to lock yet; readers go on
    SELECT * INTO i FROM palisade.incarnation();
    IF establish_epoch.incarnation IS DISTINCT FROM i.name THEN
        RETURN ('rejected', 'incarnation_changed', NULL, jsonb_build_object('incarnation', i.name))::palisade.answer;
    END IF;
    SELECT * INTO e FROM palisade.epoch;
    IF e.number = establish_epoch.number AND palisade.current_epoch() IS NOT NULL THEN
        RETURN ('replayed', NULL, NULL, jsonb_build_object('number', e.number))::palisade.answer;
    END IF;
    IF establish_epoch.number <= greatest(e.number, (SELECT max(l.token) / 4294967296 FROM palisade.lease AS l)) THEN
        RETURN ('rejected', 'epoch_not_newer', NULL, jsonb_build_object('number', e.number))::palisade.answer;
    END IF;
    INSERT INTO palisade.epoch AS x (number, system_id, database, timeline, postmaster_start, checkpointer_start, established_at)
        VALUES (establish_epoch.number, i.system_id, i.database, i.timeline, i.postmaster_start, i.checkpointer_start, clock_timestamp())
    ON CONFLICT (singleton) DO UPDATE SET number = excluded.number, system_id = excluded.system_id, database = excluded.database, timeline = excluded.timeline,
        postmaster_start = excluded.postmaster_start, checkpointer_start = excluded.checkpointer_start, established_at = excluded.established_at;
    DELETE FROM palisade.established AS x;
    INSERT INTO palisade.established (number, place, timeline, postmaster_start)
        VALUES (establish_epoch.number, pg_relation_filepath('palisade.established'), left(pg_walfile_name(pg_current_wal_lsn()), 8), i.postmaster_start);
    -- By id: the lock order. Their leases are granted anew, under tokens of the new epoch.
    PERFORM FROM palisade.session AS s WHERE s.closed_at IS NULL ORDER BY s.id FOR NO KEY UPDATE;
    UPDATE palisade.session AS s SET closed_at = clock_timestamp() WHERE s.closed_at IS NULL;
    INSERT INTO palisade.event (resource, kind, data, at)
        VALUES ('epoch', 'epoch', jsonb_build_object('number', establish_epoch.number, 'incarnation', i.name), clock_timestamp());
    RETURN ('applied', NULL, NULL, jsonb_build_object('number', establish_epoch.number))::palisade.answer;
END
$$;

-- For a database beside which another one was given the next epoch. Its clients must not go on here.
CREATE FUNCTION palisade.withdraw_epoch(number bigint, incarnation text) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
DECLARE
    i record;
BEGIN
    PERFORM palisade.begin_call();
    LOCK TABLE palisade.epoch IN SHARE ROW EXCLUSIVE MODE; -- as establish_epoch does
    SELECT * INTO i FROM palisade.incarnation();
    IF withdraw_epoch.incarnation IS DISTINCT FROM i.name THEN
        RETURN ('rejected', 'incarnation_changed', NULL, jsonb_build_object('incarnation', i.name))::palisade.answer;
    END IF;
    DELETE FROM palisade.established AS e WHERE e.number = withdraw_epoch.number; -- palisade.epoch remembers the number
    IF NOT FOUND THEN
        RETURN ('replayed', NULL, NULL, NULL)::palisade.answer;
    END IF;
    INSERT INTO palisade.event (resource, kind, data, at)
        VALUES ('epoch', 'withdrawn', jsonb_build_object('number', withdraw_epoch.number, 'incarnation', i.name), clock_timestamp());
    RETURN ('applied', NULL, NULL, jsonb_build_object('number', withdraw_epoch.number))::palisade.answer;
END
$$;

-- ---------------------------------------------------------------- sessions

-- Stable, as convert_to() is: an immutable one would not be inlined, but parsed anew in each call.
CREATE FUNCTION palisade.key_hash(key text) RETURNS bytea
LANGUAGE sql STABLE AS $$ SELECT sha256(convert_to(key, 'UTF8')) $$;

CREATE FUNCTION palisade.milliseconds(span interval) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$ SELECT (extract(epoch FROM span) * 1000)::bigint $$;

CREATE FUNCTION palisade.open_session(id uuid, key text, worker text, ttl interval) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
DECLARE
    s     palisade.session;
    v_now timestamptz;
BEGIN
    PERFORM palisade.begin_call();
    IF open_session.id IS NULL OR length(coalesce(open_session.key, '')) NOT BETWEEN 16 AND 512 THEN
        RAISE EXCEPTION 'palisade: id must be a fresh UUID, and key a secret of 16 to 512 characters' USING ERRCODE = 'PS004';
    END IF;
    IF open_session.worker IS NULL OR length(open_session.worker) NOT BETWEEN 1 AND 253 THEN
        RAISE EXCEPTION 'palisade: worker must be a name of 1 to 253 characters' USING ERRCODE = 'PS004';
    END IF;
    IF open_session.ttl IS NULL OR open_session.ttl NOT BETWEEN interval '1 second' AND interval '1 hour' THEN
        RAISE EXCEPTION 'palisade: ttl is %, and must be between 1 second and 1 hour', open_session.ttl USING ERRCODE = 'PS004';
    END IF;
    IF palisade.current_epoch() IS NULL THEN
        RETURN ('rejected', 'epoch_not_established', NULL, NULL)::palisade.answer;
    END IF;
    v_now := clock_timestamp();
    INSERT INTO palisade.session (id, key_hash, worker, ttl, expires_at, opened_at)
        VALUES (open_session.id, palisade.key_hash(open_session.key), open_session.worker, open_session.ttl, v_now + open_session.ttl, v_now)
        ON CONFLICT (id) DO NOTHING;
    IF FOUND THEN
        RETURN ('applied', NULL, NULL, jsonb_build_object('left_ms', palisade.milliseconds(open_session.ttl)))::palisade.answer;
    END IF;
    -- The first try's answer was lost, or the id is not fresh.
    SELECT x.* INTO s FROM palisade.session AS x WHERE x.id = open_session.id;
    IF s.key_hash <> palisade.key_hash(open_session.key) THEN
        RETURN ('rejected', 'wrong_key', NULL, NULL)::palisade.answer;
    ELSIF s.closed_at IS NOT NULL OR s.expires_at <= clock_timestamp() THEN
        RETURN ('rejected', 'session_closed', NULL, NULL)::palisade.answer;
    END IF;
    RETURN ('replayed', NULL, NULL, jsonb_build_object('left_ms', palisade.milliseconds(s.expires_at - clock_timestamp())))::palisade.answer;
END
$$;

CREATE FUNCTION palisade.heartbeat(id uuid, key text) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
DECLARE
    s      palisade.session;
    v_now  timestamptz;
    v_lost jsonb;
BEGIN
    PERFORM palisade.begin_call();
    SELECT x.* INTO s FROM palisade.session AS x WHERE x.id = heartbeat.id FOR NO KEY UPDATE;
    v_now := clock_timestamp(); -- after the lock: a takeover may have held it
    IF s.id IS NULL THEN
        RETURN ('rejected', 'no_session', NULL, NULL)::palisade.answer;
    ELSIF s.key_hash IS DISTINCT FROM palisade.key_hash(heartbeat.key) THEN
        RETURN ('rejected', 'wrong_key', NULL, NULL)::palisade.answer;
    ELSIF s.closed_at IS NOT NULL THEN
        RETURN ('rejected', 'session_closed', NULL, NULL)::palisade.answer;
    ELSIF s.expires_at <= v_now THEN
        RETURN ('rejected', 'session_expired', NULL, NULL)::palisade.answer; -- never revive
    ELSIF palisade.current_epoch() IS NULL THEN
        RETURN ('rejected', 'epoch_not_established', NULL, NULL)::palisade.answer;
    END IF;
    UPDATE palisade.session AS x SET expires_at = v_now + s.ttl WHERE x.id = s.id;
    SELECT jsonb_agg(jsonb_build_object('resource', o.resource, 'token', o.token, 'reason', o.reason)) INTO v_lost
        FROM palisade.loss AS o WHERE o.session = s.id AND o.at > v_now - 10 * s.ttl; -- told often enough by then
    RETURN ('applied', NULL, NULL, jsonb_build_object('left_ms', palisade.milliseconds(s.ttl), 'lost', coalesce(v_lost, '[]')))::palisade.answer;
END
$$;

CREATE FUNCTION palisade.held(id uuid, key text)
RETURNS TABLE (resource text, token bigint, sequence bigint, progress_left_ms bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT l.resource, l.token, l.sequence,
               CASE WHEN isfinite(p.deadline) THEN palisade.milliseconds(p.deadline - clock_timestamp()) END
        FROM palisade.session AS s
        JOIN palisade.lease AS l ON l.session = s.id
        LEFT JOIN palisade.progress AS p ON p.resource = l.resource
        WHERE s.id = held.id AND s.key_hash = palisade.key_hash(held.key) AND s.closed_at IS NULL
        ORDER BY l.resource;
END
$$;

-- Raises the token of a lease that the caller has locked, and leaves it without an owner.
CREATE FUNCTION palisade.retire_lease(p_resource text, p_kind text, p_reason text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_token bigint;
    v_now   timestamptz := clock_timestamp();
BEGIN
    UPDATE palisade.lease AS l SET token = l.token + 1, sequence = 0, session = NULL, released_at = v_now
        WHERE l.resource = p_resource RETURNING l.token INTO v_token;
    INSERT INTO palisade.grant_history (resource, token, kind, reason, at) VALUES (p_resource, v_token, p_kind, p_reason, v_now);
    RETURN v_token;
END
$$;

CREATE FUNCTION palisade.close_session(id uuid, key text) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
DECLARE
    s       palisade.session;
    v_lease text;
    v_count integer := 0;
BEGIN
    PERFORM palisade.begin_call();
    SELECT x.* INTO s FROM palisade.session AS x WHERE x.id = close_session.id;
    IF s.id IS NULL THEN
        RETURN ('rejected', 'no_session', NULL, NULL)::palisade.answer;
    ELSIF s.key_hash IS DISTINCT FROM palisade.key_hash(close_session.key) THEN
        RETURN ('rejected', 'wrong_key', NULL, NULL)::palisade.answer;
    END IF;
    -- Leases first, then the session. One granted in between belongs to a closed session then, and is free.
    FOR v_lease IN SELECT l.resource FROM palisade.lease AS l WHERE l.session = s.id ORDER BY l.resource FOR NO KEY UPDATE LOOP
        PERFORM palisade.retire_lease(v_lease, 'release', 'session closed');
        v_count := v_count + 1;
    END LOOP;
    UPDATE palisade.session AS x SET closed_at = clock_timestamp() WHERE x.id = s.id AND x.closed_at IS NULL;
    RETURN (CASE WHEN FOUND THEN 'applied' ELSE 'replayed' END, NULL, NULL, jsonb_build_object('released', v_count))::palisade.answer;
END
$$;

-- ---------------------------------------------------------------- grants

CREATE FUNCTION palisade.next_token(token bigint, epoch bigint) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF token < epoch * 4294967296 THEN
        RETURN epoch * 4294967296 + 1;
    ELSIF token / 4294967296 > epoch THEN
        RAISE EXCEPTION 'palisade: token % is of a later epoch than %', token, epoch USING ERRCODE = 'PS006';
    ELSIF token % 4294967296 >= 4294967294 THEN -- one is left for the release
        RAISE EXCEPTION 'palisade: the tokens of epoch % are used up for this resource', epoch
            USING ERRCODE = 'PS006', HINT = 'A controller allocates the next epoch within seconds; without one: palisade epoch advance';
    END IF;
    RETURN token + 1;
END
$$;

-- Grants those of the named leases that are free. The caller has locked their rows, and nothing else, and found whose they
-- were: p_owners, null where nobody's. Order: sessions are locked by id, only then is the clock read, only then is it
-- decided who is dead. ROWS: else the planner expects a thousand, and reads all plans to join them.
CREATE FUNCTION palisade.grant_locked(p_session uuid, p_key text, p_resources text[], p_owners uuid[], p_progress interval, p_own boolean)
RETURNS TABLE (resource text, token bigint, takeover boolean, refused text)
LANGUAGE plpgsql ROWS 10 AS $$
#variable_conflict use_column
DECLARE
    s        palisade.session;
    v_epoch  bigint;
    v_now    timestamptz;
BEGIN
    IF p_owners IS NOT NULL THEN
        PERFORM FROM palisade.session AS x WHERE x.id = p_session OR x.id = ANY (p_owners) ORDER BY x.id FOR NO KEY UPDATE;
    END IF;
    SELECT x.* INTO s FROM palisade.session AS x WHERE x.id = p_session FOR NO KEY UPDATE;
    v_epoch := palisade.current_epoch();
    v_now := clock_timestamp();

    refused := CASE
        WHEN v_epoch IS NULL THEN 'epoch_not_established'
        WHEN s.id IS NULL THEN 'no_session'
        WHEN s.key_hash IS DISTINCT FROM palisade.key_hash(p_key) THEN 'wrong_key'
        WHEN s.closed_at IS NOT NULL THEN 'session_closed'
        WHEN s.expires_at <= v_now THEN 'session_expired'
    END;
    IF refused IS NOT NULL THEN
        RETURN NEXT;
        RETURN;
    ELSIF p_owners IS NULL THEN
        -- As a rule: there is nobody to be asked whether he lives, and nobody to be told.
        RETURN QUERY
        WITH granted AS (
            UPDATE palisade.lease AS l
                SET token = palisade.next_token(l.token, v_epoch), sequence = 0, session = p_session, granted_at = v_now, released_at = NULL
                WHERE l.resource = ANY (p_resources) AND l.session IS NULL
                RETURNING l.resource, l.token
        ), moved AS (
            INSERT INTO palisade.progress AS p (resource, token, deadline)
                SELECT g.resource, g.token, coalesce(v_now + coalesce(p_progress, n.progress_ttl), 'infinity')
                FROM granted AS g LEFT JOIN palisade.plan AS n ON n.resource = g.resource
                ON CONFLICT (resource) DO UPDATE SET token = excluded.token, deadline = excluded.deadline
        ), noted AS (
            INSERT INTO palisade.grant_history (resource, token, session, worker, kind, at)
                SELECT g.resource, g.token, p_session, s.worker, 'grant', v_now FROM granted AS g
        )
        SELECT g.resource, g.token, false, NULL::text FROM granted AS g;
        RETURN;
    END IF;

    -- The clock went back: nobody waits longer than a TTL for it.
    UPDATE palisade.session AS x SET expires_at = v_now + x.ttl
        WHERE x.id = ANY (p_owners) AND x.id <> p_session AND x.closed_at IS NULL AND x.expires_at > v_now + x.ttl;

    RETURN QUERY
    WITH free AS MATERIALIZED (
        SELECT l.resource, l.session AS former, l.token AS old, l.released_at,
               l.session IS NOT NULL AND (l.session <> p_session OR NOT p_own) AS taken,
               o.closed_at IS NULL AND o.expires_at > v_now AS alive,
               least(o.closed_at, o.expires_at, p.deadline) AS ended,
               CASE WHEN l.token / 4294967296 < v_epoch THEN 'epoch ended'
                    WHEN o.closed_at IS NULL AND o.expires_at > v_now THEN 'no progress' ELSE 'session ended' END AS why
        FROM palisade.lease AS l
        LEFT JOIN palisade.session AS o ON o.id = l.session
        LEFT JOIN palisade.progress AS p ON p.resource = l.resource
        WHERE l.resource = ANY (p_resources)
          AND CASE WHEN l.session IS NULL THEN true
                   -- Granted while the epoch was being replaced: nobody can write under it.
                   WHEN l.token / 4294967296 < v_epoch THEN true
                   -- Its own handler may hang, or have been dropped: then the process may take it up again.
                   WHEN l.session = p_session THEN p_own OR p.deadline <= v_now
                   ELSE o.id IS NULL OR o.closed_at IS NOT NULL OR o.expires_at <= v_now OR p.deadline <= v_now END
    ), granted AS (
        UPDATE palisade.lease AS l
            SET token = palisade.next_token(l.token, v_epoch), sequence = 0, session = p_session, granted_at = v_now, released_at = NULL
            FROM free AS f WHERE l.resource = f.resource
            RETURNING l.resource, l.token, f.former, f.old, f.taken, f.alive, f.ended, f.why
    ), closed AS ( -- in the same transaction: a late heartbeat and this grant cannot both win
        UPDATE palisade.session AS x SET closed_at = v_now
            FROM (SELECT DISTINCT g.former FROM granted AS g WHERE g.taken AND NOT g.alive) AS dead
            WHERE x.id = dead.former AND x.closed_at IS NULL
    ), moved AS (
        INSERT INTO palisade.progress AS p (resource, token, deadline)
            SELECT g.resource, g.token, CASE WHEN limits.span IS NULL THEN 'infinity' ELSE v_now + limits.span END
            FROM granted AS g
            LEFT JOIN palisade.plan AS n ON n.resource = g.resource
            CROSS JOIN LATERAL (SELECT coalesce(p_progress, n.progress_ttl) AS span) AS limits
            ON CONFLICT (resource) DO UPDATE SET token = excluded.token, deadline = excluded.deadline
    ), told AS (
        INSERT INTO palisade.loss (session, resource, token, reason, at)
            SELECT g.former, g.resource, g.old, g.why, v_now FROM granted AS g WHERE g.taken AND g.alive
            ON CONFLICT DO NOTHING
    ), noted AS (
        INSERT INTO palisade.grant_history (resource, token, session, worker, kind, reason, former_end, at)
            SELECT g.resource, g.token, p_session, s.worker, CASE WHEN g.taken THEN 'takeover' ELSE 'grant' END,
                   CASE WHEN g.taken THEN g.why END,
                   CASE WHEN g.taken THEN g.ended END, v_now
            FROM granted AS g
    )
    SELECT g.resource, g.token, g.taken, NULL::text FROM granted AS g;
END
$$;

CREATE FUNCTION palisade.check_span(p_name text, p_span interval) RETURNS void
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF p_span <= interval '0' OR p_span > interval '30 days' THEN
        RAISE EXCEPTION 'palisade: % is %, and must be above 0 and at most 30 days (null: no limit of its own)', p_name, p_span
            USING ERRCODE = 'PS004';
    END IF;
END
$$;

CREATE FUNCTION palisade.acquire(id uuid, key text, resource text, progress interval DEFAULT NULL) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
DECLARE
    g record;
    l palisade.lease;
    o record;
BEGIN
    PERFORM palisade.begin_call();
    PERFORM palisade.check_span('progress', acquire.progress);
    -- A worker that held it could plan nothing, but would keep every controller from leading. By the login: this runs as the owner.
    IF acquire.resource COLLATE "C" LIKE 'controller/%' AND NOT pg_has_role(session_user, 'palisade_controller', 'MEMBER') THEN
        RAISE EXCEPTION 'palisade: % is for controllers, and the login % is none', left(acquire.resource, 80), session_user
            USING ERRCODE = 'insufficient_privilege', HINT = format('GRANT palisade_controller TO %I', session_user);
    END IF;
    LOOP -- once, as a rule
        SELECT x.* INTO l FROM palisade.lease AS x WHERE x.resource = acquire.resource FOR NO KEY UPDATE;
        EXIT WHEN FOUND;
        IF acquire.resource IS NULL OR length(acquire.resource) NOT BETWEEN 1 AND 512 OR acquire.resource ~ '[[:cntrl:]]' THEN
            RAISE EXCEPTION 'palisade: resource must be 1 to 512 characters without control characters' USING ERRCODE = 'PS004';
        END IF;
        -- A stranger must not leave rows: the session is checked again, for good, behind the locks.
        IF NOT palisade.key_fits(acquire.id, acquire.key) THEN
            RETURN ('rejected', CASE WHEN EXISTS (SELECT FROM palisade.session AS s WHERE s.id = acquire.id) THEN 'wrong_key' ELSE 'no_session' END,
                    NULL, NULL)::palisade.answer;
        END IF;
        INSERT INTO palisade.lease (resource, token) VALUES (acquire.resource, 0) ON CONFLICT (resource) DO NOTHING;
    END LOOP;
    SELECT * INTO g FROM palisade.grant_locked(acquire.id, acquire.key, ARRAY[acquire.resource],
        CASE WHEN l.session IS NOT NULL THEN ARRAY[l.session] END, acquire.progress, true);
    IF g.token IS NOT NULL THEN
        RETURN ('applied', NULL, g.token, jsonb_build_object('takeover', g.takeover))::palisade.answer;
    END IF;
    IF g.refused IS NOT NULL THEN
        RETURN ('rejected', g.refused, CASE WHEN g.refused NOT IN ('no_session', 'wrong_key') THEN l.token END, NULL)::palisade.answer;
    END IF;
    SELECT s.worker, least(s.expires_at, p.deadline) - clock_timestamp() AS span INTO o
        FROM palisade.session AS s LEFT JOIN palisade.progress AS p ON p.resource = acquire.resource WHERE s.id = l.session;
    RETURN ('rejected', 'held', l.token,
            jsonb_build_object('owner', o.worker, 'left_ms', greatest(palisade.milliseconds(o.span), 0)))::palisade.answer;
END
$$;

CREATE FUNCTION palisade.claim(id uuid, key text, "limit" integer, progress interval DEFAULT NULL)
RETURNS TABLE (resource text, token bigint, takeover boolean, plan jsonb, deployment jsonb, refused text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
DECLARE
    v_now        timestamptz := clock_timestamp();
    v_candidates text[];
    v_locked     text[];
    v_owners     uuid[];
    v_epoch      bigint := palisade.current_epoch();
BEGIN
    PERFORM palisade.begin_call();
    IF claim."limit" IS NULL OR claim."limit" NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION 'palisade: limit is %, and must be between 1 and 1000', claim."limit" USING ERRCODE = 'PS004';
    END IF;
    PERFORM palisade.check_span('progress', claim.progress);
    -- Oldest first, without a lock: only a guess, checked again below. Others' claims are going on, hence more than the limit.
    -- Row by row along the index, until there are enough; a join would read all that is due, and sort it.
    SELECT array_agg(c.resource ORDER BY c.turn) INTO v_candidates FROM (
        SELECT q.resource, greatest(q.due_at, q.claimed_at) AS turn
        FROM palisade.queue AS q
        WHERE q.due_at <= v_now
          AND (SELECT CASE -- most are nobody's: only of the others is more to be read
                   WHEN l.session IS NULL OR l.token / 4294967296 < v_epoch THEN true
                   WHEN l.session <> claim.id AND NOT EXISTS (
                       SELECT FROM palisade.session AS s WHERE s.id = l.session
                          AND s.closed_at IS NULL AND s.expires_at > v_now AND s.expires_at <= v_now + s.ttl) THEN true
                   ELSE EXISTS (SELECT FROM palisade.progress AS p WHERE p.resource = l.resource AND p.deadline <= v_now) END
               FROM palisade.lease AS l WHERE l.resource = q.resource)
        ORDER BY greatest(q.due_at, q.claimed_at) LIMIT claim."limit" * 8) AS c;
    IF v_candidates IS NULL THEN
        RETURN;
    END IF;
    SELECT array_agg(x.resource), array_agg(DISTINCT x.session) FILTER (WHERE x.session IS NOT NULL) INTO v_locked, v_owners FROM (
        SELECT l.resource, l.session
        FROM unnest(v_candidates) WITH ORDINALITY AS c(resource, place) JOIN palisade.lease AS l ON l.resource = c.resource
        ORDER BY c.place LIMIT claim."limit" FOR NO KEY UPDATE OF l SKIP LOCKED) AS x;
    IF v_locked IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY
        WITH granted AS MATERIALIZED (
            SELECT * FROM palisade.grant_locked(claim.id, claim.key,
                ARRAY(SELECT q.resource FROM palisade.queue AS q WHERE q.resource = ANY (v_locked) AND q.due_at <= clock_timestamp()),
                v_owners, claim.progress, false)
        ), turned AS (
            UPDATE palisade.queue AS q SET claimed_at = v_now FROM granted AS g WHERE q.resource = g.resource
        )
        SELECT g.resource, g.token, g.takeover, palisade.plan_json(n), palisade.deployment_json(d), g.refused
        FROM granted AS g
        LEFT JOIN palisade.plan AS n ON n.resource = g.resource
        LEFT JOIN palisade.deployment AS d ON d.resource = g.resource;
END
$$;

-- ---------------------------------------------------------------- the gate

CREATE FUNCTION palisade.refuse(p_resource text, p_token bigint, p_sequence bigint, p_kind text, p_reason text, p_current bigint)
RETURNS palisade.answer
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO palisade.refusal (resource, token, sequence, kind, reason, current_token, at)
        VALUES (left(p_resource, 512), p_token, p_sequence, p_kind, p_reason, p_current, clock_timestamp());
    RETURN ('rejected', p_reason, p_current, NULL)::palisade.answer;
END
$$;

-- The session whose key a token was granted to.
CREATE FUNCTION palisade.key_fits(p_session uuid, p_key text) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM palisade.session AS s WHERE s.id = p_session AND s.key_hash = palisade.key_hash(p_key));
END
$$;

-- Every fenced function begins here. It locks the lease's row in a statement of its own, and only then compares.
-- An answer without an outcome means: go on, nothing newer was granted, and nothing newer will be until you commit.
-- Without a sequence the write is one that may be repeated in any order (progress, a status's revision): no ledger.
CREATE FUNCTION palisade.enter(p_resource text, p_token bigint, p_sequence bigint, p_key text, p_kind text, p_args bytea)
RETURNS palisade.answer
LANGUAGE plpgsql AS $$
DECLARE
    l record;
    s record;
    o palisade.operation;
    a palisade.answer;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' OR current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM palisade.begin_call(); -- it raises, or sets it right
    END IF;
    IF p_resource IS NULL OR p_token IS NULL OR p_token < 1 OR p_key IS NULL
       OR (p_args IS NOT NULL AND (p_sequence IS NULL OR p_sequence NOT BETWEEN 1 AND 9007199254740991)) THEN
        RAISE EXCEPTION 'palisade: resource, token, sequence and key are needed, token is at least 1, sequence between 1 and 2^53 - 1 (resource %, token %, sequence %)',
            p_resource, p_token, p_sequence USING ERRCODE = 'PS004';
    END IF;
    SELECT x.token, x.sequence, x.session, x.ledger_from INTO l FROM palisade.lease AS x WHERE x.resource = p_resource FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN palisade.refuse(p_resource, p_token, p_sequence, p_kind, 'no_lease', NULL);
    END IF;
    -- Behind the gate, in a statement that begins after the wait for it: what closed a session or an epoch is seen.
    SELECT e.number AS epoch, x.key_hash, x.closed_at INTO s
        FROM (SELECT) AS one LEFT JOIN palisade.running_epoch AS e ON true LEFT JOIN palisade.session AS x ON x.id = l.session;
    IF p_token < l.token OR s.epoch IS NULL OR p_token / 4294967296 <> s.epoch THEN
        -- Too old to change anything, or nobody may just now; but what it did change, it is told. First of all: a write
        -- that was applied before a crash is not "rejected" after it.
        IF p_sequence IS NOT NULL THEN
            SELECT x.* INTO o FROM palisade.operation AS x WHERE x.resource = p_resource AND x.token = p_token AND x.sequence = p_sequence;
            a := CASE WHEN o.resource IS NOT NULL THEN palisade.may_ask(p_resource, p_token, p_key) END;
            IF o.resource IS NOT NULL AND a.outcome IS NULL THEN
                RETURN palisade.replay(o, p_kind, p_args, l.token);
            END IF;
        END IF;
        RETURN palisade.refuse(p_resource, p_token, p_sequence, p_kind,
            CASE WHEN s.epoch IS NULL THEN 'epoch_not_established' WHEN p_token > l.token THEN 'not_issued'
                 WHEN p_token < l.ledger_from OR a.outcome = 'forgotten' THEN 'forgotten' ELSE 'stale' END, l.token);
    ELSIF p_token > l.token OR l.session IS NULL THEN -- the latter: raised by a release
        RETURN palisade.refuse(p_resource, p_token, p_sequence, p_kind, 'not_issued', l.token);
    ELSIF s.key_hash IS DISTINCT FROM palisade.key_hash(p_key) THEN
        RETURN palisade.refuse(p_resource, p_token, p_sequence, p_kind, 'wrong_key', l.token);
    ELSIF p_sequence <= l.sequence THEN
        SELECT x.* INTO o FROM palisade.operation AS x WHERE x.resource = p_resource AND x.token = p_token AND x.sequence = p_sequence;
        IF o.resource IS NOT NULL THEN
            RETURN palisade.replay(o, p_kind, p_args, l.token);
        END IF;
        RETURN palisade.refuse(p_resource, p_token, p_sequence, p_kind, 'superseded', l.token);
    ELSIF s.closed_at IS NOT NULL THEN
        RETURN palisade.refuse(p_resource, p_token, p_sequence, p_kind, 'session_closed', l.token);
    END IF;
    RETURN (NULL, NULL, l.token, NULL)::palisade.answer;
END
$$;

-- The first try's answer again.
CREATE FUNCTION palisade.replay(o palisade.operation, p_kind text, p_args bytea, p_current bigint) RETURNS palisade.answer
LANGUAGE plpgsql AS $$
BEGIN
    IF o.kind <> p_kind OR o.args_hash IS DISTINCT FROM p_args THEN
        RAISE EXCEPTION 'palisade: fence %/% of % was already used by % with other arguments', o.token, o.sequence, o.resource, o.kind
            USING ERRCODE = 'PS001', HINT = 'A fence names one intended write: take the next sequence for another one.';
    END IF;
    RETURN (CASE o.outcome WHEN 'applied' THEN 'replayed' ELSE o.outcome END, o.reason, p_current, o.result)::palisade.answer;
END
$$;

-- Every fenced function ends here, after its write: ledger and sequence, by one statement.
CREATE FUNCTION palisade.leave(p_resource text, p_token bigint, p_sequence bigint, p_kind text, p_args bytea, p_reason text, p_result jsonb)
RETURNS palisade.answer
LANGUAGE plpgsql AS $$
DECLARE
    v_outcome text := CASE WHEN p_reason IS NULL THEN 'applied' ELSE 'rejected' END;
BEGIN
    IF p_reason IS NOT NULL THEN
        PERFORM palisade.refuse(p_resource, p_token, p_sequence, p_kind, p_reason, p_token);
    END IF;
    WITH noted AS (
        INSERT INTO palisade.operation (resource, token, sequence, kind, args_hash, outcome, reason, result, at)
        VALUES (p_resource, p_token, p_sequence, p_kind, p_args, v_outcome, p_reason, p_result, clock_timestamp())
    )
    UPDATE palisade.lease AS l SET sequence = p_sequence WHERE l.resource = p_resource AND l.token = p_token;
    RETURN (v_outcome, p_reason, p_token, p_result)::palisade.answer;
END
$$;

CREATE FUNCTION palisade.args_hash(VARIADIC p_args text[]) RETURNS bytea
LANGUAGE sql STABLE AS $$ SELECT sha256(convert_to(p_args::text, 'UTF8')) $$;

CREATE FUNCTION palisade.report_progress(resource text, token bigint, key text, progress interval DEFAULT NULL) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
DECLARE
    a      palisade.answer;
    v_span interval;
    v_now  timestamptz;
BEGIN
    PERFORM palisade.check_span('progress', report_progress.progress);
    a := palisade.enter(report_progress.resource, report_progress.token, NULL, report_progress.key, 'report_progress', NULL);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    END IF;
    v_span := coalesce(report_progress.progress, (SELECT n.progress_ttl FROM palisade.plan AS n WHERE n.resource = report_progress.resource));
    v_now := clock_timestamp();
    UPDATE palisade.progress AS p SET deadline = CASE WHEN v_span IS NULL THEN 'infinity' ELSE v_now + v_span END
        WHERE p.resource = report_progress.resource AND p.token = report_progress.token;
    RETURN ('applied', NULL, report_progress.token, jsonb_build_object('plan', palisade.plan_mark(report_progress.resource)))::palisade.answer;
END
$$;

CREATE FUNCTION palisade.release(resource text, token bigint, sequence bigint, key text, retry_in interval DEFAULT NULL) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
DECLARE
    v_args bytea := palisade.args_hash(extract(epoch FROM release.retry_in)::text); -- not ::text: that depends on the caller's IntervalStyle
    a      palisade.answer;
BEGIN
    a := palisade.enter(release.resource, release.token, release.sequence, release.key, 'release', v_args);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    END IF;
    IF release.retry_in IS NOT NULL THEN
        UPDATE palisade.queue AS q SET due_at = clock_timestamp() + release.retry_in, attempts = q.attempts + 1
            WHERE q.resource = release.resource;
    END IF;
    -- Not by leave: whatever raises the token sets the sequence back, too.
    INSERT INTO palisade.operation (resource, token, sequence, kind, args_hash, outcome, at)
        VALUES (release.resource, release.token, release.sequence, 'release', v_args, 'applied', clock_timestamp());
    RETURN ('applied', NULL, palisade.retire_lease(release.resource, 'release', NULL), NULL)::palisade.answer;
END
$$;

CREATE FUNCTION palisade.revoke(resource text, reason text) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
DECLARE
    l       palisade.lease;
    v_token bigint;
BEGIN
    PERFORM palisade.begin_call();
    IF length(coalesce(revoke.reason, '')) NOT BETWEEN 1 AND 512 THEN
        RAISE EXCEPTION 'palisade: reason must be 1 to 512 characters: it is what the owner is told' USING ERRCODE = 'PS004';
    END IF;
    SELECT x.* INTO l FROM palisade.lease AS x WHERE x.resource = revoke.resource FOR NO KEY UPDATE;
    IF l.resource IS NULL THEN
        RETURN ('rejected', 'no_lease', NULL, NULL)::palisade.answer;
    ELSIF l.session IS NULL THEN
        RETURN ('rejected', 'not_held', l.token, NULL)::palisade.answer;
    END IF;
    v_token := palisade.retire_lease(l.resource, 'revoke', revoke.reason);
    INSERT INTO palisade.loss (session, resource, token, reason, at)
        VALUES (l.session, l.resource, l.token, 'revoked: ' || revoke.reason, clock_timestamp()) ON CONFLICT DO NOTHING;
    RETURN ('applied', NULL, v_token, jsonb_build_object('revoked', l.token))::palisade.answer;
END
$$;

CREATE FUNCTION palisade.check_lease(resource text, token bigint, key text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
    a palisade.answer;
BEGIN
    a := palisade.enter(check_lease.resource, check_lease.token, NULL, check_lease.key, 'check_lease', NULL);
    IF a.outcome IS NOT NULL THEN
        RAISE EXCEPTION 'palisade: token % of % is refused: % (the newest is %)', check_lease.token, check_lease.resource, a.reason, a.current_token
            USING ERRCODE = 'PS003', HINT = 'The lease went to another owner: stop, and acquire it anew.';
    END IF;
END
$$;

-- ---------------------------------------------------------------- what became of a write

-- Whether nobody can pass the gate any more under a token that is still the newest: its epoch or its session is over.
-- A write that passed before may still be running; then it holds the lease's row. That is asked by locking the row, not in
-- pg_locks: a savepoint that was released is no longer there, though its writes may yet commit. Asked before the ledger is
-- read, so that a write which has ended meanwhile is found there.
CREATE FUNCTION palisade.gate_is_closed(p_resource text, p_token bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_read_only') = 'off'
       AND (EXISTS (SELECT FROM palisade.epoch AS e WHERE p_token / 4294967296 < e.number)
            OR EXISTS (SELECT FROM palisade.lease AS l JOIN palisade.session AS s ON s.id = l.session
                       WHERE l.resource = p_resource AND l.token = p_token AND s.closed_at IS NOT NULL)) THEN
        PERFORM FROM palisade.lease AS l WHERE l.resource = p_resource FOR NO KEY UPDATE SKIP LOCKED;
        RETURN FOUND;
    END IF;
    RETURN false;
END
$$;

-- Without a key, for people: the ledger's word on one fence.
CREATE FUNCTION palisade.operation_show(resource text, token bigint, sequence bigint) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
DECLARE
    v_closed boolean;
BEGIN
    PERFORM palisade.begin_call(); -- a snapshot of its caller's would call "never" what was written since
    v_closed := palisade.gate_is_closed(operation_show.resource, operation_show.token);
    -- One statement, one snapshot: lease and ledger belong together.
    RETURN (SELECT (CASE
                WHEN o.outcome IS NOT NULL THEN o.outcome
                WHEN l.token IS NULL OR operation_show.token > l.token THEN 'never'
                WHEN operation_show.token < l.ledger_from THEN 'forgotten'
                -- Without a session the token was raised by a release or a revocation: nobody holds it.
                WHEN operation_show.token < l.token OR operation_show.sequence <= l.sequence OR l.session IS NULL THEN 'never'
                WHEN v_closed OR operation_show.sequence > 9007199254740991 THEN 'never'
                ELSE 'pending'
            END,
            o.reason, l.token, o.result)::palisade.answer
    FROM (SELECT 1) AS one
    LEFT JOIN palisade.lease AS l ON l.resource = operation_show.resource
    LEFT JOIN palisade.operation AS o
        ON o.resource = operation_show.resource AND o.token = operation_show.token AND o.sequence = operation_show.sequence);
END
$$;

-- Who may ask about a token: the session that it was granted to. Upkeep removes old grants and ended sessions: with
-- them goes the proof of who it was.
CREATE FUNCTION palisade.may_ask(p_resource text, p_token bigint, p_key text) RETURNS palisade.answer
LANGUAGE plpgsql AS $$
DECLARE
    h palisade.grant_history;
    l palisade.lease;
BEGIN
    SELECT x.* INTO h FROM palisade.grant_history AS x WHERE x.resource = p_resource AND x.token = p_token;
    SELECT x.* INTO l FROM palisade.lease AS x WHERE x.resource = p_resource;
    IF palisade.key_fits(h.session, p_key) THEN
        RETURN (NULL, NULL, l.token, NULL)::palisade.answer;
    ELSIF h.session IS NOT NULL AND NOT EXISTS (SELECT FROM palisade.session AS s WHERE s.id = h.session)
          OR h.resource IS NULL AND p_token < l.ledger_from THEN
        RETURN ('forgotten', NULL, l.token, NULL)::palisade.answer;
    END IF;
    RETURN ('rejected', 'wrong_key', l.token, NULL)::palisade.answer;
END
$$;

CREATE FUNCTION palisade.operation_status(resource text, token bigint, sequence bigint, key text) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
    a palisade.answer;
BEGIN
    a := palisade.may_ask(operation_status.resource, operation_status.token, operation_status.key);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    END IF;
    RETURN palisade.operation_show(operation_status.resource, operation_status.token, operation_status.sequence);
END
$$;

-- Closes a fence: whatever was not applied under it, or below it, never will be. Waits for a write that holds the gate.
CREATE FUNCTION palisade.close_fence(p_resource text, p_token bigint, p_sequence bigint) RETURNS palisade.answer
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM palisade.begin_call();
    IF p_sequence IS NULL OR p_sequence NOT BETWEEN 1 AND 9007199254740991 THEN
        RAISE EXCEPTION 'palisade: sequence is %, and must be between 1 and 2^53 - 1', p_sequence USING ERRCODE = 'PS004';
    END IF;
    PERFORM FROM palisade.lease AS l WHERE l.resource = p_resource FOR NO KEY UPDATE;
    UPDATE palisade.lease AS l SET sequence = p_sequence
        WHERE l.resource = p_resource AND l.token = p_token AND l.session IS NOT NULL AND l.sequence < p_sequence;
    RETURN palisade.operation_show(p_resource, p_token, p_sequence);
END
$$;

CREATE FUNCTION palisade.abandon(resource text, token bigint, sequence bigint, key text) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
    a palisade.answer;
BEGIN
    a := palisade.may_ask(abandon.resource, abandon.token, abandon.key);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    END IF;
    RETURN palisade.close_fence(abandon.resource, abandon.token, abandon.sequence);
END
$$;

CREATE FUNCTION palisade.operation_abandon(resource text, token bigint, sequence bigint) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
BEGIN
    RETURN palisade.close_fence(operation_abandon.resource, operation_abandon.token, operation_abandon.sequence);
END
$$;

RESET ROLE;

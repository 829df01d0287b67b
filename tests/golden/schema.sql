CREATE SCHEMA palisade;
ALTER SCHEMA palisade OWNER TO palisade_owner;
CREATE TYPE palisade.answer AS (
	outcome text,
	reason text,
	current_token bigint,
	result jsonb
);
ALTER TYPE palisade.answer OWNER TO palisade_owner;
CREATE FUNCTION palisade.abandon(resource text, token bigint, sequence bigint, key text) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.abandon(resource text, token bigint, sequence bigint, key text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.acquire(id uuid, key text, resource text, progress interval DEFAULT NULL::interval) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.acquire(id uuid, key text, resource text, progress interval) OWNER TO palisade_owner;
CREATE FUNCTION palisade.alias_json(p_model text, p_alias text, p_version bigint, p_former bigint, p_guard text) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT jsonb_build_object('model', p_model, 'alias', p_alias, 'version', p_version, 'former', p_former, 'guard', p_guard)
$$;
ALTER FUNCTION palisade.alias_json(p_model text, p_alias text, p_version bigint, p_former bigint, p_guard text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.args_hash(VARIADIC p_args text[]) RETURNS bytea
    LANGUAGE sql STABLE
    AS $$ SELECT sha256(convert_to(p_args::text, 'UTF8')) $$;
ALTER FUNCTION palisade.args_hash(VARIADIC p_args text[]) OWNER TO palisade_owner;
CREATE FUNCTION palisade.begin_call() RETURNS void
    LANGUAGE plpgsql
    AS $$
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
ALTER FUNCTION palisade.begin_call() OWNER TO palisade_owner;
CREATE FUNCTION palisade.begin_request(p_request uuid, p_kind text, p_args bytea) RETURNS palisade.answer
    LANGUAGE plpgsql
    AS $$
DECLARE
    q palisade.request;
    a palisade.answer;
BEGIN
    PERFORM palisade.begin_call();
    IF p_request IS NULL THEN
        RAISE EXCEPTION 'palisade: request must be a fresh UUID: it makes a repeated call harmless' USING ERRCODE = 'PS004';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended(p_request::text, 0));
    SELECT * INTO q FROM palisade.request AS x WHERE x.id = p_request;
    IF q.id IS NULL THEN
        RETURN NULL;
    ELSIF q.kind <> p_kind OR q.args_hash <> p_args THEN
        RAISE EXCEPTION 'palisade: request % was already used by % with other arguments', p_request, q.kind
            USING ERRCODE = 'PS001', HINT = 'Take a fresh UUID for another request.';
    END IF;
    a := q.answer;
    IF a.outcome = 'applied' THEN
        a.outcome := 'replayed';
    END IF;
    RETURN a;
END
$$;
ALTER FUNCTION palisade.begin_request(p_request uuid, p_kind text, p_args bytea) OWNER TO palisade_owner;
CREATE FUNCTION palisade.check_lease(resource text, token bigint, key text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.check_lease(resource text, token bigint, key text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.check_name(p_field text, p_name text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    AS $_$
BEGIN
    IF p_name IS NULL OR p_name !~ '^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$' THEN
        RAISE EXCEPTION 'palisade: % is %, and must be 1 to 253 letters, digits, dots, dashes or underscores, with a letter or digit at both ends',
            p_field, quote_nullable(left(p_name, 80)) USING ERRCODE = 'PS004';
    END IF;
END
$_$;
ALTER FUNCTION palisade.check_name(p_field text, p_name text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.check_row(target regclass, resource text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $_$
DECLARE
    v_used  text := nullif(current_setting('palisade.resource', true), '');
    v_token text := nullif(current_setting('palisade.token', true), '');
    v_key   text := nullif(current_setting('palisade.key', true), '');
BEGIN
    IF check_row.resource IS NULL THEN
        RAISE EXCEPTION 'palisade: a row of % has no resource: what names it is null', check_row.target
            USING ERRCODE = 'PS005', HINT = 'Give the row what names its resource. For repairs, its owner may call palisade.unprotect and protect again.';
    ELSIF v_used IS NULL OR v_token IS NULL OR v_key IS NULL THEN
        RAISE EXCEPTION 'palisade: % is protected, and no lease is in use: the row belongs to %', check_row.target, check_row.resource
            USING ERRCODE = 'PS005', HINT = 'In the same transaction, first: SELECT palisade.use_lease(resource, token, key). '
                'Or set palisade.resource, palisade.token and palisade.key.';
    ELSIF v_used <> check_row.resource COLLATE "C" THEN -- not by what the caller calls equal
        RAISE EXCEPTION 'palisade: the row of % belongs to %, and the lease in use is that of %', check_row.target, check_row.resource, v_used
            USING ERRCODE = 'PS005', HINT = 'A statement writes rows of one resource. To move a row, delete it under the one lease and insert it under the other.';
    ELSIF v_token COLLATE "C" !~ '^[0-9]{1,16}$' THEN
        RAISE EXCEPTION 'palisade: palisade.token is %, and must be the number that the grant answered', v_token USING ERRCODE = 'PS005';
    END IF;
    PERFORM palisade.check_lease(v_used COLLATE "C", v_token::bigint, v_key);
END
$_$;
ALTER FUNCTION palisade.check_row(target regclass, resource text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.check_span(p_name text, p_span interval) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    AS $$
BEGIN
    IF p_span <= interval '0' OR p_span > interval '30 days' THEN
        RAISE EXCEPTION 'palisade: % is %, and must be above 0 and at most 30 days (null: no limit of its own)', p_name, p_span
            USING ERRCODE = 'PS004';
    END IF;
END
$$;
ALTER FUNCTION palisade.check_span(p_name text, p_span interval) OWNER TO palisade_owner;
CREATE FUNCTION palisade.check_tags(p_tags jsonb) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    AS $$
BEGIN
    IF p_tags IS NULL OR jsonb_typeof(p_tags) <> 'object' OR length(p_tags::text) > 65536
       OR EXISTS (SELECT FROM jsonb_each(p_tags) AS t WHERE jsonb_typeof(t.value) <> 'string') THEN
        RAISE EXCEPTION 'palisade: tags must be an object of strings, at most 64 KiB' USING ERRCODE = 'PS004';
    END IF;
END
$$;
ALTER FUNCTION palisade.check_tags(p_tags jsonb) OWNER TO palisade_owner;
CREATE FUNCTION palisade.claim(id uuid, key text, "limit" integer, progress interval DEFAULT NULL::interval) RETURNS TABLE(resource text, token bigint, takeover boolean, plan jsonb, deployment jsonb, refused text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.claim(id uuid, key text, "limit" integer, progress interval) OWNER TO palisade_owner;
CREATE FUNCTION palisade.clean(what text, older_than interval, batch integer DEFAULT 1000, after text DEFAULT NULL::text, OUT removed integer, OUT place text) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    SET enable_seqscan TO 'off'
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
ALTER FUNCTION palisade.clean(what text, older_than interval, batch integer, after text, OUT removed integer, OUT place text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.clean_leases(p_what text, p_before timestamp with time zone, p_batch integer, p_after text, OUT removed integer, OUT place text) RETURNS record
    LANGUAGE plpgsql
    AS $$
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
ALTER FUNCTION palisade.clean_leases(p_what text, p_before timestamp with time zone, p_batch integer, p_after text, OUT removed integer, OUT place text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.clean_sessions(p_before timestamp with time zone, p_batch integer, p_after uuid, OUT removed integer, OUT place text) RETURNS record
    LANGUAGE plpgsql
    AS $$
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
ALTER FUNCTION palisade.clean_sessions(p_before timestamp with time zone, p_batch integer, p_after uuid, OUT removed integer, OUT place text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.close_fence(p_resource text, p_token bigint, p_sequence bigint) RETURNS palisade.answer
    LANGUAGE plpgsql
    AS $$
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
ALTER FUNCTION palisade.close_fence(p_resource text, p_token bigint, p_sequence bigint) OWNER TO palisade_owner;
CREATE FUNCTION palisade.close_session(id uuid, key text) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.close_session(id uuid, key text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.current_epoch() RETURNS bigint
    LANGUAGE plpgsql
    AS $$ -- not SQL: such a function is planned anew in each statement, which costs more than it does
BEGIN
    RETURN (SELECT e.number FROM palisade.running_epoch AS e);
END
$$;
ALTER FUNCTION palisade.current_epoch() OWNER TO palisade_owner;
CREATE TABLE palisade.deployment (
    resource text NOT NULL COLLATE pg_catalog."C",
    uid uuid NOT NULL,
    rollout bigint NOT NULL,
    step text NOT NULL,
    step_started_at timestamp with time zone NOT NULL,
    state jsonb NOT NULL,
    serving_model text COLLATE pg_catalog."C",
    serving_version bigint,
    serving_revision text,
    serving_since timestamp with time zone,
    failure_reason text,
    failure_message text,
    token bigint NOT NULL,
    updated_at timestamp with time zone NOT NULL
)
WITH (fillfactor='70');
ALTER TABLE palisade.deployment OWNER TO palisade_owner;
CREATE FUNCTION palisade.deployment_json(d palisade.deployment) RETURNS jsonb
    LANGUAGE sql
    AS $$
    SELECT CASE WHEN d.resource IS NOT NULL THEN jsonb_build_object('uid', d.uid, 'rollout', d.rollout, 'step', d.step, 'state', d.state,
        'step_age_ms', palisade.milliseconds(clock_timestamp() - d.step_started_at),
        'step_started_at', d.step_started_at,
        'serving_model', d.serving_model, 'serving_version', d.serving_version, 'serving_revision', d.serving_revision,
        'serving_since', d.serving_since,
        'serving_age_ms', palisade.milliseconds(clock_timestamp() - d.serving_since),
        'failure_reason', d.failure_reason, 'failure_message', d.failure_message, 'token', d.token) END
$$;
ALTER FUNCTION palisade.deployment_json(d palisade.deployment) OWNER TO palisade_owner;
CREATE FUNCTION palisade.drop_plan(resource text, token bigint, sequence bigint, key text, deployment text, uid uuid) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
#variable_conflict use_column
DECLARE
    v_args   bytea := palisade.args_hash(drop_plan.deployment, drop_plan.uid::text);
    v_reason text;
    a        palisade.answer;
BEGIN
    a := palisade.enter(drop_plan.resource, drop_plan.token, drop_plan.sequence, drop_plan.key, 'drop_plan', v_args);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    ELSIF drop_plan.resource NOT LIKE 'controller/%' THEN
        RETURN palisade.leave(drop_plan.resource, drop_plan.token, drop_plan.sequence, 'drop_plan', v_args, 'not_a_controller', NULL);
    END IF;
    DELETE FROM palisade.plan AS n
        WHERE n.resource = drop_plan.deployment AND n.uid = drop_plan.uid AND n.removed AND drop_plan.token >= n.token
          AND EXISTS (SELECT FROM palisade.deployment AS d WHERE d.resource = n.resource AND d.rollout = n.rollout AND d.step = 'removed');
    IF FOUND THEN
        DELETE FROM palisade.deployment AS d WHERE d.resource = drop_plan.deployment;
        DELETE FROM palisade.queue AS q WHERE q.resource = drop_plan.deployment;
    ELSIF EXISTS (SELECT FROM palisade.plan AS n WHERE n.resource = drop_plan.deployment AND n.uid = drop_plan.uid) THEN
        v_reason := 'not_removed';
    END IF;
    RETURN palisade.leave(drop_plan.resource, drop_plan.token, drop_plan.sequence, 'drop_plan', v_args, v_reason, NULL);
END
$$;
ALTER FUNCTION palisade.drop_plan(resource text, token bigint, sequence bigint, key text, deployment text, uid uuid) OWNER TO palisade_owner;
CREATE FUNCTION palisade.end_blockers(older_than interval) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.end_blockers(older_than interval) OWNER TO palisade_owner;
CREATE FUNCTION palisade.end_request(p_request uuid, p_kind text, p_args bytea, p_reason text, p_result jsonb) RETURNS palisade.answer
    LANGUAGE plpgsql
    AS $$
DECLARE
    a palisade.answer := (CASE WHEN p_reason IS NULL THEN 'applied' ELSE 'rejected' END, p_reason, NULL, p_result)::palisade.answer;
BEGIN
    INSERT INTO palisade.request (id, kind, args_hash, answer, at) VALUES (p_request, p_kind, p_args, a, clock_timestamp());
    RETURN a;
END
$$;
ALTER FUNCTION palisade.end_request(p_request uuid, p_kind text, p_args bytea, p_reason text, p_result jsonb) OWNER TO palisade_owner;
CREATE FUNCTION palisade.enter(p_resource text, p_token bigint, p_sequence bigint, p_key text, p_kind text, p_args bytea) RETURNS palisade.answer
    LANGUAGE plpgsql
    AS $$
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
ALTER FUNCTION palisade.enter(p_resource text, p_token bigint, p_sequence bigint, p_key text, p_kind text, p_args bytea) OWNER TO palisade_owner;
CREATE FUNCTION palisade.epoch_status(OUT number bigint, OUT established boolean, OUT incarnation text, OUT established_for text, OUT timeline integer, OUT established_timeline integer, OUT highest_token bigint) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.epoch_status(OUT number bigint, OUT established boolean, OUT incarnation text, OUT established_for text, OUT timeline integer, OUT established_timeline integer, OUT highest_token bigint) OWNER TO palisade_owner;
CREATE FUNCTION palisade.establish_epoch(number bigint, incarnation text) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.establish_epoch(number bigint, incarnation text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.events(after_xid xid8, after_id bigint, "limit" integer) RETURNS TABLE(xid xid8, id bigint, resource text, kind text, token bigint, sequence bigint, data jsonb, at timestamp with time zone)
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
    SELECT e.xid, e.id, e.resource, e.kind, e.token, e.sequence, e.data, e.at FROM palisade.event AS e
    WHERE e.xid < pg_snapshot_xmin(pg_current_snapshot()) AND (e.xid, e.id) > (events.after_xid, events.after_id)
    ORDER BY e.xid, e.id LIMIT events."limit"
$$;
ALTER FUNCTION palisade.events(after_xid xid8, after_id bigint, "limit" integer) OWNER TO palisade_owner;
CREATE FUNCTION palisade.figures(OUT queue_depth bigint, OUT queue_age_ms bigint, OUT leases_held bigint, OUT sessions_open bigint, OUT oldest_transaction_ms bigint, OUT oldest_xmin_age bigint) RETURNS record
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
    SELECT (SELECT count(*) FROM palisade.queue AS q WHERE q.due_at <= clock_timestamp()),
           (SELECT coalesce(palisade.milliseconds(clock_timestamp() - min(q.due_at)), 0) FROM palisade.queue AS q WHERE q.due_at <= clock_timestamp()),
           (SELECT count(*) FROM palisade.lease AS l WHERE l.session IS NOT NULL),
           (SELECT count(*) FROM palisade.session AS s WHERE s.closed_at IS NULL AND s.expires_at > clock_timestamp()),
           (SELECT coalesce(palisade.milliseconds(clock_timestamp() - min(a.xact_start)), 0)
                FROM pg_catalog.pg_stat_activity AS a WHERE a.datname = current_database() AND a.backend_type = 'client backend'),
           (SELECT coalesce(max(age(a.backend_xmin)), 0) FROM pg_catalog.pg_stat_activity AS a)
$$;
ALTER FUNCTION palisade.figures(OUT queue_depth bigint, OUT queue_age_ms bigint, OUT leases_held bigint, OUT sessions_open bigint, OUT oldest_transaction_ms bigint, OUT oldest_xmin_age bigint) OWNER TO palisade_owner;
CREATE FUNCTION palisade.gate_is_closed(p_resource text, p_token bigint) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
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
ALTER FUNCTION palisade.gate_is_closed(p_resource text, p_token bigint) OWNER TO palisade_owner;
CREATE FUNCTION palisade.grant_locked(p_session uuid, p_key text, p_resources text[], p_owners uuid[], p_progress interval, p_own boolean) RETURNS TABLE(resource text, token bigint, takeover boolean, refused text)
    LANGUAGE plpgsql ROWS 10
    AS $$
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
ALTER FUNCTION palisade.grant_locked(p_session uuid, p_key text, p_resources text[], p_owners uuid[], p_progress interval, p_own boolean) OWNER TO palisade_owner;
CREATE FUNCTION palisade.guard() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET standard_conforming_strings TO 'on'
    AS $_$
DECLARE
    v_rows text;
    v_row  record;
    v_used text := nullif(current_setting('palisade.resource', true), '');
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        RAISE EXCEPTION 'palisade: % is protected, and TRUNCATE would remove every resource''s rows', TG_RELID::regclass
            USING ERRCODE = 'PS005', HINT = 'DELETE the rows of one resource under its lease, or have the table''s owner call palisade.unprotect first.';
    ELSIF NOT (CASE WHEN has_schema_privilege('palisade', 'USAGE') -- without it the function's name cannot even be read
               THEN has_function_privilege('palisade.check_row(regclass, text)', 'EXECUTE') ELSE false END) THEN
        RAISE EXCEPTION 'palisade: % is protected, and the role % may not use leases', TG_RELID::regclass, current_user
            USING ERRCODE = 'insufficient_privilege', HINT = format('GRANT palisade_worker TO %I', current_user);
    ELSIF TG_WHEN = 'BEFORE' THEN
        IF v_used IS NOT NULL THEN
            PERFORM palisade.check_row(TG_RELID, v_used);
        END IF;
        RETURN NULL;
    ELSIF TG_LEVEL = 'ROW' AND EXISTS ( -- with the same expression
        SELECT FROM pg_catalog.pg_trigger AS g
        WHERE g.tgrelid = TG_RELID AND g.tgname = 'palisade_' || lower(TG_OP) AND g.tgenabled = 'A'
          AND g.tgfoid = 'palisade.guard()'::regprocedure AND g.tgargs = convert_to(TG_ARGV[0], getdatabaseencoding()) || '\x00'::bytea) THEN
        RETURN NULL;
    END IF;
    v_rows := CASE
        WHEN TG_LEVEL = 'STATEMENT' THEN CASE TG_OP
            WHEN 'INSERT' THEN 'palisade_new'
            WHEN 'DELETE' THEN 'palisade_old'
            ELSE '(SELECT * FROM palisade_old UNION ALL SELECT * FROM palisade_new)' END
        ELSE CASE TG_OP
            WHEN 'INSERT' THEN '(SELECT ($2).*)'
            WHEN 'DELETE' THEN '(SELECT ($1).*)'
            ELSE '(SELECT ($1).* UNION ALL SELECT ($2).*)' END
    END;
    -- COLLATE: under the table's own collation two names that differ may count as one.
    FOR v_row IN EXECUTE format('SELECT DISTINCT (%s)::text COLLATE "C" AS resource FROM %s AS r ORDER BY 1', TG_ARGV[0], v_rows)
        USING OLD, NEW
    LOOP
        PERFORM palisade.check_row(TG_RELID, v_row.resource);
    END LOOP;
    RETURN NULL;
END
$_$;
ALTER FUNCTION palisade.guard() OWNER TO palisade_owner;
CREATE FUNCTION palisade.heartbeat(id uuid, key text) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.heartbeat(id uuid, key text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.held(id uuid, key text) RETURNS TABLE(resource text, token bigint, sequence bigint, progress_left_ms bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.held(id uuid, key text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.incarnation(OUT system_id bigint, OUT timeline integer, OUT postmaster_start timestamp with time zone, OUT checkpointer_start timestamp with time zone, OUT database oid, OUT name text) RETURNS record
    LANGUAGE plpgsql
    AS $$
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
ALTER FUNCTION palisade.incarnation(OUT system_id bigint, OUT timeline integer, OUT postmaster_start timestamp with time zone, OUT checkpointer_start timestamp with time zone, OUT database oid, OUT name text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.incarnation_name(system_id bigint, timeline integer, postmaster_start timestamp with time zone, checkpointer_start timestamp with time zone, database oid) RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT concat_ws('/', system_id, timeline, (extract(epoch FROM postmaster_start) * 1000000)::bigint,
        (extract(epoch FROM checkpointer_start) * 1000000)::bigint, database)
$$;
ALTER FUNCTION palisade.incarnation_name(system_id bigint, timeline integer, postmaster_start timestamp with time zone, checkpointer_start timestamp with time zone, database oid) OWNER TO palisade_owner;
CREATE FUNCTION palisade.key_fits(p_session uuid, p_key text) RETURNS boolean
    LANGUAGE plpgsql STABLE
    AS $$
BEGIN
    RETURN EXISTS (SELECT FROM palisade.session AS s WHERE s.id = p_session AND s.key_hash = palisade.key_hash(p_key));
END
$$;
ALTER FUNCTION palisade.key_fits(p_session uuid, p_key text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.key_hash(key text) RETURNS bytea
    LANGUAGE sql STABLE
    AS $$ SELECT sha256(convert_to(key, 'UTF8')) $$;
ALTER FUNCTION palisade.key_hash(key text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.leave(p_resource text, p_token bigint, p_sequence bigint, p_kind text, p_args bytea, p_reason text, p_result jsonb) RETURNS palisade.answer
    LANGUAGE plpgsql
    AS $$
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
ALTER FUNCTION palisade.leave(p_resource text, p_token bigint, p_sequence bigint, p_kind text, p_args bytea, p_reason text, p_result jsonb) OWNER TO palisade_owner;
CREATE FUNCTION palisade.may_ask(p_resource text, p_token bigint, p_key text) RETURNS palisade.answer
    LANGUAGE plpgsql
    AS $$
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
ALTER FUNCTION palisade.may_ask(p_resource text, p_token bigint, p_key text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.milliseconds(span interval) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    AS $$ SELECT (extract(epoch FROM span) * 1000)::bigint $$;
ALTER FUNCTION palisade.milliseconds(span interval) OWNER TO palisade_owner;
CREATE FUNCTION palisade.move_guard(resource text, token bigint, sequence bigint, key text, to_resource text, to_token bigint, to_sequence bigint, to_key text, model text, alias text) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
DECLARE
    -- Both fences name this one write: either of them with another partner is another write.
    v_args   bytea := palisade.args_hash(move_guard.resource, move_guard.token::text, move_guard.sequence::text,
                          move_guard.to_resource, move_guard.to_token::text, move_guard.to_sequence::text, move_guard.model, move_guard.alias);
    v_result jsonb := jsonb_build_object('model', move_guard.model, 'alias', move_guard.alias, 'guard', move_guard.to_resource);
    v_reason text;
    a        palisade.answer;
    b        palisade.answer;
BEGIN
    IF move_guard.resource = move_guard.to_resource THEN
        RAISE EXCEPTION 'palisade: to_resource is the resource itself' USING ERRCODE = 'PS004';
    END IF;
    PERFORM FROM palisade.lease AS l WHERE l.resource IN (move_guard.resource, move_guard.to_resource) ORDER BY l.resource FOR NO KEY UPDATE;
    a := palisade.enter(move_guard.resource, move_guard.token, move_guard.sequence, move_guard.key, 'move_guard', v_args);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    END IF;
    b := palisade.enter(move_guard.to_resource, move_guard.to_token, move_guard.to_sequence, move_guard.to_key, 'move_guard', v_args);
    IF b.outcome IS NOT NULL THEN
        b.result := jsonb_build_object('resource', move_guard.to_resource); -- whose fence it was: the caller's own lease may be fine
        RETURN b;
    END IF;
    UPDATE palisade.alias AS x SET guard = move_guard.to_resource, token = move_guard.to_token, updated_at = clock_timestamp()
        WHERE x.model = move_guard.model AND x.alias = move_guard.alias AND x.guard = move_guard.resource AND move_guard.token >= x.token;
    IF FOUND THEN
        INSERT INTO palisade.event (resource, kind, token, sequence, data, at)
            VALUES (move_guard.to_resource, 'guard', move_guard.to_token, move_guard.to_sequence, v_result, clock_timestamp());
    ELSE
        v_reason := 'guarded';
    END IF;
    PERFORM palisade.leave(move_guard.to_resource, move_guard.to_token, move_guard.to_sequence, 'move_guard', v_args, v_reason, v_result);
    RETURN palisade.leave(move_guard.resource, move_guard.token, move_guard.sequence, 'move_guard', v_args, v_reason, v_result);
END
$$;
ALTER FUNCTION palisade.move_guard(resource text, token bigint, sequence bigint, key text, to_resource text, to_token bigint, to_sequence bigint, to_key text, model text, alias text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.next_revision(resource text, token bigint, key text, deployment text, above bigint) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
#variable_conflict use_column
DECLARE
    v_revision bigint;
    a          palisade.answer;
BEGIN
    a := palisade.enter(next_revision.resource, next_revision.token, NULL, next_revision.key, 'next_revision', NULL);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    ELSIF next_revision.resource NOT LIKE 'controller/%' THEN
        RETURN palisade.refuse(next_revision.resource, next_revision.token, NULL, 'next_revision', 'not_a_controller', next_revision.token);
    END IF;
    UPDATE palisade.plan AS n
        SET status_revision = greatest(n.status_revision + 1, coalesce(next_revision.above, 0) + 1, next_revision.token / 4294967296 * 4294967296 + 1)
        WHERE n.resource = next_revision.deployment AND next_revision.token >= n.token
        RETURNING n.status_revision INTO v_revision;
    IF NOT FOUND THEN -- not planned yet (its spec is invalid): what the status itself says is all there is
        v_revision := greatest(coalesce(next_revision.above, 0) + 1, next_revision.token / 4294967296 * 4294967296 + 1);
    END IF;
    RETURN ('applied', NULL, next_revision.token, jsonb_build_object('revision', v_revision))::palisade.answer;
END
$$;
ALTER FUNCTION palisade.next_revision(resource text, token bigint, key text, deployment text, above bigint) OWNER TO palisade_owner;
CREATE FUNCTION palisade.next_token(token bigint, epoch bigint) RETURNS bigint
    LANGUAGE plpgsql IMMUTABLE
    AS $$
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
ALTER FUNCTION palisade.next_token(token bigint, epoch bigint) OWNER TO palisade_owner;
CREATE FUNCTION palisade.observe(deployment text, model text, version bigint, alias text, promote text) RETURNS jsonb
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
    SELECT jsonb_build_object(
        'plan', palisade.plan_json(n),
        'deployment', palisade.deployment_json(d),
        'token', coalesce(l.token, 0),
        'owner', CASE WHEN s.closed_at IS NULL THEN s.worker END,
        'model_exists', m.name IS NOT NULL,
        'alias_version', a.version,
        'version', CASE WHEN v.version IS NOT NULL THEN jsonb_build_object('version', v.version, 'source', v.source, 'digest', v.digest) END,
        'promote_guard', g.guard,
        'promote_version', g.version)
    FROM (SELECT 1) AS one
    LEFT JOIN palisade.plan AS n ON n.resource = observe.deployment
    LEFT JOIN palisade.deployment AS d ON d.resource = observe.deployment
    LEFT JOIN palisade.lease AS l ON l.resource = observe.deployment
    LEFT JOIN palisade.session AS s ON s.id = l.session
    LEFT JOIN palisade.registered_model AS m ON m.name = observe.model
    LEFT JOIN palisade.alias AS a ON a.model = observe.model AND a.alias = observe.alias
    LEFT JOIN palisade.model_version AS v ON v.model = observe.model AND v.version = coalesce(observe.version, a.version)
    LEFT JOIN palisade.alias AS g ON g.model = observe.model AND g.alias = observe.promote
$$;
ALTER FUNCTION palisade.observe(deployment text, model text, version bigint, alias text, promote text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.open_session(id uuid, key text, worker text, ttl interval) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.open_session(id uuid, key text, worker text, ttl interval) OWNER TO palisade_owner;
CREATE FUNCTION palisade.operation_abandon(resource text, token bigint, sequence bigint) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
BEGIN
    RETURN palisade.close_fence(operation_abandon.resource, operation_abandon.token, operation_abandon.sequence);
END
$$;
ALTER FUNCTION palisade.operation_abandon(resource text, token bigint, sequence bigint) OWNER TO palisade_owner;
CREATE FUNCTION palisade.operation_show(resource text, token bigint, sequence bigint) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.operation_show(resource text, token bigint, sequence bigint) OWNER TO palisade_owner;
CREATE FUNCTION palisade.operation_status(resource text, token bigint, sequence bigint, key text) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.operation_status(resource text, token bigint, sequence bigint, key text) OWNER TO palisade_owner;
CREATE TABLE palisade.plan (
    resource text NOT NULL COLLATE pg_catalog."C",
    uid uuid NOT NULL,
    generation bigint NOT NULL,
    rollout bigint NOT NULL,
    spec jsonb NOT NULL,
    paused boolean NOT NULL,
    removed boolean NOT NULL,
    progress_ttl interval NOT NULL,
    status_revision bigint DEFAULT 0 NOT NULL,
    token bigint NOT NULL,
    updated_at timestamp with time zone NOT NULL
)
WITH (fillfactor='70');
ALTER TABLE palisade.plan OWNER TO palisade_owner;
CREATE FUNCTION palisade.plan_json(n palisade.plan) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT CASE WHEN n.resource IS NOT NULL THEN jsonb_build_object('uid', n.uid, 'generation', n.generation, 'rollout', n.rollout,
        'paused', n.paused, 'removed', n.removed, 'spec', n.spec, 'status_revision', n.status_revision,
        'progress_ms', palisade.milliseconds(n.progress_ttl)) END
$$;
ALTER FUNCTION palisade.plan_json(n palisade.plan) OWNER TO palisade_owner;
CREATE FUNCTION palisade.plan_mark(p_resource text) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    AS $$
BEGIN
    RETURN (SELECT jsonb_build_object('uid', n.uid, 'generation', n.generation, 'rollout', n.rollout, 'paused', n.paused, 'removed', n.removed)
    FROM palisade.plan AS n WHERE n.resource = p_resource);
END
$$;
ALTER FUNCTION palisade.plan_mark(p_resource text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.plan_show(resource text) RETURNS jsonb
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
    SELECT palisade.plan_json(n) FROM palisade.plan AS n WHERE n.resource = plan_show.resource
$$;
ALTER FUNCTION palisade.plan_show(resource text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.protect(target regclass, resource text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET standard_conforming_strings TO 'on'
    SET lock_timeout TO '5s'
    AS $$
DECLARE
    v_kind       "char" := (SELECT c.relkind FROM pg_catalog.pg_class AS c WHERE c.oid = protect.target);
    v_expression text := protect.resource;
    v_part       regclass;
    v_trigger    text;
BEGIN
    PERFORM palisade.unprotect(protect.target); -- in the same transaction, and all writers wait for its end
    IF v_kind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE protect.target IN (i.inhrelid, i.inhparent)) THEN
        RAISE EXCEPTION 'palisade: % inherits, or is inherited from: a write by way of its relative would go unseen', protect.target
            USING ERRCODE = 'PS004', HINT = 'Use a partitioned table, or end it by ALTER TABLE … NO INHERIT.';
    END IF;
    IF length(coalesce(protect.resource, '')) NOT BETWEEN 1 AND 4096 THEN
        RAISE EXCEPTION 'palisade: resource must be a column of %, or an expression of up to 4096 characters', protect.target USING ERRCODE = 'PS004';
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
               WHERE a.attrelid = protect.target AND a.attname = protect.resource AND a.attnum > 0 AND NOT a.attisdropped) THEN
        v_expression := format('%I', protect.resource);
    END IF;
    BEGIN -- Postgres itself decides whether it depends on the row alone: it must be fit for an index
        -- GENERATED: a virtual column, which a trigger sees as null, is not fit for an index either
        EXECUTE format('CREATE TEMPORARY TABLE palisade_probe (LIKE %s INCLUDING GENERATED)', protect.target);
        EXECUTE format('CREATE INDEX ON pg_temp.palisade_probe (((%s)::text))', v_expression);
        RAISE EXCEPTION USING ERRCODE = 'ZZ000'; -- leaves nothing of it
    EXCEPTION
        WHEN SQLSTATE 'ZZ000' THEN
            NULL;
        WHEN OTHERS THEN
            RAISE EXCEPTION 'palisade: resource is %, and must be a column of %, or an expression over its columns: %',
                protect.resource, protect.target, SQLERRM
                USING ERRCODE = 'PS004', HINT = 'As for an index: immutable, no subquery, functions of your own with their schema. '
                    'Join text by || (concat and format are not immutable). For a date or an enum, add a column of type text.';
    END;
    -- A write to a partition is none to its parent: each has triggers of its own.
    FOR v_part IN SELECT protect.target UNION SELECT p.relid FROM pg_partition_tree(protect.target) AS p LOOP
        FOREACH v_trigger IN ARRAY ARRAY[
            'palisade_before BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH STATEMENT',
            'palisade_insert AFTER INSERT ON %s REFERENCING NEW TABLE AS palisade_new FOR EACH STATEMENT',
            'palisade_update AFTER UPDATE ON %s REFERENCING OLD TABLE AS palisade_old NEW TABLE AS palisade_new FOR EACH STATEMENT',
            'palisade_delete AFTER DELETE ON %s REFERENCING OLD TABLE AS palisade_old FOR EACH STATEMENT',
            'palisade_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT',
            'palisade_rows AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW'
        ] LOOP
            CONTINUE WHEN v_trigger LIKE 'palisade_rows %' AND (v_kind = 'r' OR v_part <> protect.target);
            EXECUTE format('CREATE TRIGGER ' || v_trigger || ' EXECUTE FUNCTION palisade.guard(%L)', v_part, v_expression);
            -- ALWAYS: also while session_replication_role is replica.
            EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', v_part, split_part(v_trigger, ' ', 1));
        END LOOP;
    END LOOP;
END
$$;
ALTER FUNCTION palisade.protect(target regclass, resource text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.put_alias(model text, alias text, version bigint, request uuid) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
#variable_conflict use_column
DECLARE
    v_args   bytea := palisade.args_hash(put_alias.model, put_alias.alias, put_alias.version::text);
    v_reason text;
    a        palisade.answer;
BEGIN
    a := palisade.begin_request(put_alias.request, 'put_alias', v_args);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    END IF;
    v_reason := palisade.write_alias(put_alias.model, put_alias.alias, put_alias.version, NULL, NULL, NULL);
    RETURN palisade.end_request(put_alias.request, 'put_alias', v_args, v_reason,
        jsonb_build_object('model', put_alias.model, 'alias', put_alias.alias, 'version', put_alias.version));
END
$$;
ALTER FUNCTION palisade.put_alias(model text, alias text, version bigint, request uuid) OWNER TO palisade_owner;
CREATE FUNCTION palisade.put_plan(resource text, token bigint, sequence bigint, key text, deployment text, uid uuid, generation bigint, spec jsonb, paused boolean, removed boolean, progress interval, wake boolean) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $_$
#variable_conflict use_column
DECLARE
    v_args bytea := palisade.args_hash(put_plan.deployment, put_plan.uid::text, put_plan.generation::text, put_plan.spec::text,
                        put_plan.paused::text, put_plan.removed::text, extract(epoch FROM put_plan.progress)::text, put_plan.wake::text);
    v_now  timestamptz := clock_timestamp();
    n      palisade.plan;
    a      palisade.answer;
    v_same boolean;
BEGIN
    PERFORM palisade.check_span('progress', put_plan.progress);
    IF put_plan.deployment IS NULL OR put_plan.deployment !~ '^deployment/[a-z0-9.-]{1,253}/[a-z0-9.-]{1,253}$' THEN
        RAISE EXCEPTION 'palisade: deployment is %, and must be deployment/NAMESPACE/NAME', quote_nullable(left(put_plan.deployment, 80)) USING ERRCODE = 'PS004';
    ELSIF put_plan.uid IS NULL OR put_plan.generation IS NULL OR put_plan.spec IS NULL OR put_plan.paused IS NULL OR put_plan.removed IS NULL
          OR put_plan.progress IS NULL OR length(put_plan.spec::text) > 1048576 THEN
        RAISE EXCEPTION 'palisade: uid, generation, spec (at most 1 MiB), paused, removed and progress are needed' USING ERRCODE = 'PS004';
    END IF;
    a := palisade.enter(put_plan.resource, put_plan.token, put_plan.sequence, put_plan.key, 'put_plan', v_args);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    ELSIF put_plan.resource NOT LIKE 'controller/%' THEN
        RETURN palisade.leave(put_plan.resource, put_plan.token, put_plan.sequence, 'put_plan', v_args, 'not_a_controller', NULL);
    END IF;
    INSERT INTO palisade.lease (resource, token) VALUES (put_plan.deployment, 0) ON CONFLICT (resource) DO NOTHING;
    SELECT x.* INTO n FROM palisade.plan AS x WHERE x.resource = put_plan.deployment FOR NO KEY UPDATE;
    IF n.uid = put_plan.uid AND put_plan.generation < n.generation THEN
        RETURN palisade.leave(put_plan.resource, put_plan.token, put_plan.sequence, 'put_plan', v_args, 'older_generation',
            jsonb_build_object('generation', n.generation));
    END IF;
    v_same := coalesce((n.uid, n.spec, n.paused, n.removed, n.progress_ttl) = (put_plan.uid, put_plan.spec, put_plan.paused, put_plan.removed, put_plan.progress), false);
    INSERT INTO palisade.plan AS x (resource, uid, generation, rollout, spec, paused, removed, progress_ttl, token, updated_at)
        VALUES (put_plan.deployment, put_plan.uid, put_plan.generation, 1, put_plan.spec, put_plan.paused, put_plan.removed, put_plan.progress, put_plan.token, v_now)
    ON CONFLICT (resource) DO UPDATE SET uid = excluded.uid, generation = excluded.generation,
        rollout = x.rollout + CASE WHEN v_same THEN 0 ELSE 1 END, spec = excluded.spec, paused = excluded.paused,
        removed = excluded.removed, progress_ttl = excluded.progress_ttl, token = excluded.token, updated_at = v_now
        WHERE put_plan.token >= x.token
    RETURNING x.* INTO n;
    IF NOT FOUND THEN
        RETURN palisade.leave(put_plan.resource, put_plan.token, put_plan.sequence, 'put_plan', v_args, 'newer_row', NULL);
    END IF;
    IF put_plan.paused AND NOT put_plan.removed THEN
        DELETE FROM palisade.queue AS q WHERE q.resource = put_plan.deployment;
    ELSIF NOT v_same OR coalesce(put_plan.wake, false) THEN
        INSERT INTO palisade.queue AS q (resource, due_at) VALUES (put_plan.deployment, v_now)
            ON CONFLICT (resource) DO UPDATE SET due_at = least(q.due_at, v_now), attempts = 0;
    END IF;
    IF NOT v_same THEN
        INSERT INTO palisade.event (resource, kind, token, sequence, data, at)
            VALUES (put_plan.deployment, 'planned', put_plan.token, put_plan.sequence, palisade.plan_mark(put_plan.deployment), v_now);
    END IF;
    RETURN palisade.leave(put_plan.resource, put_plan.token, put_plan.sequence, 'put_plan', v_args, NULL, palisade.plan_mark(put_plan.deployment));
END
$_$;
ALTER FUNCTION palisade.put_plan(resource text, token bigint, sequence bigint, key text, deployment text, uid uuid, generation bigint, spec jsonb, paused boolean, removed boolean, progress interval, wake boolean) OWNER TO palisade_owner;
CREATE FUNCTION palisade.record_done(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, state jsonb) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
DECLARE
    v_args   bytea := palisade.args_hash(record_done.uid::text, record_done.rollout::text, record_done.state::text);
    v_reason text;
    a        palisade.answer;
BEGIN
    a := palisade.enter(record_done.resource, record_done.token, record_done.sequence, record_done.key, 'record_done', v_args);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    END IF;
    -- Locked: a plan that is being put now is either seen here, or puts its queue row behind this one's removal.
    PERFORM FROM palisade.plan AS n WHERE n.resource = record_done.resource FOR NO KEY UPDATE;
    v_reason := palisade.write_step(record_done.resource, record_done.token, record_done.uid, record_done.rollout, 'done', record_done.state);
    IF v_reason IS NULL THEN
        UPDATE palisade.deployment AS d SET failure_reason = NULL, failure_message = NULL
            WHERE d.resource = record_done.resource AND record_done.token >= d.token;
        DELETE FROM palisade.queue AS q USING palisade.plan AS n
            WHERE q.resource = record_done.resource AND n.resource = q.resource AND (n.uid, n.rollout) = (record_done.uid, record_done.rollout);
        PERFORM palisade.write_event(record_done.resource, 'done', record_done.token, record_done.sequence, jsonb_build_object('rollout', record_done.rollout));
    END IF;
    RETURN palisade.leave(record_done.resource, record_done.token, record_done.sequence, 'record_done', v_args, v_reason,
        jsonb_build_object('plan', palisade.plan_mark(record_done.resource)));
END
$$;
ALTER FUNCTION palisade.record_done(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, state jsonb) OWNER TO palisade_owner;
CREATE FUNCTION palisade.record_failure(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, step text, state jsonb, reason text, message text, retry_in interval) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
DECLARE
    v_args   bytea := palisade.args_hash(record_failure.uid::text, record_failure.rollout::text, record_failure.step, record_failure.state::text,
                          record_failure.reason, record_failure.message, extract(epoch FROM record_failure.retry_in)::text);
    v_reason text;
    a        palisade.answer;
BEGIN
    PERFORM palisade.check_span('retry_in', record_failure.retry_in);
    IF length(coalesce(record_failure.reason, '')) NOT BETWEEN 1 AND 253 OR length(coalesce(record_failure.message, '')) NOT BETWEEN 1 AND 4096 THEN
        RAISE EXCEPTION 'palisade: reason (1 to 253 characters) and message (1 to 4096) are needed' USING ERRCODE = 'PS004';
    END IF;
    a := palisade.enter(record_failure.resource, record_failure.token, record_failure.sequence, record_failure.key, 'record_failure', v_args);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    END IF;
    PERFORM FROM palisade.plan AS n WHERE n.resource = record_failure.resource FOR NO KEY UPDATE;
    v_reason := palisade.write_step(record_failure.resource, record_failure.token, record_failure.uid, record_failure.rollout, record_failure.step, record_failure.state);
    IF v_reason IS NULL THEN
        UPDATE palisade.deployment AS d SET failure_reason = record_failure.reason, failure_message = record_failure.message
            WHERE d.resource = record_failure.resource AND record_failure.token >= d.token;
        UPDATE palisade.queue AS q SET due_at = clock_timestamp() + record_failure.retry_in, attempts = q.attempts + 1
            FROM palisade.plan AS n WHERE record_failure.retry_in IS NOT NULL AND q.resource = record_failure.resource
             AND n.resource = q.resource AND (n.uid, n.rollout) = (record_failure.uid, record_failure.rollout);
        DELETE FROM palisade.queue AS q USING palisade.plan AS n
            WHERE record_failure.retry_in IS NULL AND q.resource = record_failure.resource
              AND n.resource = q.resource AND (n.uid, n.rollout) = (record_failure.uid, record_failure.rollout);
        PERFORM palisade.write_event(record_failure.resource, 'failed', record_failure.token, record_failure.sequence,
            jsonb_build_object('rollout', record_failure.rollout, 'step', record_failure.step, 'reason', record_failure.reason, 'message', record_failure.message));
    END IF;
    RETURN palisade.leave(record_failure.resource, record_failure.token, record_failure.sequence, 'record_failure', v_args, v_reason,
        jsonb_build_object('plan', palisade.plan_mark(record_failure.resource)));
END
$$;
ALTER FUNCTION palisade.record_failure(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, step text, state jsonb, reason text, message text, retry_in interval) OWNER TO palisade_owner;
CREATE FUNCTION palisade.record_removed(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
DECLARE
    v_args   bytea := palisade.args_hash(record_removed.uid::text, record_removed.rollout::text);
    v_reason text;
    a        palisade.answer;
BEGIN
    a := palisade.enter(record_removed.resource, record_removed.token, record_removed.sequence, record_removed.key, 'record_removed', v_args);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    END IF;
    PERFORM FROM palisade.alias AS x WHERE x.guard = record_removed.resource ORDER BY x.model, x.alias FOR NO KEY UPDATE;
    PERFORM FROM palisade.plan AS n WHERE n.resource = record_removed.resource FOR NO KEY UPDATE;
    IF NOT EXISTS (SELECT FROM palisade.plan AS n WHERE n.resource = record_removed.resource AND n.removed
                   AND (n.uid, n.rollout) = (record_removed.uid, record_removed.rollout)) THEN
        v_reason := 'no_such_plan';
    ELSE
        v_reason := palisade.write_step(record_removed.resource, record_removed.token, record_removed.uid, record_removed.rollout, 'removed', '{}');
    END IF;
    IF v_reason IS NULL THEN
        UPDATE palisade.alias AS x SET guard = NULL, token = 0, updated_at = clock_timestamp()
            WHERE x.guard = record_removed.resource AND record_removed.token >= x.token;
        UPDATE palisade.deployment AS d SET serving_model = NULL, serving_version = NULL, serving_revision = NULL, serving_since = NULL,
                failure_reason = NULL, failure_message = NULL
            WHERE d.resource = record_removed.resource AND record_removed.token >= d.token;
        DELETE FROM palisade.queue AS q WHERE q.resource = record_removed.resource;
        PERFORM palisade.write_event(record_removed.resource, 'removed', record_removed.token, record_removed.sequence,
            jsonb_build_object('rollout', record_removed.rollout));
    END IF;
    RETURN palisade.leave(record_removed.resource, record_removed.token, record_removed.sequence, 'record_removed', v_args, v_reason, NULL);
END
$$;
ALTER FUNCTION palisade.record_removed(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint) OWNER TO palisade_owner;
CREATE FUNCTION palisade.record_serving(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, step text, state jsonb, model text, version bigint, revision text, alias text) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
DECLARE
    v_args   bytea := palisade.args_hash(record_serving.uid::text, record_serving.rollout::text, record_serving.step, record_serving.state::text,
                          record_serving.model, record_serving.version::text, record_serving.revision, record_serving.alias);
    v_reason text;
    a        palisade.answer;
BEGIN
    IF record_serving.alias IS NOT NULL THEN
        PERFORM palisade.check_name('alias', record_serving.alias);
    END IF;
    a := palisade.enter(record_serving.resource, record_serving.token, record_serving.sequence, record_serving.key, 'record_serving', v_args);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    END IF;
    -- Each may say no before anything is written; the order is that of the locks (alias, deployment).
    IF NOT EXISTS (SELECT FROM palisade.model_version AS v WHERE v.model = record_serving.model AND v.version = record_serving.version) THEN
        v_reason := 'no_such_version';
    ELSIF NOT EXISTS (SELECT FROM palisade.plan AS n WHERE n.resource = record_serving.resource
                      AND (n.uid <> record_serving.uid OR record_serving.rollout <= n.rollout)) THEN
        v_reason := 'no_such_plan';
    ELSIF EXISTS (SELECT FROM palisade.deployment AS d WHERE d.resource = record_serving.resource AND d.token > record_serving.token) THEN
        v_reason := 'newer_row';
    ELSIF record_serving.alias IS NOT NULL THEN
        v_reason := palisade.write_alias(record_serving.model, record_serving.alias, record_serving.version,
                        record_serving.resource, record_serving.token, record_serving.sequence);
    END IF;
    IF v_reason IS NULL THEN
        v_reason := palisade.write_step(record_serving.resource, record_serving.token, record_serving.uid, record_serving.rollout, record_serving.step, record_serving.state);
    END IF;
    IF v_reason IS NULL THEN
        UPDATE palisade.deployment AS d
            SET serving_model = record_serving.model, serving_version = record_serving.version, serving_revision = record_serving.revision,
                serving_since = CASE WHEN d.serving_revision = record_serving.revision AND d.uid = record_serving.uid
                                     THEN d.serving_since ELSE clock_timestamp() END
            WHERE d.resource = record_serving.resource AND record_serving.token >= d.token;
        PERFORM palisade.write_event(record_serving.resource, 'serving', record_serving.token, record_serving.sequence,
            jsonb_build_object('model', record_serving.model, 'version', record_serving.version, 'revision', record_serving.revision,
                'rollout', record_serving.rollout));
    END IF;
    RETURN palisade.leave(record_serving.resource, record_serving.token, record_serving.sequence, 'record_serving', v_args, v_reason,
        jsonb_build_object('plan', palisade.plan_mark(record_serving.resource), 'version', record_serving.version));
END
$$;
ALTER FUNCTION palisade.record_serving(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, step text, state jsonb, model text, version bigint, revision text, alias text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.record_step(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, step text, state jsonb) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
DECLARE
    v_args   bytea := palisade.args_hash(record_step.uid::text, record_step.rollout::text, record_step.step, record_step.state::text);
    v_reason text;
    a        palisade.answer;
BEGIN
    a := palisade.enter(record_step.resource, record_step.token, record_step.sequence, record_step.key, 'record_step', v_args);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    END IF;
    v_reason := palisade.write_step(record_step.resource, record_step.token, record_step.uid, record_step.rollout, record_step.step, record_step.state);
    IF v_reason IS NULL THEN
        PERFORM palisade.write_event(record_step.resource, 'step', record_step.token, record_step.sequence,
            jsonb_build_object('step', record_step.step, 'rollout', record_step.rollout));
    END IF;
    RETURN palisade.leave(record_step.resource, record_step.token, record_step.sequence, 'record_step', v_args, v_reason,
        jsonb_build_object('step', record_step.step, 'plan', palisade.plan_mark(record_step.resource), 'step_age_ms',
            (SELECT palisade.milliseconds(clock_timestamp() - d.step_started_at) FROM palisade.deployment AS d WHERE d.resource = record_step.resource)));
END
$$;
ALTER FUNCTION palisade.record_step(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, step text, state jsonb) OWNER TO palisade_owner;
CREATE FUNCTION palisade.refuse(p_resource text, p_token bigint, p_sequence bigint, p_kind text, p_reason text, p_current bigint) RETURNS palisade.answer
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO palisade.refusal (resource, token, sequence, kind, reason, current_token, at)
        VALUES (left(p_resource, 512), p_token, p_sequence, p_kind, p_reason, p_current, clock_timestamp());
    RETURN ('rejected', p_reason, p_current, NULL)::palisade.answer;
END
$$;
ALTER FUNCTION palisade.refuse(p_resource text, p_token bigint, p_sequence bigint, p_kind text, p_reason text, p_current bigint) OWNER TO palisade_owner;
CREATE FUNCTION palisade.register_model(name text, description text, tags jsonb, request uuid) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
#variable_conflict use_column
DECLARE
    v_args bytea := palisade.args_hash(register_model.name, register_model.description, register_model.tags::text);
    a      palisade.answer;
BEGIN
    PERFORM palisade.check_name('name', register_model.name);
    PERFORM palisade.check_tags(register_model.tags);
    IF length(coalesce(register_model.description, '')) > 65536 THEN
        RAISE EXCEPTION 'palisade: description has % characters, at most 65536 are allowed', length(register_model.description) USING ERRCODE = 'PS004';
    END IF;
    a := palisade.begin_request(register_model.request, 'register_model', v_args);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    END IF;
    INSERT INTO palisade.registered_model (name, description, tags, created_at)
        VALUES (register_model.name, coalesce(register_model.description, ''), register_model.tags, clock_timestamp())
        ON CONFLICT (name) DO NOTHING;
    IF NOT FOUND THEN
        RETURN palisade.end_request(register_model.request, 'register_model', v_args, 'model_exists', NULL);
    END IF;
    INSERT INTO palisade.event (resource, kind, data, at) VALUES ('model/' || register_model.name, 'model_registered',
        jsonb_build_object('model', register_model.name), clock_timestamp());
    RETURN palisade.end_request(register_model.request, 'register_model', v_args, NULL, jsonb_build_object('model', register_model.name));
END
$$;
ALTER FUNCTION palisade.register_model(name text, description text, tags jsonb, request uuid) OWNER TO palisade_owner;
CREATE FUNCTION palisade.register_version(model text, source text, digest text, tags jsonb, request uuid) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $_$
#variable_conflict use_column
DECLARE
    v_args    bytea := palisade.args_hash(register_version.model, register_version.source, register_version.digest, register_version.tags::text);
    v_version bigint;
    a         palisade.answer;
BEGIN
    PERFORM palisade.check_name('model', register_version.model);
    PERFORM palisade.check_tags(register_version.tags);
    IF register_version.digest IS NULL OR register_version.digest !~ '^sha256:[0-9a-f]{64}$' THEN
        RAISE EXCEPTION 'palisade: digest is %, and must be sha256: and 64 lower-case hexadecimal digits', quote_nullable(left(register_version.digest, 80))
            USING ERRCODE = 'PS004';
    ELSIF length(coalesce(register_version.source, '')) NOT BETWEEN 1 AND 4096 THEN
        RAISE EXCEPTION 'palisade: source must be a URI of 1 to 4096 characters' USING ERRCODE = 'PS004';
    END IF;
    a := palisade.begin_request(register_version.request, 'register_version', v_args);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    END IF;
    UPDATE palisade.registered_model AS m SET next_version = m.next_version + 1
        WHERE m.name = register_version.model RETURNING m.next_version - 1 INTO v_version;
    IF NOT FOUND THEN
        RETURN palisade.end_request(register_version.request, 'register_version', v_args, 'no_such_model', NULL);
    END IF;
    INSERT INTO palisade.model_version (model, version, source, digest, tags, created_at)
        VALUES (register_version.model, v_version, register_version.source, register_version.digest, register_version.tags, clock_timestamp());
    INSERT INTO palisade.event (resource, kind, data, at) VALUES ('model/' || register_version.model, 'version_registered',
        jsonb_build_object('model', register_version.model, 'version', v_version, 'digest', register_version.digest), clock_timestamp());
    RETURN palisade.end_request(register_version.request, 'register_version', v_args, NULL, jsonb_build_object('version', v_version));
END
$_$;
ALTER FUNCTION palisade.register_version(model text, source text, digest text, tags jsonb, request uuid) OWNER TO palisade_owner;
CREATE FUNCTION palisade.release(resource text, token bigint, sequence bigint, key text, retry_in interval DEFAULT NULL::interval) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.release(resource text, token bigint, sequence bigint, key text, retry_in interval) OWNER TO palisade_owner;
CREATE TABLE palisade.operation (
    resource text NOT NULL COLLATE pg_catalog."C",
    token bigint NOT NULL,
    sequence bigint NOT NULL,
    kind text NOT NULL,
    args_hash bytea NOT NULL,
    outcome text NOT NULL,
    reason text,
    result jsonb,
    at timestamp with time zone NOT NULL,
    CONSTRAINT operation_outcome_check CHECK ((outcome = ANY (ARRAY['applied'::text, 'rejected'::text])))
);
ALTER TABLE palisade.operation OWNER TO palisade_owner;
CREATE FUNCTION palisade.replay(o palisade.operation, p_kind text, p_args bytea, p_current bigint) RETURNS palisade.answer
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF o.kind <> p_kind OR o.args_hash IS DISTINCT FROM p_args THEN
        RAISE EXCEPTION 'palisade: fence %/% of % was already used by % with other arguments', o.token, o.sequence, o.resource, o.kind
            USING ERRCODE = 'PS001', HINT = 'A fence names one intended write: take the next sequence for another one.';
    END IF;
    RETURN (CASE o.outcome WHEN 'applied' THEN 'replayed' ELSE o.outcome END, o.reason, p_current, o.result)::palisade.answer;
END
$$;
ALTER FUNCTION palisade.replay(o palisade.operation, p_kind text, p_args bytea, p_current bigint) OWNER TO palisade_owner;
CREATE FUNCTION palisade.report_progress(resource text, token bigint, key text, progress interval DEFAULT NULL::interval) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.report_progress(resource text, token bigint, key text, progress interval) OWNER TO palisade_owner;
CREATE FUNCTION palisade.retire_lease(p_resource text, p_kind text, p_reason text) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
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
ALTER FUNCTION palisade.retire_lease(p_resource text, p_kind text, p_reason text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.revoke(resource text, reason text) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.revoke(resource text, reason text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.schema_version() RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
BEGIN
    RETURN (SELECT coalesce(max(m.version), 0) FROM palisade.migration AS m WHERE m.success);
END
$$;
ALTER FUNCTION palisade.schema_version() OWNER TO palisade_owner;
CREATE FUNCTION palisade.set_alias(resource text, token bigint, sequence bigint, key text, model text, alias text, version bigint) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
DECLARE
    v_args   bytea := palisade.args_hash(set_alias.model, set_alias.alias, set_alias.version::text);
    v_reason text;
    a        palisade.answer;
BEGIN
    a := palisade.enter(set_alias.resource, set_alias.token, set_alias.sequence, set_alias.key, 'set_alias', v_args);
    IF a.outcome IS NOT NULL THEN
        RETURN a;
    END IF;
    v_reason := palisade.write_alias(set_alias.model, set_alias.alias, set_alias.version, set_alias.resource, set_alias.token, set_alias.sequence);
    RETURN palisade.leave(set_alias.resource, set_alias.token, set_alias.sequence, 'set_alias', v_args, v_reason,
        jsonb_build_object('model', set_alias.model, 'alias', set_alias.alias, 'version', set_alias.version));
END
$$;
ALTER FUNCTION palisade.set_alias(resource text, token bigint, sequence bigint, key text, model text, alias text, version bigint) OWNER TO palisade_owner;
CREATE FUNCTION palisade.sizes() RETURNS TABLE(name text, bytes bigint)
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
    SELECT c.relname::text, pg_total_relation_size(c.oid) FROM pg_catalog.pg_class AS c
    WHERE c.relnamespace = 'palisade'::regnamespace AND c.relkind = 'r'
      AND c.relname IN ('operation', 'refusal', 'grant_history', 'event', 'request', 'session', 'lease')
    ORDER BY c.relname
$$;
ALTER FUNCTION palisade.sizes() OWNER TO palisade_owner;
CREATE FUNCTION palisade.unprotect(target regclass) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET standard_conforming_strings TO 'on'
    SET lock_timeout TO '5s'
    AS $$
DECLARE
    c      pg_catalog.pg_class;
    g      record;
    v_done boolean := false;
BEGIN
    SELECT x.* INTO c FROM pg_catalog.pg_class AS x WHERE x.oid = unprotect.target;
    IF c.oid IS NULL OR c.relkind NOT IN ('r', 'p') OR c.relnamespace = 'palisade'::regnamespace THEN
        RAISE EXCEPTION 'palisade: target is %, and must be a table of yours', coalesce(unprotect.target::text, 'missing')
            USING ERRCODE = 'PS004', HINT = 'Of a view, protect the table below it. Foreign tables cannot be protected.';
    ELSIF NOT pg_has_role(c.relowner, 'USAGE') THEN
        RAISE EXCEPTION 'palisade: % belongs to %', unprotect.target, c.relowner::regrole
            USING ERRCODE = 'insufficient_privilege', HINT = 'Only its owner says whether a table is protected.';
    ELSIF c.relispartition THEN
        RAISE EXCEPTION 'palisade: % is a partition', unprotect.target
            USING ERRCODE = 'PS004', HINT = format('Name the whole table: %s', pg_partition_root(unprotect.target));
    END IF;
    FOR g IN
        SELECT x.tgrelid::regclass AS target, x.tgname FROM pg_catalog.pg_trigger AS x
        WHERE x.tgfoid = 'palisade.guard()'::regprocedure AND x.tgparentid = 0
          AND (x.tgrelid = c.oid OR x.tgrelid IN (SELECT p.relid FROM pg_partition_tree(c.oid) AS p))
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', g.tgname, g.target);
        v_done := true;
    END LOOP;
    RETURN v_done;
END
$$;
ALTER FUNCTION palisade.unprotect(target regclass) OWNER TO palisade_owner;
CREATE FUNCTION palisade.use_lease(resource text, token bigint, key text, for_session boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
BEGIN
    PERFORM palisade.check_lease(use_lease.resource COLLATE "C", use_lease.token, use_lease.key);
    PERFORM set_config('palisade.resource', use_lease.resource, NOT coalesce(use_lease.for_session, false)),
            set_config('palisade.token', use_lease.token::text, NOT coalesce(use_lease.for_session, false)),
            set_config('palisade.key', use_lease.key, NOT coalesce(use_lease.for_session, false));
END
$$;
ALTER FUNCTION palisade.use_lease(resource text, token bigint, key text, for_session boolean) OWNER TO palisade_owner;
CREATE FUNCTION palisade.version_show(model text, version bigint) RETURNS TABLE(source text, digest text, tags jsonb)
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
    SELECT v.source, v.digest, v.tags FROM palisade.model_version AS v
    WHERE v.model = version_show.model AND v.version = version_show.version
$$;
ALTER FUNCTION palisade.version_show(model text, version bigint) OWNER TO palisade_owner;
CREATE FUNCTION palisade.withdraw_epoch(number bigint, incarnation text) RETURNS palisade.answer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'palisade', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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
ALTER FUNCTION palisade.withdraw_epoch(number bigint, incarnation text) OWNER TO palisade_owner;
CREATE FUNCTION palisade.write_alias(p_model text, p_alias text, p_version bigint, p_guard text, p_token bigint, p_sequence bigint) RETURNS text
    LANGUAGE plpgsql
    AS $$
DECLARE
    x      palisade.alias;
    v_done boolean;
BEGIN
    -- By one statement, as a rule: the alias is already this lease's, and gets another version. Its former one may be read
    -- without a lock, because only the holder of the gate changes it.
    WITH changed AS (
        UPDATE palisade.alias AS a SET version = p_version, token = p_token, updated_at = clock_timestamp()
        FROM palisade.alias AS former
        WHERE a.model = p_model AND a.alias = p_alias AND a.guard = p_guard AND p_token >= a.token
          AND former.model = p_model AND former.alias = p_alias AND former.version <> p_version
          AND EXISTS (SELECT FROM palisade.model_version AS v WHERE v.model = p_model AND v.version = p_version)
        RETURNING former.version
    ), told AS (
        INSERT INTO palisade.event (resource, kind, token, sequence, data, at)
        SELECT p_guard, 'alias', p_token, p_sequence, palisade.alias_json(p_model, p_alias, p_version, c.version, p_guard), clock_timestamp()
        FROM changed AS c
    )
    SELECT true INTO v_done FROM changed;
    IF v_done THEN
        RETURN NULL;
    END IF;
    PERFORM palisade.check_name('alias', p_alias);
    IF NOT EXISTS (SELECT FROM palisade.registered_model AS m WHERE m.name = p_model) THEN
        RETURN 'no_such_model';
    ELSIF p_version IS NOT NULL AND NOT EXISTS (SELECT FROM palisade.model_version AS v WHERE v.model = p_model AND v.version = p_version) THEN
        RETURN 'no_such_version';
    END IF;
    INSERT INTO palisade.alias (model, alias, updated_at) VALUES (p_model, p_alias, clock_timestamp()) ON CONFLICT (model, alias) DO NOTHING;
    SELECT a.* INTO x FROM palisade.alias AS a WHERE a.model = p_model AND a.alias = p_alias FOR NO KEY UPDATE;
    IF x.guard IS NOT NULL AND x.guard IS DISTINCT FROM p_guard THEN
        RETURN 'guarded';
    END IF;
    IF x.version IS NOT DISTINCT FROM p_version AND x.guard IS NOT DISTINCT FROM p_guard AND x.token = coalesce(p_token, x.token) THEN
        RETURN NULL; -- nothing to tell anyone
    END IF;
    UPDATE palisade.alias AS a
        SET version = p_version, guard = coalesce(p_guard, a.guard), token = coalesce(p_token, 0), updated_at = clock_timestamp()
        WHERE a.model = p_model AND a.alias = p_alias AND (a.guard IS NULL OR p_token >= a.token);
    IF NOT FOUND THEN
        RETURN 'newer_row'; -- the second line
    END IF;
    INSERT INTO palisade.event (resource, kind, token, sequence, data, at)
        VALUES (coalesce(p_guard, 'model/' || p_model), 'alias', p_token, p_sequence,
            palisade.alias_json(p_model, p_alias, p_version, x.version, coalesce(p_guard, x.guard)), clock_timestamp());
    RETURN NULL;
END
$$;
ALTER FUNCTION palisade.write_alias(p_model text, p_alias text, p_version bigint, p_guard text, p_token bigint, p_sequence bigint) OWNER TO palisade_owner;
CREATE FUNCTION palisade.write_event(p_resource text, p_kind text, p_token bigint, p_sequence bigint, p_data jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO palisade.event (resource, kind, token, sequence, data, at)
        VALUES (p_resource, p_kind, p_token, p_sequence, p_data, clock_timestamp());
END
$$;
ALTER FUNCTION palisade.write_event(p_resource text, p_kind text, p_token bigint, p_sequence bigint, p_data jsonb) OWNER TO palisade_owner;
CREATE FUNCTION palisade.write_step(p_resource text, p_token bigint, p_uid uuid, p_rollout bigint, p_step text, p_state jsonb) RETURNS text
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    n     palisade.plan;
BEGIN
    IF length(coalesce(p_step, '')) NOT BETWEEN 1 AND 63 OR p_uid IS NULL OR p_rollout IS NULL OR p_state IS NULL OR length(p_state::text) > 262144 THEN
        RAISE EXCEPTION 'palisade: uid, rollout, step (1 to 63 characters) and state (at most 256 KiB) are needed' USING ERRCODE = 'PS004';
    END IF;
    SELECT x.* INTO n FROM palisade.plan AS x WHERE x.resource = p_resource;
    IF n.resource IS NULL OR (n.uid = p_uid AND p_rollout > n.rollout) THEN
        RETURN 'no_such_plan';
    END IF;
    INSERT INTO palisade.deployment AS d (resource, uid, rollout, step, step_started_at, state, token, updated_at)
        VALUES (p_resource, p_uid, p_rollout, p_step, v_now, p_state, p_token, v_now)
    ON CONFLICT (resource) DO UPDATE SET uid = excluded.uid, rollout = excluded.rollout, step = excluded.step, state = excluded.state,
        step_started_at = CASE WHEN (d.uid, d.rollout, d.step) = (excluded.uid, excluded.rollout, excluded.step) THEN d.step_started_at ELSE v_now END,
        failure_reason = CASE WHEN (d.uid, d.rollout) = (excluded.uid, excluded.rollout) THEN d.failure_reason END,
        failure_message = CASE WHEN (d.uid, d.rollout) = (excluded.uid, excluded.rollout) THEN d.failure_message END,
        token = excluded.token, updated_at = v_now
        WHERE p_token >= d.token;
    RETURN CASE WHEN NOT FOUND THEN 'newer_row' END;
END
$$;
ALTER FUNCTION palisade.write_step(p_resource text, p_token bigint, p_uid uuid, p_rollout bigint, p_step text, p_state jsonb) OWNER TO palisade_owner;
CREATE TABLE palisade.alias (
    model text NOT NULL COLLATE pg_catalog."C",
    alias text NOT NULL COLLATE pg_catalog."C",
    version bigint,
    guard text COLLATE pg_catalog."C",
    token bigint DEFAULT 0 NOT NULL,
    updated_at timestamp with time zone NOT NULL
)
WITH (fillfactor='70');
ALTER TABLE palisade.alias OWNER TO palisade_owner;
CREATE TABLE palisade.epoch (
    singleton boolean DEFAULT true NOT NULL,
    number bigint NOT NULL,
    system_id bigint NOT NULL,
    database oid NOT NULL,
    timeline integer NOT NULL,
    postmaster_start timestamp with time zone NOT NULL,
    checkpointer_start timestamp with time zone NOT NULL,
    established_at timestamp with time zone NOT NULL,
    CONSTRAINT epoch_number_check CHECK (((number > 0) AND (number < 2097152))),
    CONSTRAINT epoch_singleton_check CHECK (singleton)
);
ALTER TABLE palisade.epoch OWNER TO palisade_owner;
CREATE UNLOGGED TABLE palisade.established (
    number bigint NOT NULL,
    place text NOT NULL,
    timeline text NOT NULL,
    postmaster_start timestamp with time zone NOT NULL
);
ALTER TABLE palisade.established OWNER TO palisade_owner;
CREATE TABLE palisade.event (
    id bigint NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    resource text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL,
    token bigint,
    sequence bigint,
    data jsonb NOT NULL,
    at timestamp with time zone NOT NULL
);
ALTER TABLE palisade.event OWNER TO palisade_owner;
ALTER TABLE palisade.event ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME palisade.event_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE palisade.grant_history (
    resource text NOT NULL COLLATE pg_catalog."C",
    token bigint NOT NULL,
    session uuid,
    worker text,
    kind text NOT NULL,
    reason text,
    former_end timestamp with time zone,
    at timestamp with time zone NOT NULL,
    CONSTRAINT grant_history_kind_check CHECK ((kind = ANY (ARRAY['grant'::text, 'takeover'::text, 'release'::text, 'revoke'::text])))
);
ALTER TABLE palisade.grant_history OWNER TO palisade_owner;
CREATE TABLE palisade.lease (
    resource text NOT NULL COLLATE pg_catalog."C",
    token bigint NOT NULL,
    sequence bigint DEFAULT 0 NOT NULL,
    session uuid,
    granted_at timestamp with time zone,
    released_at timestamp with time zone,
    ledger_from bigint DEFAULT 0 NOT NULL,
    CONSTRAINT lease_resource_check CHECK (((length(resource) >= 1) AND (length(resource) <= 512))),
    CONSTRAINT lease_sequence_check CHECK ((sequence >= 0)),
    CONSTRAINT lease_token_check CHECK (((token >= 0) AND (token < '9007199254740992'::bigint)))
)
WITH (fillfactor='50');
ALTER TABLE palisade.lease OWNER TO palisade_owner;
CREATE TABLE palisade.loss (
    session uuid NOT NULL,
    resource text NOT NULL COLLATE pg_catalog."C",
    token bigint NOT NULL,
    reason text NOT NULL,
    at timestamp with time zone NOT NULL
);
ALTER TABLE palisade.loss OWNER TO palisade_owner;
CREATE TABLE palisade.model_version (
    model text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    source text NOT NULL,
    digest text NOT NULL,
    tags jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone NOT NULL,
    CONSTRAINT model_version_digest_check CHECK ((digest ~ '^sha256:[0-9a-f]{64}$'::text)),
    CONSTRAINT model_version_source_check CHECK (((length(source) >= 1) AND (length(source) <= 4096))),
    CONSTRAINT model_version_version_check CHECK ((version > 0))
);
ALTER TABLE palisade.model_version OWNER TO palisade_owner;
CREATE TABLE palisade.progress (
    resource text NOT NULL COLLATE pg_catalog."C",
    token bigint NOT NULL,
    deadline timestamp with time zone NOT NULL
)
WITH (fillfactor='50');
ALTER TABLE palisade.progress OWNER TO palisade_owner;
CREATE VIEW palisade.protected AS
 WITH guard AS (
         SELECT t.tgrelid,
            t.tgname,
            (t.tgenabled = 'A'::"char") AS works,
            convert_from(SUBSTRING(t.tgargs FROM 1 FOR (length(t.tgargs) - 1)), getdatabaseencoding()) AS resource
           FROM pg_trigger t
          WHERE (t.tgfoid = ('palisade.guard()'::regprocedure)::oid)
        )
 SELECT (c.oid)::regclass AS target,
    min(g.resource) AS resource,
        CASE
            WHEN (EXISTS ( SELECT
               FROM pg_inherits i
              WHERE ((c.relkind = 'r'::"char") AND ((c.oid = i.inhrelid) OR (c.oid = i.inhparent))))) THEN 'it inherits, or is a partition: writes by way of its relative are not checked'::text
            WHEN (count(*) FILTER (WHERE g.works) <
            CASE c.relkind
                WHEN 'p'::"char" THEN 6
                ELSE 5
            END) THEN 'a trigger is missing or disabled'::text
            WHEN (EXISTS ( SELECT
               FROM pg_partition_tree((c.oid)::regclass) p(relid, parentrelid, isleaf, level)
              WHERE ((p.level > 0) AND (( SELECT count(*) AS count
                       FROM guard x
                      WHERE ((x.tgrelid = (p.relid)::oid) AND x.works)) < 6)))) THEN 'a partition came later, or a trigger of one is disabled: its rows are checked slowly, if at all, and it can be truncated'::text
            ELSE NULL::text
        END AS gap
   FROM (guard g
     JOIN pg_class c ON ((c.oid = g.tgrelid)))
  WHERE (NOT (c.relispartition AND (EXISTS ( SELECT
           FROM guard x
          WHERE (x.tgrelid = (pg_partition_root((c.oid)::regclass))::oid)))))
  GROUP BY c.oid, c.relkind;
ALTER TABLE palisade.protected OWNER TO palisade_owner;
CREATE TABLE palisade.queue (
    resource text NOT NULL COLLATE pg_catalog."C",
    due_at timestamp with time zone NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    claimed_at timestamp with time zone
);
ALTER TABLE palisade.queue OWNER TO palisade_owner;
CREATE TABLE palisade.refusal (
    id bigint NOT NULL,
    resource text NOT NULL COLLATE pg_catalog."C",
    token bigint NOT NULL,
    sequence bigint,
    kind text NOT NULL,
    reason text NOT NULL,
    current_token bigint,
    at timestamp with time zone NOT NULL
);
ALTER TABLE palisade.refusal OWNER TO palisade_owner;
ALTER TABLE palisade.refusal ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME palisade.refusal_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE palisade.registered_model (
    name text NOT NULL COLLATE pg_catalog."C",
    description text DEFAULT ''::text NOT NULL,
    tags jsonb DEFAULT '{}'::jsonb NOT NULL,
    next_version bigint DEFAULT 1 NOT NULL,
    created_at timestamp with time zone NOT NULL,
    CONSTRAINT registered_model_name_check CHECK ((name ~ '^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$'::text))
);
ALTER TABLE palisade.registered_model OWNER TO palisade_owner;
CREATE TABLE palisade.request (
    id uuid NOT NULL,
    kind text NOT NULL,
    args_hash bytea NOT NULL,
    answer palisade.answer NOT NULL,
    at timestamp with time zone NOT NULL
);
ALTER TABLE palisade.request OWNER TO palisade_owner;
CREATE VIEW palisade.running_epoch AS
 SELECT e.number
   FROM palisade.established e
  WHERE ((e.postmaster_start = pg_postmaster_start_time()) AND (e.place = pg_relation_filepath('palisade.established'::regclass)) AND (e.timeline = "left"(pg_walfile_name(pg_current_wal_lsn()), 8)));
ALTER TABLE palisade.running_epoch OWNER TO palisade_owner;
CREATE TABLE palisade.session (
    id uuid NOT NULL,
    key_hash bytea NOT NULL,
    worker text NOT NULL,
    ttl interval NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    opened_at timestamp with time zone NOT NULL,
    closed_at timestamp with time zone
)
WITH (fillfactor='50');
ALTER TABLE palisade.session OWNER TO palisade_owner;
ALTER TABLE ONLY palisade.alias
    ADD CONSTRAINT alias_pkey PRIMARY KEY (model, alias);
ALTER TABLE ONLY palisade.deployment
    ADD CONSTRAINT deployment_pkey PRIMARY KEY (resource);
ALTER TABLE ONLY palisade.epoch
    ADD CONSTRAINT epoch_pkey PRIMARY KEY (singleton);
ALTER TABLE ONLY palisade.event
    ADD CONSTRAINT event_pkey PRIMARY KEY (xid, id);
ALTER TABLE ONLY palisade.grant_history
    ADD CONSTRAINT grant_history_pkey PRIMARY KEY (resource, token);
ALTER TABLE ONLY palisade.lease
    ADD CONSTRAINT lease_pkey PRIMARY KEY (resource);
ALTER TABLE ONLY palisade.loss
    ADD CONSTRAINT loss_pkey PRIMARY KEY (session, resource, token);
ALTER TABLE ONLY palisade.model_version
    ADD CONSTRAINT model_version_pkey PRIMARY KEY (model, version);
ALTER TABLE ONLY palisade.operation
    ADD CONSTRAINT operation_pkey PRIMARY KEY (resource, token, sequence);
ALTER TABLE ONLY palisade.plan
    ADD CONSTRAINT plan_pkey PRIMARY KEY (resource);
ALTER TABLE ONLY palisade.progress
    ADD CONSTRAINT progress_pkey PRIMARY KEY (resource);
ALTER TABLE ONLY palisade.queue
    ADD CONSTRAINT queue_pkey PRIMARY KEY (resource);
ALTER TABLE ONLY palisade.refusal
    ADD CONSTRAINT refusal_pkey PRIMARY KEY (id);
ALTER TABLE ONLY palisade.registered_model
    ADD CONSTRAINT registered_model_pkey PRIMARY KEY (name);
ALTER TABLE ONLY palisade.request
    ADD CONSTRAINT request_pkey PRIMARY KEY (id);
ALTER TABLE ONLY palisade.session
    ADD CONSTRAINT session_pkey PRIMARY KEY (id);
CREATE INDEX alias_guard ON palisade.alias USING btree (guard) WHERE (guard IS NOT NULL);
CREATE INDEX lease_session ON palisade.lease USING btree (session) WHERE (session IS NOT NULL);
CREATE INDEX queue_turn ON palisade.queue USING btree (GREATEST(due_at, claimed_at));
CREATE INDEX refusal_resource ON palisade.refusal USING btree (resource, token, sequence);
CREATE INDEX request_at ON palisade.request USING btree (at);
ALTER TABLE ONLY palisade.model_version
    ADD CONSTRAINT model_version_model_fkey FOREIGN KEY (model) REFERENCES palisade.registered_model(name);
GRANT USAGE ON SCHEMA palisade TO palisade_worker;
GRANT USAGE ON SCHEMA palisade TO palisade_controller;
GRANT USAGE ON SCHEMA palisade TO palisade_registry;
GRANT USAGE ON SCHEMA palisade TO palisade_reader;
REVOKE ALL ON FUNCTION palisade.abandon(resource text, token bigint, sequence bigint, key text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.abandon(resource text, token bigint, sequence bigint, key text) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.abandon(resource text, token bigint, sequence bigint, key text) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.acquire(id uuid, key text, resource text, progress interval) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.acquire(id uuid, key text, resource text, progress interval) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.acquire(id uuid, key text, resource text, progress interval) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.alias_json(p_model text, p_alias text, p_version bigint, p_former bigint, p_guard text) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.args_hash(VARIADIC p_args text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.begin_call() FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.begin_request(p_request uuid, p_kind text, p_args bytea) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.check_lease(resource text, token bigint, key text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.check_lease(resource text, token bigint, key text) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.check_lease(resource text, token bigint, key text) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.check_name(p_field text, p_name text) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.check_row(target regclass, resource text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.check_row(target regclass, resource text) TO palisade_worker;
REVOKE ALL ON FUNCTION palisade.check_span(p_name text, p_span interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.check_tags(p_tags jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.claim(id uuid, key text, "limit" integer, progress interval) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.claim(id uuid, key text, "limit" integer, progress interval) TO palisade_worker;
REVOKE ALL ON FUNCTION palisade.clean(what text, older_than interval, batch integer, after text, OUT removed integer, OUT place text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.clean(what text, older_than interval, batch integer, after text, OUT removed integer, OUT place text) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.clean_leases(p_what text, p_before timestamp with time zone, p_batch integer, p_after text, OUT removed integer, OUT place text) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.clean_sessions(p_before timestamp with time zone, p_batch integer, p_after uuid, OUT removed integer, OUT place text) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.close_fence(p_resource text, p_token bigint, p_sequence bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.close_session(id uuid, key text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.close_session(id uuid, key text) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.close_session(id uuid, key text) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.current_epoch() FROM PUBLIC;
GRANT SELECT ON TABLE palisade.deployment TO palisade_reader;
REVOKE ALL ON FUNCTION palisade.deployment_json(d palisade.deployment) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.drop_plan(resource text, token bigint, sequence bigint, key text, deployment text, uid uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.drop_plan(resource text, token bigint, sequence bigint, key text, deployment text, uid uuid) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.end_blockers(older_than interval) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.end_blockers(older_than interval) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.end_request(p_request uuid, p_kind text, p_args bytea, p_reason text, p_result jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.enter(p_resource text, p_token bigint, p_sequence bigint, p_key text, p_kind text, p_args bytea) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.epoch_status(OUT number bigint, OUT established boolean, OUT incarnation text, OUT established_for text, OUT timeline integer, OUT established_timeline integer, OUT highest_token bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.epoch_status(OUT number bigint, OUT established boolean, OUT incarnation text, OUT established_for text, OUT timeline integer, OUT established_timeline integer, OUT highest_token bigint) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.epoch_status(OUT number bigint, OUT established boolean, OUT incarnation text, OUT established_for text, OUT timeline integer, OUT established_timeline integer, OUT highest_token bigint) TO palisade_controller;
GRANT ALL ON FUNCTION palisade.epoch_status(OUT number bigint, OUT established boolean, OUT incarnation text, OUT established_for text, OUT timeline integer, OUT established_timeline integer, OUT highest_token bigint) TO palisade_reader;
REVOKE ALL ON FUNCTION palisade.establish_epoch(number bigint, incarnation text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.establish_epoch(number bigint, incarnation text) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.events(after_xid xid8, after_id bigint, "limit" integer) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.events(after_xid xid8, after_id bigint, "limit" integer) TO palisade_controller;
GRANT ALL ON FUNCTION palisade.events(after_xid xid8, after_id bigint, "limit" integer) TO palisade_reader;
REVOKE ALL ON FUNCTION palisade.figures(OUT queue_depth bigint, OUT queue_age_ms bigint, OUT leases_held bigint, OUT sessions_open bigint, OUT oldest_transaction_ms bigint, OUT oldest_xmin_age bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.figures(OUT queue_depth bigint, OUT queue_age_ms bigint, OUT leases_held bigint, OUT sessions_open bigint, OUT oldest_transaction_ms bigint, OUT oldest_xmin_age bigint) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.figures(OUT queue_depth bigint, OUT queue_age_ms bigint, OUT leases_held bigint, OUT sessions_open bigint, OUT oldest_transaction_ms bigint, OUT oldest_xmin_age bigint) TO palisade_controller;
GRANT ALL ON FUNCTION palisade.figures(OUT queue_depth bigint, OUT queue_age_ms bigint, OUT leases_held bigint, OUT sessions_open bigint, OUT oldest_transaction_ms bigint, OUT oldest_xmin_age bigint) TO palisade_reader;
REVOKE ALL ON FUNCTION palisade.gate_is_closed(p_resource text, p_token bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.grant_locked(p_session uuid, p_key text, p_resources text[], p_owners uuid[], p_progress interval, p_own boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.guard() FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.guard() TO palisade_worker;
GRANT ALL ON FUNCTION palisade.guard() TO palisade_reader;
REVOKE ALL ON FUNCTION palisade.heartbeat(id uuid, key text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.heartbeat(id uuid, key text) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.heartbeat(id uuid, key text) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.held(id uuid, key text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.held(id uuid, key text) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.held(id uuid, key text) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.incarnation(OUT system_id bigint, OUT timeline integer, OUT postmaster_start timestamp with time zone, OUT checkpointer_start timestamp with time zone, OUT database oid, OUT name text) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.incarnation_name(system_id bigint, timeline integer, postmaster_start timestamp with time zone, checkpointer_start timestamp with time zone, database oid) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.key_fits(p_session uuid, p_key text) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.key_hash(key text) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.leave(p_resource text, p_token bigint, p_sequence bigint, p_kind text, p_args bytea, p_reason text, p_result jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.may_ask(p_resource text, p_token bigint, p_key text) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.milliseconds(span interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.move_guard(resource text, token bigint, sequence bigint, key text, to_resource text, to_token bigint, to_sequence bigint, to_key text, model text, alias text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.move_guard(resource text, token bigint, sequence bigint, key text, to_resource text, to_token bigint, to_sequence bigint, to_key text, model text, alias text) TO palisade_worker;
REVOKE ALL ON FUNCTION palisade.next_revision(resource text, token bigint, key text, deployment text, above bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.next_revision(resource text, token bigint, key text, deployment text, above bigint) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.next_token(token bigint, epoch bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.observe(deployment text, model text, version bigint, alias text, promote text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.observe(deployment text, model text, version bigint, alias text, promote text) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.open_session(id uuid, key text, worker text, ttl interval) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.open_session(id uuid, key text, worker text, ttl interval) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.open_session(id uuid, key text, worker text, ttl interval) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.operation_abandon(resource text, token bigint, sequence bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.operation_abandon(resource text, token bigint, sequence bigint) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.operation_show(resource text, token bigint, sequence bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.operation_show(resource text, token bigint, sequence bigint) TO palisade_controller;
GRANT ALL ON FUNCTION palisade.operation_show(resource text, token bigint, sequence bigint) TO palisade_reader;
REVOKE ALL ON FUNCTION palisade.operation_status(resource text, token bigint, sequence bigint, key text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.operation_status(resource text, token bigint, sequence bigint, key text) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.operation_status(resource text, token bigint, sequence bigint, key text) TO palisade_controller;
GRANT SELECT ON TABLE palisade.plan TO palisade_reader;
REVOKE ALL ON FUNCTION palisade.plan_json(n palisade.plan) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.plan_mark(p_resource text) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.plan_show(resource text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.plan_show(resource text) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.plan_show(resource text) TO palisade_controller;
GRANT ALL ON FUNCTION palisade.plan_show(resource text) TO palisade_reader;
REVOKE ALL ON FUNCTION palisade.protect(target regclass, resource text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.protect(target regclass, resource text) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.protect(target regclass, resource text) TO palisade_reader;
REVOKE ALL ON FUNCTION palisade.put_alias(model text, alias text, version bigint, request uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.put_alias(model text, alias text, version bigint, request uuid) TO palisade_registry;
REVOKE ALL ON FUNCTION palisade.put_plan(resource text, token bigint, sequence bigint, key text, deployment text, uid uuid, generation bigint, spec jsonb, paused boolean, removed boolean, progress interval, wake boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.put_plan(resource text, token bigint, sequence bigint, key text, deployment text, uid uuid, generation bigint, spec jsonb, paused boolean, removed boolean, progress interval, wake boolean) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.record_done(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, state jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.record_done(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, state jsonb) TO palisade_worker;
REVOKE ALL ON FUNCTION palisade.record_failure(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, step text, state jsonb, reason text, message text, retry_in interval) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.record_failure(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, step text, state jsonb, reason text, message text, retry_in interval) TO palisade_worker;
REVOKE ALL ON FUNCTION palisade.record_removed(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.record_removed(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint) TO palisade_worker;
REVOKE ALL ON FUNCTION palisade.record_serving(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, step text, state jsonb, model text, version bigint, revision text, alias text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.record_serving(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, step text, state jsonb, model text, version bigint, revision text, alias text) TO palisade_worker;
REVOKE ALL ON FUNCTION palisade.record_step(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, step text, state jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.record_step(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, step text, state jsonb) TO palisade_worker;
REVOKE ALL ON FUNCTION palisade.refuse(p_resource text, p_token bigint, p_sequence bigint, p_kind text, p_reason text, p_current bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.register_model(name text, description text, tags jsonb, request uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.register_model(name text, description text, tags jsonb, request uuid) TO palisade_registry;
REVOKE ALL ON FUNCTION palisade.register_version(model text, source text, digest text, tags jsonb, request uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.register_version(model text, source text, digest text, tags jsonb, request uuid) TO palisade_registry;
REVOKE ALL ON FUNCTION palisade.release(resource text, token bigint, sequence bigint, key text, retry_in interval) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.release(resource text, token bigint, sequence bigint, key text, retry_in interval) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.release(resource text, token bigint, sequence bigint, key text, retry_in interval) TO palisade_controller;
GRANT SELECT ON TABLE palisade.operation TO palisade_reader;
REVOKE ALL ON FUNCTION palisade.replay(o palisade.operation, p_kind text, p_args bytea, p_current bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.report_progress(resource text, token bigint, key text, progress interval) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.report_progress(resource text, token bigint, key text, progress interval) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.report_progress(resource text, token bigint, key text, progress interval) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.retire_lease(p_resource text, p_kind text, p_reason text) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.revoke(resource text, reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.revoke(resource text, reason text) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.schema_version() FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.schema_version() TO palisade_worker;
GRANT ALL ON FUNCTION palisade.schema_version() TO palisade_controller;
GRANT ALL ON FUNCTION palisade.schema_version() TO palisade_reader;
REVOKE ALL ON FUNCTION palisade.set_alias(resource text, token bigint, sequence bigint, key text, model text, alias text, version bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.set_alias(resource text, token bigint, sequence bigint, key text, model text, alias text, version bigint) TO palisade_worker;
REVOKE ALL ON FUNCTION palisade.sizes() FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.sizes() TO palisade_controller;
GRANT ALL ON FUNCTION palisade.sizes() TO palisade_reader;
REVOKE ALL ON FUNCTION palisade.unprotect(target regclass) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.unprotect(target regclass) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.unprotect(target regclass) TO palisade_reader;
REVOKE ALL ON FUNCTION palisade.use_lease(resource text, token bigint, key text, for_session boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.use_lease(resource text, token bigint, key text, for_session boolean) TO palisade_worker;
REVOKE ALL ON FUNCTION palisade.version_show(model text, version bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.version_show(model text, version bigint) TO palisade_worker;
GRANT ALL ON FUNCTION palisade.version_show(model text, version bigint) TO palisade_controller;
GRANT ALL ON FUNCTION palisade.version_show(model text, version bigint) TO palisade_registry;
GRANT ALL ON FUNCTION palisade.version_show(model text, version bigint) TO palisade_reader;
REVOKE ALL ON FUNCTION palisade.withdraw_epoch(number bigint, incarnation text) FROM PUBLIC;
GRANT ALL ON FUNCTION palisade.withdraw_epoch(number bigint, incarnation text) TO palisade_controller;
REVOKE ALL ON FUNCTION palisade.write_alias(p_model text, p_alias text, p_version bigint, p_guard text, p_token bigint, p_sequence bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.write_event(p_resource text, p_kind text, p_token bigint, p_sequence bigint, p_data jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION palisade.write_step(p_resource text, p_token bigint, p_uid uuid, p_rollout bigint, p_step text, p_state jsonb) FROM PUBLIC;
GRANT SELECT ON TABLE palisade.alias TO palisade_reader;
GRANT SELECT ON TABLE palisade.alias TO palisade_registry;
GRANT SELECT ON TABLE palisade.epoch TO palisade_reader;
GRANT SELECT ON TABLE palisade.established TO palisade_reader;
GRANT SELECT ON TABLE palisade.event TO palisade_reader;
GRANT SELECT ON TABLE palisade.grant_history TO palisade_reader;
GRANT SELECT ON TABLE palisade.lease TO palisade_reader;
GRANT SELECT ON TABLE palisade.loss TO palisade_reader;
GRANT SELECT ON TABLE palisade.model_version TO palisade_reader;
GRANT SELECT ON TABLE palisade.model_version TO palisade_registry;
GRANT SELECT ON TABLE palisade.progress TO palisade_reader;
GRANT SELECT ON TABLE palisade.protected TO palisade_reader;
GRANT SELECT ON TABLE palisade.queue TO palisade_reader;
GRANT SELECT ON TABLE palisade.refusal TO palisade_reader;
GRANT SELECT ON TABLE palisade.registered_model TO palisade_reader;
GRANT SELECT ON TABLE palisade.registered_model TO palisade_registry;
GRANT SELECT(id) ON TABLE palisade.session TO palisade_reader;
GRANT SELECT(worker) ON TABLE palisade.session TO palisade_reader;
GRANT SELECT(ttl) ON TABLE palisade.session TO palisade_reader;
GRANT SELECT(expires_at) ON TABLE palisade.session TO palisade_reader;
GRANT SELECT(opened_at) ON TABLE palisade.session TO palisade_reader;
GRANT SELECT(closed_at) ON TABLE palisade.session TO palisade_reader;

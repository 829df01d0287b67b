-- The model registry, plans and deployments: what leases protect.
--
-- A fenced function is: enter (the gate) → write, with the row's own token as a second line → leave (ledger, sequence).
SET LOCAL ROLE palisade_owner;

-- ---------------------------------------------------------------- plain clients: no lease, an idempotency key

-- The first try's answer, if there was one. Two tries at once: the second waits for the first, then sees its row.
CREATE FUNCTION palisade.begin_request(p_request uuid, p_kind text, p_args bytea) RETURNS palisade.answer
LANGUAGE plpgsql AS $$
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

CREATE FUNCTION palisade.end_request(p_request uuid, p_kind text, p_args bytea, p_reason text, p_result jsonb) RETURNS palisade.answer
LANGUAGE plpgsql AS $$
DECLARE
    a palisade.answer := (CASE WHEN p_reason IS NULL THEN 'applied' ELSE 'rejected' END, p_reason, NULL, p_result)::palisade.answer;
BEGIN
    INSERT INTO palisade.request (id, kind, args_hash, answer, at) VALUES (p_request, p_kind, p_args, a, clock_timestamp());
    RETURN a;
END
$$;

CREATE FUNCTION palisade.check_tags(p_tags jsonb) RETURNS void
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF p_tags IS NULL OR jsonb_typeof(p_tags) <> 'object' OR length(p_tags::text) > 65536
       OR EXISTS (SELECT FROM jsonb_each(p_tags) AS t WHERE jsonb_typeof(t.value) <> 'string') THEN
        RAISE EXCEPTION 'palisade: tags must be an object of strings, at most 64 KiB' USING ERRCODE = 'PS004';
    END IF;
END
$$;

CREATE FUNCTION palisade.check_name(p_field text, p_name text) RETURNS void
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF p_name IS NULL OR p_name !~ '^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$' THEN
        RAISE EXCEPTION 'palisade: % is %, and must be 1 to 253 letters, digits, dots, dashes or underscores, with a letter or digit at both ends',
            p_field, quote_nullable(left(p_name, 80)) USING ERRCODE = 'PS004';
    END IF;
END
$$;

CREATE FUNCTION palisade.register_model(name text, description text, tags jsonb, request uuid) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
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

CREATE FUNCTION palisade.register_version(model text, source text, digest text, tags jsonb, request uuid) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
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
$$;

-- An alias that no resource guards. A null version takes it away.
CREATE FUNCTION palisade.put_alias(model text, alias text, version bigint, request uuid) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
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

-- The one place that changes an alias. Answers why not, or null. Under a lease (p_guard) the alias becomes that lease's.
CREATE FUNCTION palisade.write_alias(p_model text, p_alias text, p_version bigint, p_guard text, p_token bigint, p_sequence bigint) RETURNS text
LANGUAGE plpgsql AS $$
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

CREATE FUNCTION palisade.alias_json(p_model text, p_alias text, p_version bigint, p_former bigint, p_guard text) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('model', p_model, 'alias', p_alias, 'version', p_version, 'former', p_former, 'guard', p_guard)
$$;

-- ---------------------------------------------------------------- fenced: aliases

CREATE FUNCTION palisade.set_alias(resource text, token bigint, sequence bigint, key text, model text, alias text, version bigint) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
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

-- Hands an alias from one resource to another. Both owners agree: both fences are needed.
CREATE FUNCTION palisade.move_guard(
    resource text, token bigint, sequence bigint, key text,
    to_resource text, to_token bigint, to_sequence bigint, to_key text, model text, alias text) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
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

-- ---------------------------------------------------------------- plans: the controller's

-- These two are inlined where they are called: no FROM, and no stricter than what they call.
CREATE FUNCTION palisade.plan_json(n palisade.plan) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN n.resource IS NOT NULL THEN jsonb_build_object('uid', n.uid, 'generation', n.generation, 'rollout', n.rollout,
        'paused', n.paused, 'removed', n.removed, 'spec', n.spec, 'status_revision', n.status_revision,
        'progress_ms', palisade.milliseconds(n.progress_ttl)) END
$$;

-- Which plan is the current one: small enough to ride on every answer, so that a changed plan is seen at the next step.
CREATE FUNCTION palisade.plan_mark(p_resource text) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT jsonb_build_object('uid', n.uid, 'generation', n.generation, 'rollout', n.rollout, 'paused', n.paused, 'removed', n.removed)
    FROM palisade.plan AS n WHERE n.resource = p_resource);
END
$$;

CREATE FUNCTION palisade.deployment_json(d palisade.deployment) RETURNS jsonb
LANGUAGE sql VOLATILE AS $$
    SELECT CASE WHEN d.resource IS NOT NULL THEN jsonb_build_object('uid', d.uid, 'rollout', d.rollout, 'step', d.step, 'state', d.state,
        'step_age_ms', palisade.milliseconds(clock_timestamp() - d.step_started_at),
        'step_started_at', d.step_started_at,
        'serving_model', d.serving_model, 'serving_version', d.serving_version, 'serving_revision', d.serving_revision,
        'serving_since', d.serving_since,
        'serving_age_ms', palisade.milliseconds(clock_timestamp() - d.serving_since),
        'failure_reason', d.failure_reason, 'failure_message', d.failure_message, 'token', d.token) END
$$;

-- What a deployment should be. The same plan again changes nothing, but with wake it is looked at again (something in the
-- cluster was changed by hand). A resource whose CR was made anew has another uid; the controller's fence orders the two.
CREATE FUNCTION palisade.put_plan(
    resource text, token bigint, sequence bigint, key text,
    deployment text, uid uuid, generation bigint, spec jsonb, paused boolean, removed boolean, progress interval, wake boolean) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
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
$$;

-- Forgets a plan whose removal was recorded. The lease stays: it remembers the tokens.
CREATE FUNCTION palisade.drop_plan(resource text, token bigint, sequence bigint, key text, deployment text, uid uuid) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
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

-- A number above every one that a status of this deployment ever carried. A skipped one does no harm: no sequence.
CREATE FUNCTION palisade.next_revision(resource text, token bigint, key text, deployment text, above bigint) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
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

-- Everything that the controller decides from, in one round trip. A null alias or version asks for nothing.
CREATE FUNCTION palisade.observe(deployment text, model text, version bigint, alias text, promote text) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
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

-- ---------------------------------------------------------------- fenced: what the owner of a deployment records

-- Step by step, where the work stands. A repeated step keeps its start, so that its timeout spans takeovers.
CREATE FUNCTION palisade.write_step(p_resource text, p_token bigint, p_uid uuid, p_rollout bigint, p_step text, p_state jsonb) RETURNS text
LANGUAGE plpgsql AS $$
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

CREATE FUNCTION palisade.write_event(p_resource text, p_kind text, p_token bigint, p_sequence bigint, p_data jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO palisade.event (resource, kind, token, sequence, data, at)
        VALUES (p_resource, p_kind, p_token, p_sequence, p_data, clock_timestamp());
END
$$;

CREATE FUNCTION palisade.record_step(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, step text, state jsonb) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
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

-- What serves, and the alias that says so, in one transaction: nobody sees the one without the other. A null alias leaves aliases alone.
CREATE FUNCTION palisade.record_serving(
    resource text, token bigint, sequence bigint, key text,
    uid uuid, rollout bigint, step text, state jsonb, model text, version bigint, revision text, alias text) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
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

-- The plan is done: its row leaves the queue, unless a newer plan is waiting.
CREATE FUNCTION palisade.record_done(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, state jsonb) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
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

-- Why the plan cannot be done, for a person. With retry_in it is tried again then; without, only a new plan brings it back.
CREATE FUNCTION palisade.record_failure(
    resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint, step text, state jsonb,
    reason text, message text, retry_in interval) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
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

-- Nothing is served any more, and what the deployment guarded is free. Aliases keep their versions: they say what was promoted last.
CREATE FUNCTION palisade.record_removed(resource text, token bigint, sequence bigint, key text, uid uuid, rollout bigint) RETURNS palisade.answer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
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

-- ---------------------------------------------------------------- reading

-- What a worker must know to serve a version.
CREATE FUNCTION palisade.version_show(model text, version bigint) RETURNS TABLE (source text, digest text, tags jsonb)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
    SELECT v.source, v.digest, v.tags FROM palisade.model_version AS v
    WHERE v.model = version_show.model AND v.version = version_show.version
$$;

-- The plan as it is now, for the deployment's owner.
CREATE FUNCTION palisade.plan_show(resource text) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
    SELECT palisade.plan_json(n) FROM palisade.plan AS n WHERE n.resource = plan_show.resource
$$;

-- The outbox in an order that misses nothing: only transactions below the oldest that is still running.
CREATE FUNCTION palisade.events(after_xid xid8, after_id bigint, "limit" integer)
RETURNS TABLE (xid xid8, id bigint, resource text, kind text, token bigint, sequence bigint, data jsonb, at timestamptz)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
    SELECT e.xid, e.id, e.resource, e.kind, e.token, e.sequence, e.data, e.at FROM palisade.event AS e
    WHERE e.xid < pg_snapshot_xmin(pg_current_snapshot()) AND (e.xid, e.id) > (events.after_xid, events.after_id)
    ORDER BY e.xid, e.id LIMIT events."limit"
$$;

-- Figures for /metrics, by one statement.
CREATE FUNCTION palisade.figures(
    OUT queue_depth bigint, OUT queue_age_ms bigint, OUT leases_held bigint, OUT sessions_open bigint,
    OUT oldest_transaction_ms bigint, OUT oldest_xmin_age bigint)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
    SELECT (SELECT count(*) FROM palisade.queue AS q WHERE q.due_at <= clock_timestamp()),
           (SELECT coalesce(palisade.milliseconds(clock_timestamp() - min(q.due_at)), 0) FROM palisade.queue AS q WHERE q.due_at <= clock_timestamp()),
           (SELECT count(*) FROM palisade.lease AS l WHERE l.session IS NOT NULL),
           (SELECT count(*) FROM palisade.session AS s WHERE s.closed_at IS NULL AND s.expires_at > clock_timestamp()),
           (SELECT coalesce(palisade.milliseconds(clock_timestamp() - min(a.xact_start)), 0)
                FROM pg_catalog.pg_stat_activity AS a WHERE a.datname = current_database() AND a.backend_type = 'client backend'),
           (SELECT coalesce(max(age(a.backend_xmin)), 0) FROM pg_catalog.pg_stat_activity AS a)
$$;

RESET ROLE;

-- A table of your own becomes a protected resource: triggers ask the gate about each row that a statement changed.
--
-- The triggers, protect and unprotect run as whoever calls them, never as the owner role: what a table's owner says a
-- row's resource is, is code of the table's owner. Only check_row and use_lease, which take plain values, run as the owner.
SET LOCAL ROLE palisade_owner;

-- Names the lease that the transaction's next statements write under, for protected tables, and asks the gate.
CREATE FUNCTION palisade.use_lease(resource text, token bigint, key text, for_session boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
BEGIN
    PERFORM palisade.check_lease(use_lease.resource COLLATE "C", use_lease.token, use_lease.key);
    PERFORM set_config('palisade.resource', use_lease.resource, NOT coalesce(use_lease.for_session, false)),
            set_config('palisade.token', use_lease.token::text, NOT coalesce(use_lease.for_session, false)),
            set_config('palisade.key', use_lease.key, NOT coalesce(use_lease.for_session, false));
END
$$;

-- The settings are the caller's word and prove nothing: the gate is asked each time.
CREATE FUNCTION palisade.check_row(target regclass, resource text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, palisade, pg_temp SET lock_timeout = '5s' AS $$
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
$$;

-- The trigger. Its argument is the expression for a row's resource; it is read under settings that the writer cannot choose.
--   before a statement: the lease in use is locked before any row is (the lock order), and a stale writer stops early
--   after a statement:  the rows as they are now, whatever other triggers did to them; each resource once
--   after a row:        the same, for a partition that came after protect and so has none of the others: it gets this one
--                       from its parent, in that moment
CREATE FUNCTION palisade.guard() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
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
$$;

CREATE FUNCTION palisade.unprotect(target regclass) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on SET lock_timeout = '5s' AS $$
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

CREATE FUNCTION palisade.protect(target regclass, resource text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on SET lock_timeout = '5s' AS $$
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

-- From the catalogue, so it cannot say other than what is. A gap is what its owner did to the table since.
CREATE VIEW palisade.protected AS
WITH guard AS (
    SELECT t.tgrelid, t.tgname, t.tgenabled = 'A' AS works,
           -- the trigger's argument, which ends with a zero byte
           convert_from(substring(t.tgargs FROM 1 FOR length(t.tgargs) - 1), getdatabaseencoding()) AS resource
    FROM pg_catalog.pg_trigger AS t WHERE t.tgfoid = 'palisade.guard()'::regprocedure
)
SELECT c.oid::regclass AS target, min(g.resource) AS resource,
       CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE c.relkind = 'r' AND c.oid IN (i.inhrelid, i.inhparent))
                THEN 'it inherits, or is a partition: writes by way of its relative are not checked'
            WHEN count(*) FILTER (WHERE g.works) < CASE c.relkind WHEN 'p' THEN 6 ELSE 5 END
                THEN 'a trigger is missing or disabled'
            WHEN EXISTS (SELECT FROM pg_partition_tree(c.oid) AS p WHERE p.level > 0
                         AND (SELECT count(*) FROM guard AS x WHERE x.tgrelid = p.relid AND x.works) < 6)
                THEN 'a partition came later, or a trigger of one is disabled: its rows are checked slowly, if at all, and it can be truncated'
       END AS gap
FROM guard AS g JOIN pg_catalog.pg_class AS c ON c.oid = g.tgrelid
WHERE NOT (c.relispartition AND EXISTS (SELECT FROM guard AS x WHERE x.tgrelid = pg_partition_root(c.oid)))
GROUP BY c.oid, c.relkind;

RESET ROLE;

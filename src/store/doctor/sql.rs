//! What the doctor asks. Each answer is one JSON value, read by `src/doctor/facts.rs`. All of it reads catalogues, or a
//! single row; nothing is locked or changed.

/// Version, settings, connections. Every role may ask.
pub(super) const SERVER: &str = "
SELECT json_build_object(
    'version', current_setting('server_version_num')::integer,
    'text', current_setting('server_version'),
    'standby', pg_is_in_recovery(),
    'encoding', (SELECT pg_encoding_to_char(d.encoding) FROM pg_database AS d WHERE d.datname = current_database()),
    'login', current_user,
    'superuser', (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user),
    'tls', coalesce((SELECT s.ssl FROM pg_stat_ssl AS s WHERE s.pid = pg_backend_pid()), false),
    'settings', (SELECT json_agg(json_build_object('name', s.name, 'value', s.setting,
                     'global', s.source NOT IN ('database', 'user', 'database user', 'client', 'session')))
                 FROM pg_settings AS s
                 WHERE s.name IN ('fsync', 'full_page_writes', 'autovacuum', 'synchronous_commit', 'synchronous_standby_names',
                                  'default_transaction_isolation', 'default_transaction_read_only', 'statement_timeout', 'lock_timeout',
                                  'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')),
    'connections', (SELECT sum(CASE s.name WHEN 'max_connections' THEN s.setting::bigint ELSE -s.setting::bigint END)
                    FROM pg_settings AS s
                    WHERE s.name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections')),
    'connected', (SELECT coalesce(sum(d.numbackends), 0) FROM pg_stat_database AS d),
    'database_limit', (SELECT d.datconnlimit FROM pg_database AS d WHERE d.datname = current_database()),
    'database_connected', (SELECT d.numbackends FROM pg_stat_database AS d WHERE d.datname = current_database()),
    'standbys', (SELECT count(*) FROM pg_stat_replication AS r WHERE r.state IS DISTINCT FROM 'backup')
) AS facts";

/// Whether the schema is there. By the catalogue: a name could not be looked up without a right to the schema.
pub(super) const SCHEMA: &str = "
SELECT json_build_object(
    'schema', EXISTS (SELECT FROM pg_namespace AS n WHERE n.nspname = 'palisade'),
    'migrations', EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                          WHERE n.nspname = 'palisade' AND c.relname = 'migration')
) AS facts";

/// Which migrations ran. Only whoever migrates may ask.
pub(super) const APPLIED: &str = "
SELECT coalesce(json_agg(json_build_object('version', m.version, 'checksum', encode(m.checksum, 'hex')) ORDER BY m.version), '[]') AS facts
FROM palisade.migration AS m WHERE m.success";

/// The functions' texts and rights, and the tables' storage options. Every role may ask: catalogues are open.
pub(super) const FUNCTIONS: &str = "
SELECT json_build_object(
    'functions', (SELECT coalesce(json_agg(json_build_object(
            'name', p.proname,
            'source', p.prosrc,
            'public', EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a WHERE a.grantee = 0),
            'definer', p.prosecdef,
            'owned', o.rolname = 'palisade_owner',
            'path', coalesce('search_path=pg_catalog, palisade, pg_temp' = ANY (p.proconfig), false)
        ) ORDER BY p.proname), '[]')
        FROM pg_proc AS p JOIN pg_roles AS o ON o.oid = p.proowner
        WHERE p.pronamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'palisade')),
    'unvacuumed', (SELECT coalesce(json_agg(c.relname ORDER BY c.relname), '[]') FROM pg_class AS c
        WHERE c.relnamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'palisade')
          AND EXISTS (SELECT FROM pg_options_to_table(c.reloptions) AS t
                      WHERE t.option_name = 'autovacuum_enabled' AND NOT t.option_value::boolean))
) AS facts";

/// Groups, the logins in them, and what is set for them. Every role may ask.
pub(super) const ROLES: &str = "
WITH groups AS (
    SELECT g.oid, g.rolname FROM pg_roles AS g
    WHERE g.rolname IN ('palisade_owner', 'palisade_controller', 'palisade_worker', 'palisade_registry', 'palisade_reader')
), logins AS (
    -- A superuser is in every role; here only those count that somebody granted to it.
    SELECT r.rolname, r.rolsuper, r.rolconnlimit, json_agg(g.rolname ORDER BY g.rolname) AS groups
    FROM pg_roles AS r JOIN groups AS g
      ON CASE WHEN r.rolsuper THEN EXISTS (SELECT FROM pg_auth_members AS m WHERE m.member = r.oid AND m.roleid = g.oid)
              ELSE pg_has_role(r.oid, g.oid, 'USAGE') END
    WHERE r.rolcanlogin
    GROUP BY r.oid, r.rolname, r.rolsuper, r.rolconnlimit
)
SELECT json_build_object(
    'groups', (SELECT coalesce(json_agg(g.rolname ORDER BY g.rolname), '[]') FROM groups AS g),
    'owner', (SELECT coalesce(json_agg(p.rolname ORDER BY p.rolname), '[]') FROM pg_roles AS p JOIN groups AS g ON g.rolname = 'palisade_owner'
              WHERE p.rolname IN ('pg_read_all_stats', 'pg_signal_backend') AND pg_has_role(g.oid, p.oid, 'USAGE')),
    'logins', (SELECT coalesce(json_agg(json_build_object('name', l.rolname, 'superuser', l.rolsuper, 'limit', l.rolconnlimit,
                   'groups', l.groups) ORDER BY l.rolname), '[]') FROM logins AS l),
    'settings', (SELECT coalesce(json_agg(json_build_object('role', coalesce(r.rolname, ''), 'here', s.setdatabase <> 0,
                     'name', split_part(c, '=', 1), 'value', substr(c, strpos(c, '=') + 1))
                     ORDER BY coalesce(r.rolname, ''), s.setdatabase, c), '[]')
                 FROM pg_db_role_setting AS s LEFT JOIN pg_roles AS r ON r.oid = s.setrole CROSS JOIN unnest(s.setconfig) AS c
                 WHERE s.setdatabase IN (0, (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database()))
                   AND (s.setrole = 0 OR r.rolname IN (SELECT l.rolname FROM logins AS l UNION ALL SELECT g.rolname FROM groups AS g)))
) AS facts";

/// Who is connected. Others' transactions need `pg_read_all_stats`; without it they are not in the answer.
pub(super) const ACTIVITY: &str = "
WITH here AS (
    SELECT a.*, a.application_name LIKE 'palisade worker%' OR a.application_name LIKE 'palisade controller%' AS ours
    FROM pg_stat_activity AS a WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
)
SELECT json_build_object(
    'sees_all', pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
    'oldest', (SELECT json_build_object('pid', a.pid, 'login', a.usename, 'application', a.application_name,
                   'millis', (extract(epoch FROM clock_timestamp() - a.xact_start) * 1000)::bigint)
               FROM here AS a WHERE a.backend_type = 'client backend' AND a.xact_start IS NOT NULL ORDER BY a.xact_start LIMIT 1),
    'idle', (SELECT json_build_object('pid', a.pid, 'login', a.usename, 'application', a.application_name,
                 'millis', (extract(epoch FROM clock_timestamp() - a.state_change) * 1000)::bigint)
             FROM here AS a WHERE a.state LIKE 'idle in transaction%' ORDER BY a.state_change LIMIT 1),
    'prepared', (SELECT coalesce(json_agg(json_build_object('name', x.gid,
                     'millis', (extract(epoch FROM clock_timestamp() - x.prepared) * 1000)::bigint) ORDER BY x.prepared), '[]')
                 FROM pg_prepared_xacts AS x WHERE x.database = current_database()),
    'slots', (SELECT coalesce(json_agg(s.slot_name ORDER BY s.slot_name), '[]') FROM pg_replication_slots AS s
              WHERE NOT s.active AND NOT s.temporary AND (s.restart_lsn IS NOT NULL OR s.xmin IS NOT NULL)),
    'unbound', (SELECT coalesce(json_agg(DISTINCT a.usename), '[]') FROM here AS a JOIN pg_roles AS r ON r.oid = a.usesysid
                WHERE a.ours AND (r.rolsuper OR EXISTS (
                    SELECT FROM pg_roles AS o WHERE o.rolname = 'palisade_owner' AND pg_has_role(r.oid, o.oid, 'USAGE')))),
    'plain', (SELECT coalesce(json_agg(DISTINCT a.application_name || ' from ' || host(a.client_addr)), '[]')
              FROM here AS a JOIN pg_stat_ssl AS t ON t.pid = a.pid
              WHERE a.ours AND NOT t.ssl AND NOT (a.client_addr <<= '127.0.0.0/8' OR a.client_addr = '::1'))
) AS facts";

/// The oldest row of the outbox, which is cleaned by age. Needs a right to read.
pub(super) const UPKEEP: &str = "
SELECT json_build_object('oldest_millis', (extract(epoch FROM clock_timestamp() -
    (SELECT e.at FROM palisade.event AS e ORDER BY e.xid, e.id LIMIT 1)) * 1000)::bigint) AS facts";

/// Tables of others that check the gate, and those that do not in every case. Needs a right to read.
pub(super) const PROTECTED: &str = "
SELECT json_build_object('tables', count(*),
    'gaps', coalesce(json_agg(p.target || ': ' || p.gap ORDER BY p.target::text) FILTER (WHERE p.gap IS NOT NULL), '[]')) AS facts
FROM palisade.protected AS p";

/// Whether this login may migrate an empty database. From Postgres 16 on, a role is granted by whoever has its ADMIN
/// option; before, CREATEROLE was enough.
pub(super) const RIGHTS: &str = "
SELECT json_build_object(
    'roles', me.rolsuper OR me.rolcreaterole OR 5 = (SELECT count(*) FROM pg_roles AS g WHERE g.rolname IN
        ('palisade_owner', 'palisade_controller', 'palisade_worker', 'palisade_registry', 'palisade_reader')),
    'schema', has_database_privilege(current_database(), 'CREATE'),
    'ungrantable', (SELECT coalesce(json_agg(p.rolname ORDER BY p.rolname), '[]') FROM pg_roles AS p
        WHERE p.rolname IN ('pg_read_all_stats', 'pg_signal_backend') AND NOT me.rolsuper
          AND NOT (current_setting('server_version_num')::integer < 160000 AND me.rolcreaterole)
          AND NOT pg_has_role(me.oid, p.oid, 'USAGE WITH ADMIN OPTION')
          AND NOT EXISTS (SELECT FROM pg_roles AS o WHERE o.rolname = 'palisade_owner' AND pg_has_role(o.oid, p.oid, 'USAGE')))
) AS facts
FROM pg_roles AS me WHERE me.rolname = current_user";

/// The server's clock, in microseconds since 1970, and who answers.
pub(super) const TRIP: &str =
    "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS micros, pg_backend_pid() AS backend";

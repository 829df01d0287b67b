//! The stage in the database: an owner that was replaced, its successor, and attackers with their own logins. Each attack
//! is judged by its answer, by what it left, and by a stale write and an honest one after it.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::scenarios::{A, B, CONTROLLER, furnish};
use crate::support::postgres::{Conn, Db, Lease};

use super::expect::Expect;
use super::ways::Way;

/// Whose login attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Worker,
    Controller,
    Registry,
    Reader,
}

impl By {
    pub const ALL: [By; 4] = [By::Worker, By::Controller, By::Registry, By::Reader];

    pub fn group(self) -> &'static str {
        match self {
            By::Worker => "palisade_worker",
            By::Controller => "palisade_controller",
            By::Registry => "palisade_registry",
            By::Reader => "palisade_reader",
        }
    }
}

/// A key that nobody has.
pub const NOBODYS_KEY: &str = "a key that was never given out";

pub struct Arena {
    pub db: Db,
    pub admin: Conn,
    /// Deployment a's former owner: what the attacker truly had once.
    pub stale: Lease,
    /// Its successor.
    pub live: Lease,
    /// The owner of deployment b.
    pub other: Lease,
    pub controller: Lease,
    /// A connection that somebody may want to end.
    bystander: Conn,
    number: u32,
    fingerprint: String,
}

impl Arena {
    pub async fn new() -> Arena {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let db = Db::new().await;
        let mut admin = db.connect().await;
        furnish(&mut admin).await;
        let stale = admin.owner(A).await;
        let live = admin.take_over(&stale).await;
        let other = admin.owner(B).await;
        let controller = admin.owner(CONTROLLER).await;
        for by in By::ALL {
            let (login, group) = (login(by, number), by.group());
            admin.run(&format!("CREATE ROLE {login} LOGIN IN ROLE {group}")).await;
        }
        let bystander = db.connect_as(&login(By::Controller, number)).await;
        let fingerprint = fingerprint(&mut admin, number).await;
        Arena { db, admin, stale, live, other, controller, bystander, number, fingerprint }
    }

    /// Attackers have logins of their own: what they do to a role is seen by nobody else.
    pub fn login(&self, by: By) -> String {
        login(by, self.number)
    }

    pub async fn attacker(&self, by: By) -> Conn {
        self.db.connect_as(&self.login(by)).await
    }

    /// Everything but refusals (a plain client's is a row of its request), as one text: rows, definitions, rights, roles.
    pub async fn state(&mut self) -> String {
        let Arena { admin, fingerprint, .. } = self;
        admin.text(fingerprint).await
    }

    /// Fills in what an attacker knows.
    pub fn fill(&self, sql: &str) -> String {
        sql.replace("{stale}", &self.stale.fence(1))
            .replace("{unnumbered}", &self.stale.unnumbered())
            .replace("{other}", &self.other.fence(1))
            .replace("{session}", &self.other.session.args())
            .replace("{live token}", &self.live.token.to_string())
            .replace("{controller}", &self.login(By::Controller))
            .replace("{me}", &self.login(By::Worker))
    }

    /// A stale write on the attacker's own connection, as he left it, and its successor's on another one. Says what is
    /// wrong, if anything is.
    pub async fn probe(&mut self, conn: &mut Conn) -> Option<String> {
        let stale = conn.try_call(&format!("set_alias({}, 'm', 'live', 1)", self.stale.fence(1))).await;
        let stale = match stale {
            Ok(answer) if answer.word() == "rejected: stale" => None,
            Ok(answer) => Some(format!("a stale write is {}", answer.word())),
            Err(_) => None,
        };
        let honest = self.admin.try_run(&format!("SELECT palisade.check_lease({})", self.live.unnumbered())).await;
        let ended = self.bystander.try_run("SELECT 1").await.is_err().then(|| "a connection was ended".to_owned());
        let honest = honest.err().map(|failure| format!("the owner is stopped: {failure:?}"));
        stale.or(honest).or(ended)
    }

    /// Tries one attack on a fresh connection.
    pub async fn attack(&mut self, way: &Way) -> Result<(), String> {
        let Way { by, sql, expect, given, undo, holds, .. } = *way;
        let before = self.state().await;
        self.admin.run(given).await;
        let mut conn = self.attacker(by).await;
        let answer = answer(&mut conn, &self.fill(sql)).await;
        match (&answer, expect) {
            (Ok(()), Expect::Refused(_)) => return Err("it was ACCEPTED".to_owned()),
            (Err(word), Expect::Refused(parts)) if !Expect::names(parts, word) => {
                return Err(format!("refused, but not by {parts}: {word}"));
            }
            (Err(word), Expect::Harmless(_) | Expect::Limited(_)) => {
                return Err(format!("it goes not through: {word}"));
            }
            _ => {}
        }
        let mut problem = self.probe(&mut conn).await;
        conn.close().await;
        if holds {
            // Kept waiting, and told so; and free again as soon as the connection is gone.
            let waited = problem.as_ref().is_some_and(|problem| problem.contains("55P03"));
            self.admin.wait_until("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%')").await;
            let free = self.admin.try_run(&format!("SELECT palisade.check_lease({})", self.live.unnumbered())).await;
            problem = (!waited || free.is_err()).then(|| format!("it waited: {waited}, and then: {free:?}"));
        }
        self.admin.run(&self.fill(undo)).await;
        let after = self.state().await;
        match problem {
            Some(problem) => Err(problem),
            None if before != after => Err(difference(&before, &after)),
            None => Ok(()),
        }
    }
}

fn login(by: By, number: u32) -> String {
    format!("evil_{}_{number}", by.group().trim_start_matches("palisade_"))
}

/// What a statement, or after `CALL ` a function, answered: an error is its code and message, a refusal its word.
async fn answer(conn: &mut Conn, sql: &str) -> Result<(), String> {
    let said = match sql.strip_prefix("CALL ") {
        Some(call) => conn.try_call(call).await.map(|answer| answer.word()),
        None => conn.try_run(sql).await.map(|()| String::new()),
    };
    match said {
        Ok(word) if word.starts_with("rejected") => Err(word),
        Ok(_) => Ok(()),
        Err(failure) => Err(format!("{}: {}", failure.code, failure.message)),
    }
}

pub fn difference(before: &str, after: &str) -> String {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (before, after) = (lines(before), lines(after));
    let changed: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    format!("it CHANGED {changed:?}")
}

/// One statement that answers a line for each table and each catalogue.
async fn fingerprint(admin: &mut Conn, number: u32) -> String {
    let tables = admin
        .list(
            "SELECT c.relname::text FROM pg_class AS c WHERE c.relnamespace = 'palisade'::regnamespace
             AND c.relkind = 'r' AND c.relname NOT IN ('refusal', 'request') ORDER BY 1",
        )
        .await;
    let mut parts: Vec<String> =
        tables.iter().map(|table| rows(table, &format!("SELECT x::text AS t FROM palisade.{table} AS x"))).collect();
    let ours = "'palisade'::regnamespace";
    for (what, query) in [
        ("functions", format!("SELECT (pg_get_functiondef(oid), proowner, proacl)::text AS t FROM pg_proc WHERE pronamespace = {ours} AND prokind = 'f'")),
        ("relations", format!("SELECT (relname, relowner, relacl, relrowsecurity, relforcerowsecurity, reloptions, relhastriggers, relhasrules)::text AS t FROM pg_class WHERE relnamespace = {ours}")),
        ("columns", format!("SELECT (attname, atttypid, attacl, attisdropped)::text AS t FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid WHERE c.relnamespace = {ours} AND attnum > 0")),
        ("triggers", format!("SELECT (pg_get_triggerdef(g.oid), tgenabled)::text AS t FROM pg_trigger AS g JOIN pg_class AS c ON c.oid = tgrelid WHERE c.relnamespace = {ours}")),
        ("rules", format!("SELECT (ev_class, rulename, ev_enabled)::text AS t FROM pg_rewrite JOIN pg_class AS c ON c.oid = ev_class WHERE c.relnamespace = {ours}")),
        ("constraints", format!("SELECT (conname, pg_get_constraintdef(oid))::text AS t FROM pg_constraint WHERE connamespace = {ours}")),
        ("types", format!("SELECT (typname, typowner, typacl)::text AS t FROM pg_type WHERE typnamespace = {ours}")),
        ("operators and casts", format!("SELECT oid::text AS t FROM pg_operator WHERE oprnamespace = {ours} UNION ALL SELECT (castsource, casttarget)::text FROM pg_cast")),
        ("schemas", "SELECT (nspname, nspowner, nspacl)::text AS t FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'".to_owned()),
        ("roles", "SELECT x::text AS t FROM pg_authid AS x WHERE rolname ~ '^(palisade|postgres)'".to_owned()),
        ("members", format!("SELECT (roleid, member, admin_option)::text AS t FROM pg_auth_members WHERE member::regrole::text ~ '^(palisade|postgres)' OR member::regrole::text ~ '^evil_.*_{number}$'")),
        ("settings of roles", "SELECT s::text AS t FROM pg_db_role_setting AS s JOIN pg_roles AS r ON r.oid = s.setrole AND r.rolname ~ '^palisade'".to_owned()),
        ("default rights", "SELECT a::text AS t FROM pg_default_acl AS a JOIN pg_roles AS r ON r.oid = a.defaclrole AND r.rolname ~ '^palisade'".to_owned()),
        ("extensions and languages", "SELECT extname::text AS t FROM pg_extension UNION ALL SELECT lanname::text FROM pg_language".to_owned()),
        ("event triggers and publications", "SELECT evtname::text AS t FROM pg_event_trigger UNION ALL SELECT pubname::text FROM pg_publication".to_owned()),
    ] {
        parts.push(rows(what, &query));
    }
    format!("SELECT concat_ws(E'\\n', {})", parts.join(", "))
}

fn rows(name: &str, query: &str) -> String {
    format!("'{name} ' || (SELECT coalesce(md5(string_agg(q.t, E'\\n' ORDER BY q.t)), '') FROM ({query}) AS q)")
}

//! The database: connection, server, schema, epoch. Pure. What is set for logins is in `logins.rs`, what goes on in
//! the server in `activity.rs`.

use std::time::Duration;

use super::facts::{Answers, DatabaseFacts, Functions, NoConnection, Protected, Rights, Schema, Server, Target, Trip};
use super::finding::{Chart, Finding, Looked};
use super::{activity, logins};
use crate::store::{EpochStatus, Migration};

/// The oldest server that is supported.
const OLDEST: i64 = 15;
/// A clock that is further off than this confuses people who read logs.
const CLOCK_MILLIS: i64 = 1000;

/// All that can be said about the database. `pre`: nothing is installed yet, and nothing is missed; `kept`: how long the
/// controller keeps events.
#[must_use]
pub fn check(facts: &DatabaseFacts, pre: bool, kept: Duration) -> Vec<Finding> {
    let answers = match &facts.answers {
        Ok(answers) => answers,
        Err((why, message)) => return vec![no_connection(*why, message, facts.target.as_ref())],
    };
    let mut chart = Chart::default();
    if let Some(server) = chart.seen("the server's version and settings", &answers.server) {
        chart.add(version(server));
        chart.add(role_of_server(server, facts.target.as_ref()));
        chart.add(encoding(server));
        if let Some(target) = &facts.target {
            encryption(&mut chart, server, target);
        }
        activity::settings(&mut chart, server);
        activity::connections(&mut chart, server);
    }
    if let Some(trips) = chart.seen("the way there and back", &answers.trips) {
        chart.add(clock(trips));
        chart.add(pooler(trips));
    }
    let installed = schema(&mut chart, answers, pre);
    if pre {
        if let (false, Some(rights)) = (installed, chart.seen("this login's rights", &answers.rights)) {
            chart.add(may_migrate(rights));
        }
    } else if installed {
        in_use(&mut chart, answers, kept);
    }
    if let Some(found) = chart.seen("other connections", &answers.activity) {
        activity::transactions(&mut chart, found);
    }
    chart.finish(
        "database/unseen",
        "database/no-answer",
        "run the doctor once more as the role that migrates, or as a superuser: DATABASE_URL=postgres://postgres@… palisade doctor",
    )
}

fn no_connection(why: NoConnection, message: &str, target: Option<&Target>) -> Finding {
    let host = target.map_or("the database", |target| target.host.as_str());
    match why {
        NoConnection::Url => Finding::error(
            "database/url",
            message,
            "without a database nothing can be granted or recorded",
            "set DATABASE_URL; write characters such as @ and / in a password as %40 and %2F",
        ),
        NoConnection::Unreachable => Finding::error(
            "database/unreachable",
            format!("{host}: {message}"),
            "no lease is granted or kept, and nothing is written; what serves goes on serving",
            "does the server run, and do host, port, firewall and TLS settings fit? psql \"$DATABASE_URL\" says more",
        ),
        NoConnection::Login => Finding::error(
            "database/login-refused",
            format!("{host}: {message}"),
            "the programs with this login cannot work",
            "look at name and password in DATABASE_URL, at CONNECT on the database, and at the server's pg_hba.conf",
        ),
        NoConnection::Database => Finding::error(
            "database/none",
            format!("{host}: {message}"),
            "the schema lives in a database that must be there",
            "CREATE DATABASE, or mend the last part of DATABASE_URL",
        ),
        NoConnection::Pooler => Finding::error("database/pooler", format!("{host}: {message}"), POOLER, DIRECT),
    }
}

const POOLER: &str = "something between here and Postgres gives statements of one connection to several backends, or \
    keeps settings from them: a statement could be parted from its answer, and its time limit is lost";
const DIRECT: &str =
    "connect to Postgres itself, or through a pooler in session mode that passes the parameter options on";

fn version(server: &Server) -> Finding {
    let what = format!("Postgres {}", server.text);
    if server.version / 10_000 >= OLDEST {
        return Finding::ok("database/version", what);
    }
    Finding::error(
        "database/version-too-old",
        what,
        "Palisade is made for, and tested with, Postgres 15 and newer",
        format!("upgrade the server to Postgres {OLDEST} or newer"),
    )
}

fn role_of_server(server: &Server, target: Option<&Target>) -> Finding {
    let name = target.map_or_else(String::new, |t| format!("{}/{}", t.host, t.database));
    if !server.standby {
        return Finding::ok("database/primary", format!("{name} takes writes, as {}", server.login));
    }
    Finding::error(
        "database/standby",
        format!("{name} is in recovery: a standby, which takes no writes"),
        "every call changes something, and is refused there",
        "name the primary in DATABASE_URL; after a failover, has the address moved with it?",
    )
}

fn encoding(server: &Server) -> Finding {
    let what = format!("encoding {}", server.encoding);
    if server.encoding == "UTF8" {
        return Finding::ok("database/encoding", what);
    }
    Finding::warning(
        "database/encoding-not-utf8",
        what,
        "descriptions, reasons and pod templates may hold any character; one that this encoding lacks is refused, and \
         its write with it",
        "make the database anew: CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8'",
    )
}

fn encryption(chart: &mut Chart, server: &Server, target: &Target) {
    const READ: &str =
        "passwords, session keys and model sources can be read, and answers forged, by whoever is between";
    if target.near {
        return chart.add(Finding::ok("database/tls", "the server is on this machine"));
    }
    if !server.tls {
        return chart.add(Finding::warning(
            "database/tls-off",
            format!("the connection to {} is not encrypted", target.host),
            READ,
            "turn ssl on in the server, and add ?sslmode=verify-full to DATABASE_URL (&sslrootcert=/path for a private CA)",
        ));
    }
    chart.add(if target.verified {
        Finding::ok("database/tls", "encrypted, and the server's certificate is verified")
    } else {
        Finding::warning(
            "database/tls-unverified",
            format!("the connection to {} is encrypted, and nobody checks to whom", target.host),
            READ,
            "add ?sslmode=verify-full to DATABASE_URL (&sslrootcert=/path for a private CA)",
        )
    });
}

fn clock(trips: &[Trip]) -> Finding {
    // The quickest trip tells it most exactly.
    let ahead = trips.iter().min_by_key(|trip| trip.took).map_or(0, |trip| trip.ahead_millis);
    let side = if ahead < 0 { "behind" } else { "ahead of" };
    let what = format!("the database's clock is {} ms {side} this machine's", ahead.abs());
    if ahead.abs() <= CLOCK_MILLIS {
        return Finding::ok("database/clock", what);
    }
    Finding::warning(
        "database/clock-off",
        what,
        "leases do not depend on it: the database's clock alone decides when they end. But times in history, logs and \
         conditions cannot be put side by side, and what is judged by its time looks older or newer than it is",
        "look after the time service (chrony, systemd-timesyncd) of both machines",
    )
}

fn pooler(trips: &[Trip]) -> Finding {
    let first = trips.first().map(|trip| trip.backend);
    if trips.iter().all(|trip| Some(trip.backend) == first) {
        return Finding::ok("database/connection", "one connection, one backend");
    }
    Finding::error("database/pooler", "statements of one connection were answered by several backends", POOLER, DIRECT)
}

/// Whether the schema is there, and this program's.
fn schema(chart: &mut Chart, answers: &Answers, pre: bool) -> bool {
    let Some(found) = chart.seen("the schema", &answers.schema) else { return false };
    if !found.schema || !found.migrations {
        chart.add(absent(*found, pre));
        return false;
    }
    // A schema of another release may lack what is asked about.
    let Some(applied) = chart.seen("the schema's version", &answers.applied) else { return true };
    let finding = migrations(applied, &answers.program);
    let fits = finding.check == "database/schema";
    chart.add(finding);
    if let (true, Some(found)) = (fits, chart.seen("the schema's functions", &answers.functions)) {
        functions(chart, found);
    }
    fits
}

fn absent(found: Schema, pre: bool) -> Finding {
    if pre {
        return Finding::ok("database/schema", "not installed yet");
    }
    let what = if found.schema { "the schema palisade has no migrations" } else { "there is no schema palisade" };
    Finding::error(
        "database/schema-missing",
        what,
        "leases, plans and the registry live there",
        "is this the right database? Then, as a superuser: palisade migrate",
    )
}

fn migrations(applied: &[Migration], program: &[Migration]) -> Finding {
    let newest = |list: &[Migration]| list.iter().map(|m| m.version).max().unwrap_or(0);
    let (database, ours) = (newest(applied), newest(program));
    let changed = applied.iter().find(|m| program.iter().any(|p| p.version == m.version && p.checksum != m.checksum));
    let missing = program.iter().any(|p| !applied.iter().any(|m| m.version == p.version));
    if database > ours {
        return Finding::error(
            "database/schema-newer",
            format!("the schema has version {database}, and this program knows only {ours}"),
            "this program does not know what a later release promised there",
            "run the palisade that made the schema, or a later one",
        );
    }
    if let Some(changed) = changed {
        return Finding::error(
            "database/schema-changed",
            format!("migration {} is not the one that this program holds", changed.version),
            "another build made this schema: what its functions promise is not known",
            "run the palisade that made the schema",
        );
    }
    if missing {
        return Finding::error(
            "database/schema-older",
            format!("the schema has version {database}, and this program needs {ours}"),
            "functions that this program calls are missing or older",
            "palisade migrate, before the new controllers and workers start",
        );
    }
    Finding::ok("database/schema", format!("version {database}, this program's"))
}

fn functions(chart: &mut Chart, found: &Functions) {
    const GATE: &str = "these functions are the gate: one that was changed by hand may let a stale write through";
    let list = |names: &[String]| names.join(", ");
    let mut problems = Vec::new();
    for (names, what) in [
        (&found.changed, "were changed"),
        (&found.missing, "are missing"),
        (&found.open, "run with other rights than they were made with"),
    ] {
        if !names.is_empty() {
            problems.push(format!("{} {what}", list(names)));
        }
    }
    if problems.is_empty() {
        chart.add(Finding::ok("database/functions", "as this program made them"));
    } else {
        chart.add(Finding::error(
            "database/functions-changed",
            problems.join("; "),
            GATE,
            "find out who did it and why; then restore the schema from a backup, or put the functions of migrations/ back",
        ));
    }
    if !found.public.is_empty() {
        chart.add(Finding::warning(
            "database/functions-public",
            format!("everybody may call {}", list(&found.public)),
            "logins outside the groups get rights that nobody gave them",
            format!(
                "REVOKE EXECUTE ON FUNCTION palisade.{} FROM PUBLIC",
                list(&found.public).replace(", ", ", palisade.")
            ),
        ));
    }
    if !found.unvacuumed.is_empty() {
        chart.add(Finding::warning(
            "database/autovacuum-off",
            format!("autovacuum leaves {} alone", list(&found.unvacuumed)),
            "sessions and leases are updated all the time: their dead rows pile up, and every call gets slower",
            format!(
                "ALTER TABLE palisade.{} RESET (autovacuum_enabled)",
                found.unvacuumed.first().map_or("", String::as_str)
            ),
        ));
    }
}

fn may_migrate(rights: &Rights) -> Finding {
    let mut lacking = Vec::new();
    if !rights.roles {
        lacking.push("may not make roles".to_owned());
    }
    if !rights.schema {
        lacking.push("may not make a schema in this database".to_owned());
    }
    if !rights.ungrantable.is_empty() {
        lacking.push(format!("may not grant {}", rights.ungrantable.join(" and ")));
    }
    if lacking.is_empty() {
        return Finding::ok("database/may-migrate", "this login may run palisade migrate");
    }
    Finding::error(
        "database/may-not-migrate",
        format!("this login {}", lacking.join(", ")),
        "palisade migrate makes group roles and a schema, and lets the owner role see when the server was started",
        "run palisade migrate as a superuser once, or give this login CREATEROLE, CREATE on the database, and those roles \
         WITH ADMIN OPTION",
    )
}

/// What matters once the schema is there.
fn in_use(chart: &mut Chart, answers: &Answers, kept: Duration) {
    let standby = answers.server.as_ref().is_ok_and(|server| server.standby);
    if !standby && let Some(status) = chart.seen("the epoch", &answers.epoch) {
        chart.add(epoch(status));
    }
    if let (Some(roles), Ok(server)) = (chart.seen("roles", &answers.roles), &answers.server) {
        logins::check(chart, roles, server);
    }
    if let Some(upkeep) = chart.seen("the oldest event", &answers.upkeep) {
        chart.add(activity::upkeep(upkeep, kept));
    }
    if let Some(found) = chart.seen("protected tables", &answers.protected) {
        chart.add(protected(found));
    }
}

fn protected(found: &Protected) -> Finding {
    if found.gaps.is_empty() {
        return Finding::ok(
            "database/protected",
            format!("{} table(s) of yours are protected, without a gap", found.tables),
        );
    }
    Finding::warning(
        "database/protected-gap",
        found.gaps.join("; "),
        "a write that was refused elsewhere may land there: a worker that was replaced can change it",
        "enable its triggers, or call palisade.protect again with the same resource: it makes those that are missing",
    )
}

fn epoch(status: &EpochStatus) -> Finding {
    const NOTHING: &str = "without an epoch of the running database nothing is granted and nothing is written";
    const CONTROLLER: &str = "start a controller that reaches this database and the cluster: it establishes one within \
        seconds; its /readyz says what keeps it from that";
    match (status.number, status.established) {
        (Some(number), true) => Finding::ok("database/epoch", format!("epoch {number}, established")),
        (None, _) => Finding::error("database/epoch-none", "no epoch was ever established", NOTHING, CONTROLLER),
        (Some(number), false) if is_copy(status) => Finding::error(
            "database/epoch-of-a-copy",
            format!("epoch {number} belongs to another database: this is a copy, or a dump that was restored"),
            NOTHING,
            "is this the database that you mean? The other one may still be in use. If it is, start a controller on it",
        ),
        (Some(number), false) => Finding::error(
            "database/epoch-not-established",
            format!("epoch {number} was established before the server was started, promoted or recovered"),
            NOTHING,
            CONTROLLER,
        ),
    }
}

/// Another server, or another database of this one: the first and the last part of an incarnation's name.
fn is_copy(status: &EpochStatus) -> bool {
    let ends = |name: &str| {
        let mut parts = name.split('/').map(str::to_owned);
        (parts.next(), parts.next_back())
    };
    status.established_for.as_deref().is_some_and(|then| ends(then) != ends(&status.incarnation))
}

/// The latency of the trips, for the configuration's checks.
pub(super) fn trips(facts: &DatabaseFacts) -> Option<&[Trip]> {
    let trips: &Looked<Vec<Trip>> = &facts.answers.as_ref().ok()?.trips;
    trips.as_deref().ok()
}

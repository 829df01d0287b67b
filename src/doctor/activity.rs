//! What the server is set to, and what goes on in it. Pure.

use std::time::Duration;

use super::facts::{Activity, Backend, Server, Upkeep};
use super::finding::{Chart, Finding};

/// A new worker opens up to 33 connections, a controller 9: with fewer left, one of them will wait.
const HEADROOM: i64 = 20;
/// From here on an open transaction keeps dead rows, and the outbox waits for it.
const OLD_MILLIS: i64 = 60_000;
/// From here on a transaction that does nothing is in the way: a heartbeat would have come.
const IDLE_MILLIS: i64 = 10_000;
/// Upkeep goes in small batches; what should have gone more than a day ago is a sign that it does not run.
const LATE: Duration = Duration::from_secs(24 * 3600);

/// A setting of the server's, as this connection has it.
pub(super) fn setting<'a>(server: &'a Server, name: &str) -> &'a str {
    server.settings.iter().find(|setting| setting.name == name).map_or("", |setting| setting.value.as_str())
}

pub(super) fn settings(chart: &mut Chart, server: &Server) {
    let off: Vec<_> = ["fsync", "full_page_writes"].into_iter().filter(|name| setting(server, name) == "off").collect();
    chart.add(if off.is_empty() {
        Finding::ok("database/durability", "fsync and full_page_writes are on")
    } else {
        Finding::error(
            "database/durability-off",
            format!("{} is off", off.join(" and ")),
            "after a crash of the machine the database may be damaged, and grants and writes that were answered are gone",
            "set it to on in postgresql.conf, and reload",
        )
    });
    if setting(server, "autovacuum") == "off" {
        chart.add(Finding::warning(
            "database/autovacuum-off",
            "autovacuum is off",
            "sessions and leases are updated all the time: their dead rows pile up, and every call gets slower",
            "ALTER SYSTEM SET autovacuum = on; SELECT pg_reload_conf()",
        ));
    }
    chart.add(match (server.standbys, setting(server, "synchronous_standby_names")) {
        (0, _) => Finding::ok("database/replication", "no standby is attached"),
        (n, "") => Finding::warning(
            "database/replication-asynchronous",
            format!("{n} standby(s) attached, and no commit waits for one: synchronous_standby_names is empty"),
            "a failover may lose the last writes that were answered. Tokens stay safe, by the next epoch; what is lost is \
             done again, and looks in history as if it had never been",
            "if that may not be: set synchronous_standby_names to one of them, or ANY 1 (…)",
        ),
        (n, names) => Finding::ok("database/replication", format!("{n} standby(s), commits wait for {names}")),
    });
}

pub(super) fn connections(chart: &mut Chart, server: &Server) {
    let (left, of) = match server.database_limit {
        limit if limit >= 0 && limit - server.database_connected < server.connections - server.connected => {
            (limit - server.database_connected, limit)
        }
        _ => (server.connections - server.connected, server.connections),
    };
    let what = format!("{} of {of} connections are left", left.max(0));
    chart.add(if left >= HEADROOM {
        Finding::ok("database/connections", what)
    } else {
        Finding::warning(
            "database/connections-short",
            what,
            "a controller takes up to 9, a worker up to 33; one that gets none cannot send its heartbeat, and loses its leases",
            "raise max_connections or the database's CONNECTION LIMIT, end what is not needed, or lower worker --capacity",
        )
    });
}

pub(super) fn transactions(chart: &mut Chart, found: &Activity) {
    oldest(chart, found);
    if let Some(prepared) = found.prepared.first().filter(|x| x.millis >= IDLE_MILLIS) {
        chart.add(Finding::warning(
            "database/prepared-transaction",
            format!("the prepared transaction {} is {} old", prepared.name, span(prepared.millis)),
            "it keeps its locks and every dead row since then, also over a restart",
            format!(
                "COMMIT PREPARED '{0}' or ROLLBACK PREPARED '{0}', as its owner knows",
                prepared.name.replace('\'', "''")
            ),
        ));
    }
    if !found.slots.is_empty() {
        chart.add(Finding::warning(
            "database/slot-unread",
            format!("nobody reads the replication slot(s) {}", found.slots.join(", ")),
            "a slot keeps WAL, and perhaps dead rows, until the disk is full; then Postgres stops",
            "start its reader, or SELECT pg_drop_replication_slot('…')",
        ));
    }
    if !found.unbound.is_empty() {
        chart.add(Finding::warning(
            "database/rights-excess",
            format!("controllers or workers are connected as {}, which no right holds back", found.unbound.join(", ")),
            "whoever takes over such a process can change every row without the gate",
            "give each a login in palisade_controller or palisade_worker: docs/operations.md",
        ));
    }
    if !found.plain.is_empty() {
        chart.add(Finding::warning(
            "database/tls-off",
            format!("not encrypted: {}", found.plain.join(", ")),
            "passwords, session keys and model sources can be read, and answers forged, by whoever is between",
            "turn ssl on in the server, and add ?sslmode=verify-full to those programs' DATABASE_URL",
        ));
    }
}

fn oldest(chart: &mut Chart, found: &Activity) {
    if !found.sees_all {
        return chart.add(Finding::info(
            "database/unseen",
            "could not look at other logins' transactions",
            "an old one keeps dead rows, and may block a takeover",
            "run the doctor as a superuser, or GRANT pg_read_all_stats to this login",
        ));
    }
    let idle = found.idle.as_ref().filter(|backend| backend.millis >= IDLE_MILLIS);
    if let Some(backend) = idle {
        chart.add(Finding::warning(
            "database/transaction-idle",
            format!("{} has idled in a transaction for {}", named(backend), span(backend.millis)),
            "what it has locked stays locked: a takeover of a lease whose row it holds waits, until the leading controller ends it",
            format!("end its program, or SELECT pg_terminate_backend({})", backend.pid),
        ));
    }
    match &found.oldest {
        Some(backend) if backend.millis >= OLD_MILLIS => chart.add(Finding::warning(
            "database/transaction-old",
            format!("the transaction of {} is {} old", named(backend), span(backend.millis)),
            "no dead row since then can be removed, so heartbeats get slower; statuses wait for it, if it writes",
            format!("end it: SELECT pg_cancel_backend({0}) or pg_terminate_backend({0})", backend.pid),
        )),
        oldest if idle.is_none() => chart.add(Finding::ok(
            "database/transactions",
            oldest.as_ref().map_or("none is open".to_owned(), |b| {
                format!("the oldest, of {}, is {} old", named(b), span(b.millis))
            }),
        )),
        _ => {}
    }
}

pub(super) fn upkeep(found: &Upkeep, kept: Duration) -> Finding {
    let oldest = Duration::from_millis(u64::try_from(found.oldest_millis.unwrap_or(0)).unwrap_or(0));
    let what = found
        .oldest_millis
        .map_or("there are no events".to_owned(), |age| format!("the oldest event is {} old", span(age)));
    if oldest <= kept + LATE {
        return Finding::ok("database/upkeep", what);
    }
    Finding::warning(
        "database/upkeep-behind",
        what,
        "the leading controller removes what is old; if it does not, tables grow without end",
        "does a controller lead? palisade lease show controller/default, and its log. Told to keep events for longer? --keep-events",
    )
}

fn named(backend: &Backend) -> String {
    let text = |part: &Option<String>| part.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| "?".into());
    format!("backend {} ({}, {})", backend.pid, text(&backend.login), text(&backend.application))
}

/// For people, in the largest unit that it fills.
pub(super) fn span(millis: i64) -> String {
    match millis {
        ..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{} s", millis / 1_000),
        60_000..3_600_000 => format!("{} min", millis / 60_000),
        3_600_000..86_400_000 => format!("{} h", millis / 3_600_000),
        _ => format!("{} d", millis / 86_400_000),
    }
}

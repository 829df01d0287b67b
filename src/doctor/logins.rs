//! Who may log in, and what is set for them. Pure. Settings of a group role are not inherited, so each login is looked at
//! by itself: what is set for it in this database, for it, for this database, or for the server, in this order.

use super::activity;
use super::facts::{GROUPS, Login, Roles, Server};
use super::finding::{Chart, Finding};

/// The functions wait up to 5 s for a lock: a call that is ended sooner never learns what became of it.
const SHORTEST_MILLIS: i64 = 5_000;
/// A pooled connection is idle between two heartbeats, which may be twenty minutes apart at the longest TTL.
const SHORTEST_IDLE_MILLIS: i64 = 60_000;
/// What one controller opens.
const CONNECTIONS: i64 = 9;

/// Not lock_timeout: each function sets its own.
const TIMEOUTS: [&str; 4] =
    ["statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout", "idle_session_timeout"];

pub(super) fn check(chart: &mut Chart, roles: &Roles, server: &Server) {
    let missing: Vec<_> = GROUPS.into_iter().filter(|group| !roles.groups.iter().any(|name| name == group)).collect();
    if missing.is_empty() {
        chart.add(Finding::ok("database/roles", format!("the groups are there, with {} login(s)", roles.logins.len())));
    } else {
        chart.add(Finding::error(
            "database/roles-missing",
            format!("there is no role {}", missing.join(", ")),
            "rights are given to these groups; a dump of one database does not contain roles",
            "restore the roles too (pg_dumpall --roles-only), before the schema",
        ));
    }
    owner(chart, roles);
    this_login(chart, roles, server);
    for login in &roles.logins {
        one(chart, login);
    }
    for group in ["palisade_worker", "palisade_controller"] {
        if !missing.contains(&group) && !roles.logins.iter().any(|login| login.is_in(group)) {
            chart.add(Finding::warning(
                "database/login-missing",
                format!("no login is in the group {group}"),
                "a program that runs as a superuser, or not at all, is what is left",
                format!("CREATE ROLE … LOGIN PASSWORD '…' IN ROLE {group}"),
            ));
        }
    }
    on_groups(chart, roles);
    settings(chart, roles, server);
}

fn owner(chart: &mut Chart, roles: &Roles) {
    let lacks = |role: &str| !roles.owner.iter().any(|name| name == role);
    if !roles.groups.iter().any(|name| name == "palisade_owner") {
        return;
    }
    if lacks("pg_read_all_stats") {
        chart.add(Finding::error(
            "database/owner-cannot-see",
            "palisade_owner is not in pg_read_all_stats",
            "it cannot see when the checkpointer was started, so no epoch can be told from the one before: all is refused",
            "as a superuser: GRANT pg_read_all_stats TO palisade_owner",
        ));
    }
    if lacks("pg_signal_backend") {
        chart.add(Finding::warning(
            "database/owner-cannot-end",
            "palisade_owner is not in pg_signal_backend",
            "a client that was paused in a transaction cannot be ended: it blocks the takeover of the lease whose row it holds",
            "as a superuser: GRANT pg_signal_backend TO palisade_owner",
        ));
    }
}

/// Who asks.
fn this_login(chart: &mut Chart, roles: &Roles, server: &Server) {
    let groups = roles.logins.iter().find(|login| login.name == server.login).map(|login| login.groups.join(", "));
    chart.add(match groups {
        Some(groups) => Finding::ok("database/login", format!("{} is in {groups}", server.login)),
        None if server.superuser => Finding::info(
            "database/login-superuser",
            format!("{} is a superuser", server.login),
            "it sees everything here, and says nothing about what controllers and workers may do",
            "run the doctor once more with the DATABASE_URL of each of them",
        ),
        None => Finding::error(
            "database/login-without-group",
            format!("{} is in none of Palisade's groups", server.login),
            "it may call nothing",
            format!(
                "GRANT palisade_worker TO {0}, or another group: docs/operations.md says who needs which",
                server.login
            ),
        ),
    });
}

fn one(chart: &mut Chart, login: &Login) {
    // The controller's group is in the readers'; an owner is there to migrate, and has all rights.
    let parts: Vec<_> = ["palisade_controller", "palisade_worker", "palisade_registry"]
        .into_iter()
        .filter(|group| login.is_in(group))
        .collect();
    if !parts.is_empty() && (login.superuser || login.is_in("palisade_owner")) {
        chart.add(Finding::warning(
            "database/rights-excess",
            format!("{} is in {}, and no right holds it back", login.name, parts.join(" and ")),
            "whoever takes over such a process can change every row without the gate",
            "take SUPERUSER or palisade_owner away from it; migrate with another login",
        ));
    } else if parts.len() > 1 {
        chart.add(Finding::warning(
            "database/login-several-groups",
            format!("{} is in {}", login.name, parts.join(" and ")),
            "who takes over one part of Palisade has the rights of the other one, too",
            "make a login for each part: docs/operations.md",
        ));
    }
    if (0..CONNECTIONS).contains(&login.limit) && parts.iter().any(|group| *group != "palisade_registry") {
        chart.add(Finding::warning(
            "database/connections-short",
            format!("{} may have {} connections", login.name, login.limit),
            "a controller takes up to 9, a worker up to 33; one that gets none cannot send its heartbeat, and loses its leases",
            format!("ALTER ROLE {} CONNECTION LIMIT 50", login.name),
        ));
    }
}

/// A setting of a group does nothing at all.
fn on_groups(chart: &mut Chart, roles: &Roles) {
    for set in roles.settings.iter().filter(|set| GROUPS.contains(&set.role.as_str())) {
        chart.add(Finding::warning(
            "database/setting-on-group",
            format!("{} is set for the group {}", set.name, set.role),
            "settings are not inherited: no login has it",
            format!("ALTER ROLE … SET {0} = '…' for each login, and ALTER ROLE {1} RESET {0}", set.name, set.role),
        ));
    }
}

/// What a setting is for a login: the value, and where it comes from.
fn effective<'a>(roles: &'a Roles, server: &'a Server, login: &str, name: &str) -> Option<(&'a str, String)> {
    let set = |role: &str, here: bool| {
        roles.settings.iter().find(|set| set.role == role && set.here == here && set.name == name)
    };
    let of_role = set(login, true).or_else(|| set(login, false)).map(|set| (set, format!("role {login}")));
    let of_database = || set("", true).map(|set| (set, "the database".to_owned()));
    let of_all = || set("", false).map(|set| (set, "all roles".to_owned()));
    if let Some((set, place)) = of_role.or_else(of_database).or_else(of_all) {
        return Some((set.value.as_str(), place));
    }
    let global = server.settings.iter().find(|setting| setting.name == name && setting.global)?;
    Some((global.value.as_str(), "the server".to_owned()))
}

fn settings(chart: &mut Chart, roles: &Roles, server: &Server) {
    let programs = roles.logins.iter().filter(|login| !login.superuser && !login.is_in("palisade_owner"));
    let programs = programs.filter(|login| login.groups.iter().any(|group| group != "palisade_reader"));
    let (mut found, mut idle): (Vec<Finding>, Vec<&str>) = (Vec::new(), Vec::new());
    for login in programs {
        // What is set for the database or the server is said once, and not for each login.
        found.extend(of_login(roles, server, &login.name));
        let ends = effective(roles, server, &login.name, "idle_in_transaction_session_timeout");
        if ends.is_none_or(|(value, _)| millis(value).is_none_or(|span| span == 0)) {
            idle.push(&login.name);
        }
    }
    let mut once: Vec<Finding> = Vec::new();
    for finding in found {
        if !once.contains(&finding) {
            once.push(finding);
        }
    }
    if once.is_empty() {
        chart.add(Finding::ok("database/settings", "no login's settings are in the way"));
    }
    chart.findings.extend(once);
    if !idle.is_empty() {
        chart.add(Finding::info(
            "database/idle-timeout-none",
            format!("nothing ends an idle transaction of {}", idle.join(", ")),
            "Palisade's own programs open none. A SQL client of yours that is paused in one keeps the lease's row locked \
             until the leading controller ends it",
            "if such clients use it: ALTER ROLE … SET idle_in_transaction_session_timeout = '10s'",
        ));
    }
}

fn of_login(roles: &Roles, server: &Server, login: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let value = |name: &str| effective(roles, server, login, name).map(|(v, place)| (v.to_ascii_lowercase(), place));
    if let Some((isolation, place)) = value("default_transaction_isolation").filter(|(v, _)| v != "read committed") {
        found.push(Finding::error(
            "database/isolation",
            format!("default_transaction_isolation is {isolation}, set for {place}"),
            "every function of Palisade refuses to run under anything but READ COMMITTED: the gate is only right there",
            alter(&place, login, "default_transaction_isolation"),
        ));
    }
    if let Some((_, place)) = value("default_transaction_read_only").filter(|(v, _)| is_on(v)) {
        found.push(Finding::error(
            "database/read-only",
            format!("default_transaction_read_only is on, set for {place}"),
            "every call writes something, and is refused",
            alter(&place, login, "default_transaction_read_only"),
        ));
    }
    if let Some((commit, place)) = value("synchronous_commit").filter(|(v, _)| v == "local" || is_off(v)) {
        found.push(Finding::info(
            "database/commit-asynchronous",
            format!("synchronous_commit is {commit}, set for {place}"),
            "Palisade's functions wait for the disk all the same; a transaction of your own, with check_lease or a \
             protected table, does not: a crash may lose it after it was answered",
            alter(&place, login, "synchronous_commit"),
        ));
    }
    found.extend(TIMEOUTS.into_iter().filter_map(|name| timeout(name, value(name)?, login)));
    found
}

fn timeout(name: &'static str, (value, place): (String, String), login: &str) -> Option<Finding> {
    let shortest = if name == "idle_session_timeout" { SHORTEST_IDLE_MILLIS } else { SHORTEST_MILLIS };
    let span = millis(&value).filter(|span| (1..shortest).contains(span))?;
    // The server's own is overridden by what Palisade's programs ask for, and cannot be read through it.
    if name == "statement_timeout" && place == "the server" {
        return None;
    }
    Some(Finding::warning(
        "database/timeout-short",
        format!("{name} is {}, set for {place}", activity::span(span)),
        "a call may wait 5 s for a lock; a SQL client's that is ended sooner is in doubt, and a connection that is ended \
         takes a pool's call with it. (Palisade's programs set a statement_timeout of their own)",
        format!("{}; or set it to {} or more", alter(&place, login, name), activity::span(shortest)),
    ))
}

fn alter(place: &str, login: &str, name: &str) -> String {
    match place {
        "the server" => format!("ALTER SYSTEM RESET {name}; SELECT pg_reload_conf()"),
        "the database" => format!("ALTER DATABASE … RESET {name}"),
        "all roles" => format!("ALTER ROLE ALL RESET {name}"),
        _ => format!("ALTER ROLE {login} RESET {name}"),
    }
}

/// As Postgres reads a boolean, or a setting that is one among others.
fn is_on(value: &str) -> bool {
    matches!(value, "on" | "true" | "yes" | "1" | "t" | "y")
}

fn is_off(value: &str) -> bool {
    matches!(value, "off" | "false" | "no" | "0" | "f" | "n")
}

/// A time as Postgres reads it: milliseconds, or a number with a unit.
fn millis(text: &str) -> Option<i64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (number, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: i64 = number.parse().ok()?;
    let tenths: i64 = fraction.get(..1).and_then(|digit| digit.parse().ok()).unwrap_or(0);
    let factor = match unit.trim() {
        "us" => return Some(whole / 1000),
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(whole.saturating_mul(factor).saturating_add(tenths * factor / 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_postgres_reads_them() {
        for (text, expected) in
            [("0", 0), ("250", 250), ("5s", 5000), ("1.5s", 1500), ("2 min", 120_000), ("1h", 3_600_000), ("900us", 0)]
        {
            assert_eq!(millis(text), Some(expected), "{text}");
        }
        assert_eq!(millis("soon"), None);
    }
}

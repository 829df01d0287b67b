//! Every function that a role may call, as the catalogue has it, with claims that are not the caller's own. A function or
//! an argument that is new has no entry here, and fails the test.

use crate::scenarios::{A, B, UID};
use crate::support::postgres::{Conn, Lease, quote};

use super::database::{Arena, By, NOBODYS_KEY, difference};

/// Functions that take neither a token nor a session's key, and why nobody gets around a fence by them.
pub const UNCLAIMED: &[(&str, &str)] = &[
    ("epoch_status", "reads"),
    ("figures", "reads"),
    ("version_show", "reads"),
    ("plan_show", "reads"),
    ("observe", "reads"),
    ("events", "reads"),
    ("sizes", "reads"),
    ("schema_version", "reads"),
    ("operation_show", "reads"),
    ("check_row", "takes the claim from the settings, and asks the gate"),
    ("protect", "works with the caller's rights, on the caller's table"),
    ("unprotect", "works with the caller's rights, on the caller's table"),
    ("register_model", "adds; a request's id makes it at most once"),
    ("register_version", "adds; a version never changes"),
    ("put_alias", "touches no alias that a lease guards"),
    ("revoke", "the controller's word, for people: it raises the token, and so makes owners stale"),
    ("operation_abandon", "the controller's word, for people: it closes a fence, and applies nothing"),
    ("establish_epoch", "takes larger numbers only, for the incarnation that runs"),
    ("withdraw_epoch", "closes the database to all"),
    ("end_blockers", "ends backends, changes nothing"),
    ("clean", "removes what no fence needs"),
];

/// A function as the catalogue has it: name, arguments, whether it answers `palisade.answer`.
struct Function {
    name: String,
    arguments: Vec<(String, String)>,
    answers: bool,
}

impl Function {
    fn takes(&self, argument: &str) -> bool {
        self.arguments.iter().any(|(name, _)| name == argument)
    }
}

/// A fence, or a session, that somebody claims: each an SQL expression.
#[derive(Clone)]
pub struct Claim {
    pub name: &'static str,
    resource: String,
    token: String,
    sequence: String,
    key: String,
    id: String,
    /// What the gate, or the session's functions, say to it.
    reason: &'static str,
}

/// Who owned a resource, who does, and who owns another.
struct Side {
    stale: Lease,
    live: Lease,
    other: Lease,
}

fn claim(name: &'static str, lease: &Lease, reason: &'static str) -> Claim {
    Claim {
        name,
        resource: quote(&lease.resource),
        token: lease.token.to_string(),
        sequence: "1".into(),
        key: quote(&lease.session.key),
        id: format!("'{}'", lease.session.id),
        reason,
    }
}

/// Claims of a fence. `MISTAKE` is SQLSTATE PS004.
const MISTAKE: &str = "PS004";

fn fences(side: &Side) -> Vec<Claim> {
    let Side { stale, live, other } = side;
    let newest = |name, reason| claim(name, live, reason);
    let nobodys = quote(NOBODYS_KEY);
    let another = match other.token.cmp(&live.token) {
        std::cmp::Ordering::Less => "stale",
        std::cmp::Ordering::Equal => "wrong_key",
        std::cmp::Ordering::Greater => "not_issued",
    };
    let null = || "NULL".to_owned();
    vec![
        claim("a token that was replaced", stale, "stale"),
        Claim { sequence: "9007199254740991".into(), ..claim("the same, with the largest sequence", stale, "stale") },
        Claim { key: nobodys.clone(), ..claim("a token that was replaced, with a made-up key", stale, "stale") },
        Claim {
            key: quote(&stale.session.key),
            ..newest("the newest token, with the former owner's key", "wrong_key")
        },
        Claim { key: quote(&other.session.key), ..newest("the newest token, with another session's key", "wrong_key") },
        Claim { key: nobodys.clone(), ..newest("the newest token, with a made-up key", "wrong_key") },
        Claim {
            key: quote(&format!("{} ", live.session.key)),
            ..newest("the newest token, its key and a blank", "wrong_key")
        },
        Claim {
            key: quote(&live.session.key.to_uppercase()),
            ..newest("the newest token, its key in capitals", "wrong_key")
        },
        Claim { key: "''".into(), ..newest("the newest token, with an empty key", "wrong_key") },
        Claim {
            token: (live.token + 1).to_string(),
            ..claim("the next token, which was not granted", stale, "not_issued")
        },
        Claim { token: ((2_i64 << 32) + 1).to_string(), ..claim("a token of a later epoch", stale, "not_issued") },
        Claim { token: "9007199254740991".into(), ..claim("the largest token", stale, "not_issued") },
        Claim { token: i64::MAX.to_string(), ..claim("the largest number", stale, "not_issued") },
        Claim { resource: quote(&live.resource), ..claim("another resource's fence", other, another) },
        Claim { resource: quote("deployment/ns/none"), ..claim("a resource that nobody ever had", live, "no_lease") },
        Claim { token: "0".into(), ..newest("token 0", MISTAKE) },
        Claim { token: "-1".into(), ..newest("a negative token", MISTAKE) },
        Claim { resource: null(), ..newest("no resource", MISTAKE) },
        Claim { token: null(), ..newest("no token", MISTAKE) },
        Claim { key: null(), ..newest("no key", MISTAKE) },
        Claim { sequence: null(), ..newest("no sequence", MISTAKE) },
        Claim { sequence: "0".into(), ..newest("sequence 0", MISTAKE) },
        Claim { sequence: "9007199254740992".into(), ..newest("a sequence above the largest", MISTAKE) },
    ]
}

fn sessions(side: &Side) -> Vec<Claim> {
    let Side { stale, live, .. } = side;
    let nobody = "'00000000-0000-4000-8000-00000000dead'".to_owned();
    vec![
        claim("a session that a takeover closed", stale, "session_closed"),
        Claim { key: quote(NOBODYS_KEY), ..claim("another's session, with a made-up key", live, "wrong_key") },
        Claim { key: quote(&stale.session.key), ..claim("another's session, with one's own key", live, "wrong_key") },
        Claim { key: "NULL".into(), ..claim("another's session, without a key", live, "wrong_key") },
        Claim { id: nobody, ..claim("a session that there is not", stale, "no_session") },
        Claim { id: "NULL".into(), ..claim("no session", stale, "no_session") },
    ]
}

/// What the function says to a claim; none where the claim makes no difference to it.
fn expected(function: &Function, claim: &Claim) -> Option<String> {
    let refused = Some(format!("rejected: {}", claim.reason));
    match function.name.as_str() {
        "check_lease" | "use_lease" if claim.name.contains("sequence") && claim.reason == MISTAKE => None,
        "check_lease" | "use_lease" if claim.reason == MISTAKE => Some(MISTAKE.into()),
        "check_lease" | "use_lease" => Some(format!("PS003: {}", claim.reason)),
        // They tell what became of a fence, to whoever held it. It is never applied.
        "operation_status" | "abandon" => match claim.reason {
            "stale" if !claim.name.contains("made-up") && !claim.name.starts_with("another") => Some("never".into()),
            MISTAKE if claim.name.contains("equence") => (function.name == "abandon").then(|| MISTAKE.into()),
            _ if claim.token.starts_with('-') => Some("forgotten".into()),
            _ => Some("rejected: wrong_key".into()),
        },
        "held" => Some(String::new()),
        // Again: it is closed, and stays so.
        "close_session" if claim.reason == "session_closed" => Some("replayed".into()),
        "open_session" if claim.id == "NULL" || claim.key == "NULL" => Some(MISTAKE.into()),
        // With a fresh id it is a new session.
        "open_session" if claim.reason == "no_session" => None,
        _ if !function.takes("sequence")
            && !function.takes("to_sequence")
            && claim.name.contains("equence")
            && claim.reason == MISTAKE =>
        {
            None
        }
        _ if claim.reason == MISTAKE => Some(MISTAKE.into()),
        _ => refused,
    }
}

/// What stands in the other arguments; none: nobody thought of it.
fn plain(argument: &str) -> Option<String> {
    Some(match argument {
        "uid" => format!("'{UID}'"),
        "deployment" => quote(A),
        "rollout" | "version" | "generation" | "limit" => "1".into(),
        "above" => "0".into(),
        "state" | "spec" => "'{}'".into(),
        "step" => "'verify'".into(),
        "model" => "'m'".into(),
        "alias" => "'live'".into(),
        "revision" | "message" | "worker" => "'x'".into(),
        "reason" => "'Broken'".into(),
        "paused" | "removed" | "wake" | "for_session" => "false".into(),
        "ttl" | "progress" => "'1 minute'".into(),
        "retry_in" => "NULL".into(),
        _ => return None,
    })
}

fn call(function: &Function, first: &Claim, second: &Claim) -> Result<String, String> {
    let mut values = Vec::new();
    for (name, kind) in &function.arguments {
        let claim = if name.starts_with("to_") { second } else { first };
        let value = match name.trim_start_matches("to_") {
            "resource" => claim.resource.clone(),
            "token" => claim.token.clone(),
            "sequence" => claim.sequence.clone(),
            "key" => claim.key.clone(),
            "id" => claim.id.clone(),
            other => plain(other).ok_or(format!("{}: say what stands in the argument {name}", function.name))?,
        };
        values.push(format!("{value}::{kind}"));
    }
    Ok(format!("{}({})", function.name, values.join(", ")))
}

/// `applied`, `rejected: stale`, `PS003: stale`, `PS004`, or for a function that answers rows what it refused.
async fn answer(conn: &mut Conn, function: &Function, call: &str) -> String {
    let said = if function.answers {
        conn.try_call(call).await.map(|answer| answer.word())
    } else {
        let column = if function.name == "claim" { "'rejected: ' || refused" } else { "'row'" };
        match function.name.as_str() {
            "check_lease" | "use_lease" => {
                conn.try_text(&format!("SELECT palisade.{call}")).await.map(|_| "applied".into())
            }
            _ => conn.try_text(&format!("SELECT string_agg({column}, ',') FROM palisade.{call}")).await,
        }
    };
    said.unwrap_or_else(|failure| {
        let reason = failure.message.split(" is refused: ").nth(1).and_then(|rest| rest.split(' ').next());
        match reason {
            Some(reason) => format!("{}: {reason}", failure.code),
            None => failure.code,
        }
    })
}

async fn functions(admin: &mut Conn, group: &str) -> Vec<Function> {
    let lines = admin
        .list(&format!(
            "SELECT concat_ws('|', p.proname, p.prorettype = 'palisade.answer'::regtype, pg_get_function_identity_arguments(p.oid))
             FROM pg_proc AS p WHERE p.pronamespace = 'palisade'::regnamespace AND p.prorettype <> 'trigger'::regtype
               AND has_function_privilege('{group}', p.oid, 'EXECUTE') ORDER BY p.proname"
        ))
        .await;
    let parse = |line: String| {
        let parts: Vec<&str> = line.splitn(3, '|').collect();
        let inputs = parts[2].split(", ").filter(|part| !part.starts_with("OUT ") && !part.is_empty());
        let argument = |part: &str| {
            let (name, kind) = part.split_once(' ').expect("a name and a type");
            (name.trim_matches('"').to_owned(), kind.to_owned())
        };
        Function { name: parts[0].to_owned(), answers: parts[1] == "t", arguments: inputs.map(argument).collect() }
    };
    lines.into_iter().map(parse).collect()
}

struct Sides {
    a: Side,
    b: Side,
    controller: Side,
}

/// Deployment c is due and free, so that `claim` has something to refuse.
async fn sides(arena: &mut Arena) -> Sides {
    let admin = &mut arena.admin;
    admin
        .run(
            "INSERT INTO palisade.lease (resource, token) VALUES ('deployment/ns/c', 0);
             INSERT INTO palisade.queue (resource, due_at) VALUES ('deployment/ns/c', now() - interval '1 day')",
        )
        .await;
    let stale_b = arena.other.clone();
    admin.take_over(&stale_b).await;
    let live_b = admin.owner_again(B).await;
    let stale_controller = arena.controller.clone();
    let live_controller = admin.take_over(&stale_controller).await;
    let (stale, live) = (arena.stale.clone(), arena.live.clone());
    assert!(live_b.token > live.token, "its token is the higher one");
    Sides {
        b: Side { stale: stale_b, live: live_b.clone(), other: live.clone() },
        a: Side { stale, live, other: live_b.clone() },
        controller: Side { stale: stale_controller, live: live_controller, other: live_b },
    }
}

impl Conn {
    /// A further takeover: the token goes up once more.
    async fn owner_again(&mut self, resource: &str) -> Lease {
        self.call(&format!("revoke({}, 'drill')", quote(resource))).await.is("applied");
        self.owner(resource).await
    }
}

/// The claims to try on a function, with the lease that would be right: (first fence, second fence, the false one).
fn attempts(function: &Function, sides: &Sides) -> Vec<(Claim, Claim, Claim)> {
    let side = if function.takes("deployment") { &sides.controller } else { &sides.a };
    let right = |side: &Side| claim("right", &side.live, "");
    let mut tried = Vec::new();
    if function.takes("token") {
        tried.extend(fences(side).into_iter().map(|false_| (false_.clone(), right(&sides.b), false_)));
    } else {
        tried.extend(sessions(side).into_iter().map(|false_| (false_.clone(), right(&sides.b), false_)));
    }
    if function.takes("to_token") {
        tried.extend(fences(&sides.b).into_iter().map(|false_| (right(side), false_.clone(), false_)));
    }
    tried
}

/// Tries all on one function, and says what went wrong and how many were tried.
async fn try_all(arena: &mut Arena, conn: &mut Conn, function: &Function, sides: &Sides) -> (Vec<String>, usize) {
    let (mut problems, mut count) = (Vec::new(), 0);
    for (first, second, false_) in attempts(function, sides) {
        // The gate is asked for the one or the other; neither is asked where a resource is named twice.
        let Some(expected) = expected(function, &false_) else { continue };
        let call = match call(function, &first, &second) {
            Ok(call) => call,
            Err(problem) => return (vec![problem], count),
        };
        let (before, refusals) = (arena.state().await, refusals(arena, &function.name, false_.reason).await);
        let said = answer(conn, function, &call).await;
        count += 1;
        if said != expected {
            problems.push(format!("{}: {}: {said}, not {expected}", function.name, false_.name));
        }
        let noted = self::refusals(arena, &function.name, false_.reason).await - refusals;
        let promised = i64::from(
            function.answers && function.takes("token") && expected.starts_with("rejected") && !status(function),
        );
        if noted != promised {
            problems.push(format!("{}: {}: {noted} refusals were noted, not {promised}", function.name, false_.name));
        }
        let after = arena.state().await;
        if before != after {
            problems.push(format!("{}: {}: {}", function.name, false_.name, difference(&before, &after)));
        }
    }
    (problems, count)
}

/// Whether it only tells what became of a fence.
fn status(function: &Function) -> bool {
    ["operation_status", "abandon"].contains(&function.name.as_str())
}

async fn refusals(arena: &mut Arena, kind: &str, reason: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM palisade.refusal WHERE kind = '{kind}' AND reason = '{reason}'");
    arena.admin.number(&sql).await
}

/// With the right claims the same call passes the gate: so what refused the others is the claim.
async fn control(conn: &mut Conn, function: &Function, sides: &Sides) -> Option<String> {
    let side = if function.takes("deployment") { &sides.controller } else { &sides.a };
    let (first, second) = (claim("right", &side.live, ""), claim("right", &sides.b.live, ""));
    let call = call(function, &first, &second).ok()?;
    conn.run("BEGIN").await;
    let said = answer(conn, function, &call).await;
    conn.run("ROLLBACK").await;
    let passed = [
        "applied",
        "replayed",
        "pending",
        "never",
        "row",
        "rejected: held",
        "rejected: no_such_plan",
        "rejected: not_removed",
        "",
    ];
    (!passed.contains(&said.as_str())).then(|| format!("{}: the right claim is answered {said}", function.name))
}

#[tokio::test]
async fn every_function_that_a_role_may_call_refuses_claims_that_are_not_its_callers() {
    let mut arena = Arena::new().await;
    let sides = sides(&mut arena).await;
    let (mut problems, mut tried) = (Vec::new(), Vec::new());
    for by in [By::Worker, By::Controller] {
        let mut conn = arena.attacker(by).await;
        for function in functions(&mut arena.admin, by.group()).await {
            if UNCLAIMED.iter().any(|(name, _)| *name == function.name) {
                continue;
            }
            if !function.takes("key") {
                problems
                    .push(format!("{}: nobody thought of it: it needs claims, or a line in UNCLAIMED", function.name));
                continue;
            }
            problems.extend(control(&mut conn, &function, &sides).await);
            let (wrong, count) = try_all(&mut arena, &mut conn, &function, &sides).await;
            problems.extend(wrong);
            tried.push((function.name, count));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    let untried: Vec<_> = tried.iter().filter(|(_, count)| *count < 5).collect();
    assert!(untried.is_empty(), "almost nothing was tried: {untried:?}");
}

/// The others have functions without claims only: one that takes a key would have to be tried as they.
#[tokio::test]
async fn plain_clients_and_readers_have_functions_without_claims_only() {
    let mut arena = Arena::new().await;
    for by in [By::Registry, By::Reader] {
        for function in functions(&mut arena.admin, by.group()).await {
            assert!(UNCLAIMED.iter().any(|(name, _)| *name == function.name), "{by:?}: {}", function.name);
        }
    }
}

/// What is claimed, and what is said to it.
type Names = Vec<(&'static str, &'static str)>;

/// Of the claims, for the page: fences, sessions.
pub fn names(arena: &Arena) -> (Names, Names) {
    let side = Side { stale: arena.stale.clone(), live: arena.live.clone(), other: arena.other.clone() };
    // Which of them another's fence meets depends on the two numbers.
    let reason = |claim: &Claim| {
        if claim.name.starts_with("another resource") { "stale|wrong_key|not_issued" } else { claim.reason }
    };
    let list = |claims: Vec<Claim>| claims.iter().map(|claim| (claim.name, reason(claim))).collect();
    (list(fences(&side)), list(sessions(&side)))
}

/// How many claims are tried as this role, for the page: those that are refused, and those that are told the truth about
/// a fence that nobody can use any more.
pub async fn planned(arena: &mut Arena, by: By) -> (usize, usize) {
    let functions = functions(&mut arena.admin, by.group()).await;
    let side = || Side { stale: arena.stale.clone(), live: arena.live.clone(), other: arena.other.clone() };
    let sides = Sides { a: side(), b: side(), controller: side() };
    let claimed = functions.iter().filter(|function| function.takes("key"));
    let words = claimed.flat_map(|function| {
        attempts(function, &sides)
            .into_iter()
            .filter_map(|(_, _, false_)| expected(function, &false_))
            .collect::<Vec<_>>()
    });
    let (refused, told): (Vec<_>, Vec<_>) =
        words.partition(|word| word.starts_with("rejected") || word.starts_with("PS"));
    (refused.len(), told.len())
}

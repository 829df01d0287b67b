//! The rules of a history. Each is a pure function over [`History`] that tells every case in which it does not hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::history::{Alias, Call, End, Fault, FaultKind, Grant, History, Revision, Rule, Session, Violation};

/// Tells every case in which a rule does not hold.
type Holds = fn(&Index<'_>, &mut Vec<String>);
/// What serves: model, version, revision.
type Served = (Option<String>, Option<i64>, Option<String>);

/// Every violation, by rule.
pub fn check(history: &History) -> Vec<Violation> {
    let rules: [(Rule, Holds); 15] = [
        (Rule::S1TokensRise, tokens_rise),
        (Rule::S2NoWriteAfterANewerGrant, no_write_after_a_newer_grant),
        (Rule::S3AcknowledgedIsThereOnce, acknowledged_is_there_once),
        (Rule::S4FailedIsNotThere, failed_is_not_there),
        (Rule::S5SettledIsTrue, settled_is_true),
        (Rule::S6OneHolder, one_holder),
        (Rule::S7NoGrantBeforeTheEnd, no_grant_before_the_end),
        (Rule::S11RegistryIsTheSumOfItsEvents, registry_is_the_sum_of_its_events),
        (Rule::S12FenceNeverFalls, fence_never_falls),
        (Rule::S13ClusterIsWhatIsRecorded, cluster_is_what_is_recorded),
        (Rule::L1TakenOverInTime, taken_over_in_time),
        (Rule::L2Settles, settles),
        (Rule::L3NoOpenTransaction, no_open_transaction),
        (Rule::L4WorksAgain, works_again),
        (Rule::NotVacuous, not_vacuous),
    ];
    let index = Index::new(history);
    let mut violations = Vec::new();
    for (rule, holds) in rules {
        let mut found = Vec::new();
        holds(&index, &mut found);
        violations.extend(found.into_iter().map(|what| Violation { rule, what }));
    }
    violations
}

/// The history, looked up by resource and by object.
struct Index<'a> {
    history: &'a History,
    /// By resource, in commit order.
    grants: BTreeMap<&'a str, Vec<&'a Grant>>,
    /// Applied operations: resource, token, sequence → kinds.
    applied: HashMap<(&'a str, i64, i64), Vec<&'a str>>,
    /// By object and UID, in the cluster's order.
    objects: BTreeMap<(String, &'a str), Vec<&'a Revision>>,
    /// Writes that reached an object: resource, token, sequence → objects.
    written: HashMap<(String, i64, i64), BTreeSet<String>>,
}

impl<'a> Index<'a> {
    fn new(history: &'a History) -> Self {
        let mut grants: BTreeMap<&str, Vec<&Grant>> = BTreeMap::new();
        for grant in &history.registry.grants {
            grants.entry(&grant.resource).or_default().push(grant);
        }
        // One statement commits at most one row of a resource, so times differ; the sort is stable all the same.
        grants.values_mut().for_each(|rows| rows.sort_by_key(|grant| grant.commit));
        let mut applied: HashMap<_, Vec<&str>> = HashMap::new();
        for row in history.registry.operations.iter().filter(|row| row.outcome == "applied") {
            applied.entry((row.resource.as_str(), row.token, row.sequence)).or_default().push(&row.kind);
        }
        let mut objects: BTreeMap<_, Vec<&Revision>> = BTreeMap::new();
        let mut written: HashMap<_, BTreeSet<String>> = HashMap::new();
        for revision in &history.revisions {
            objects.entry((revision.object(), revision.uid.as_str())).or_default().push(revision);
            if let Some((token, sequence)) = revision.fence {
                written.entry((revision.resource(), token, sequence)).or_default().insert(revision.object());
            }
        }
        objects.values_mut().for_each(|revisions| revisions.sort_by_key(|revision| revision.version));
        Self { history, grants, applied, objects, written }
    }

    /// How often a call's write is there: in the ledger, or on the object that it was meant for.
    fn count(&self, call: &Call) -> usize {
        match call.object() {
            None => self.applied.get(&(call.resource.as_str(), call.token, call.sequence)).map_or(0, Vec::len),
            Some(object) => {
                let key = (call.resource.clone(), call.token, call.sequence);
                usize::from(self.written.get(&key).is_some_and(|objects| objects.contains(object)))
            }
        }
    }

    fn grants_of(&self, resource: &str) -> &[&'a Grant] {
        self.grants.get(resource).map_or(&[], Vec::as_slice)
    }
}

fn fence(call: &Call) -> String {
    format!("{} {}/{} {} by {}", call.resource, call.token, call.sequence, call.call, call.process)
}

// ---------------------------------------------------------------- safety: the registry

fn tokens_rise(index: &Index<'_>, found: &mut Vec<String>) {
    for (resource, grants) in &index.grants {
        for pair in grants.windows(2) {
            if pair[1].token <= pair[0].token {
                found.push(format!("{resource}: {} was given out after {}", pair[1].token, pair[0].token));
            }
        }
    }
}

fn no_write_after_a_newer_grant(index: &Index<'_>, found: &mut Vec<String>) {
    // By the database: rows of one transaction (a release and the token that it raises) have one time.
    for row in index.history.registry.operations.iter().filter(|row| row.outcome == "applied") {
        let newer = index.grants_of(&row.resource).iter().find(|g| g.token > row.token && g.commit < row.commit);
        if let Some(newer) = newer {
            found.push(format!(
                "{} {}/{} {} was applied {} µs after token {} was granted",
                row.resource,
                row.token,
                row.sequence,
                row.kind,
                row.commit - newer.commit,
                newer.token
            ));
        }
    }
    // By the workers, who do not see the database's order: sent after somebody else was told of a newer grant.
    let mut told: HashMap<&str, Vec<(i64, u64)>> = HashMap::new();
    for granted in &index.history.granted {
        told.entry(&granted.resource).or_default().push((granted.token, granted.at));
    }
    for call in index.history.calls.iter().filter(|call| call.object().is_none() && call.end == End::Applied) {
        let newer = told.get(call.resource.as_str()).into_iter().flatten();
        if let Some((token, at)) = newer.into_iter().find(|(token, at)| *token > call.token && *at < call.invoked) {
            found.push(format!(
                "{} was acknowledged, and sent {} ns after {token} was granted",
                fence(call),
                call.invoked - at
            ));
        }
    }
}

fn acknowledged_is_there_once(index: &Index<'_>, found: &mut Vec<String>) {
    for call in index.history.calls.iter().filter(|call| call.end == End::Applied) {
        let count = index.count(call);
        if count != 1 {
            found.push(format!("{} was acknowledged, and is there {count} times", fence(call)));
        }
        let kinds = index.applied.get(&(call.resource.as_str(), call.token, call.sequence));
        if let (None, Some(kinds)) = (call.object(), kinds)
            && let Some(other) = kinds.iter().find(|kind| **kind != call.call)
        {
            found.push(format!("{} was acknowledged, and is there as {other}", fence(call)));
        }
    }
}

fn failed_is_not_there(index: &Index<'_>, found: &mut Vec<String>) {
    let mut sent: BTreeSet<(&str, i64, i64, Option<&str>)> = BTreeSet::new();
    let mut holders: BTreeSet<&str> = BTreeSet::new();
    for call in &index.history.calls {
        sent.insert((&call.resource, call.token, call.sequence, call.object()));
        holders.insert(&call.resource);
        let count = index.count(call);
        match call.end {
            End::Never if count > 0 => found.push(format!("{} failed, and is there", fence(call))),
            End::Unknown if count > 1 => found.push(format!("{} is there {count} times", fence(call))),
            _ => {}
        }
    }
    // Nothing is there that nobody sent: of the resources whose holders kept an account.
    for row in index.history.registry.operations.iter().filter(|row| holders.contains(row.resource.as_str())) {
        if !sent.contains(&(row.resource.as_str(), row.token, row.sequence, None)) {
            found.push(format!("{} {}/{} {}: nobody sent it", row.resource, row.token, row.sequence, row.kind));
        }
    }
    for ((resource, token, sequence), objects) in
        index.written.iter().filter(|((r, ..), _)| holders.contains(r.as_str()))
    {
        for object in objects.iter().filter(|object| !sent.contains(&(resource, *token, *sequence, Some(object)))) {
            found.push(format!("{resource} {token}/{sequence} is on {object}: nobody sent it"));
        }
    }
}

fn settled_is_true(index: &Index<'_>, found: &mut Vec<String>) {
    for call in &index.history.calls {
        if let Some(applied) = call.settled
            && applied != (index.count(call) == 1)
        {
            let said = if applied { "applied" } else { "never applied" };
            found.push(format!("{} was settled as {said}, and is there {} times", fence(call), index.count(call)));
        }
    }
}

fn one_holder(index: &Index<'_>, found: &mut Vec<String>) {
    let mut holders: BTreeMap<(&str, i64), BTreeSet<&str>> = BTreeMap::new();
    for grant in &index.history.granted {
        holders.entry((&grant.resource, grant.token)).or_default().insert(&grant.process);
    }
    for ((resource, token), processes) in holders {
        if processes.len() > 1 {
            found.push(format!("{resource}: {processes:?} all hold {token}"));
        }
        let rows = index.grants_of(resource).iter().filter(|grant| grant.token == token && grant.session.is_some());
        let rows = rows.count();
        if rows != 1 {
            found.push(format!("{resource}: {token} was granted to {processes:?}, and is recorded {rows} times"));
        }
    }
}

fn no_grant_before_the_end(index: &Index<'_>, found: &mut Vec<String>) {
    let sessions: HashMap<&str, _> = index.history.registry.sessions.iter().map(|s| (s.id.as_str(), s)).collect();
    for (resource, grants) in &index.grants {
        for (place, grant) in grants.iter().enumerate().filter(|(_, grant)| grant.session.is_some()) {
            let former = place.checked_sub(1).map(|place| grants[place]);
            let held =
                former.and_then(|former| former.session.as_deref()).filter(|s| grant.session.as_deref() != Some(*s));
            let told = || format!("{resource}: {} at {}", grant.token, grant.at);
            if grant.kind != "takeover" {
                if let Some(session) = held {
                    found.push(format!("{}: not a takeover, though session {session} held it", told()));
                }
                continue;
            }
            if grant.former_end.is_none_or(|end| end > grant.at) {
                found.push(format!("{}: taken over before the former end {:?}", told(), grant.former_end));
            }
            // A session that was ended stays so, and one that was not was not ended early.
            let Some(session) = held.and_then(|id| sessions.get(id)) else { continue };
            let expired = session.expires_at <= grant.at || session.closed_at.is_some_and(|at| at < grant.at);
            if grant.reason.as_deref() == Some("session ended") && !expired {
                found.push(format!(
                    "{}: taken from session {}, which lives until {}",
                    told(),
                    session.id,
                    session.expires_at
                ));
            }
        }
    }
}

fn registry_is_the_sum_of_its_events(index: &Index<'_>, found: &mut Vec<String>) {
    let registry = &index.history.registry;
    let mut events: Vec<_> = registry.events.iter().collect();
    events.sort_by_key(|event| (event.commit, event.id));
    let text = |data: &Value, key: &str| data[key].as_str().map(str::to_owned);
    let mut aliases: BTreeMap<(String, String), Alias> = BTreeMap::new();
    let mut steps: BTreeMap<&str, (i64, String)> = BTreeMap::new();
    let mut serving: BTreeMap<&str, Served> = BTreeMap::new();
    let mut rollouts: BTreeMap<&str, i64> = BTreeMap::new();
    for event in events {
        let (resource, data) = (event.resource.as_str(), &event.data);
        let rollout = data["rollout"].as_i64().unwrap_or(0);
        match event.kind.as_str() {
            "alias" => {
                let (model, alias) = (text(data, "model").unwrap_or_default(), text(data, "alias").unwrap_or_default());
                let now = Alias {
                    model: model.clone(),
                    alias: alias.clone(),
                    version: data["version"].as_i64(),
                    guard: text(data, "guard"),
                };
                aliases.insert((model, alias), now);
            }
            "planned" => _ = rollouts.insert(resource, rollout),
            "step" | "failed" => _ = steps.insert(resource, (rollout, text(data, "step").unwrap_or_default())),
            "done" => _ = steps.insert(resource, (rollout, "done".into())),
            "serving" => {
                let now = (text(data, "model"), data["version"].as_i64(), text(data, "revision"));
                serving.insert(resource, now);
            }
            "removed" => {
                steps.insert(resource, (rollout, "removed".into()));
                serving.insert(resource, (None, None, None));
                aliases
                    .values_mut()
                    .filter(|alias| alias.guard.as_deref() == Some(resource))
                    .for_each(|alias| alias.guard = None);
            }
            _ => {}
        }
    }
    let mut expect = |what: String, folded: String, there: String| {
        if folded != there {
            found.push(format!("{what}: its events say {folded}, it is {there}"));
        }
    };
    for row in &registry.aliases {
        let folded = aliases.get(&(row.model.clone(), row.alias.clone()));
        expect(format!("alias {}@{}", row.model, row.alias), format!("{folded:?}"), format!("{:?}", Some(row)));
    }
    for row in &registry.deployments {
        let resource = row.resource.as_str();
        let now = (row.serving_model.clone(), row.serving_version, row.serving_revision.clone());
        let folded = serving.get(resource).cloned().unwrap_or_default();
        expect(format!("what serves {resource}"), format!("{folded:?}"), format!("{now:?}"));
        // Serving is recorded together with the next step; both are the deployment's last word.
        let step = steps.get(resource).map(|(_, step)| step.clone()).unwrap_or_default();
        if row.step == "done" || step == "done" {
            expect(format!("the step of {resource}"), step, row.step.clone());
        }
    }
    for row in &registry.plans {
        let folded = rollouts.get(row.resource.as_str()).copied().unwrap_or_default();
        expect(format!("the rollout of {}", row.resource), folded.to_string(), row.rollout.to_string());
    }
}

// ---------------------------------------------------------------- safety: the cluster

fn fence_never_falls(index: &Index<'_>, found: &mut Vec<String>) {
    for ((object, uid), revisions) in &index.objects {
        for pair in revisions.windows(2) {
            let (before, after) = (pair[0], pair[1]);
            let at = format!("{object} ({uid}) at {} by {}", after.version, after.manager);
            if after.fence < before.fence {
                found.push(format!("{at}: the fence fell from {:?} to {:?}", before.fence, after.fence));
            }
            match (&before.status, &after.status) {
                (Some((revision, token, old)), Some((next, newer, new)))
                    if old != new && (next <= revision || newer < token) =>
                {
                    found.push(format!("{at}: status {next} of {newer} after {revision} of {token}"));
                }
                (Some((revision, ..)), None) => found.push(format!("{at}: status {revision} was taken away")),
                _ => {}
            }
        }
    }
    // One that was made anew is another object, and yet no older owner's.
    let mut named: BTreeMap<&str, Vec<&Revision>> = BTreeMap::new();
    for ((object, _), revisions) in &index.objects {
        named.entry(object).or_default().extend(revisions.iter().copied());
    }
    for (object, mut revisions) in named {
        revisions.sort_by_key(|revision| revision.version);
        for pair in revisions.windows(2).filter(|pair| pair[0].uid != pair[1].uid) {
            if pair[1].fence < pair[0].fence {
                found.push(format!("{object}: made anew under {:?}, after {:?}", pair[1].fence, pair[0].fence));
            }
        }
    }
}

fn cluster_is_what_is_recorded(index: &Index<'_>, found: &mut Vec<String>) {
    let last = |object: String| {
        let all = index.objects.iter().filter(|((name, _), _)| *name == object).filter_map(|(_, r)| r.last());
        all.max_by_key(|revision| revision.version).filter(|revision| !revision.deleted)
    };
    for row in &index.history.registry.deployments {
        let (Some(revision), Some((namespace, name))) =
            (&row.serving_revision, row.resource.strip_prefix("deployment/").and_then(|rest| rest.split_once('/')))
        else {
            continue;
        };
        match last(format!("Service {namespace}/{name}")).map(|service| service.selects.as_ref()) {
            Some(Some(selected)) if selected == revision => {}
            other => found.push(format!("{}: {revision} serves, and the Service points at {other:?}", row.resource)),
        }
        match last(format!("Deployment {namespace}/{name}-{revision}")).map(|deployment| deployment.replicas) {
            Some((wanted, there)) if wanted > 0 && there >= wanted => {}
            other => found.push(format!("{}: {revision} serves, and its pods are {other:?}", row.resource)),
        }
    }
}

// ---------------------------------------------------------------- liveness

/// A lease whose owner was killed, or paused for longer than its TTL, while there was work to do.
struct Orphan<'a> {
    resource: &'a str,
    fault: &'a Fault,
    token: i64,
    /// How long until the next grant; none: never.
    took: Option<i64>,
}

fn orphans<'a>(index: &Index<'a>) -> Vec<Orphan<'a>> {
    let History { faults, registry, .. } = index.history;
    let mut last: HashMap<(&str, i64), (i64, &str)> = HashMap::new();
    for row in &registry.operations {
        let entry = last.entry((&row.resource, row.token)).or_insert((0, ""));
        *entry = (*entry).max((row.sequence, &row.kind));
    }
    let mut orphans = Vec::new();
    for fault in
        faults.iter().filter(|f| matches!(f.kind, FaultKind::Killed | FaultKind::Paused | FaultKind::StoppedAtPoint))
    {
        for (resource, grants) in &index.grants {
            let Some(place) = grants.iter().rposition(|grant| grant.commit <= fault.from) else { continue };
            let grant = grants[place];
            // What was finished is not due any more, and what was put off is due later.
            let ended = last.get(&(*resource, grant.token)).is_some_and(|(_, kind)| {
                matches!(*kind, "record_done" | "record_failure" | "record_removed" | "release")
            });
            if grant.worker.as_deref() == Some(&fault.process) && !ended {
                let took = grants.get(place + 1).map(|next| next.at - fault.from);
                orphans.push(Orphan { resource, fault, token: grant.token, took });
            }
        }
    }
    orphans
}

/// How long each takeover took, in microseconds from the fault on, by resource.
pub fn takeover_times(history: &History) -> Vec<(String, i64)> {
    let index = Index::new(history);
    orphans(&index).iter().filter_map(|orphan| Some((orphan.resource.to_owned(), orphan.took?))).collect()
}

fn taken_over_in_time(index: &Index<'_>, found: &mut Vec<String>) {
    let History { terms, faults, .. } = index.history;
    let bound = terms.ttl + terms.poll + terms.margin;
    for Orphan { resource, fault, token, took } in orphans(index) {
        // Nobody can take over while the database is away: then the time counts from its return.
        let blackouts =
            faults.iter().filter(|b| b.process.is_empty() && b.until > fault.from && b.from < fault.from + bound);
        let bound = blackouts.map(|blackout| blackout.until - fault.from + bound).max().unwrap_or(bound);
        let until = fault.from + took.unwrap_or(0);
        // The oldest work comes first, so it may have to wait for a place; but then for nothing else.
        if took.is_none() || (until - fault.from > bound && free_time(index, fault.from, until) > bound) {
            let (process, kind) = (&fault.process, fault.kind);
            found.push(format!(
                "{resource}: {process} was {kind:?} holding {token}, replaced after {took:?} µs, not within {bound}"
            ));
        }
    }
}

/// For how long some living session held less than it could.
fn free_time(index: &Index<'_>, from: i64, until: i64) -> i64 {
    const LOOK: usize = 250_000;
    let History { registry, terms, .. } = index.history;
    let mut free = 0;
    for at in (from..until).step_by(LOOK) {
        let alive = |s: &&Session| {
            s.worker.starts_with('w') && s.opened_at <= at && at < s.closed_at.unwrap_or(i64::MAX).min(s.expires_at)
        };
        let mut held: HashMap<&str, usize> = HashMap::new();
        for grants in index.grants.values() {
            let now = grants[..grants.partition_point(|grant| grant.commit <= at)].last();
            if let Some(session) = now.and_then(|grant| grant.session.as_deref()) {
                *held.entry(session).or_default() += 1;
            }
        }
        if registry
            .sessions
            .iter()
            .filter(alive)
            .any(|s| held.get(s.id.as_str()).copied().unwrap_or(0) < terms.capacity)
        {
            free += LOOK as i64;
        }
    }
    free
}

fn settles(index: &Index<'_>, found: &mut Vec<String>) {
    let History { registry, terms, .. } = index.history;
    let rows: HashMap<&str, _> = registry.deployments.iter().map(|row| (row.resource.as_str(), row)).collect();
    for plan in &registry.plans {
        let row = rows.get(plan.resource.as_str());
        let done = row.is_some_and(|row| {
            (row.uid.as_str(), row.rollout) == (plan.uid.as_str(), plan.rollout)
                && row.step == "done"
                && row.serving_version == Some(plan.version)
                && row.failure.is_none()
        });
        if !done {
            found.push(format!(
                "{}: rollout {} to version {} is not done: {row:?}",
                plan.resource, plan.rollout, plan.version
            ));
        }
        let last = index
            .objects
            .iter()
            .filter(|((object, _), _)| *object == plan.resource.replacen("deployment/", "ModelDeployment ", 1));
        if let Some(last) = last.filter_map(|(_, revisions)| revisions.last()).max_by_key(|revision| revision.version)
            && !last.ready
        {
            found.push(format!("{}: not Ready: {:?}", last.object(), last.status));
        }
    }
    found.extend(registry.queue.iter().map(|resource| format!("{resource} is still due")));
    let (from, until) = terms.quiet;
    for row in registry.operations.iter().filter(|row| row.commit > from && row.commit <= until) {
        found.push(format!("{} {}/{} {}: written after all was done", row.resource, row.token, row.sequence, row.kind));
    }
    // Kubernetes' own controllers may have more to say.
    let ours =
        |revision: &&Revision| revision.version > terms.quiet_version && revision.manager.starts_with("palisade");
    for revision in index.history.revisions.iter().filter(ours) {
        found.push(format!("{} was changed by {} after all was done", revision.object(), revision.manager));
    }
}

fn no_open_transaction(index: &Index<'_>, found: &mut Vec<String>) {
    let open = index.history.registry.idle_in_transaction;
    if open > 0 {
        found.push(format!("{open} connections are idle in a transaction"));
    }
}

/// After so many later grants, a worker that works again has had one.
const ENOUGH_GRANTS: usize = 50;

fn works_again(index: &Index<'_>, found: &mut Vec<String>) {
    let History { faults, registry, terms, .. } = index.history;
    for fault in faults.iter().filter(|f| matches!(f.kind, FaultKind::Paused | FaultKind::StoppedAtPoint)) {
        let lived_on = !faults.iter().any(|f| f.kind == FaultKind::Killed && f.process == fault.process);
        let back = fault.until + terms.ttl + terms.margin;
        let later = || registry.grants.iter().filter(|grant| grant.worker.is_some() && grant.at > back);
        if lived_on && later().count() >= ENOUGH_GRANTS && !later().any(|g| g.worker.as_deref() == Some(&fault.process))
        {
            found.push(format!(
                "{} was {:?} until {}, and was granted nothing since",
                fault.process, fault.kind, fault.until
            ));
        }
    }
}

fn not_vacuous(index: &Index<'_>, found: &mut Vec<String>) {
    let History { registry, calls, faults, terms, .. } = index.history;
    for kind in &terms.faults {
        if !faults.iter().any(|fault| fault.kind == *kind) {
            found.push(format!("no worker or server was {kind:?}"));
        }
    }
    let mut expect = |holds: bool, what: &str| {
        if !holds {
            found.push(what.to_owned());
        }
    };
    expect(index.objects.values().any(|revisions| revisions.len() > 1), "no object was ever changed");
    expect(calls.iter().any(|call| call.end == End::Applied && call.object().is_some()), "no worker wrote an object");
    if terms.stale_writes {
        expect(registry.grants.iter().any(|grant| grant.kind == "takeover"), "no lease was taken over");
        // Which of the two a late write meets is a matter of timing; tests/worker/pauses.rs has each of them for certain.
        let refused = registry.refusals.iter().any(|refusal| refusal.reason == "stale") || index.history.denied > 0;
        expect(refused, "neither registry nor cluster refused a stale write");
        expect(calls.iter().any(|call| call.end == End::Unknown), "no outcome was unknown");
    }
}

//! Palisade on a real node, as a user installs it: real pods, a real model server, real failures. `make e2e` runs it.
//!
//! ```text
//! world.rs    what the stories act on: a cluster, Palisade's surroundings in it, a person's tools
//! node.rs     what only the node that hack/e2e.sh started allows: its processes, Postgres beside it
//! cluster.rs  what a cluster that KUBECONFIG names needs instead
//! models.rs   models, and ModelDeployments that serve them
//! traffic.rs  clients that ask a model server for predictions, and count what they got
//! install.rs, predictions.rs, frozen.rs, faults.rs, lifecycle.rs    the stories, in this order, one after the other
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

// The rules of a history, as tests/chaos.rs has them.
#[allow(dead_code, reason = "a part of it is used here")]
#[path = "chaos/history.rs"]
mod history;
#[allow(dead_code, reason = "a part of it is used here")]
#[path = "chaos/observe.rs"]
mod observe;
#[allow(dead_code, reason = "a part of it is used here")]
#[path = "chaos/rules.rs"]
mod rules;

mod e2e {
    pub mod cluster;
    pub mod faults;
    pub mod frozen;
    pub mod install;
    pub mod lifecycle;
    pub mod models;
    pub mod node;
    pub mod predictions;
    pub mod traffic;
    pub mod world;
}

use std::pin::Pin;
use std::process::ExitCode;
use std::time::Instant;

use e2e::world::{World, has_node};
use e2e::{faults, frozen, install, lifecycle, predictions};

type Telling = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What happens; the first one is told whatever is asked for.
struct Story {
    name: &'static str,
    /// Whether it is of the short form.
    short: bool,
    /// What it does to a node; empty: nothing, and any cluster will do.
    to_node: &'static str,
    tell: fn(&'static World) -> Telling,
}

macro_rules! stories {
    ($($module:ident::$name:ident $($short:ident)? $(: $to_node:literal)?,)*) => {
        [$(Story {
            name: stringify!($name),
            short: !matches!(stringify!($($short)?), ""),
            to_node: concat!($($to_node)?),
            tell: |world| Box::pin($module::$name(world)),
        },)*]
    };
}

fn stories() -> Vec<Story> {
    stories![
        install::a_release_installs_from_nothing_and_serves_a_model short,
        install::a_version_whose_digest_is_wrong_never_serves short,
        predictions::not_one_request_fails_while_a_version_replaces_another_and_back short,
        frozen::a_worker_frozen_in_any_step_is_replaced_and_its_late_writes_are_refused short: "freezes and stops processes of pods",
        frozen::a_frozen_worker_that_its_probe_kills_is_replaced: "freezes a pod",
        faults::all_are_ready_after_kubelet_worker_controller_postgres_and_api_server_failed: "stops kubelet, API server and Postgres",
        lifecycle::an_upgrade_from_an_older_chart_and_a_rollback_keep_what_serves,
        lifecycle::two_releases_beside_each_other_look_after_their_own,
        lifecycle::an_uninstall_leaves_what_serves_and_what_must_stay_and_nothing_else,
    ]
    .into()
}

/// Tells one, and whether it came to its end.
async fn tell(world: &'static World, story: &Story) -> bool {
    eprintln!("\nstory {} ...", story.name);
    let began = Instant::now();
    // A task of its own: its panic is its failure.
    let passed = tokio::spawn((story.tell)(world)).await.is_ok();
    let verdict = if passed { "ok" } else { "FAILED" };
    eprintln!("story {} ... {verdict} ({:.0} s)", story.name, began.elapsed().as_secs_f64());
    if !passed {
        world.describe();
        world.tidy();
    }
    passed
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut stories = stories();
    if args.iter().any(|arg| arg == "--list") {
        stories.iter().for_each(|story| println!("{}: test", story.name));
        return ExitCode::SUCCESS;
    }
    let short = args.iter().any(|arg| arg == "--short");
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let all = stories.len();
    let first = stories[0].name;
    stories.retain(|story| {
        let named = wanted.is_empty() || wanted.iter().any(|part| story.name.contains(part.as_str()));
        story.name == first || (named && (story.short || !short))
    });
    let mut untold = Vec::new();
    if !has_node() {
        stories.retain(|story| {
            if !story.to_node.is_empty() {
                untold.push(story.name);
                eprintln!("story {} ... not told: it {}, and the node is not ours", story.name, story.to_node);
            }
            story.to_node.is_empty()
        });
    }
    let world: &World = Box::leak(Box::new(World::begin().await));
    let (mut told, mut failed) = (0, Vec::new());
    for story in &stories {
        told += 1;
        if !tell(world, story).await {
            failed.push(story.name);
            // Without an installation there is nothing to tell of; a later story may do without an earlier one.
            if story.name == first {
                break;
            }
        }
    }
    world.end();
    eprint!("\n{} stories passed, {} failed, {} not told", told - failed.len(), failed.len(), all - told);
    eprintln!(
        "{}",
        if untold.is_empty() { String::new() } else { format!(", for want of a node of ours: {}", untold.join(", ")) }
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

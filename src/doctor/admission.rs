//! Whether the API server refuses what it must, asked by dry runs of Services: policies can be there, word for word, and
//! not be in force. Nothing is written.

use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::{Api, PostParams};

use super::finding::{Chart, Finding, Looked, Unseen};
use crate::epoch::EpochObject;
use crate::lease::{Fence, Token};
use crate::manifests::{self, Settings};
use crate::retry::Backoff;

/// What the API server said of a dry run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It would have made the object.
    Taken,
    /// A policy of this installation refused it, in these words.
    Refused(String),
}

/// What it said of each question.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Where it was asked.
    pub namespace: String,
    /// Of a fence that is none.
    pub malformed: Heard,
    /// The number that the epoch object has, and what was said of a fence of that epoch, and of one of the next.
    pub epoch: Option<(i64, Heard, Heard)>,
}

/// Asks, in the namespace that is watched, or in Palisade's own.
pub(super) async fn ask(
    client: &Client,
    settings: &Settings,
    epoch: Option<&EpochObject>,
    timeout: Duration,
) -> Looked<Admission> {
    let namespace = settings.watched().unwrap_or_else(|| settings.namespace());
    let api = Api::namespaced(client.clone(), namespace);
    let first = |epoch: i64| Fence { token: Token(epoch * Token::PER_EPOCH + 1), sequence: 1 }.to_string();
    let hear = |fence: String, wanted: fn(&Heard) -> bool| hear(&api, settings, fence, wanted, timeout);
    let refused = |heard: &Heard| matches!(heard, Heard::Refused(_));
    let malformed = hear("none".to_owned(), refused).await?;
    let epoch = match epoch {
        Some(EpochObject { number, .. }) => {
            let current = hear(first(*number), |heard| *heard == Heard::Taken).await?;
            Some((*number, current, hear(first(number + 1), refused).await?))
        }
        None => None,
    };
    Ok(Admission { namespace: namespace.to_owned(), malformed, epoch })
}

/// One question. What is not as it is wanted is asked again for a while: what was installed or changed a moment ago reaches
/// the API server's admission a little later.
async fn hear(
    api: &Api<Service>,
    settings: &Settings,
    fence: String,
    wanted: fn(&Heard) -> bool,
    timeout: Duration,
) -> Looked<Heard> {
    let object = manifests::question(Some("palisade-doctor"), &fence);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    // That of any of this installation's policies begins so.
    let ours = format!("ValidatingAdmissionPolicy '{}-fence", settings.name());
    let mut tries = Backoff::new(Duration::from_millis(200), Duration::from_secs(1), 3);
    loop {
        let heard = match tokio::time::timeout(timeout, api.create(&dry_run, &object)).await {
            Err(_) => return Err(Unseen::NoAnswer(format!("within {timeout:?}"))),
            Ok(Ok(_)) => Heard::Taken,
            Ok(Err(kube::Error::Api(status))) if status.message.contains(&ours) => Heard::Refused(status.message),
            // Rights, a quota or somebody else's policy: they say nothing about ours.
            Ok(Err(kube::Error::Api(status))) if (400..500).contains(&status.code) => {
                return Err(Unseen::NotAllowed(status.message));
            }
            Ok(Err(error)) => return Err(Unseen::NoAnswer(error.to_string())),
        };
        match tries.next_wait() {
            Some(wait) if !wanted(&heard) => tokio::time::sleep(wait).await,
            _ => return Ok(heard),
        }
    }
}

pub(super) fn check(chart: &mut Chart, admission: &Admission) {
    let mut well = true;
    let mut taken = |chart: &mut Chart, what: &str| {
        well = false;
        chart.add(Finding::error(
            "cluster/policies-silent",
            format!("asked by a dry run in namespace {}, the API server took {what}", admission.namespace),
            "the policies are there, and do not refuse what they must: a stale write may go through",
            "look at the findings about policies above. There are none? Then the API server does not ask them: is \
             ValidatingAdmissionPolicy among its --disable-admission-plugins?",
        ));
    };
    if admission.malformed == Heard::Taken {
        taken(chart, "a malformed fence");
    }
    if let Some((number, _, Heard::Taken)) = &admission.epoch {
        taken(chart, &format!("a fence of epoch {}, which was never allocated", number + 1));
    }
    if let Some((number, Heard::Refused(words), _)) = &admission.epoch {
        well = false;
        chart.add(Finding::error(
            "cluster/policies-behind",
            format!("the epoch object has epoch {number}, and a fence of it is refused: {words}"),
            "every rollout is refused like this; what serves goes on serving",
            "wait some seconds, for the API server learns of a new epoch a little later. If it stays: restart the API servers, one \
             after the other (Kubernetes 1.34 stops following the epoch object when all policies that read one were deleted)",
        ));
    }
    if well {
        let told = match &admission.epoch {
            Some((number, ..)) => {
                format!("a malformed fence is refused, one of epoch {number} taken, a later one refused")
            }
            None => "a malformed fence is refused".to_owned(),
        };
        chart.add(Finding::ok("cluster/admission", format!("asked in namespace {}: {told}", admission.namespace)));
    }
}

//! Whether the API server refuses what it must, asked by dry runs of Services: policies can be there, word for word, and
//! not be in force. Nothing is written.

use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::{Api, PostParams};

use super::finding::{Chart, Finding, Looked, Unseen};
use crate::epoch::EpochObject;
use crate::lease::{Fence, Token};
use crate::manifests::{self, FENCE_REFUSAL, Settings};

/// Between two tries of a question: the API server takes new policies and parameters up once a second.
const PAUSE: Duration = Duration::from_secs(1);
const TRIES: u32 = 4;

/// What the API server said of a dry run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It would have made the object.
    Taken,
    /// The policy that was to refuse it did, in these words.
    Refused(String),
}

/// What it said of each question.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Where it was asked.
    pub namespace: String,
    /// Of a fence that is none. Not to be told where another policy spoke first: one that lacks its parameter refuses all.
    pub malformed: Looked<Heard>,
    /// The number that the epoch object has, and what was said of a fence of that epoch, and of one of the next.
    pub epoch: Looked<Option<(i64, Heard, Heard)>>,
}

/// Asks, in the namespace that is watched, or in Palisade's own.
pub(super) async fn ask(
    client: &Client,
    settings: &Settings,
    epoch: Option<&EpochObject>,
    timeout: Duration,
) -> Admission {
    let namespace = settings.watched().unwrap_or_else(|| settings.namespace());
    let questions = Questions { api: Api::namespaced(client.clone(), namespace), timeout };
    let malformed = questions.hear("none", FENCE_REFUSAL, |heard| *heard != Heard::Taken).await;
    let epoch = match epoch {
        Some(EpochObject { number, .. }) => questions.epoch(*number, settings.name()).await.map(Some),
        None => Ok(None),
    };
    Admission { namespace: namespace.to_owned(), malformed, epoch }
}

struct Questions {
    api: Api<Service>,
    timeout: Duration,
}

impl Questions {
    async fn epoch(&self, number: i64, name: &str) -> Looked<(i64, Heard, Heard)> {
        let first = |epoch: i64| Fence { token: Token(epoch * Token::PER_EPOCH + 1), sequence: 1 }.to_string();
        let policy = format!("ValidatingAdmissionPolicy '{name}-fence-epoch'");
        let current = self.hear(&first(number), &policy, |heard| *heard == Heard::Taken).await?;
        let next = self.hear(&first(number + 1), &policy, |heard| *heard != Heard::Taken).await?;
        Ok((number, current, next))
    }

    /// One question; `words` are in a refusal of the policy that it is for. What is not as it is wanted is asked again for a
    /// while.
    async fn hear(&self, fence: &str, words: &str, wanted: fn(&Heard) -> bool) -> Looked<Heard> {
        let object = manifests::question(true, fence);
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let mut tries = 0;
        loop {
            tries += 1;
            let heard = match tokio::time::timeout(self.timeout, self.api.create(&dry_run, &object)).await {
                Err(_) => return Err(Unseen::NoAnswer(format!("within {:?}", self.timeout))),
                Ok(Ok(_)) => Heard::Taken,
                Ok(Err(kube::Error::Api(status))) if status.message.contains(words) => Heard::Refused(status.message),
                // Rights, a quota or another policy: they say nothing about this one.
                Ok(Err(kube::Error::Api(status))) if (400..500).contains(&status.code) => {
                    return Err(Unseen::NotAllowed(status.message));
                }
                Ok(Err(error)) => return Err(Unseen::NoAnswer(error.to_string())),
            };
            if wanted(&heard) || tries == TRIES {
                return Ok(heard);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// `now`: the epoch object's number after the questions.
pub(super) fn check(chart: &mut Chart, admission: &Admission, now: Option<i64>) {
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
    let malformed = chart.seen("what the policies refuse", &admission.malformed);
    if malformed == Some(&Heard::Taken) {
        taken(chart, "a malformed fence");
    }
    let epoch = chart.seen("what the policies refuse of other epochs", &admission.epoch).and_then(Option::as_ref);
    // One that was allocated meanwhile makes the answers those to another question.
    let epoch = epoch.filter(|(number, ..)| now == Some(*number));
    if let Some((number, _, Heard::Taken)) = epoch {
        taken(chart, &format!("a fence of epoch {}, which was never allocated", number + 1));
    }
    if let Some((number, Heard::Refused(words), _)) = epoch {
        well = false;
        chart.add(Finding::error(
            "cluster/policies-behind",
            format!("the epoch object has epoch {number}, and a fence of it is refused: {words}"),
            "every rollout is refused like this; what serves goes on serving",
            "wait some seconds, for the API server learns of a new epoch a little later. If it stays: restart the API servers, one \
             after the other (Kubernetes 1.34 stops following the epoch object when all policies that read one were deleted)",
        ));
    }
    if well && malformed.is_some() {
        let told = match epoch {
            Some((number, ..)) => {
                format!("a malformed fence is refused, one of epoch {number} taken, a later one refused")
            }
            None => "a malformed fence is refused".to_owned(),
        };
        chart.add(Finding::ok("cluster/admission", format!("asked in namespace {}: {told}", admission.namespace)));
    }
}

//! A look at the epoch that changes nothing, and what a person must do about it.

use serde::Serialize;

use super::{Allocator, EpochError, EpochObject, InUse, Step, next_step};
use crate::manifests::names::EPOCH_OBJECT;
use crate::store::EpochStatus;

/// Why a person is needed. The words are API: metrics and `-o json` have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Cause {
    /// The database lacks an epoch that another one took over.
    LostBranch,
    /// The epoch object holds something else than a number and an incarnation.
    ObjectDamaged,
    /// There is no number left above what is in use.
    UsedUp,
    /// An object of the cluster carries a later epoch than was ever allocated: its owners are refused.
    FenceAhead,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::LostBranch, Self::ObjectDamaged, Self::UsedUp, Self::FenceAhead];

    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::LostBranch => "LostBranch",
            Self::ObjectDamaged => "ObjectDamaged",
            Self::UsedUp => "UsedUp",
            Self::FenceAhead => "FenceAhead",
        }
    }

    /// What a person must do.
    #[must_use]
    pub fn action(self) -> &'static str {
        match self {
            Self::LostBranch => {
                "is it the right one? Then: palisade epoch adopt. If not, give the controllers the right DATABASE_URL"
            }
            Self::ObjectDamaged => {
                "delete the ConfigMap palisade-epoch: a controller makes it anew, above every number that is in use"
            }
            Self::UsedUp => {
                "nobody can lower what it carries: delete it, so that it is made anew, then: palisade epoch advance"
            }
            Self::FenceAhead => "palisade epoch advance: the next epoch is above it. All sessions are closed for it",
        }
    }
}

/// Something that a person must do, for it does not heal by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attention {
    /// Why.
    pub cause: Cause,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub action: &'static str,
}

impl Attention {
    fn new(cause: Cause, message: String) -> Self {
        Self { cause, message, action: cause.action() }
    }
}

impl std::fmt::Display for Attention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {}", self.message, self.action)
    }
}

impl EpochError {
    /// What a person must do; `None` if it heals by itself, as soon as database and API server answer.
    #[must_use]
    pub fn attention(&self) -> Option<Attention> {
        let cause = match self {
            Self::Database(_) | Self::Cluster(_) | Self::Busy => return None,
            Self::LostBranch { .. } => Cause::LostBranch,
            Self::Damaged(_) => Cause::ObjectDamaged,
            Self::UsedUp(_) => Cause::UsedUp,
        };
        Some(Attention::new(cause, self.to_string()))
    }
}

/// The epoch, as database and cluster have it, and what comes next.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EpochView {
    /// What the database says.
    pub database: EpochStatus,
    /// What the cluster remembers; `None`: there is no object, or it is damaged.
    pub object: Option<EpochObject>,
    /// The highest epoch that an object of the cluster carries.
    pub in_use: InUse,
    /// What a controller does next by itself; `None`: it cannot tell.
    pub next: Option<Step>,
    /// What a person must do.
    pub attention: Option<Attention>,
}

impl Allocator {
    /// Looks, and changes nothing. It lists the objects that Palisade has written.
    ///
    /// # Errors
    /// [`EpochError::Database`] and [`EpochError::Cluster`], when there is no answer.
    pub async fn inspect(&self) -> Result<EpochView, EpochError> {
        let found = self.read().await?;
        let database = self.store.epoch_status().await?;
        let in_use = self.in_use().await?;
        let object = match found.as_ref().map(EpochObject::try_from).transpose() {
            Ok(object) => object,
            Err(error) => {
                return Ok(EpochView { database, object: None, in_use, next: None, attention: error.attention() });
            }
        };
        let next = next_step(&database, object.as_ref(), false);
        let attention = match (next, &object) {
            (Step::Ask { stored, allocated }, Some(EpochObject { incarnation, .. })) => {
                EpochError::LostBranch { stored, allocated, incarnation: incarnation.clone() }.attention()
            }
            (Step::Allocate { .. } | Step::Yield { .. }, object) => {
                let unused = self.unused(&database, object.as_ref()).await;
                unused.err().and_then(|error| error.attention())
            }
            (Step::Fine { number }, _) => ahead(&in_use, number),
            _ => None,
        };
        Ok(EpochView { database, object, in_use, next: Some(next), attention })
    }

    /// Whether an object's fence is ahead of the epoch that is established.
    pub(super) async fn fence_ahead(&self, number: i64) -> Result<Option<Attention>, EpochError> {
        Ok(ahead(&self.in_use().await?, number))
    }
}

fn ahead(used: &InUse, number: i64) -> Option<Attention> {
    let InUse { number: found, by } = used;
    let what = || format!("{by} carries epoch {found}, and {number} is the newest in the ConfigMap {EPOCH_OBJECT}");
    (*found > number).then(|| match super::above(*found, by) {
        Ok(_) => Attention::new(Cause::FenceAhead, what()),
        Err(error) => Attention::new(Cause::UsedUp, error.to_string()),
    })
}

//! The names by which Palisade's parts know each other's objects. They are API: objects in users' clusters carry them.

/// Label of every object that a worker writes: the name of its ModelDeployment, which is in the same namespace.
pub const DEPLOYMENT_LABEL: &str = "palisade.dev/deployment";
/// Label of a version's Deployment and of its pods: the revision, a hash of version, digest and pod template.
pub const REVISION_LABEL: &str = "palisade.dev/revision";
/// Annotation of every object that a worker writes: the fence of its last write, `TOKEN/SEQUENCE`.
pub const FENCE_ANNOTATION: &str = "palisade.dev/fence";
/// How the policies refuse a fence that is not one. By these words alone it can be told whose refusal it is.
pub const FENCE_REFUSAL: &str = "the annotation palisade.dev/fence must be TOKEN/SEQUENCE";
/// How the policies refuse what a worker makes without the label, and so without a fence.
pub const LABEL_REFUSAL: &str = "what a worker creates carries the label palisade.dev/deployment";
/// Annotation that marks a Deployment for deletion; only a greater fence sets it, and a worker deletes nothing else.
pub const RETIRED_ANNOTATION: &str = "palisade.dev/retired";
/// Finalizer of a ModelDeployment: it stays until the registry knows that the deployment is gone.
pub const FINALIZER: &str = "palisade.dev/registry";

/// Field manager of a worker's server-side applies.
pub const WORKER_MANAGER: &str = "palisade-worker";
/// Field manager of the seal, a merge patch of the fence alone: under the worker's own, an apply would drop the fields
/// that it does not mention.
pub const SEAL_MANAGER: &str = "palisade-seal";
/// Field manager of what the controller writes: status, finalizer, epoch object.
pub const CONTROLLER_MANAGER: &str = "palisade-controller";

/// What the names of Palisade's roles and policies begin with, unless it is told another name.
pub const NAME: &str = "palisade";
/// Namespace of Palisade's own objects, unless it is told another.
pub const SYSTEM_NAMESPACE: &str = "palisade-system";
/// Name of the worker's and the controller's ServiceAccount, unless they are told others.
pub const WORKER_ACCOUNT: &str = "palisade-worker";
/// See [`WORKER_ACCOUNT`].
pub const CONTROLLER_ACCOUNT: &str = "palisade-controller";

/// Name of the ConfigMap in the system namespace that allocates epochs and is the policies' parameter.
pub const EPOCH_OBJECT: &str = "palisade-epoch";
/// Key of the epoch's number, a decimal string.
pub const EPOCH_KEY: &str = "epoch";
/// Key of the name of the database's incarnation that has this number (`incarnation` of `palisade.epoch_status()`).
pub const INCARNATION_KEY: &str = "incarnation";

//! The `ModelDeployment` resource: what a user asks for (`spec`) and what Palisade reports (`status`).
//!
//! The doc comments of the fields are the schema's descriptions, which `kubectl explain mdep.spec` shows: they are
//! written for users. Whatever can be refused by the API server is refused there, by the schema or by a CEL rule, so
//! that a mistake shows at `kubectl apply` and not later in a condition.
//!
//! Every string and list is bounded: the rule on the status compares whole statuses, and the API server refuses a rule
//! whose cost it cannot bound.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{CustomResource, CustomResourceExt, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

#[cfg(test)]
mod tests;

/// The longest name of a ModelDeployment: a Service has the same name, and a version's Deployment has it as a prefix,
/// followed by a rollout's id; labels and names of Services end at 63 characters.
pub const NAME_MAX: usize = 50;
/// The longest `message` of a condition and of `lastError`, in characters. Cut longer ones with [`clip`].
pub const MESSAGE_MAX: usize = 4096;
/// The longest `reason` of `lastError`, and of a condition, in characters.
pub const REASON_MAX: usize = 128;
/// The longest name of a worker in `status.owner`, in characters.
pub const OWNER_MAX: usize = 253;

/// Names of models and aliases, as the registry accepts them.
const REGISTRY_NAME: &str = "^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$";
/// Digests, as the registry accepts them.
const DIGEST: &str = "^sha256:[0-9a-f]{64}$";
/// Durations: whole numbers with units, so that nobody has to know how a fraction is rounded.
const SPAN: &str = "^([0-9]+(ms|s|m|h))+$";

/// `kubectl get mdep` would rather show a stale status than accept one that goes back.
///
/// On the root, because a rule inside `status` is skipped when the status is removed as a whole. The message is static:
/// one with both revisions in it costs more than the API server grants.
const STATUS_RULE: &str = "!has(oldSelf.status) || (has(self.status) && (self.status == oldSelf.status || \
     (self.status.revision > oldSelf.status.revision && self.status.fencingToken >= oldSelf.status.fencingToken)))";

const NAME_RULE: &str = "size(self.metadata.name) <= 50 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')";

/// The CustomResourceDefinition that is installed: the derived one, whose `status` may be absent but not null.
///
/// The derive marks an optional status as nullable; a null status would pass through `has()` in `STATUS_RULE`.
pub fn definition() -> CustomResourceDefinition {
    let mut crd = ModelDeployment::crd();
    for version in &mut crd.spec.versions {
        let schema = version.schema.as_mut().and_then(|validation| validation.open_api_v3_schema.as_mut());
        let properties = schema.and_then(|schema| schema.properties.as_mut());
        if let Some(status) = properties.and_then(|properties| properties.get_mut("status")) {
            status.nullable = None;
        }
    }
    crd
}

/// The model that is to be served, how it is run, and how one version replaces another.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "palisade.dev",
    version = "v1alpha1",
    kind = "ModelDeployment",
    plural = "modeldeployments",
    shortname = "mdep",
    namespaced,
    status = "ModelDeploymentStatus",
    derive = "PartialEq",
    cel,
    doc = "Serves a version of a registered model, and replaces it safely by another: one worker at a time owns the \
           deployment, by a lease with a fencing token, and a worker that was replaced can change nothing.",
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model.name"),
    printcolumn(
        name = "Desired",
        type_ = "integer",
        json_path = ".status.resolved.version",
        description = "The version that is to be served; an alias is shown as the version it stands for."
    ),
    printcolumn(
        name = "Serving",
        type_ = "integer",
        json_path = ".status.serving.version",
        description = "The version that the Service sends requests to."
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the desired version is what is being served."
    ),
    printcolumn(
        name = "Token",
        type_ = "integer",
        json_path = ".status.fencingToken",
        description = "The newest fencing token under which this deployment was owned."
    ),
    printcolumn(
        name = "Owner",
        type_ = "string",
        json_path = ".status.owner",
        description = "The worker that owns the deployment now; empty while there is nothing to do."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new(NAME_RULE).message(
        "metadata.name must be at most 50 characters: lower-case letters, digits and '-', starting with a letter and \
         not ending with '-' (a Service gets the same name)"
    ).reason(Reason::FieldValueInvalid),
    validation = Rule::new(STATUS_RULE).message(
        "a changed status must raise status.revision and may not lower status.fencingToken or remove the status: \
         this writer has been replaced by a newer one"
    ).reason(Reason::FieldValueForbidden),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.promoteAlias) || !has(self.model.alias) || self.promoteAlias != self.model.alias")
    .message("promoteAlias may not be the alias that model.alias follows: each rollout would start the next one")
    .field_path(".promoteAlias"))]
pub struct ModelDeploymentSpec {
    /// The model to serve, as it is named in the registry.
    pub model: ModelRef,

    /// What the model's artifact must be. Without it, the digest that was recorded when the version was registered is
    /// taken as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Artifact")]
    pub artifact: Option<Artifact>,

    /// How many pods serve the model. Default: 1. With 0 nothing is served, and the deployment is kept.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 2147483647))] // The API server does not check the format int32.
    pub replicas: i32,

    /// The pod template, as in a Deployment (`kubectl explain deployment.spec.template`). Its containers and init
    /// containers get the environment variables PALISADE_MODEL_NAME, PALISADE_MODEL_VERSION, PALISADE_MODEL_URI and
    /// PALISADE_MODEL_DIGEST. Give it a readiness probe: a version replaces another once its pods are ready. A
    /// template that Kubernetes refuses is reported by the condition Stalled, with the name of the field.
    #[schemars(schema_with = "template_schema")]
    pub template: serde_json::Value,

    /// The Service that clients of the model talk to. It has the name of this ModelDeployment, and stays when versions
    /// are replaced.
    pub service: ServiceSpec,

    /// How a version replaces the one before.
    #[serde(default)]
    pub strategy: Strategy,

    /// An alias of the model in the registry, for example `champion`, that is moved to the version once it serves.
    /// While this ModelDeployment exists, only it moves the alias. It may not be the alias that `model.alias` follows.
    /// Default: no alias is moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 253), regex(pattern = REGISTRY_NAME))]
    pub promote_alias: Option<String>,

    /// How a worker owns this deployment.
    #[serde(default)]
    pub lease: LeaseSpec,

    /// How long the steps of a rollout may take.
    #[serde(default)]
    pub timeouts: Timeouts,

    /// While true, nothing is changed: what serves goes on serving, and a rollout stops at its next safe step. Deleting
    /// still works. Default: false.
    #[serde(default)]
    pub paused: bool,

    /// How many versions that served before are kept, scaled to zero, so that going back is as fast as going forward.
    /// Default: 2.
    #[serde(default = "two")]
    #[schemars(range(min = 0, max = 50))]
    pub revision_history_limit: i32,

    /// What becomes of the pods and the Service when this ModelDeployment is deleted: `Undeploy` (the default) removes
    /// them, `Retain` leaves them serving, owned by nobody. `Retain` works also while the database is down.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// A version of a model, by number or by an alias.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.version) != has(self.alias)")
    .message("give exactly one of model.version and model.alias"))]
pub struct ModelRef {
    /// Name of the registered model.
    #[schemars(length(min = 1, max = 253), regex(pattern = REGISTRY_NAME))]
    pub name: String,

    /// Number of the version to serve. Exactly one of `version` and `alias` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64", range(min = 1, max = 9007199254740991i64))]
    pub version: Option<i64>,

    /// Alias to follow. It is resolved once a rollout, and pinned in `status.resolved`; when it moves in the registry, a
    /// new rollout starts. Exactly one of `version` and `alias` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 253), regex(pattern = REGISTRY_NAME))]
    pub alias: Option<String>,
}

/// What a model's artifact must be.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    /// The digest that the version must have in the registry: `sha256:` and 64 lower-case hexadecimal digits. A rollout
    /// to a version with another digest fails before anything is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 71), regex(pattern = DIGEST))]
    pub digest: Option<String>,
}

/// The Service in front of a model.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Port of the Service; the pods serve the model on the same one.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

/// How a version replaces the one before.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Strategy {
    /// `BlueGreen` (the default): the new version is up and ready before the Service moves to it, which needs room for
    /// both. `Recreate`: the old version is scaled to zero first, for models of which only one fits; nothing is served
    /// in between.
    #[serde(rename = "type", default)]
    pub kind: StrategyType,

    /// Seconds between the move of the Service and the end of the old version's pods, so that requests on their way
    /// are answered. Default: 10.
    #[serde(default = "ten")]
    #[schemars(range(min = 0, max = 86400))]
    pub drain_seconds: i32,
}

impl Default for Strategy {
    fn default() -> Self {
        Self { kind: StrategyType::default(), drain_seconds: ten() }
    }
}

/// See [`Strategy::kind`].
#[expect(missing_docs, reason = "the field says what they mean; here it would turn the schema's enum into a oneOf")]
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StrategyType {
    #[default]
    BlueGreen,
    Recreate,
}

/// See [`ModelDeploymentSpec::deletion_policy`].
#[expect(missing_docs, reason = "the field says what they mean; here it would turn the schema's enum into a oneOf")]
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    #[default]
    Undeploy,
    Retain,
}

/// How a worker owns a deployment.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LeaseSpec {
    /// How long the worker that owns this deployment may go without reporting progress before another one takes over,
    /// as a duration such as `30s` or `1m30s`, from 5s to 1h. Shorter: a hung worker is replaced sooner. Longer: a slow
    /// API server or database is forgiven more. Default: 30s.
    #[serde(default = "default_ttl")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('5s') && duration(self) <= duration('1h')")
        .message("lease.ttl must be from 5s to 1h"))]
    pub ttl: Span,
}

impl Default for LeaseSpec {
    fn default() -> Self {
        Self { ttl: default_ttl() }
    }
}

/// How long the steps of a rollout may take.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// How long it may take until the registry has the version with the right digest, as a duration such as `1m`, from
    /// 1s to 24h. Then the rollout fails, and the old version goes on serving. Default: 1m.
    #[serde(default = "default_verify")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')")
        .message("timeouts.verify must be from 1s to 24h"))]
    pub verify: Span,

    /// How long it may take until the new version's pods are ready, as a duration such as `1h30m`, from 1s to 168h:
    /// images and models are large. Then the rollout fails, and the old version goes on serving. Default: 1h.
    #[serde(default = "default_ready")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('168h')")
        .message("timeouts.ready must be from 1s to 168h"))]
    pub ready: Span,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { verify: default_verify(), ready: default_ready() }
    }
}

fn one() -> i32 {
    1
}

fn two() -> i32 {
    2
}

fn ten() -> i32 {
    10
}

fn default_ttl() -> Span {
    Span::from_secs(30)
}

fn default_verify() -> Span {
    Span::from_secs(60)
}

fn default_ready() -> Span {
    Span::from_secs(3600)
}

/// What Palisade reports. Only the controller writes it, and only forwards: see `revision`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ModelDeploymentStatus {
    /// The `metadata.generation` that this status speaks of. Lower than the object's: a change was not seen yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64", range(min = 0))]
    pub observed_generation: Option<i64>,

    /// Number of this status: every change raises it, so that a controller that was replaced cannot put an old one back.
    /// It starts above the epoch times 2^32.
    #[schemars(range(min = 0, max = 9007199254740991i64))]
    pub revision: i64,

    /// The newest fencing token under which this deployment was owned: the epoch times 2^32 plus a counter. 0 before
    /// the first worker. It never goes back.
    #[schemars(range(min = 0, max = 9007199254740991i64))]
    pub fencing_token: i64,

    /// `Ready`: the desired version is what is being served. `Reconciling`: a rollout runs. `Stalled`: it cannot go on
    /// without a change by a person; the reason says which. `Serving`: some version answers requests; stays True while
    /// an update runs.
    #[serde(default)]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,

    /// The version that is to be served, pinned for this rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Resolved")]
    pub resolved: Option<Resolved>,

    /// The version that the Service sends requests to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Serving")]
    pub serving: Option<Serving>,

    /// Name of the worker that owns the deployment now. Absent while nobody does: there is nothing to do, or no worker
    /// took it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = OWNER_MAX))]
    pub owner: Option<String>,

    /// Number of the rollout: raised by each change of what is wanted, also when a followed alias moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64", range(min = 0))]
    pub rollout: Option<i64>,

    /// The revision that the rollout goes to: a hash of version, digest and pod template; it is in the names of its
    /// objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 63))]
    pub target_revision: Option<String>,

    /// The step of the rollout that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Step")]
    pub step: Option<Step>,

    /// The last thing that went wrong in this rollout, and what to do about it. Absent once a rollout is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LastError")]
    pub last_error: Option<LastError>,
}

/// A version, pinned.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// Name of the model.
    #[schemars(length(max = 253))]
    pub model: String,
    /// Number of the version.
    pub version: i64,
    /// Digest of the version's artifact.
    #[schemars(length(max = 71))]
    pub digest: String,
    /// The alias that stood for this version when the rollout began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 253))]
    pub alias: Option<String>,
}

/// What serves.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Serving {
    /// Name of the model.
    #[schemars(length(max = 253))]
    pub model: String,
    /// Number of the version.
    pub version: i64,
    /// The revision that serves: a hash of version, digest and pod template.
    #[schemars(length(max = 63))]
    pub revision: String,
    /// Since when, by the database's clock.
    pub since: Time,
}

/// A step of a rollout.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Name of the step.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Since when it is under way, by the database's clock; a worker that takes over does not start it anew.
    pub since: Time,
}

/// Something that went wrong.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LastError {
    /// One word, for programs.
    #[schemars(length(max = REASON_MAX))]
    pub reason: String,
    /// What happened and what to do next, for people.
    #[schemars(length(max = MESSAGE_MAX))]
    pub message: String,
}

/// Not the full schema of a pod template: that is 365 KiB, too large for `kubectl apply`, and refuses `cpu: 1`. The
/// controller has the API server check the template, by a dry run.
fn template_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["spec"],
        "properties": {"spec": {
            "type": "object",
            "description": "The pod's specification, as in `kubectl explain pod.spec`.",
            "x-kubernetes-preserve-unknown-fields": true,
        }},
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

/// The standard conditions, with bounds. A map by type, so that server-side apply merges them one by one.
fn conditions_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 8,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "observedGeneration", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {
                    "type": "string", "maxLength": 63, "pattern": "^[A-Z][A-Za-z]*$",
                    "description": "Ready, Reconciling, Stalled or Serving.",
                },
                "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds."},
                "observedGeneration": {
                    "type": "integer", "format": "int64", "minimum": 0,
                    "description": "The metadata.generation that the condition speaks of.",
                },
                "lastTransitionTime": {
                    "type": "string", "format": "date-time", "description": "When the status last changed.",
                },
                "reason": {
                    "type": "string", "minLength": 1, "maxLength": REASON_MAX, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    "description": "Why, in one word, for programs.",
                },
                "message": {
                    "type": "string", "maxLength": MESSAGE_MAX,
                    "description": "Why, and what to do next, for people.",
                },
            },
        },
    })
}

/// Cuts `text` to at most `max` characters, the last one then being `…`, so that the schema accepts it.
///
/// Characters, not bytes: so the API server counts `maxLength`.
pub fn clip(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// A length of time in a spec, written as in Go: `90s`, `1h30m`, `500ms`. Whole numbers, units from `ms` to `h`.
///
/// Prints the shortest such text, which reads back as the same value; two spans that are equally long are equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

impl Span {
    /// A span of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// The span as a [`Duration`].
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.duration()
    }
}

/// Why a text is not a [`Span`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{value:?} is not a duration: {why}; write whole numbers with units (ms, s, m, h), such as \"90s\" or \"1h30m\""
)]
pub struct SpanError {
    /// The text, cut to 64 characters.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let error = |why| SpanError { value: clip(text, 64), why };
        let (mut rest, mut total) = (text, 0u64);
        if rest.is_empty() {
            return Err(error("it is empty"));
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(|| error("a unit is missing"))?;
            let (number, tail) = rest.split_at(digits);
            if number.is_empty() {
                return Err(error("a whole number is missing"));
            }
            let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let milliseconds = match unit {
                "ms" => 1,
                "s" => 1000,
                "m" => 60_000,
                "h" => 3_600_000,
                _ => return Err(error("there is an unknown unit")),
            };
            // Only digits: it cannot be parsed if and only if it is too large.
            total = number
                .parse::<u64>()
                .ok()
                .and_then(|n| n.checked_mul(milliseconds))
                .and_then(|n| total.checked_add(n))
                .ok_or_else(|| error("it is too long"))?;
            rest = tail;
        }
        Ok(Self(total))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (unit, milliseconds) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
            if rest >= milliseconds {
                write!(f, "{}{unit}", rest / milliseconds)?;
                rest %= milliseconds;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Span({self})")
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Span {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // 32 characters are more than anybody needs, and bound the cost of the CEL rules.
        json_schema!({"type": "string", "maxLength": 32, "pattern": SPAN})
    }
}

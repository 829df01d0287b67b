//! Which epochs the cluster's objects carry: what a database before this one has handed out.

use std::fmt;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ListParams, ObjectMeta};
use kube::core::Request;
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Serialize};

use super::{Allocator, EpochError, call, told};
use crate::crd::ModelDeployment;
use crate::lease::{Fence, Token};
use crate::manifests::names::{DEPLOYMENT_LABEL, FENCE_ANNOTATION};

/// The highest epoch that any object's fence or any status carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InUse {
    /// The epoch; 0: no object carries one.
    pub number: i64,
    /// The object: `Service team/churn`.
    pub by: String,
}

impl InUse {
    fn raise(&mut self, token: Token, name: impl Fn() -> String) {
        if token.epoch() > self.number {
            *self = Self { number: token.epoch(), by: name() };
        }
    }
}

impl Allocator {
    /// Looks through the cluster.
    pub(super) async fn in_use(&self) -> Result<InUse, EpochError> {
        let mut highest = InUse::default();
        self.fences::<Deployment>(&mut highest).await?;
        self.fences::<Service>(&mut highest).await?;
        let url = ModelDeployment::url_path(&(), self.watch_namespace.as_deref());
        let mut params = ListParams::default().limit(500);
        loop {
            let request = Request::new(&url)
                .list(&params)
                .map_err(|e| EpochError::Cluster(format!("listing ModelDeployments: {e}")))?;
            let page: Outlines = match call("epoch_list", self.client.request(request)).await? {
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(highest), // the CRD is not installed
                answer => answer.map_err(|e| EpochError::Cluster(told(&e)))?,
            };
            for Outline { metadata, status } in page.items {
                let Some(OutlineStatus { revision, fencing_token }) = status else { continue };
                let name = || format!("ModelDeployment {}/{}", metadata.namespace, metadata.name);
                highest.raise(Token(revision.max(fencing_token)), name);
            }
            match page.metadata.r#continue {
                Some(token) if !token.is_empty() => params = params.continue_token(&token),
                _ => return Ok(highest),
            }
        }
    }

    async fn fences<K>(&self, highest: &mut InUse) -> Result<(), EpochError>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = match &self.watch_namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let mut params = ListParams::default().labels(DEPLOYMENT_LABEL).limit(500);
        loop {
            let page = call("epoch_list", api.list_metadata(&params)).await?;
            let page = page.map_err(|e| EpochError::Cluster(told(&e)))?;
            for object in &page.items {
                let fence = object.annotations().get(FENCE_ANNOTATION).and_then(|text| text.parse::<Fence>().ok());
                let name = || format!("{} {}", K::kind(&()), path(object.meta()));
                fence.into_iter().for_each(|fence| highest.raise(fence.token, name));
            }
            match page.metadata.continue_ {
                Some(token) if !token.is_empty() => params = params.continue_token(&token),
                _ => return Ok(()),
            }
        }
    }
}

fn path(metadata: &ObjectMeta) -> String {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}", text(&metadata.namespace), text(&metadata.name))
}

/// A list of ModelDeployments, read only as far as needed: a spec that nobody can read does not matter here.
#[derive(Deserialize)]
struct Outlines {
    #[serde(default)]
    metadata: OutlinesMeta,
    #[serde(default)]
    items: Vec<Outline>,
}

#[derive(Default, Deserialize)]
struct OutlinesMeta {
    r#continue: Option<String>,
}

#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    metadata: OutlineName,
    status: Option<OutlineStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OutlineName {
    name: String,
    namespace: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct OutlineStatus {
    revision: i64,
    fencing_token: i64,
}

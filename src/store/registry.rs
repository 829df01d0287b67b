//! Models and versions, for clients that hold no lease. Each change carries a request id, so that a repeated call is harmless.

use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use super::Store;
use super::call::{CallError, get};
use crate::outcome::Outcome;

/// A registered model, as people list it.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// Its name.
    pub name: String,
    /// What it is, in the words of whoever registered it.
    pub description: String,
    /// The highest version, if there is one.
    pub latest_version: Option<i64>,
    /// Alias → version.
    pub aliases: Value,
    /// When it was registered.
    pub created_at: jiff::Timestamp,
}

/// A version of a model: immutable.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// The registered model.
    pub model: String,
    /// Its number, never used again.
    pub version: i64,
    /// Where the artifact is.
    pub source: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// Free text by name.
    pub tags: Value,
    /// The aliases that point at it.
    pub aliases: Vec<String>,
    /// When it was registered.
    pub created_at: jiff::Timestamp,
}

impl Store {
    /// Registers a model.
    ///
    /// # Errors
    /// When the database refuses an argument, or does not answer (then call again with the same `request`).
    pub async fn register_model(
        &self,
        name: &str,
        description: &str,
        tags: &Value,
        request: Uuid,
    ) -> Result<Outcome, CallError> {
        let statement = sqlx::query("SELECT * FROM palisade.register_model($1, $2, $3, $4)")
            .bind(name.to_owned())
            .bind(description.to_owned())
            .bind(Json(tags.clone()))
            .bind(request);
        self.plain("register_model", statement).await
    }

    /// Registers the next version of a model; the result's `version` is its number.
    ///
    /// # Errors
    /// As [`Store::register_model`].
    pub async fn register_version(
        &self,
        model: &str,
        source: &str,
        digest: &str,
        tags: &Value,
        request: Uuid,
    ) -> Result<Outcome, CallError> {
        let statement = sqlx::query("SELECT * FROM palisade.register_version($1, $2, $3, $4, $5)")
            .bind(model.to_owned())
            .bind(source.to_owned())
            .bind(digest.to_owned())
            .bind(Json(tags.clone()))
            .bind(request);
        self.plain("register_version", statement).await
    }

    /// Moves an alias that no resource guards.
    ///
    /// # Errors
    /// As [`Store::register_model`].
    pub async fn put_alias(
        &self,
        model: &str,
        alias: &str,
        version: Option<i64>,
        request: Uuid,
    ) -> Result<Outcome, CallError> {
        let statement = sqlx::query("SELECT * FROM palisade.put_alias($1, $2, $3, $4)")
            .bind(model.to_owned())
            .bind(alias.to_owned())
            .bind(version)
            .bind(request);
        self.plain("put_alias", statement).await
    }

    async fn plain(&self, name: &str, statement: super::call::Statement) -> Result<Outcome, CallError> {
        match self.answer(name, self.timeout, statement).await {
            Ok(answer) => Ok(answer.outcome()),
            Err(CallError::NoAnswer(why)) => Ok(Outcome::Unknown(why)),
            Err(error) => Err(error),
        }
    }

    /// All models, by name.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn models(&self) -> Result<Vec<Model>, CallError> {
        let statement = sqlx::query(
            "SELECT m.name, m.description, m.created_at, \
                    (SELECT max(v.version) FROM palisade.model_version AS v WHERE v.model = m.name) AS latest, \
                    (SELECT coalesce(jsonb_object_agg(a.alias, a.version), '{}') FROM palisade.alias AS a \
                      WHERE a.model = m.name AND a.version IS NOT NULL) AS aliases \
             FROM palisade.registered_model AS m ORDER BY m.name",
        );
        let rows = self.rows("models", self.timeout, statement).await?;
        rows.iter()
            .map(|row| {
                Ok(Model {
                    name: get(row, "name")?,
                    description: get(row, "description")?,
                    latest_version: get(row, "latest")?,
                    aliases: get(row, "aliases")?,
                    created_at: get::<jiff_sqlx::Timestamp>(row, "created_at")?.to_jiff(),
                })
            })
            .collect()
    }

    /// The versions of one model, the newest first; `None` where there is no such model.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn versions(&self, model: &str) -> Result<Option<Vec<Version>>, CallError> {
        let statement = sqlx::query(
            "SELECT v.version, v.source, v.digest, v.tags, v.created_at, \
                    ARRAY(SELECT a.alias FROM palisade.alias AS a WHERE a.model = v.model AND a.version = v.version ORDER BY 1) AS aliases \
             FROM palisade.registered_model AS m LEFT JOIN palisade.model_version AS v ON v.model = m.name \
             WHERE m.name = $1 ORDER BY v.version DESC",
        )
        .bind(model.to_owned());
        let rows = self.rows("versions", self.timeout, statement).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let mut versions = Vec::with_capacity(rows.len());
        for row in &rows {
            let Some(version) = get::<Option<i64>>(row, "version")? else { continue };
            versions.push(Version {
                model: model.to_owned(),
                version,
                source: get(row, "source")?,
                digest: get(row, "digest")?,
                tags: get(row, "tags")?,
                aliases: get(row, "aliases")?,
                created_at: get::<jiff_sqlx::Timestamp>(row, "created_at")?.to_jiff(),
            });
        }
        Ok(Some(versions))
    }

    /// What a worker must know to serve a version.
    ///
    /// # Errors
    /// When the database does not answer.
    pub(crate) async fn version_show(&self, model: &str, version: i64) -> Result<Option<(String, String)>, CallError> {
        let statement = sqlx::query("SELECT source, digest FROM palisade.version_show($1, $2)")
            .bind(model.to_owned())
            .bind(version);
        let rows = self.rows("version_show", self.timeout, statement).await?;
        rows.first().map(|row| Ok((get(row, "source")?, get(row, "digest")?))).transpose()
    }
}

//! A registry without fencing, for `palisade demo --unfenced` and nothing else: what it shows is the overwrite.

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::Store;
use super::call::{CallError, Statement, get};

/// One table with one alias, in a schema of its own that is dropped afterwards.
#[derive(Clone, Debug)]
pub(crate) struct Naive {
    store: Store,
    schema: String,
}

impl Naive {
    /// Only hexadecimal digits come into the statements: nothing has to be quoted.
    pub(crate) fn new(store: Store, run: Uuid) -> Self {
        Self { store, schema: format!("palisade_demo_{}", run.simple()) }
    }

    fn statement(&self, sql: &str) -> Statement {
        sqlx::query(AssertSqlSafe(sql.replace("{schema}", &self.schema)))
    }

    async fn run(&self, sql: &str) -> Result<(), CallError> {
        self.store.rows("naive", self.store.timeout, self.statement(sql)).await.map(|_| ())
    }

    pub(crate) async fn create(&self) -> Result<(), CallError> {
        self.run("CREATE SCHEMA {schema}").await?;
        self.run("CREATE TABLE {schema}.alias (alias text PRIMARY KEY, version bigint NOT NULL)").await
    }

    /// What nearly every registry does: the last one to write wins.
    pub(crate) async fn promote(&self, version: i64) -> Result<(), CallError> {
        let sql = "INSERT INTO {schema}.alias VALUES ('champion', $1) ON CONFLICT (alias) DO UPDATE SET version = excluded.version";
        self.store.rows("naive", self.store.timeout, self.statement(sql).bind(version)).await.map(|_| ())
    }

    pub(crate) async fn champion(&self) -> Result<Option<i64>, CallError> {
        let statement = self.statement("SELECT version FROM {schema}.alias WHERE alias = 'champion'");
        let rows = self.store.rows("naive", self.store.timeout, statement).await?;
        rows.first().map(|row| get(row, "version")).transpose()
    }

    pub(crate) async fn drop_all(&self) -> Result<(), CallError> {
        self.run("DROP SCHEMA IF EXISTS {schema} CASCADE").await
    }
}

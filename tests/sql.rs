//! The SQL functions are the API, so they are tested as callers see them: by SQL, on a real Postgres.
//!
//! `sql/` has one file a subject. A test's name is the rule that it holds; `broken_rules` breaks each
//! rule in turn and sees its test fail, `mutation` takes the gate out of each fenced function.

#[path = "support/postgres.rs"]
#[allow(dead_code, reason = "each test binary uses a part of the support")]
mod postgres;
#[path = "support/proxy.rs"]
#[allow(dead_code, reason = "each test binary uses a part of the support")]
mod proxy;
#[path = "sql/mod.rs"]
mod sql;

/// Of what the integration tests share, only Postgres: the cluster's part would double the time to compile.
mod support {
    pub(crate) use crate::{postgres, proxy};
}

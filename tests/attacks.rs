//! Nobody gets around the fence: what the worker's own rights allow, in the cluster and in the database, is tried against
//! what a newer owner wrote.
//!
//! ```text
//! expect.rs     what becomes of an attack: refused, harmless, or limited by rights only
//! cluster.rs    the stage in the cluster: a newer owner's objects, and the worker's own ServiceAccount token
//! matrix.rs     every verb of the rendered Role × patch type × fence, generated
//! rights.rs     what the Roles do not hold: every resource, subresource and verb that discovery lists
//! others.rs     what no matrix has: namespaces, tokens, impersonation, what is harmless, what only rights limit
//! database.rs   the stage in the database, and how each attack is judged
//! claims.rs     every function that a role may call, with claims that are not its own, generated from the catalogue
//! ways.rs       ways around the functions, one by one
//! settings.rs   every setting that a role may change, at its extremes, and locks that are held
//! page.rs       the tables of docs/security.md, made from these
//! ```

mod support;

#[path = "sql/scenarios.rs"]
#[allow(dead_code, reason = "only the furniture is used here")]
mod scenarios;

mod attacks {
    mod claims;
    mod cluster;
    mod database;
    mod expect;
    mod matrix;
    mod others;
    mod page;
    mod rights;
    mod settings;
    mod ways;
}

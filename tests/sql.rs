//! The SQL functions are the API, so they are tested as callers see them: by SQL, on a real Postgres.
//!
//! `sql/` has one file a subject. A test's name is the rule of DESIGN §4 that it holds; `broken_rules` breaks each
//! rule in turn and sees its test fail, `mutation` takes the gate out of each fenced function.

/// Of what the integration tests share, only Postgres: the cluster's part would double the time to compile.
mod support {
    #![allow(dead_code)]

    pub mod postgres;
    pub mod proxy;
}

mod sql {
    mod broken_rules;
    mod catalogue;
    mod claims;
    mod epochs;
    mod gate;
    mod inputs;
    mod locks;
    mod lost_answers;
    mod migrations;
    mod mutation;
    mod registry;
    mod roles;
    mod scenarios;
    mod sequences;
    mod sessions;
}

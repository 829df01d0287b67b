//! One file a subject; see ../sql.rs.

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
mod protect;
mod registry;
mod roles;
mod scenarios;
mod sequences;
mod sessions;
mod upkeep;

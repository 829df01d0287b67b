//! What is known about the database, as `store::Probe` reads it. Plain data: the checks decide what it means.

use std::time::Duration;

use serde::Deserialize;

use super::finding::Looked;
use crate::store::{EpochStatus, Migration};

/// The group roles that the schema's rights are given to.
pub const GROUPS: [&str; 5] =
    ["palisade_owner", "palisade_controller", "palisade_worker", "palisade_registry", "palisade_reader"];

/// Where the database is, as its URL says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host and port, or the socket's folder.
    pub host: String,
    /// The database's name.
    pub database: String,
    /// On this machine: what is sent does not leave it.
    pub near: bool,
    /// Whether the server's certificate is verified.
    pub verified: bool,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoConnection {
    /// The URL is none.
    Url,
    /// Nobody answers there, or not in time.
    Unreachable,
    /// The server does not let this login in.
    Login,
    /// There is no such database.
    Database,
    /// Something between here and Postgres does not pass on what a connection needs.
    Pooler,
}

/// All that was asked.
#[derive(Clone, Debug)]
pub struct DatabaseFacts {
    /// From the URL, where it can be read.
    pub target: Option<Target>,
    /// What the database says, or why it says nothing.
    pub answers: Result<Answers, (NoConnection, String)>,
}

/// What a database says of itself. Each part has its own rights.
#[derive(Clone, Debug)]
pub struct Answers {
    /// Version, settings, connections.
    pub server: Looked<Server>,
    /// Whether the schema is there.
    pub schema: Looked<Schema>,
    /// Which migrations ran.
    pub applied: Looked<Vec<Migration>>,
    /// Which this program has.
    pub program: Vec<Migration>,
    /// The functions that are not this program's: changed, missing, or with other rights.
    pub functions: Looked<Functions>,
    /// Who there is.
    pub roles: Looked<Roles>,
    /// The epoch.
    pub epoch: Looked<EpochStatus>,
    /// Who is connected, and for how long.
    pub activity: Looked<Activity>,
    /// What should have been cleaned away.
    pub upkeep: Looked<Upkeep>,
    /// Tables that check the gate.
    pub protected: Looked<Protected>,
    /// What this login may do before the installation.
    pub rights: Looked<Rights>,
    /// Some trips to the server and back.
    pub trips: Looked<Vec<Trip>>,
}

/// The server, and this connection.
#[derive(Clone, Debug, Deserialize)]
pub struct Server {
    /// For example 150018.
    pub version: i64,
    /// For example `15.18 (Debian …)`.
    pub text: String,
    /// It follows another server, and takes no writes.
    pub standby: bool,
    /// The database's encoding.
    pub encoding: String,
    /// Who this connection is.
    pub login: String,
    /// A superuser is asked nothing.
    pub superuser: bool,
    /// This connection is encrypted.
    pub tls: bool,
    /// Some settings, as this connection has them.
    pub settings: Vec<Setting>,
    /// Connections that plain logins can have.
    pub connections: i64,
    /// Connections there are.
    pub connected: i64,
    /// Connections that this database may have; -1: no limit.
    pub database_limit: i64,
    /// Connections that this database has.
    pub database_connected: i64,
    /// Standbys that follow it.
    pub standbys: i64,
}

/// A setting and where it comes from.
#[derive(Clone, Debug, Deserialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value; times in milliseconds.
    pub value: String,
    /// It is the server's, and not only this login's or this database's.
    pub global: bool,
}

/// Whether the schema is there.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Schema {
    /// The schema `palisade`.
    pub schema: bool,
    /// Its table of migrations.
    pub migrations: bool,
}

/// The schema's functions and tables, held against the program's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Functions {
    /// Their text is not in this program's migrations.
    pub changed: Vec<String>,
    /// They are in this program's migrations, and not in the database.
    pub missing: Vec<String>,
    /// They have another owner, other rights or another search path than they were made with.
    pub open: Vec<String>,
    /// Everybody may call them.
    pub public: Vec<String>,
    /// Tables that autovacuum leaves alone.
    pub unvacuumed: Vec<String>,
}

/// Roles and their settings.
#[derive(Clone, Debug, Deserialize)]
pub struct Roles {
    /// Group roles that there are.
    pub groups: Vec<String>,
    /// Predefined roles that the owner has.
    pub owner: Vec<String>,
    /// Logins in a group.
    pub logins: Vec<Login>,
    /// What is set for a role or the database.
    pub settings: Vec<RoleSetting>,
}

/// A login in one of the groups.
#[derive(Clone, Debug, Deserialize)]
pub struct Login {
    /// Its name.
    pub name: String,
    /// Whether nothing holds it back.
    pub superuser: bool,
    /// Connections that it may have; -1: no limit.
    pub limit: i64,
    /// Its groups.
    pub groups: Vec<String>,
}

impl Login {
    /// Whether it has the rights of this group.
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|name| name == group)
    }
}

/// A line of `ALTER ROLE … SET` or `ALTER DATABASE … SET`.
#[derive(Clone, Debug, Deserialize)]
pub struct RoleSetting {
    /// Empty: everybody.
    pub role: String,
    /// In this database only.
    pub here: bool,
    /// The setting.
    pub name: String,
    /// As it was written.
    pub value: String,
}

/// Who is connected.
#[derive(Clone, Debug, Deserialize)]
pub struct Activity {
    /// Others' transactions are shown, too.
    pub sees_all: bool,
    /// The oldest open transaction of this database.
    pub oldest: Option<Backend>,
    /// The one that has idled in a transaction for the longest time.
    pub idle: Option<Backend>,
    /// Prepared transactions, the oldest first.
    pub prepared: Vec<Prepared>,
    /// Replication slots that nobody reads.
    pub slots: Vec<String>,
    /// Processes of Palisade whose login is asked nothing.
    pub unbound: Vec<String>,
    /// Processes of Palisade that come from another machine, without TLS.
    pub plain: Vec<String>,
}

/// A backend, for people.
#[derive(Clone, Debug, Deserialize)]
pub struct Backend {
    /// Its process.
    pub pid: i64,
    /// Its login.
    pub login: Option<String>,
    /// What it calls itself.
    pub application: Option<String>,
    /// For how long, in milliseconds.
    pub millis: i64,
}

/// A prepared transaction.
#[derive(Clone, Debug, Deserialize)]
pub struct Prepared {
    /// Its name.
    pub name: String,
    /// For how long, in milliseconds.
    pub millis: i64,
}

/// The oldest row of what is cleaned by age.
#[derive(Clone, Debug, Deserialize)]
pub struct Upkeep {
    /// Of the outbox, in milliseconds.
    pub oldest_millis: Option<i64>,
}

/// Tables that `palisade.protect` made check the gate.
#[derive(Clone, Debug, Deserialize)]
pub struct Protected {
    /// How many there are.
    pub tables: i64,
    /// Those that let something through: the table, and what.
    pub gaps: Vec<String>,
}

/// What this login may do before the installation.
#[derive(Clone, Debug, Deserialize)]
pub struct Rights {
    /// It may make the roles that are missing, or none is missing.
    pub roles: bool,
    /// It may make a schema in this database.
    pub schema: bool,
    /// Predefined roles that the owner needs, and that this login may not grant.
    pub ungrantable: Vec<String>,
}

/// One trip to the server and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trip {
    /// How long it took.
    pub took: Duration,
    /// How far the server's clock is ahead of this machine's, in milliseconds, give or take half of `took`.
    pub ahead_millis: i64,
    /// Which backend answered.
    pub backend: i32,
}

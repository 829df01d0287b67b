//! What the doctor asks a database: a few statements on one connection, each by itself, none of which changes anything.

mod sql;

use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow, PgSslMode};

use super::call::{Statement, get};
use super::epochs::EpochStatus;
use super::migrate::MIGRATIONS;
use super::{CallError, StoreConfig};
use crate::clock::Clock;
use crate::doctor::facts::{Answers, DatabaseFacts, Functions, NoConnection, Target, Trip};
use crate::doctor::{Looked, Unseen};

/// How often the way to the server is measured.
const TRIPS: usize = 20;

/// A migration: which, and a hash of its text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Migration {
    /// Its number.
    pub version: i64,
    /// Of its text, in hexadecimal digits.
    pub checksum: String,
}

/// Asks a database all that the doctor wants to know, as one login. It never fails: what has no answer is a fact as well.
pub async fn database_facts(config: &StoreConfig, clock: &Clock) -> DatabaseFacts {
    let options = match super::options(config) {
        Ok(options) => options,
        Err(error) => return DatabaseFacts { target: None, answers: Err((NoConnection::Url, error.to_string())) },
    };
    let target = Some(target(&options));
    let connecting = tokio::time::timeout(config.timeout, PgConnection::connect_with(&options)).await;
    let answers = match connecting {
        Err(_) => Err((NoConnection::Unreachable, format!("no answer within {:?}", config.timeout))),
        Ok(Err(error)) => Err(no_connection(&error)),
        Ok(Ok(connection)) => {
            let mut probe = Probe { connection: Some(connection), budget: config.timeout };
            let answers = probe.answers(clock).await;
            if let Some(connection) = probe.connection {
                // A courtesy to the server's log.
                let _ = connection.close().await;
            }
            answers
        }
    };
    DatabaseFacts { target, answers }
}

fn target(options: &PgConnectOptions) -> Target {
    let socket = options.get_socket().map(|path| path.display().to_string());
    let host = options.get_host();
    let near = socket.is_some()
        || host.starts_with('/')
        || host == "localhost"
        || std::net::IpAddr::from_str(host.trim_matches(['[', ']'])).is_ok_and(|address| address.is_loopback());
    Target {
        host: socket.unwrap_or_else(|| format!("{host}:{}", options.get_port())),
        database: options.get_database().unwrap_or_else(|| options.get_username()).to_owned(),
        near,
        verified: matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull),
    }
}

fn no_connection(error: &sqlx::Error) -> (NoConnection, String) {
    let sqlx::Error::Database(refused) = error else { return (NoConnection::Unreachable, error.to_string()) };
    let kind = match refused.code().as_deref().unwrap_or_default() {
        "28000" | "28P01" | "42501" => NoConnection::Login,
        "3D000" => NoConnection::Database,
        // A pooler that knows no `options`, or not this one.
        "08P01" => NoConnection::Pooler,
        _ => NoConnection::Unreachable,
    };
    (kind, refused.message().to_owned())
}

struct Probe {
    /// Gone after a call that was not answered: what state it is in is not known.
    connection: Option<PgConnection>,
    budget: Duration,
}

impl Probe {
    async fn answers(&mut self, clock: &Clock) -> Result<Answers, (NoConnection, String)> {
        // The first statement: through a pooler that gives each one to another backend, it is the next that fails.
        let server = self.ask(sql::SERVER).await;
        let trips = self.trips(clock).await;
        if let Err(Unseen::NoAnswer(message)) = &trips
            && ["prepared statement", "26000", "42P05"].iter().any(|sign| message.contains(sign))
        {
            return Err((NoConnection::Pooler, message.clone()));
        }
        Ok(Answers {
            server,
            trips,
            schema: self.ask(sql::SCHEMA).await,
            applied: self.ask(sql::APPLIED).await,
            program: program(),
            functions: self.ask::<Catalogue>(sql::FUNCTIONS).await.map(Catalogue::compare),
            roles: self.ask(sql::ROLES).await,
            epoch: self.epoch().await,
            activity: self.ask(sql::ACTIVITY).await,
            upkeep: self.ask(sql::UPKEEP).await,
            protected: self.ask(sql::PROTECTED).await,
            rights: self.ask(sql::RIGHTS).await,
        })
    }

    async fn ask<T: DeserializeOwned>(&mut self, question: &'static str) -> Looked<T> {
        let row = self.row(sqlx::query(question)).await?;
        let facts: Value = get(&row, "facts").map_err(unreadable)?;
        serde_json::from_value(facts).map_err(|e| Unseen::NoAnswer(format!("the answer cannot be read: {e}")))
    }

    async fn epoch(&mut self) -> Looked<EpochStatus> {
        let row = self.row(sqlx::query("SELECT * FROM palisade.epoch_status()")).await?;
        EpochStatus::read(&row).map_err(unreadable)
    }

    async fn trips(&mut self, clock: &Clock) -> Looked<Vec<Trip>> {
        let mut trips = Vec::with_capacity(TRIPS);
        for _ in 0..TRIPS {
            let (sent, wall) = (clock.now(), Clock::wall());
            let row = self.row(sqlx::query(sql::TRIP)).await?;
            let took = clock.now().since(sent);
            let micros: i64 = get(&row, "micros").map_err(unreadable)?;
            let halfway = wall.as_microsecond() + i64::try_from(took.as_micros() / 2).unwrap_or(0);
            let backend = get(&row, "backend").map_err(unreadable)?;
            trips.push(Trip { took, ahead_millis: (micros - halfway) / 1000, backend });
        }
        // The first one pays for the statement's preparation.
        trips.remove(0);
        Ok(trips)
    }

    async fn row(&mut self, statement: Statement) -> Looked<PgRow> {
        let Some(connection) = &mut self.connection else {
            return Err(Unseen::NoAnswer("the connection was given up".into()));
        };
        // The server ends the statement at the budget's end, and says so: a little later is no answer at all.
        let answer = tokio::time::timeout(self.budget + self.budget / 4, statement.fetch_one(connection)).await;
        match answer {
            Ok(Ok(row)) => Ok(row),
            Ok(Err(sqlx::Error::Database(refused))) => Err(refusal(refused.as_ref())),
            Ok(Err(error)) => {
                self.connection = None;
                Err(Unseen::NoAnswer(error.to_string()))
            }
            Err(_) => {
                self.connection = None;
                Err(Unseen::NoAnswer(format!("within {:?}", self.budget)))
            }
        }
    }
}

fn unreadable(error: CallError) -> Unseen {
    Unseen::NoAnswer(error.to_string())
}

fn refusal(error: &dyn sqlx::error::DatabaseError) -> Unseen {
    match error.code().as_deref().unwrap_or_default() {
        "42501" => Unseen::NotAllowed(error.message().to_owned()),
        code => Unseen::NoAnswer(format!("{} ({code})", error.message())),
    }
}

/// The migrations of this program.
fn program() -> Vec<Migration> {
    MIGRATIONS.iter().map(|m| Migration { version: m.version, checksum: hex::encode(&m.checksum) }).collect()
}

#[derive(Deserialize)]
struct Catalogue {
    functions: Vec<Function>,
    unvacuumed: Vec<String>,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    source: String,
    public: bool,
    definer: bool,
    owned: bool,
    path: bool,
}

impl Catalogue {
    /// A function's source is stored as it was written: it stands in a migration, or somebody changed it.
    fn compare(self) -> Functions {
        let ours: String = MIGRATIONS.iter().map(|migration| migration.sql.as_str()).collect();
        let names = |wanted: &dyn Fn(&Function) -> bool| -> Vec<String> {
            self.functions.iter().filter(|f| wanted(f)).map(|f| f.name.clone()).collect()
        };
        // Name, and what stands between it and the body: whose rights it has, and with which search path.
        let made = ours.split("\nCREATE FUNCTION palisade.").skip(1).filter_map(|rest| rest.split_once('('));
        let heads: Vec<_> = made.map(|(name, rest)| (name, rest.split("AS $").next().unwrap_or(rest))).collect();
        let mut missing: Vec<String> = heads
            .iter()
            .filter(|(name, _)| !self.functions.iter().any(|f| f.name == *name))
            .map(|(name, _)| (*name).to_owned())
            .collect();
        missing.dedup();
        let as_made = |f: &Function, head: &str| {
            f.definer == head.contains("SECURITY DEFINER")
                && f.path == head.contains("SET search_path = pg_catalog, palisade, pg_temp")
        };
        let open = |f: &Function| {
            let mut own = heads.iter().filter(|(name, _)| f.name == *name).peekable();
            own.peek().is_some() && !(f.owned && own.any(|(_, head)| as_made(f, head)))
        };
        Functions {
            changed: names(&|f| !ours.contains(&f.source)),
            missing,
            open: names(&open),
            public: names(&|f| f.public),
            unvacuumed: self.unvacuumed,
        }
    }
}

//! What a fence costs a program that uses the library: session, pool, retries and clock included.

use std::sync::Arc;
use std::time::Duration;

use palisade::lease::{Lease, Session, SessionConfig};
use palisade::outcome::Outcome;
use palisade::store::{Store, StoreConfig, Write};
use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::fenced::{CLIENTS, SET_UP, SHARES, check_ledger, owners};
use crate::harness::{Bench, Target, Variant, Wanted};
use crate::load::Load;
use crate::server::{Db, FIRST_TOKEN, KEY};
use crate::support::postgres::Server;

pub const SUBJECT: &str = "fenced-write-sdk";

const PLAIN: &str = "plain UPDATE, sqlx";
const ALIAS: &str = "Lease::write(SetAlias)";
const TRANSACTION: &str = "transaction: the work of set_alias, sqlx";

async fn plain(pool: PgPool, client: usize) -> Result<(), sqlx::Error> {
    let statement = sqlx::query("UPDATE bench.account SET value = value + 1 WHERE name = $1");
    let done = statement.bind(format!("bench/{client}")).execute(&pool).await?;
    assert_eq!(done.rows_affected(), 1, "the row is there");
    Ok(())
}

/// As in fenced.rs, with the comparison that a client makes. seven round trips.
async fn transaction(pool: PgPool, client: usize, sequence: i64) -> Result<(), sqlx::Error> {
    let resource = format!("alias-transaction/{client}");
    let (alias, version) = (format!("mine-{client}"), 1 + sequence % 2);
    let result = serde_json::json!({ "model": "bench", "alias": alias, "version": version });
    let mut tx = pool.begin().await?;
    let (token, last): (i64, i64) =
        sqlx::query_as("SELECT token, sequence FROM palisade.lease WHERE resource = $1 FOR NO KEY UPDATE")
            .bind(&resource)
            .fetch_one(&mut *tx)
            .await?;
    assert!(token == FIRST_TOKEN && last < sequence, "the lease is ours");
    sqlx::query(
        "UPDATE palisade.alias SET version = $1, guard = $2, token = $3, updated_at = clock_timestamp()
         WHERE model = 'bench' AND alias = $4 AND token <= $3",
    )
    .bind(version)
    .bind(&resource)
    .bind(token)
    .bind(&alias)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "INSERT INTO palisade.event (resource, kind, token, sequence, data, at)
         VALUES ($1, 'alias', $2, $3, $4, clock_timestamp())",
    )
    .bind(&resource)
    .bind(token)
    .bind(sequence)
    .bind(&result)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "INSERT INTO palisade.operation (resource, token, sequence, kind, args_hash, outcome, result, at)
         VALUES ($1, $2, $3, 'bench', sha256($4::bytea), 'applied', $5, clock_timestamp())",
    )
    .bind(&resource)
    .bind(token)
    .bind(sequence)
    .bind(KEY.as_bytes())
    .bind(&result)
    .execute(&mut *tx)
    .await?;
    sqlx::query("UPDATE palisade.lease SET sequence = $1 WHERE resource = $2")
        .bind(sequence)
        .bind(&resource)
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}

pub async fn run(bench: &Bench, server: &Server) {
    for (clients, share) in CLIENTS.into_iter().zip(SHARES) {
        let db = Db::new(bench, server).await;
        let mut sql = db.sql().await;
        sql.run(SET_UP).await;
        sql.run(&owners(clients, &["alias-transaction"])).await;
        // One process with a lease for each client, as a busy worker has them.
        let config =
            StoreConfig { connections: clients as u32, ..StoreConfig::new(db.url_as("worker_login"), "bench") };
        let store = Store::new(&config).expect("a store");
        let session =
            Session::open(store, SessionConfig::new("bench", Duration::from_secs(60))).await.expect("a session");
        let mut leases: Vec<Lease> = Vec::new();
        for client in 0..clients {
            leases.push(session.acquire(&format!("alias/{client}"), None).await.expect("a lease"));
        }
        let leases = Arc::new(leases);
        let options = PgPoolOptions::new().max_connections(clients as u32).test_before_acquire(false);
        let pool = options.connect(&db.url_as("postgres")).await.expect("a pool");
        db.settle().await;

        let (one, two, owned) = (pool.clone(), pool.clone(), leases.clone());
        let mut running = [
            Load::new(&db, PLAIN, clients, move |client, _| {
                let pool = one.clone();
                Box::pin(async move { plain(pool, client).await.expect("updated") })
            }),
            Load::new(&db, ALIAS, clients, move |client, turn| {
                let leases = owned.clone();
                Box::pin(async move {
                    let (model, alias) = ("bench".to_owned(), format!("a-{client}"));
                    let write = Write::SetAlias { model, alias, version: Some(1 + turn % 2) };
                    let outcome = leases[client].write(write).await.expect("an answer");
                    assert!(matches!(outcome, Outcome::Applied(_)), "{outcome:?}");
                })
            }),
            Load::new(&db, TRANSACTION, clients, move |client, turn| {
                let pool = two.clone();
                Box::pin(async move { transaction(pool, client, turn).await.expect("committed") })
            }),
        ];
        let mut variants: Vec<&mut dyn Variant> = running.iter_mut().map(|one| one as &mut dyn Variant).collect();
        let wanted = [
            Wanted::share(ALIAS, PLAIN, Some(Target::AtLeast(share))),
            Wanted::share(ALIAS, TRANSACTION, Some(Target::AtLeast(2.0))),
            Wanted::share(TRANSACTION, PLAIN, None),
        ];
        bench.compare(SUBJECT, "writes/s", clients, &mut variants, &wanted).await;
        check_ledger(bench, &mut sql, running[1].done()).await;
        pool.close().await;
        session.close().await.expect("closed");
        sql.close().await;
        drop(leases);
        db.drop().await;
    }
}

//! The same data goes on, as another incarnation.

use crate::ground::{Ground, login, server, superuser};
use crate::history::Owner;
use crate::support::cluster::wait_until;
use crate::support::postgres::{Conn, Failure, Server, kill};

/// One server, one controller; `strike` ends the incarnation, and the next one heals by itself.
async fn heals(prefix: &str, strike: impl AsyncFnOnce(&Server, &mut Owner)) {
    let ground = Ground::new(prefix).await;
    let server = server(&ground).await;
    let (url, resource) = (superuser(&server), ground.resource());
    let _controller = ground.controller("controller-a", &login(&server));
    ground.epoch_is(&url, 1).await;
    ground.create().await;
    let mut owner = Owner::new(&url, &resource, &ground.history).await;
    owner.writes().await;
    ground.told_by_the_leader_of(1).await;

    strike(&server, &mut owner).await;
    ground.epoch_is(&url, 2).await;
    owner.is_refused(&url, &["stale", "session_closed"]).await;
    let mut next = Owner::new(&url, &resource, &ground.history).await;
    assert_eq!(next.lease.token >> 32, 2);
    next.writes().await;
    ground.told_by_the_leader_of(2).await;
    ground.nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_a_new_epoch_within_seconds() {
    heals("restart", async |server, _| {
        server.stop();
        server.start_again();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_postmaster_loses_no_grant_and_is_a_new_epoch() {
    heals("crash", async |server, owner| {
        let granted = owner.lease.token;
        server.crash();
        server.start_again();
        let sql = format!("SELECT token FROM palisade.lease WHERE resource = '{}'", owner.lease.resource);
        let found = Conn::open(&superuser(server)).await.number(&sql).await;
        assert_eq!(found, granted, "what was answered is there");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_crashes_behind_an_asynchronous_commit_is_a_new_epoch_and_loses_no_write() {
    heals("backend", async |server, owner| {
        let mut admin = Conn::open(&server.url).await;
        // Nobody but the call itself writes it down.
        admin.run("ALTER SYSTEM SET wal_writer_delay = '10s'").await;
        admin.run("SELECT pg_reload_conf()").await;
        owner.conn.run("CHECKPOINT; SET synchronous_commit = off").await;
        owner.writes().await;
        let postmaster = server.postmaster();
        kill(owner.conn.pid().await);
        // For a moment the old incarnation may still let us in.
        let number = || async {
            let number =
                Conn::try_open(&superuser(server)).await?.try_text("SELECT number FROM palisade.epoch").await?;
            if number == "2" { Ok(()) } else { Err(Failure { code: String::new(), message: number }) }
        };
        wait_until("it is another incarnation", || async { number().await.map_err(|failure| failure.message) }).await;
        let mut conn = Conn::open(&superuser(server)).await;
        let token = format!("SELECT token FROM palisade.alias WHERE alias = 'live' AND token = {}", owner.lease.token);
        assert_eq!(conn.text(&token).await, owner.lease.token.to_string(), "the write is there");
        assert_eq!(server.postmaster(), postmaster, "only a backend crashed");
    })
    .await;
}

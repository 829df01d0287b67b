//! The way to the API server is cut, and mended.

use std::net::SocketAddr;

use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::stage::Stage;

/// Passes bytes on to `target` while `whole` is true; else all connections are cut, and new ones at once.
async fn wire(target: SocketAddr, whole: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut whole = whole.clone();
            tokio::spawn(async move {
                let Ok(mut far) = TcpStream::connect(target).await else { return };
                tokio::select! {
                    _ = whole.wait_for(|whole| !whole) => {}
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                }
            });
        }
    });
    address
}

/// A watch goes on where it was, without a new list and without an event that says so.
#[tokio::test]
async fn a_controller_whose_watch_was_cut_is_ready_again_and_hears_of_what_changes() {
    let stage = Stage::new("cut").await;
    let url = stage.cluster.config().await.cluster_url;
    let target = format!("{}:{}", url.host().expect("a host"), url.port_u16().expect("a port"));
    let (whole, watched) = watch::channel(true);
    let address = wire(target.parse().expect("an address"), watched).await;
    let replica = stage.replica_through("a", address).await;
    replica.ready().await;

    whole.send_replace(false);
    // It keeps its epoch by asking for it now and then.
    replica.complains("epoch").await;
    whole.send_replace(true);
    replica.ready().await;
    stage.create("churn", json!({})).await;
    stage.planned("churn", "n.rollout = 1").await;
    replica.stop().await;
}

//! A connection at rest is checked out of a node's pool and put back. Its socket leads to a listener that says nothing.

use crate::Work;
use helios_pgwire::login::Welcome;
use helios_proto::model::{Node, NodeName, Role};
use heliosdb_proxy::pool::node::{Caps, Request, Source};
use heliosdb_proxy::pool::sweep::established;
use heliosdb_proxy::pool::{Checkout, Identities, NodePool, Waiter};
use heliosdb_proxy::server::Credential;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Of a pool with one connection that was used a moment ago.
pub fn idle() -> Work {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let node = Node {
        name: NodeName::new("n"),
        host: "127.0.0.1".to_owned(),
        port: 1,
        role: Role::Primary,
        weight: 100,
        max_connections: None,
    };
    let pool = NodePool::new(Arc::new(node), 8, (Source::Alone, &Arc::default()));
    let identity = Identities::default().get(b"app", b"app", Vec::new(), 0, &Arc::new(Credential::Nothing));
    let waiter = Waiter::new(0);
    let ask = {
        let (pool, identity) = (Arc::clone(&pool), Arc::clone(&identity));
        move || {
            let (caps, timeout) = (Caps::default(), Duration::from_secs(1));
            pool.checkout(&Request { identity: &identity, waiter: &waiter, settings: None, caps, timeout })
        }
    };
    let Checkout::Dial(slot) = ask() else { panic!("no place") };
    let (conn, listener, accepted) = runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let io = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        (established((io.into(), None), &Welcome::default(), slot, 0, None), listener, accepted)
    });
    pool.put_back(conn);
    Box::new(move || {
        let _alive = (&runtime, &listener, &accepted);
        let Checkout::Ready(conn) = ask() else { panic!("no connection at rest") };
        pool.put_back(conn);
    })
}

//! `heliosctl cache`: what the data planes' result caches hold, and the order to empty them.

use helios_proto::wire::v1;

use super::Done;
use super::change::{no_idle, tell, wait};
use super::watch::{self, Item};
use crate::args::Watch;
use crate::client::Session;
use crate::failure::{Exit, Failure};
use crate::out::Out;
use crate::render::caches;
use crate::tree;
use crate::verbs::CacheVerb;

async fn list(session: &mut Session) -> Result<v1::ListCachesReply, Failure> {
    session.call(async |c| c.list_caches(v1::ListCachesRequest {}).await).await
}

pub(super) async fn run(out: Out, session: &mut Session, verb: CacheVerb) -> Done {
    match verb {
        CacheVerb::Stats { watch: Watch { watch: true, interval } } => {
            let wide = out.is_wide();
            watch::list(out, session, interval, caches::header(wide), async |session| {
                let item = |cache: v1::CacheInfo| Item {
                    mark: format!("{cache:?}"),
                    row: caches::row(&cache, wide),
                    tree: tree::of(&cache),
                    key: cache.dataplane,
                };
                Ok(list(session).await?.caches.into_iter().map(item).collect())
            })
            .await
        }
        CacheVerb::Stats { .. } => {
            let reply = list(session).await?;
            let names = || reply.caches.iter().map(|c| c.dataplane.clone()).collect::<Vec<_>>().join("\n");
            let table = |out: Out| caches::table(&reply.caches, out.is_wide()).render(out.color);
            out.show(|| tree::of(&reply), names, table)?;
            Ok(Exit::Ok)
        }
        CacheVerb::Flush { wait: until } => {
            no_idle(until)?;
            let request = v1::FlushCachesRequest { wait: wait(session, until) };
            let reply = session.change(async |c| c.flush_caches(request).await).await?;
            tell(out, until, "result caches of every data plane emptied", "cache", &reply)
        }
    }
}

//! PostgreSQL 18 behind the proxy: login of every kind, transactions, reads on a standby, and a failover. Where it cannot
//! be installed, says so and passes.

use helios_tests::{Cluster, Config, Load, Programs, Role, eventually};

use std::time::Duration;

#[test]
fn clients_log_in_and_work_and_a_failover_is_followed() {
    let Some(programs) = Programs::eighteen() else { return };
    let cluster = Cluster::start_with(&programs, &[Role::Standby, Role::Replica]);
    Load::prepare(&cluster);
    let version: String = cluster.primary().superuser().query_one("show server_version", &[]).unwrap().get(0);
    assert!(version.starts_with("18"), "{version}");
    let mut config = Config::new(&cluster);
    config.more = config.more.replacen("check_interval_secs = 1", "check_interval_secs = 0.5", 1);
    let proxy = config.start().ready();
    for role in ["app", "md5user", "clear"] {
        let mut client = proxy.connect(role);
        assert_eq!(client.query_one("select current_user::text", &[]).unwrap().get::<_, String>(0), role);
    }
    let mut client = proxy.connect("app");
    let mut block = client.transaction().unwrap();
    let n: i32 =
        block.query_one("update counter set n = n + 1 where id = 1 returning n", &[]).unwrap().get(0);
    block.commit().unwrap();
    let read = "/* helios:route=primary */ select n from counter where id = 1";
    assert_eq!(client.query_one(read, &[]).unwrap().get::<_, i32>(0), n);
    let recovering = "/* helios:route=standby */ select pg_is_in_recovery()";
    assert!(client.query_one(recovering, &[]).unwrap().get::<_, bool>(0), "a standby reads");
    // `search_path` is reported since 18; it is not mistaken for a change.
    assert_eq!(proxy.metrics().sum("heliosproxy_pinned_total", &[]).unwrap_or_default(), 0.0);

    // What is acknowledged is on the standby as well.
    cluster.execute("alter system set synchronous_standby_names = 'standby'");
    cluster.execute("select pg_reload_conf()");
    let load = Load::start(4, &[&proxy]);
    load.go_on(5);
    cluster.primary().kill();
    cluster.node("standby").promote();
    load.go_on(5);
    let outcome = load.finish();
    outcome.check(cluster.node("standby"));
    outcome.codes_of_a_lost_primary(|_| true);
    eventually(Duration::from_secs(30), "the session that waited goes on", || {
        client.batch_execute("update counter set n = 0 where id = 1").is_ok()
    });
}

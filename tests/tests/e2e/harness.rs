//! The harness itself: what the other tests rely on to be true of a cluster.

use std::time::Duration;

use helios_tests::{Cluster, Role, eventually};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn servers_can_be_killed_started_stopped_and_promoted() {
    let cluster = Cluster::start(&[Role::Standby, Role::Replica]);
    let (primary, standby, replica) = (cluster.primary(), cluster.node("standby"), cluster.node("replica-1"));
    cluster.execute("create table t as select 1 as i");
    let mut held = replica.superuser();
    replica.kill();
    assert!(held.batch_execute("select 1").is_err());
    replica.start();
    cluster.execute("insert into t values (2)");
    eventually(LONG, "it streams again", || {
        replica.superuser().query_one("select count(*) from t", &[]).unwrap().get::<_, i64>(0) == 2
    });
    standby.catch_up(primary);
    primary.kill();
    standby.promote();
    eventually(LONG, "the standby takes writes", || {
        standby.superuser().batch_execute("insert into t values (3)").is_ok()
    });
    standby.stop("fast");
    standby.start();
    let count: i64 = standby.superuser().query_one("select count(*) from t", &[]).unwrap().get(0);
    assert_eq!(count, 3);
}

#[test]
fn roles_log_in_by_the_method_that_is_named_for_them() {
    let node = Cluster::shared().primary();
    for role in ["app", "md5user", "clear", "trusty"] {
        let row = node.connect(role).query_one("select current_user::text", &[]).unwrap();
        assert_eq!(row.get::<_, &str>(0), role);
    }
    let methods: Vec<(String, String)> = node
        .superuser()
        .query("select user_name[1], auth_method from pg_hba_file_rules where address is not null", &[])
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    for (role, method) in
        [("md5user", "md5"), ("clear", "password"), ("trusty", "trust"), ("all", "scram-sha-256")]
    {
        assert!(methods.contains(&(role.to_owned(), method.to_owned())), "{role}: {methods:?}");
    }
}

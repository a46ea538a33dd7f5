//! Every end-to-end test, as one program so that it is linked once. The proxy is a process, PostgreSQL is real.
// Test code: a broken assumption has to stop the test, loudly and where it happens.
#![allow(clippy::unwrap_used, clippy::as_conversions, clippy::too_many_lines)]

mod accept;
mod admin;
mod budget;
mod control;
mod deltas;
mod docs;
mod drivers;
mod encodings;
mod ends;
mod etcd;
mod failover;
mod failures;
mod faults;
mod foreign;
mod full;
mod harness;
mod heliosctl;
mod hostile;
mod leaks;
mod left_behind;
mod legs;
mod login;
mod lost;
mod partitions;
mod patroni;
mod peers;
mod pooling;
mod postgres18;
mod relayed;
mod replication;
mod rolling;
mod rotation;
mod routing;
mod scale;
mod settings;
mod statements;
mod stores;
mod stuck;
mod switchover;
mod tls;
mod wire;
mod workers;

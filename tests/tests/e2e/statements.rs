//! Prepared statements by name in transaction mode: the same scripts to PostgreSQL and through the proxy, where clients
//! share two servers, and the same answers must come back, error texts included.

use helios_tests::cluster::password;
use helios_tests::raw::{Message, Raw, message, query};
use helios_tests::{Cluster, Config, Proxy};

/// Bytes to send, and how many ReadyForQuery to wait for.
type Script = Vec<(Vec<u8>, usize)>;

fn cstr(parts: &[&str]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.bytes().chain([0])).collect()
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[cstr(&[name, sql]), vec![0, 0]].concat())
}

/// Binds with text parameters.
fn bind(portal: &str, name: &str, parameters: &[&str]) -> Vec<u8> {
    let mut body = cstr(&[portal, name]);
    body.extend([0, 0]);
    body.extend(u16::try_from(parameters.len()).unwrap().to_be_bytes());
    for parameter in parameters {
        body.extend(u32::try_from(parameter.len()).unwrap().to_be_bytes());
        body.extend(parameter.bytes());
    }
    body.extend([0, 0]);
    message(b'B', &body)
}

fn describe(name: &str) -> Vec<u8> {
    message(b'D', &[b"S".to_vec(), cstr(&[name])].concat())
}

fn close(name: &str) -> Vec<u8> {
    message(b'C', &[b"S".to_vec(), cstr(&[name])].concat())
}

fn execute(portal: &str, rows: u32) -> Vec<u8> {
    message(b'E', &[cstr(&[portal]), rows.to_be_bytes().to_vec()].concat())
}

fn sync() -> Vec<u8> {
    message(b'S', &[])
}

fn flush() -> Vec<u8> {
    message(b'H', &[])
}

/// Binds, executes and syncs.
fn run(name: &str, parameters: &[&str]) -> Vec<u8> {
    [bind("", name, parameters), execute("", 0), sync()].concat()
}

fn prepare(name: &str, sql: &str) -> Vec<u8> {
    [parse(name, sql), describe(name), sync()].concat()
}

/// What a client can tell of a message: all but positions in the server's source code.
fn seen(message: &Message) -> Option<String> {
    let tag = char::from(message.tag);
    match message.tag {
        b'S' => None,
        b'E' | b'N' => {
            let text = |key: u8| {
                let fields = message.body.split(|byte| *byte == 0);
                fields
                    .filter(|f| f.first() == Some(&key))
                    .map(|f| String::from_utf8_lossy(&f[1..]).into_owned())
                    .next()
            };
            Some(format!("{tag}:{:?}:{:?}:{:?}", text(b'C'), text(b'M'), text(b'H')))
        }
        b'D' => Some(format!("D:{}", message.fields().join(","))),
        b'C' | b'Z' => Some(format!("{tag}:{}", String::from_utf8_lossy(&message.body))),
        b'T' => Some(format!("T{}", u16::from_be_bytes([message.body[0], message.body[1]]))),
        b't' => Some(format!("t{:?}", message.body)),
        _ => Some(tag.to_string()),
    }
}

fn play(raw: &mut Raw, script: &Script) -> Vec<String> {
    script
        .iter()
        .flat_map(|(bytes, readies)| {
            raw.send(bytes);
            raw.until_ready(*readies)
        })
        .filter_map(|message| seen(&message))
        .collect()
}

fn scripts() -> Vec<(&'static str, Script)> {
    let one = |bytes: Vec<Vec<u8>>, readies: usize| (bytes.concat(), readies);
    vec![
        (
            "prepare, then run twice",
            vec![(prepare("s1", "select $1::int + 1"), 1), (run("s1", &["1"]), 1), (run("s1", &["2"]), 1)],
        ),
        (
            "all in one pipeline",
            vec![one(vec![prepare("s1", "select $1::int * 2"), run("s1", &["1"]), run("s1", &["2"])], 3)],
        ),
        (
            "two names for one text, and one text under two types",
            vec![
                one(
                    vec![prepare("a", "select 7"), prepare("b", "select 7"), run("a", &[]), run("b", &[])],
                    4,
                ),
                one(vec![message(b'P', b"c\0select $1\0\0\x01\0\0\0\x17"), describe("c"), sync()], 1),
                one(vec![message(b'P', b"d\0select $1\0\0\x01\0\0\0\x14"), describe("d"), sync()], 1),
            ],
        ),
        (
            "a name that is taken",
            vec![
                (prepare("s1", "select 1"), 1),
                (prepare("s1", "select 2"), 1),
                (run("s1", &[]), 1),
                one(vec![parse("s1", "select 3"), bind("", "s1", &[]), sync(), run("s1", &[])], 2),
            ],
        ),
        (
            "a name that is not known",
            vec![
                (run("nobody", &[]), 1),
                (prepare("s1", "select 1"), 1),
                (run("S1", &[]), 1),
                (run("s1", &[]), 1),
            ],
        ),
        (
            "close",
            vec![
                (prepare("s1", "select 1"), 1),
                one(vec![close("s1"), close("nobody"), sync()], 1),
                (run("s1", &[]), 1),
                (prepare("s1", "select 2"), 1),
                (run("s1", &[]), 1),
                one(vec![close("s1"), parse("s1", "select 3"), run("s1", &[])], 1),
            ],
        ),
        (
            "a Parse that fails leaves no name",
            vec![
                one(vec![parse("bad", "select from where"), run("bad", &[]), run("bad", &[])], 2),
                (prepare("bad", "select 1"), 1),
                (run("bad", &[]), 1),
            ],
        ),
        (
            "what an error skips has not happened",
            vec![
                one(vec![prepare("s1", "select 1"), prepare("s2", "select 2")], 2),
                one(vec![bind("", "nobody", &[]), close("s1"), parse("s3", "select 3"), sync()], 1),
                (run("s1", &[]), 1),
                (run("s3", &[]), 1),
                one(vec![parse("s3", "select 1/0"), run("s3", &[]), close("s2"), sync()], 2),
                (run("s2", &[]), 1),
            ],
        ),
        (
            "in a failed transaction",
            vec![
                one(vec![prepare("s1", "select 1"), prepare("back", "rollback")], 2),
                (query("begin"), 1),
                (query("select 1/0"), 1),
                (run("s1", &[]), 1),
                (run("back", &[]), 1),
                (run("s1", &[]), 1),
            ],
        ),
        (
            "transactions by prepared statements",
            vec![
                one(vec![prepare("b", "begin"), prepare("c", "commit"), prepare("s", "select $1")], 3),
                one(vec![run("b", &[]), run("s", &["x"]), run("c", &[])], 3),
                (run("b", &[]), 1),
                (run("s", &["y"]), 1),
                (run("c", &[]), 1),
            ],
        ),
        (
            "DEALLOCATE",
            vec![
                one(
                    vec![prepare("s1", "select 1"), prepare("Q 2", "select 2"), prepare("s3", "select 3")],
                    3,
                ),
                (query("deallocate s1"), 1),
                (run("s1", &[]), 1),
                (query("DEALLOCATE PREPARE \"Q 2\";"), 1),
                (run("Q 2", &[]), 1),
                (query("deallocate nobody"), 1),
                (run("s3", &[]), 1),
                (query("begin"), 1),
                (query("deallocate s3"), 1),
                (run("s3", &[]), 1),
                (query("rollback"), 1),
                (prepare("s1", "select 11"), 1),
                (run("s1", &[]), 1),
            ],
        ),
        (
            "DEALLOCATE ALL and DISCARD ALL",
            vec![
                one(vec![prepare("s1", "select 1"), prepare("s2", "select 2")], 2),
                (query("deallocate all"), 1),
                (run("s1", &[]), 1),
                (prepare("s1", "select 1"), 1),
                (run("s1", &[]), 1),
                (query("discard all"), 1),
                (run("s1", &[]), 1),
                (prepare("s1", "select 1"), 1),
                (run("s1", &[]), 1),
            ],
        ),
        (
            "Flush, portals and row limits",
            vec![
                (query("begin"), 1),
                one(
                    vec![parse("s1", "select generate_series(1, 5)"), flush(), bind("p", "s1", &[]), flush()],
                    0,
                ),
                one(vec![execute("p", 2), execute("p", 2), flush(), execute("p", 0), sync()], 1),
                (query("commit"), 1),
                one(vec![bind("", "s1", &[]), message(b'D', b"P\0"), execute("", 3), sync()], 1),
            ],
        ),
        (
            "a long parameter",
            vec![
                (prepare("s1", "select length($1), md5($1)"), 1),
                (run("s1", &["x".repeat(300_000).as_str()]), 1),
                (run("s1", &[]), 1),
                (run("s1", &["short"]), 1),
            ],
        ),
        (
            "a statement whose result changed",
            vec![
                (
                    query(
                        "drop table if exists reshaped; create table reshaped (a int); insert into reshaped values (1)",
                    ),
                    1,
                ),
                (prepare("s1", "select * from reshaped"), 1),
                (run("s1", &[]), 1),
                (query("alter table reshaped add b int"), 1),
                (run("s1", &[]), 1),
                one(vec![close("s1"), prepare("s1", "select * from reshaped"), run("s1", &[])], 2),
                (query("drop table reshaped"), 1),
                (run("s1", &[]), 1),
            ],
        ),
        (
            "simple queries between",
            vec![
                one(
                    vec![
                        prepare("s1", "select 1"),
                        query("select 2"),
                        run("s1", &[]),
                        query("select 3; select 4"),
                    ],
                    4,
                ),
                (query("set application_name to 'x y'"), 1),
                (run("s1", &[]), 1),
                (prepare("s2", "show application_name"), 1),
                (run("s2", &[]), 1),
            ],
        ),
    ]
}

fn proxy(pool: u32) -> Proxy {
    Config { pool, ..Config::primary_only(Cluster::shared()) }.start().ready()
}

fn direct() -> Raw {
    Raw::login(Cluster::shared().primary().port, "app", &password("app")).0
}

#[test]
fn the_same_answers_as_from_postgresql() {
    let proxy = proxy(2);
    for (what, script) in scripts() {
        let expected = play(&mut direct(), &script);
        // With one server busy the other has to do; both have seen each statement by the end.
        let mut busy = proxy.raw("app").0;
        for round in 0..4 {
            if round % 2 == 1 {
                busy.query("begin");
            }
            assert_eq!(play(&mut proxy.raw("app").0, &script), expected, "{what}, round {round}");
            busy.query("rollback");
        }
    }
}

#[test]
fn any_split_of_the_bytes_gives_the_same_answers() {
    let proxy = proxy(2);
    let script = [
        prepare("s1", "select $1::int + 1"),
        run("s1", &["1"]),
        prepare("s2", "select $1, $2"),
        run("s2", &["a", "b"]),
        run("s1", &["x"]),
        close("s1"),
        run("s1", &["2"]),
    ]
    .concat();
    let expected = play(&mut direct(), &vec![(script.clone(), 6)]);
    for size in [1, 2, 3, 5, 7, 11, 16, 40, 64] {
        let pieces: Script = script.chunks(size).map(|piece| (piece.to_vec(), 0)).collect();
        let mut client = proxy.raw("app").0;
        for (piece, _) in &pieces {
            client.send(piece);
        }
        let answers: Vec<String> = client.until_ready(6).iter().filter_map(seen).collect();
        assert_eq!(answers, expected, "pieces of {size}");
    }
}

#[test]
fn more_statements_than_a_server_keeps() {
    let proxy = proxy(1);
    let mut client = proxy.raw("app").0;
    for i in 0..1_200 {
        client.send(&prepare(&format!("s{i}"), &format!("select {i}")));
        client.until_ready(1);
    }
    for i in (0..1_200).step_by(7).chain([0, 1, 1_199]) {
        client.send(&run(&format!("s{i}"), &[]));
        let answers: Vec<String> = client.until_ready(1).iter().filter_map(seen).collect();
        assert_eq!(answers, ["2", &format!("D:{i}"), "C:SELECT 1\0", "Z:I"], "s{i}");
    }
    let kept = proxy.raw("app").0.query("select count(*) <= 500 from pg_prepared_statements")[1].fields();
    assert_eq!(kept, ["t"]);
}

#[test]
fn clients_with_one_name_for_different_texts_share_servers() {
    let proxy = proxy(3);
    std::thread::scope(|scope| {
        for n in 0..12 {
            let proxy = &proxy;
            scope.spawn(move || {
                let mut client = proxy.raw("app").0;
                client.send(&prepare("s", &format!("select {n} + $1::int")));
                client.until_ready(1);
                for i in 0..100 {
                    client.send(&run("s", &[&i.to_string()]));
                    assert_eq!(client.until_ready(1)[1].fields(), [(n + i).to_string()]);
                }
            });
        }
    });
}

#[test]
fn prepared_reads_are_split_over_the_nodes() {
    let proxy = Config::new(Cluster::shared()).start().ready();
    let mut client = proxy.raw("app").0;
    client.send(
        &[prepare("who", "select pg_is_in_recovery()"), prepare("w", "select txid_current() > 0")].concat(),
    );
    client.until_ready(2);
    let mut answer = |name: &str| {
        client.send(&run(name, &[]));
        client.until_ready(1)[1].fields()
    };
    assert!((0..20).all(|_| answer("w") == ["t"]), "txid_current() fails on a standby");
    assert!((0..20).any(|_| answer("who") == ["t"]));
}

#[test]
fn what_one_client_deallocates_by_the_extended_protocol_is_there_for_the_others() {
    let proxy = Config { pool: 1, ..Config::primary_only(Cluster::shared()) }.start().ready();
    let ((mut one, _), (mut other, _)) = (proxy.raw("app"), proxy.raw("app"));
    let ask = |raw: &mut Raw, bytes: Vec<u8>| {
        raw.send(&bytes);
        raw.until_ready(1).iter().find(|m| m.tag == b'E').map(Message::sqlstate)
    };
    for sql in ["deallocate s1", "DEALLOCATE ALL", "deallocate /* all of them */ all"] {
        for raw in [&mut one, &mut other] {
            assert_eq!(ask(raw, prepare("s1", "select 7")), None);
        }
        let deallocate = [parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat();
        assert_eq!(ask(&mut one, deallocate), None, "{sql}");
        assert_eq!(ask(&mut other, run("s1", &[])), None, "{sql}");
        assert_eq!(ask(&mut one, run("s1", &[])).as_deref(), Some("26000"), "{sql}");
        assert_eq!(ask(&mut other, [close("s1"), sync()].concat()), None);
    }
}

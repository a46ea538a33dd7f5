//! tokio-postgres through the proxy, in plain text and over a stream that is encrypted beforehand.

use std::sync::Arc;

use helios_proto::config::{LegTls, TlsMode};
use helios_tests::cluster::client_config;
use helios_tests::{Proxy, loudly};
use helios_tls::Files;
use helios_tls::live::Live;
use helios_tls::postgres::Dialling;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_postgres::{AsyncMessage, Client, Config, IsolationLevel, NoTls};
use tokio_stream::StreamExt as _;

use super::{Bustle, SSLMODES, database, proxy};

const NAME: &str = "tokio_postgres";

trait Both: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Both for T {}

/// A stream to the proxy, in TLS if that is asked for.
async fn dial(proxy: &Proxy, sslmode: &str) -> Box<dyn Both> {
    let mut io = TcpStream::connect(proxy.address).await.unwrap();
    if sslmode == "disable" {
        return Box::new(io);
    }
    io.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await.unwrap();
    assert_eq!(io.read_u8().await.unwrap(), b'S');
    let leg = LegTls { section: "server_tls", mode: TlsMode::Require, authorities: None, identity: None };
    let config = Arc::clone(&Live::<Dialling>::open(Files::of_leg(&leg).unwrap()).unwrap().current().config);
    let tls = tokio_rustls::TlsConnector::from(config);
    Box::new(tls.connect("localhost".try_into().unwrap(), io).await.unwrap())
}

fn config(proxy: &Proxy) -> Config {
    let known = client_config(proxy.port(), "app");
    let mut config = Config::new();
    config.user("app").password(known.get_password().unwrap()).dbname(NAME);
    config.ssl_mode(tokio_postgres::config::SslMode::Disable);
    config
}

/// A session, and what it hears besides answers: notices and notifications.
async fn connect(proxy: &Proxy, sslmode: &str) -> (Client, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let stream = dial(proxy, sslmode).await;
    let (client, mut connection) = config(proxy).connect_raw(stream, NoTls).await.unwrap();
    let (tell, heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = std::pin::pin!(futures(&mut connection));
        while let Some(Ok(message)) = messages.next().await {
            let _ = match message {
                AsyncMessage::Notice(notice) => tell.send(notice.message().to_owned()),
                AsyncMessage::Notification(told) => tell.send(told.payload().to_owned()),
                _ => Ok(()),
            };
        }
    });
    (client, heard)
}

/// The messages of a connection as a stream.
fn futures<S, T>(
    connection: &mut tokio_postgres::Connection<S, T>,
) -> impl tokio_stream::Stream<Item = Result<AsyncMessage, tokio_postgres::Error>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    Messages(connection)
}

struct Messages<'a, S, T>(&'a mut tokio_postgres::Connection<S, T>);

impl<S: AsyncRead + AsyncWrite + Unpin, T: AsyncRead + AsyncWrite + Unpin> tokio_stream::Stream
    for Messages<'_, S, T>
{
    type Item = Result<AsyncMessage, tokio_postgres::Error>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_message(cx)
    }
}

fn code<T: std::fmt::Debug>(done: Result<T, tokio_postgres::Error>) -> String {
    done.unwrap_err().code().unwrap().code().to_owned()
}

async fn statements(client: &Client) {
    let doubled = client.prepare("select $1::int * 2").await.unwrap();
    for i in 0..20 {
        assert_eq!(client.query_one(&doubled, &[&i]).await.unwrap().get::<_, i32>(0), i * 2);
        let row = client.query_one("select $1::text", &[&i.to_string()]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), i.to_string());
    }
    // All at once: the driver pipelines what is asked before it is answered.
    let (a, b, c) = tokio::join!(
        client.query_one(&doubled, &[&1]),
        client.query_one("select 1 / $1::int", &[&0]),
        client.query_one(&doubled, &[&3])
    );
    assert_eq!((a.unwrap().get::<_, i32>(0), c.unwrap().get::<_, i32>(0)), (2, 6));
    assert_eq!(code(b), "22012");
    let typed =
        client.query_typed("select $1", &[(&7_i32, tokio_postgres::types::Type::INT4)]).await.unwrap();
    assert_eq!(typed[0].get::<_, i32>(0), 7);
    assert_eq!(client.simple_query("select 1; select 2").await.unwrap().len(), 6);
    assert_eq!(code(client.query("select nosuch", &[]).await), "42703");
}

async fn transactions(client: &mut Client) {
    let mut block =
        client.build_transaction().isolation_level(IsolationLevel::Serializable).start().await.unwrap();
    let update = "update counter set n = n + 1 where id = 2 returning n";
    let n: i32 = block.query_one(update, &[]).await.unwrap().get(0);
    let savepoint = block.savepoint("a").await.unwrap();
    assert_eq!(code(savepoint.batch_execute("select 1/0").await), "22012");
    savepoint.rollback().await.unwrap();
    assert_eq!(block.query_one("select n from counter where id = 2", &[]).await.unwrap().get::<_, i32>(0), n);
    let portal = block.bind("select generate_series(1, 100)", &[]).await.unwrap();
    let mut seen = 0;
    loop {
        let rows = block.query_portal(&portal, 7).await.unwrap();
        seen += rows.len();
        if rows.len() < 7 {
            break;
        }
    }
    assert_eq!(seen, 100);
    let object = block.query_one("select lo_from_bytea(0, $1)", &[&vec![7_u8; 10_000]]).await.unwrap();
    let oid: u32 = object.get(0);
    let bytes: Vec<u8> = block.query_one("select lo_get($1)", &[&oid]).await.unwrap().get(0);
    assert_eq!(bytes.len(), 10_000);
    block.rollback().await.unwrap();
}

async fn copies(client: &mut Client) {
    use std::pin::pin;
    let block = client.transaction().await.unwrap();
    block.batch_execute("create temp table rows (i int, t text) on commit drop").await.unwrap();
    let lines: String = (0..3000).map(|i| format!("{i}\tvalue {i}\n")).collect();
    let mut sink = pin!(block.copy_in::<_, bytes::Bytes>("copy rows from stdin").await.unwrap());
    futures_util::SinkExt::send(&mut sink, bytes::Bytes::from(lines.clone())).await.unwrap();
    assert_eq!(sink.as_mut().finish().await.unwrap(), 3000);
    let mut out = pin!(block.copy_out("copy (select * from rows order by i) to stdout").await.unwrap());
    let mut back = Vec::new();
    while let Some(chunk) = out.next().await {
        back.extend_from_slice(&chunk.unwrap());
    }
    assert!(back == lines.as_bytes());
    block.rollback().await.unwrap();
    let mut sink = pin!(client.copy_in::<_, bytes::Bytes>("copy copy_target from stdin").await.unwrap());
    futures_util::SinkExt::send(&mut sink, bytes::Bytes::from("not a number\n")).await.unwrap();
    assert_eq!(code(sink.as_mut().finish().await), "22P02");
    assert_eq!(client.query_one("select 42", &[]).await.unwrap().get::<_, i32>(0), 42);
}

async fn all(proxy: &Proxy, sslmode: &str) {
    let (mut client, mut heard) = connect(proxy, sslmode).await;
    statements(&client).await;
    transactions(&mut client).await;
    copies(&mut client).await;
    client.batch_execute("do $$ begin raise notice 'hello'; end $$").await.unwrap();
    assert_eq!(heard.recv().await.as_deref(), Some("hello"));
    let (other, _) = connect(proxy, sslmode).await;
    client.batch_execute("listen channel_rust").await.unwrap();
    other.batch_execute("notify channel_rust, 'payload'").await.unwrap();
    assert_eq!(heard.recv().await.as_deref(), Some("payload"));
    let token = other.cancel_token();
    let cancel = async {
        let asleep = "select count(*) from pg_stat_activity where query like 'select pg_sleep(60)%' and state = 'active'";
        while client.query_one(asleep, &[]).await.unwrap().get::<_, i64>(0) == 0 {}
        token.cancel_query_raw(dial(proxy, sslmode).await, NoTls).await.unwrap();
    };
    let (cancelled, ()) = tokio::join!(other.batch_execute("select pg_sleep(60)"), cancel);
    assert_eq!(code(cancelled), "57014");
    assert_eq!(other.query_one("select 7", &[]).await.unwrap().get::<_, i32>(0), 7);
}

#[test]
fn tokio_postgres() {
    database(NAME);
    for sslmode in SSLMODES {
        let proxy = proxy("transaction", sslmode);
        let others = (sslmode == "disable").then(|| Bustle::start(NAME, &proxy));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let limit = std::time::Duration::from_secs(90);
        runtime.block_on(async { tokio::time::timeout(limit, all(&proxy, sslmode)).await.expect("in time") });
        drop(others);
        loudly(&format!("driver tokio-postgres, sslmode={sslmode}: fine"));
    }
}

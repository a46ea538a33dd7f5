"""psycopg2 through the proxy. Arguments: port, sslmode, database, pool mode. Prints its version; any failure is an exception.
Never talks to a server in another way."""
import io
import sys
import threading
import time

import psycopg2
import psycopg2.extensions

PORT, SSLMODE, DATABASE, MODE = int(sys.argv[1]), *sys.argv[2:5]


def connect():
    conn = psycopg2.connect(host="127.0.0.1", port=PORT, sslmode=SSLMODE,
                            user="app", password="app-secret", dbname=DATABASE)
    assert conn.info.ssl_in_use == (SSLMODE == "require")
    return conn


def simple(conn):
    with conn.cursor() as cur:
        for i in range(20):
            cur.execute("SELECT %s::int * 2, %s", (i, "it's"))
            assert cur.fetchone() == (i * 2, "it's")
        cur.execute("/* helios:route=primary */ SELECT n FROM counter WHERE id = %s", (1,))
        assert cur.fetchone() is not None
        cur.executemany("SELECT %s", [(1,), (2,)])


def errors(conn):
    with conn.cursor() as cur:
        try:
            cur.execute("SELECT 1/0")
            raise SystemExit("no error")
        except psycopg2.errors.DivisionByZero:
            conn.rollback()
        cur.execute("SELECT 42")
        assert cur.fetchone() == (42,)
    conn.rollback()


def transactions(conn):
    with conn.cursor() as cur:
        cur.execute("UPDATE counter SET n = n + 1 WHERE id = 2 RETURNING n")
        n = cur.fetchone()[0]
        cur.execute("SAVEPOINT a")
        try:
            cur.execute("SELECT 1/0")
        except psycopg2.errors.DivisionByZero:
            cur.execute("ROLLBACK TO SAVEPOINT a")
        cur.execute("SELECT n FROM counter WHERE id = 2")
        assert cur.fetchone()[0] == n
    conn.rollback()
    conn.set_session(isolation_level="SERIALIZABLE")
    with conn.cursor() as cur:
        cur.execute("SHOW transaction_isolation")
        assert cur.fetchone() == ("serializable",)
    conn.rollback()
    conn.set_session(isolation_level="DEFAULT")


def copies(conn):
    with conn.cursor() as cur:
        cur.execute("CREATE TEMP TABLE rows (i int, t text) ON COMMIT DROP")
        lines = "".join(f"{i}\tvalue {i}\n" for i in range(5000))
        cur.copy_expert("COPY rows FROM STDIN", io.StringIO(lines))
        out = io.StringIO()
        cur.copy_expert("COPY (SELECT * FROM rows ORDER BY i) TO STDOUT", out)
        assert out.getvalue() == lines
    conn.rollback()
    with conn.cursor() as cur:
        try:
            cur.copy_expert("COPY copy_target FROM STDIN", io.StringIO("not a number\n"))
            raise SystemExit("no error")
        except psycopg2.errors.InvalidTextRepresentation:
            conn.rollback()


def cursors(conn):
    with conn.cursor(name="c") as cur:
        cur.itersize = 7
        cur.execute("SELECT generate_series(1, 100)")
        assert [row[0] for row in cur] == list(range(1, 101))
    conn.rollback()


def large_objects(conn):
    lob = conn.lobject(0, "wb")
    lob.write(b"0123456789" * 10000)
    lob.seek(5)
    oid = lob.oid
    lob.close()
    conn.commit()
    lob = conn.lobject(oid, "rb")
    assert len(lob.read()) == 100000
    lob.unlink()
    conn.commit()


def cancels():
    conn = connect()
    timer = threading.Timer(0.3, conn.cancel)
    timer.start()
    try:
        with conn.cursor() as cur:
            cur.execute("SELECT pg_sleep(60)")
        raise SystemExit("no cancel")
    except psycopg2.errors.QueryCanceled:
        conn.rollback()
    timer.join()
    with conn.cursor() as cur:
        cur.execute("SELECT 7")
        assert cur.fetchone() == (7,)
    conn.close()


def notices(conn):
    with conn.cursor() as cur:
        cur.execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
    assert conn.notices[-1].strip() == "NOTICE:  hello", conn.notices
    conn.rollback()


def listens():
    one, two = connect(), connect()
    one.autocommit = two.autocommit = True
    one.cursor().execute("LISTEN channel_psycopg2")
    two.cursor().execute("NOTIFY channel_psycopg2, 'payload'")
    for _ in range(200):
        one.poll()
        if one.notifies:
            break
        time.sleep(0.05)
    assert [n.payload for n in one.notifies] == ["payload"]
    one.close()
    two.close()


CONN = connect()
if MODE == "statement":
    CONN.autocommit = True
simple(CONN)
errors(CONN)
if MODE != "statement":
    for step in (transactions, copies, cursors, large_objects, notices):
        step(CONN)
    cancels()
    listens()
CONN.close()
print(psycopg2.__version__.split()[0])

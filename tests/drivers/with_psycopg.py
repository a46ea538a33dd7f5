"""psycopg 3 through the proxy. Arguments: port, sslmode, database. Prints its version; any failure is an exception.
Never talks to a server in another way."""
import asyncio
import sys
import threading

import psycopg
from psycopg import errors
from psycopg.rows import dict_row

PORT, SSLMODE, DATABASE = int(sys.argv[1]), sys.argv[2], sys.argv[3]
TARGET = f"host=127.0.0.1 port={PORT} sslmode={SSLMODE} user=app password=app-secret dbname={DATABASE}"


def connect(**more):
    return psycopg.connect(TARGET, **more)


def extended(conn):
    for i in range(20):
        assert conn.execute("SELECT %s::int * 2, %s::text", (i, "it's")).fetchone() == (i * 2, "it's")
    row = conn.execute("SELECT %b::int8 AS a, %t::date AS b", (5, "2024-02-29"), binary=True).fetchone()
    assert row[0] == 5 and row[1].year == 2024
    with conn.cursor(row_factory=dict_row) as cur:
        assert cur.execute("SELECT 1 AS x").fetchone() == {"x": 1}
        cur.executemany("SELECT %s::int", [(1,), (2,), (3,)], returning=True)


def prepared(conn):
    """Prepared by name from the fifth execution on, or when asked for; more than the driver keeps."""
    for i in range(12):
        assert conn.execute("SELECT %s::int + 1", (i,)).fetchone() == (i + 1,)
    conn.commit()
    assert conn.execute("SELECT %s::text", ("x",), prepare=True).fetchone() == ("x",)
    conn.commit()
    for i in range(150):
        assert conn.execute(f"SELECT %s::int + {i}", (1,), prepare=True).fetchone() == (i + 1,)
    conn.commit()
    conn.execute("CREATE TABLE IF NOT EXISTS changing_psycopg (i int)")
    conn.commit()
    conn.execute("INSERT INTO changing_psycopg VALUES (1)")
    for _ in range(7):
        conn.execute("SELECT * FROM changing_psycopg").fetchone()
        conn.commit()
    conn.execute("DROP TABLE changing_psycopg")
    conn.commit()


def pipelines(conn):
    with conn.pipeline() as p:
        cursors = [conn.execute("SELECT %s::int", (i,)) for i in range(50)]
        p.sync()
        more = [conn.execute("SELECT %s::text", (str(i),), prepare=True) for i in range(20)]
    assert [c.fetchone()[0] for c in cursors] == list(range(50))
    assert [c.fetchone()[0] for c in more] == [str(i) for i in range(20)]
    conn.commit()
    try:
        with conn.pipeline():
            conn.execute("SELECT 1")
            conn.execute("SELECT 1/0")
            conn.execute("SELECT 2")
        raise SystemExit("no error")
    except errors.DivisionByZero:
        conn.rollback()
    try:
        with conn.pipeline() as p:
            conn.execute("SELECT 1/0", prepare=True)
            p.sync()
        raise SystemExit("no error")
    except errors.DivisionByZero:
        conn.rollback()
    with conn.pipeline():
        with conn.transaction():
            conn.execute("UPDATE counter SET n = n + 1 WHERE id = 2")
    assert conn.execute("SELECT 42").fetchone() == (42,)
    conn.commit()
    with conn.pipeline():
        with conn.cursor() as cur:
            cur.executemany("SELECT %s::int", [(i,) for i in range(200)], returning=True)
            got = []
            while True:
                got.append(cur.fetchone()[0])
                if not cur.nextset():
                    break
            assert got == list(range(200))
    conn.commit()


def transactions(conn):
    with conn.transaction():
        n = conn.execute("UPDATE counter SET n = n + 1 WHERE id = 2 RETURNING n").fetchone()[0]
        try:
            with conn.transaction():
                conn.execute("SELECT 1/0")
        except errors.DivisionByZero:
            pass
        assert conn.execute("SELECT n FROM counter WHERE id = 2").fetchone()[0] == n
        raise psycopg.Rollback
    conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    assert conn.execute("SHOW transaction_isolation").fetchone() == ("serializable",)
    conn.rollback()
    conn.isolation_level = None


def copies(conn):
    conn.execute("CREATE TEMP TABLE rows (i int, t text) ON COMMIT DROP")
    with conn.cursor() as cur:
        with cur.copy("COPY rows FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "text"])
            for i in range(3000):
                copy.write_row((i, f"value {i}"))
        with cur.copy("COPY (SELECT * FROM rows ORDER BY i) TO STDOUT") as copy:
            copy.set_types(["int4", "text"])
            assert list(copy.rows()) == [(i, f"value {i}") for i in range(3000)]
    conn.rollback()
    try:
        with conn.cursor().copy("COPY copy_target FROM STDIN") as copy:
            for _ in range(1000):
                copy.write("not a number\n")
        raise SystemExit("no error")
    except errors.InvalidTextRepresentation:
        conn.rollback()
    try:
        with conn.cursor().copy("COPY copy_target FROM STDIN") as copy:
            copy.write("1\n")
            raise KeyError("ours")
    except (KeyError, errors.QueryCanceled):  # by version
        conn.rollback()
    assert conn.execute("SELECT 1").fetchone() == (1,)
    conn.rollback()


def cursors(conn):
    with conn.cursor(name="c", scrollable=True) as cur:
        cur.itersize = 7
        cur.execute("SELECT generate_series(1, 100)")
        assert [row[0] for row in cur] == list(range(1, 101))
        cur.scroll(0, mode="absolute")
        assert cur.fetchmany(3) == [(1,), (2,), (3,)]
    conn.commit()
    with conn.cursor() as cur:
        assert [row[0] for row in cur.stream("SELECT generate_series(1, 100)")] == list(range(1, 101))
    conn.commit()


def large_objects(conn):
    oid = conn.execute("SELECT lo_from_bytea(0, %s)", (b"0123456789" * 1000,)).fetchone()[0]
    conn.commit()
    assert len(conn.execute("SELECT lo_get(%s)", (oid,)).fetchone()[0]) == 10000
    conn.execute("SELECT lo_unlink(%s)", (oid,))
    conn.commit()


def cancels():
    conn = connect()
    timer = threading.Timer(0.3, conn.cancel)
    timer.start()
    try:
        conn.execute("SELECT pg_sleep(60)")
        raise SystemExit("no cancel")
    except errors.QueryCanceled:
        conn.rollback()
    timer.join()
    assert conn.execute("SELECT 7").fetchone() == (7,)
    conn.close()


def notices(conn):
    seen = []
    conn.add_notice_handler(lambda d: seen.append(d.message_primary))
    conn.execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
    assert seen == ["hello"], seen
    conn.rollback()


def listens():
    one, two = connect(autocommit=True), connect(autocommit=True)
    one.execute("LISTEN channel_psycopg")
    two.execute("NOTIFY channel_psycopg, 'payload'")
    assert next(one.notifies()).payload == "payload"
    one.close()
    two.close()


async def asynchronous():
    async def one(n):
        async with await psycopg.AsyncConnection.connect(TARGET, autocommit=True) as conn:
            for i in range(30):
                row = await (await conn.execute("SELECT %s::int, %s::int", (n, i))).fetchone()
                assert row == (n, i)
    await asyncio.wait_for(asyncio.gather(*(one(n) for n in range(12))), 60)


with connect() as CONN:
    assert CONN.pgconn.ssl_in_use == (SSLMODE == "require")
    for step in (extended, prepared, transactions, copies, cursors, large_objects, notices):
        step(CONN)
    if psycopg.Pipeline.is_supported():
        pipelines(CONN)
    else:
        raise SystemExit("libpq without a pipeline mode")
cancels()
listens()
asyncio.run(asynchronous())
print(psycopg.__version__)

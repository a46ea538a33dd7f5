"""asyncpg through the proxy. Arguments: port, sslmode, database. Prints its version; any failure is an exception.
Never talks to a server in another way."""
import asyncio
import datetime
import io
import sys

import asyncpg

PORT, SSLMODE, DATABASE = int(sys.argv[1]), sys.argv[2], sys.argv[3]
TARGET = dict(host="127.0.0.1", port=PORT, ssl=SSLMODE, user="app", password="app-secret", database=DATABASE)


async def simple(conn):
    assert await conn.execute("SELECT 1; SELECT 2") == "SELECT 1"
    for i in range(20):
        assert await conn.fetchval("SELECT $1::int * 2", i) == i * 2
    row = await conn.fetchrow("SELECT $1::date AS d, $2::text[] AS t, $3::jsonb AS j",
                              datetime.date(2024, 2, 29), ["a", None], '{"a": 1}')
    assert row["t"] == ["a", None]
    await conn.executemany("UPDATE counter SET n = n + $1 WHERE id = 2", [(1,), (-1,)] * 20)
    # Types that the driver asks the catalogue for.
    await conn.execute("DROP TYPE IF EXISTS mood; CREATE TYPE mood AS ENUM ('sad', 'glad')")
    assert await conn.fetchval("SELECT $1::mood[]", ["glad"]) == ["glad"]
    await conn.execute("DROP TYPE mood")


async def prepared(conn):
    statement = await conn.prepare("SELECT $1::int + 1")
    for i in range(20):
        assert await statement.fetchval(i) == i + 1
        assert await conn.fetchval("SELECT $1::text", str(i)) == str(i)
    for i in range(150):
        assert await conn.fetchval(f"SELECT $1::int + {i}", 1) == i + 1
    await conn.execute("CREATE TABLE IF NOT EXISTS changing_asyncpg (i int)")
    assert await conn.fetch("SELECT * FROM changing_asyncpg") == []
    await conn.execute("ALTER TABLE changing_asyncpg ADD COLUMN t text")
    await conn.execute("INSERT INTO changing_asyncpg VALUES (1, 'x')")
    assert tuple(await conn.fetchrow("SELECT * FROM changing_asyncpg")) == (1, "x")
    await conn.execute("DROP TABLE changing_asyncpg")


async def without_cache():
    """What other poolers make their users do."""
    conn = await asyncpg.connect(**TARGET, statement_cache_size=0)
    for i in range(20):
        assert await conn.fetchval("SELECT $1::int * 2", i) == i * 2
    async with conn.transaction():
        assert [r[0] async for r in conn.cursor("SELECT generate_series(1, 100)", prefetch=7)] == list(range(1, 101))
    await conn.executemany("UPDATE counter SET n = n + $1 WHERE id = 2", [(1,), (-1,)])
    await conn.close()


async def errors(conn):
    try:
        await conn.fetchval("SELECT 1/$1::int", 0)
        raise SystemExit("no error")
    except asyncpg.DivisionByZeroError:
        pass
    try:
        await conn.executemany("SELECT 1/$1::int", [(1,), (0,), (2,)])
        raise SystemExit("no error")
    except asyncpg.DivisionByZeroError:
        pass
    assert await conn.fetchval("SELECT 42") == 42


async def transactions(conn):
    tx = conn.transaction(isolation="serializable")
    await tx.start()
    assert await conn.fetchval("SHOW transaction_isolation") == "serializable"
    n = await conn.fetchval("UPDATE counter SET n = n + 1 WHERE id = 2 RETURNING n")
    try:
        async with conn.transaction():
            await conn.fetchval("SELECT 1/0")
    except asyncpg.DivisionByZeroError:
        pass
    assert await conn.fetchval("SELECT n FROM counter WHERE id = 2") == n
    await tx.rollback()


async def copies(conn):
    async with conn.transaction():
        await conn.execute("CREATE TEMP TABLE rows (i int, t text) ON COMMIT DROP")
        records = [(i, f"value {i}") for i in range(3000)]
        assert await conn.copy_records_to_table("rows", records=records) == "COPY 3000"
        out = io.BytesIO()
        await conn.copy_from_query("SELECT * FROM rows ORDER BY i", output=out)
        assert out.getvalue() == "".join(f"{i}\tvalue {i}\n" for i in range(3000)).encode()
    try:
        await conn.copy_to_table("copy_target", source=io.BytesIO(b"not a number\n" * 1000))
        raise SystemExit("no error")
    except asyncpg.InvalidTextRepresentationError:
        pass


async def cursors(conn):
    async with conn.transaction():
        assert [r[0] async for r in conn.cursor("SELECT generate_series(1, 100)", prefetch=7)] == list(range(1, 101))
        cur = await conn.cursor("SELECT generate_series(1, 100)")
        assert [r[0] for r in await cur.fetch(3)] == [1, 2, 3]
        assert await cur.forward(10) == 10
        assert (await cur.fetchrow())[0] == 14


async def large_objects(conn):
    oid = await conn.fetchval("SELECT lo_from_bytea(0, $1)", b"0123456789" * 1000)
    assert len(await conn.fetchval("SELECT lo_get($1)", oid)) == 10000
    await conn.fetchval("SELECT lo_unlink($1)", oid)


async def cancels(conn):
    try:
        await conn.fetchval("SELECT pg_sleep(60)", timeout=0.3)
        raise SystemExit("no cancel")
    except asyncio.TimeoutError:
        pass
    assert await conn.fetchval("SELECT 7") == 7


async def notices(conn):
    seen = []
    conn.add_log_listener(lambda _, m: seen.append(m.message))
    await conn.execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
    await asyncio.sleep(0)
    assert seen == ["hello"], seen


async def listens():
    one, two = await asyncpg.connect(**TARGET), await asyncpg.connect(**TARGET)
    heard = asyncio.get_running_loop().create_future()
    await one.add_listener("channel_asyncpg", lambda c, pid, channel, payload: heard.set_result(payload))
    await two.execute("NOTIFY channel_asyncpg, 'payload'")
    assert await asyncio.wait_for(heard, 20) == "payload"
    await one.close()
    await two.close()


async def pools():
    """The driver's own pool runs RESET ALL and more each time a connection is given back."""
    async with asyncpg.create_pool(**TARGET, min_size=3, max_size=3) as pool:
        async def one(n):
            for i in range(20):
                async with pool.acquire() as conn:
                    assert await conn.fetchval("SELECT $1::int * 1000 + $2::int", n, i) == n * 1000 + i
        await asyncio.wait_for(asyncio.gather(*(one(n) for n in range(9))), 60)


async def main():
    conn = await asyncpg.connect(**TARGET)
    for step in (simple, prepared, errors, transactions, copies, cursors, large_objects, cancels, notices):
        await step(conn)
    await conn.close()
    await without_cache()
    await listens()
    await pools()
    print(asyncpg.__version__)


asyncio.run(main())

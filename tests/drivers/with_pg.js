// node `pg` through the proxy. Arguments: port, sslmode, database. Prints its version; any failure is an exception.
// Never talks to a server in another way.
"use strict";
const assert = require("assert");
const { pipeline } = require("stream/promises");
const { Readable } = require("stream");
const { Client, Pool, Query } = require("pg");
const Cursor = require("pg-cursor");
const copy = require("pg-copy-streams");

const [port, sslmode, database] = process.argv.slice(2);
const target = {
  host: "127.0.0.1", port: Number(port), user: "app", password: "app-secret", database,
  ssl: sslmode === "require" ? { rejectUnauthorized: false } : false,
};

async function connected(work) {
  const client = new Client(target);
  await client.connect();
  try { return await work(client); } finally { await client.end(); }
}

async function fails(promise, code) {
  await assert.rejects(promise, (error) => error.code === code);
}

async function statements(client) {
  const several = await client.query("SELECT 1 AS a; SELECT 2 AS b");
  assert.deepStrictEqual(several.map((r) => r.rows[0]), [{ a: 1 }, { b: 2 }]);
  for (let i = 0; i < 20; i++) {
    const r = await client.query("SELECT $1::int * 2 AS n, $2::text AS t", [i, "it's"]);
    assert.deepStrictEqual(r.rows, [{ n: i * 2, t: "it's" }]);
    const p = await client.query({ name: "doubled", text: "SELECT $1::int * 2 AS n", values: [i] });
    assert.deepStrictEqual(p.rows, [{ n: i * 2 }]);
  }
  const all = await Promise.all([...Array(50).keys()].map((i) => client.query("SELECT $1::int AS n", [i])));
  assert.deepStrictEqual(all.map((r) => r.rows[0].n), [...Array(50).keys()]);
  await fails(client.query("SELECT 1/0"), "22012");
  await fails(client.query("SELECT 1/$1::int", [0]), "22012");
  await fails(client.query({ name: "wrong", text: "SELECT nosuch" }), "42703");
  assert.strictEqual((await client.query("SELECT 42 AS n")).rows[0].n, 42);
}

async function transactions(client) {
  await client.query("BEGIN");
  const n = (await client.query("UPDATE counter SET n = n + $1 WHERE id = 2 RETURNING n", [1])).rows[0].n;
  await client.query("SAVEPOINT a");
  await fails(client.query("SELECT 1/0"), "22012");
  await fails(client.query({ name: "doubled", text: "SELECT $1::int * 2 AS n", values: [1] }), "25P02");
  await client.query("ROLLBACK TO SAVEPOINT a");
  assert.strictEqual((await client.query("SELECT n FROM counter WHERE id = 2")).rows[0].n, n);
  await client.query("ROLLBACK");
}

/** Results in portions: Execute with a row limit and Flush, as `pg-cursor` does it and as the driver's `rows` does. */
async function portions(client) {
  await client.query("BEGIN");
  const cursor = client.query(new Cursor("SELECT generate_series(1, $1::int) AS n", [100]));
  const seen = [];
  for (let rows = await cursor.read(7); rows.length > 0; rows = await cursor.read(7)) {
    seen.push(...rows.map((r) => r.n));
  }
  await cursor.close();
  await client.query("COMMIT");
  assert.strictEqual(seen.length, 100);
  const outside = client.query(new Cursor("SELECT generate_series(1, 100) AS n"));
  assert.strictEqual((await outside.read(3)).length, 3);
  await outside.close();
  const limited = new Query({ text: "SELECT generate_series(1, 100) AS n", rows: 7 });
  const rows = await new Promise((resolve, reject) => {
    const got = [];
    limited.on("row", (row) => got.push(row.n));
    limited.on("end", () => resolve(got));
    limited.on("error", reject);
    client.query(limited);
  });
  assert.strictEqual(rows.length, 100);
}

async function copies(client) {
  await client.query("BEGIN");
  await client.query("CREATE TEMP TABLE rows (i int, t text) ON COMMIT DROP");
  const lines = [...Array(3000).keys()].map((i) => `${i}\tvalue ${i}\n`);
  await pipeline(Readable.from(lines), client.query(copy.from("COPY rows FROM STDIN")));
  const chunks = [];
  for await (const chunk of client.query(copy.to("COPY (SELECT * FROM rows ORDER BY i) TO STDOUT"))) {
    chunks.push(chunk);
  }
  assert.strictEqual(Buffer.concat(chunks).toString(), lines.join(""));
  await client.query("ROLLBACK");
  await fails(pipeline(Readable.from(["not a number\n"]), client.query(copy.from("COPY copy_target FROM STDIN"))), "22P02");
  assert.strictEqual((await client.query("SELECT 1 AS n")).rows[0].n, 1);
}

async function objects(client) {
  const oid = (await client.query("SELECT lo_from_bytea(0, $1) AS oid", [Buffer.alloc(10000, 7)])).rows[0].oid;
  assert.strictEqual((await client.query("SELECT lo_get($1) AS b", [oid])).rows[0].b.length, 10000);
  await client.query("SELECT lo_unlink($1)", [oid]);
}

async function notices(client) {
  const seen = [];
  client.on("notice", (m) => seen.push(m.message));
  await client.query("DO $$ BEGIN RAISE NOTICE 'hello'; END $$");
  assert.deepStrictEqual(seen, ["hello"]);
}

async function cancels(client) {
  const pid = client.processID;
  assert.ok(pid > 0);
  const running = client.query("SELECT pg_sleep(60)");
  setTimeout(() => {
    const other = new Client(target);
    other.cancel(client, client.activeQuery || client._activeQuery);
  }, 300);
  await fails(running, "57014");
  assert.strictEqual((await client.query("SELECT 7 AS n")).rows[0].n, 7);
}

async function listens() {
  await connected(async (one) => connected(async (two) => {
    const heard = new Promise((resolve) => one.on("notification", (m) => resolve(m.payload)));
    await one.query("LISTEN channel_pg");
    await two.query("NOTIFY channel_pg, 'payload'");
    assert.strictEqual(await heard, "payload");
  }));
}

async function pools() {
  const pool = new Pool({ ...target, max: 9 });
  await Promise.all([...Array(200).keys()].map(async (i) => {
    const r = await pool.query({ name: `sum${i % 5}`, text: `SELECT $1::int + ${i % 5} AS n`, values: [i] });
    assert.strictEqual(r.rows[0].n, i + (i % 5));
  }));
  await pool.end();
}

async function main() {
  for (const step of [statements, transactions, portions, copies, objects, notices]) {
    await connected(step);
  }
  await connected(cancels);
  await listens();
  await pools();
  console.log(require("pg/package.json").version);
}

main().catch((error) => { console.error(error); process.exit(1); });

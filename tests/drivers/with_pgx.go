// pgx through the proxy. Arguments: port, sslmode, database. Prints what it is; any failure ends it.
// Never talks to a server in another way.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
)

var target string

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func check(holds bool, what string) {
	if !holds {
		panic(what)
	}
}

func fails(err error, code string) {
	var pg *pgconn.PgError
	check(errors.As(err, &pg) && pg.Code == code, fmt.Sprint(code, ": ", err))
}

func connect(how func(*pgx.ConnConfig)) *pgx.Conn {
	config, err := pgx.ParseConfig(target)
	must(err)
	if how != nil {
		how(config)
	}
	conn, err := pgx.ConnectConfig(context.Background(), config)
	must(err)
	return conn
}

func statements(ctx context.Context, how func(*pgx.ConnConfig)) {
	conn := connect(how)
	defer conn.Close(ctx)
	for i := 0; i < 20; i++ {
		var n int
		var t string
		must(conn.QueryRow(ctx, "SELECT $1::int * 2, $2::text", i, "it's").Scan(&n, &t))
		check(n == i*2 && t == "it's", "statement")
	}
	for i := 0; i < 600; i++ {
		var n int
		must(conn.QueryRow(ctx, fmt.Sprintf("SELECT $1::int + %d", i), 1).Scan(&n))
		check(n == i+1, "many texts")
	}
	_, err := conn.Exec(ctx, "SELECT 1/$1::int", 0)
	fails(err, "22012")
	var n int
	must(conn.QueryRow(ctx, "SELECT 42").Scan(&n))
	check(n == 42, "after an error")
}

func prepared(ctx context.Context) {
	conn := connect(nil)
	defer conn.Close(ctx)
	_, err := conn.Prepare(ctx, "doubled", "SELECT $1::int * 2")
	must(err)
	for i := 0; i < 20; i++ {
		var n int
		must(conn.QueryRow(ctx, "doubled", i).Scan(&n))
		check(n == i*2, "prepared")
	}
	must(conn.Deallocate(ctx, "doubled"))
	_, err = conn.Prepare(ctx, "doubled", "SELECT $1::int * 3")
	must(err)
	var n int
	must(conn.QueryRow(ctx, "doubled", 5).Scan(&n))
	check(n == 15, "prepared anew")
	for _, text := range []string{
		"DROP TABLE IF EXISTS changing_pgx", "CREATE TABLE changing_pgx (i int)", "INSERT INTO changing_pgx VALUES (1)",
	} {
		_, err = conn.Exec(ctx, text)
		must(err)
	}
	must(conn.QueryRow(ctx, "SELECT * FROM changing_pgx").Scan(&n))
	_, err = conn.Exec(ctx, "DROP TABLE changing_pgx")
	must(err)
}

func batches(ctx context.Context) {
	conn := connect(nil)
	defer conn.Close(ctx)
	batch := &pgx.Batch{}
	for i := 0; i < 100; i++ {
		batch.Queue("SELECT $1::int", i)
	}
	results := conn.SendBatch(ctx, batch)
	for i := 0; i < 100; i++ {
		var n int
		must(results.QueryRow().Scan(&n))
		check(n == i, "batch")
	}
	must(results.Close())
	batch = &pgx.Batch{}
	batch.Queue("UPDATE counter SET n = n + 1 WHERE id = 2")
	batch.Queue("SELECT 1/$1::int", 0)
	batch.Queue("SELECT 3")
	results = conn.SendBatch(ctx, batch)
	_, err := results.Exec()
	must(err)
	_, err = results.Exec()
	fails(err, "22012")
	check(results.Close() != nil, "the batch has failed")
	var n int
	must(conn.QueryRow(ctx, "SELECT 42").Scan(&n))
	check(n == 42, "after a batch")
}

func transactions(ctx context.Context) {
	conn := connect(nil)
	defer conn.Close(ctx)
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.Serializable})
	must(err)
	var n, again int
	must(tx.QueryRow(ctx, "UPDATE counter SET n = n + 1 WHERE id = 2 RETURNING n").Scan(&n))
	inner, err := tx.Begin(ctx)
	must(err)
	_, err = inner.Exec(ctx, "SELECT 1/0")
	fails(err, "22012")
	must(inner.Rollback(ctx))
	must(tx.QueryRow(ctx, "SELECT n FROM counter WHERE id = 2").Scan(&again))
	check(n == again, "savepoint")
	_, err = tx.Exec(ctx, "DECLARE c CURSOR FOR SELECT generate_series(1, 100)")
	must(err)
	rows, err := tx.Query(ctx, "FETCH 7 FROM c")
	must(err)
	seen := 0
	for rows.Next() {
		seen++
	}
	check(seen == 7, "cursor")
	objects := tx.LargeObjects()
	oid, err := objects.Create(ctx, 0)
	must(err)
	object, err := objects.Open(ctx, oid, pgx.LargeObjectModeRead|pgx.LargeObjectModeWrite)
	must(err)
	_, err = object.Write(bytes.Repeat([]byte("0123456789"), 1000))
	must(err)
	_, err = object.Seek(0, io.SeekStart)
	must(err)
	bytes, err := io.ReadAll(object)
	must(err)
	check(len(bytes) == 10000, "large object")
	must(tx.Rollback(ctx))
}

func copies(ctx context.Context) {
	conn := connect(nil)
	defer conn.Close(ctx)
	tx, err := conn.Begin(ctx)
	must(err)
	_, err = tx.Exec(ctx, "CREATE TEMP TABLE rows (i int, t text) ON COMMIT DROP")
	must(err)
	n, err := tx.CopyFrom(ctx, pgx.Identifier{"rows"}, []string{"i", "t"},
		pgx.CopyFromSlice(3000, func(i int) ([]interface{}, error) { return []interface{}{int32(i), fmt.Sprint("value ", i)}, nil }))
	must(err)
	check(n == 3000, "copy in")
	var out strings.Builder
	_, err = conn.PgConn().CopyTo(ctx, &out, "COPY (SELECT * FROM rows ORDER BY i) TO STDOUT")
	must(err)
	check(strings.Count(out.String(), "\n") == 3000, "copy out")
	must(tx.Rollback(ctx))
	_, err = conn.PgConn().CopyFrom(ctx, strings.NewReader("not a number\n"), "COPY copy_target FROM STDIN")
	fails(err, "22P02")
}

func cancels(ctx context.Context) {
	conn := connect(nil)
	defer conn.Close(ctx)
	go func() {
		time.Sleep(300 * time.Millisecond)
		must(conn.PgConn().CancelRequest(ctx))
	}()
	_, err := conn.Exec(ctx, "SELECT pg_sleep(60)")
	fails(err, "57014")
	var n int
	must(conn.QueryRow(ctx, "SELECT 7").Scan(&n))
	check(n == 7, "after a cancel")
}

func noticesAndListen(ctx context.Context) {
	heard := ""
	one := connect(func(c *pgx.ConnConfig) {
		c.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { heard = n.Message }
	})
	defer one.Close(ctx)
	two := connect(nil)
	defer two.Close(ctx)
	_, err := one.Exec(ctx, "DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
	must(err)
	check(heard == "hello", "notice")
	_, err = one.Exec(ctx, "LISTEN channel_pgx")
	must(err)
	_, err = two.Exec(ctx, "NOTIFY channel_pgx, 'payload'")
	must(err)
	patience, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	n, err := one.WaitForNotification(patience)
	must(err)
	check(n.Payload == "payload", "notification")
}

func many(ctx context.Context) {
	var all sync.WaitGroup
	for worker := 0; worker < 9; worker++ {
		all.Add(1)
		go func(worker int) {
			defer all.Done()
			conn := connect(nil)
			defer conn.Close(ctx)
			for i := 0; i < 50; i++ {
				var n int
				must(conn.QueryRow(ctx, "SELECT $1::int * 1000 + $2::int", worker, i).Scan(&n))
				check(n == worker*1000+i, "foreign answer")
			}
		}(worker)
	}
	all.Wait()
}

func main() {
	target = fmt.Sprintf("postgres://app:app-secret@127.0.0.1:%s/%s?sslmode=%s", os.Args[1], os.Args[3], os.Args[2])
	ctx, stop := context.WithTimeout(context.Background(), 90*time.Second)
	defer stop()
	statements(ctx, nil)
	statements(ctx, func(c *pgx.ConnConfig) { c.PreferSimpleProtocol = true })
	statements(ctx, func(c *pgx.ConnConfig) { c.BuildStatementCache = nil })
	prepared(ctx)
	batches(ctx)
	transactions(ctx)
	copies(ctx)
	cancels(ctx)
	noticesAndListen(ctx)
	many(ctx)
	fmt.Println("v4")
}

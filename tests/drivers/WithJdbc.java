// pgjdbc through the proxy. Arguments: port, sslmode, database. Prints its version; any failure is an exception.
// Never talks to a server in another way.
import java.io.StringReader;
import java.io.StringWriter;
import java.sql.*;
import java.util.Properties;
import java.util.Timer;
import java.util.TimerTask;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;

public class WithJdbc {
    static String port, sslmode, database;

    interface Work { void run() throws Exception; }

    static Connection connect(String... more) throws SQLException {
        Properties p = new Properties();
        p.setProperty("user", "app");
        p.setProperty("password", "app-secret");
        p.setProperty("sslmode", sslmode);
        for (int i = 0; i < more.length; i += 2) p.setProperty(more[i], more[i + 1]);
        return DriverManager.getConnection("jdbc:postgresql://127.0.0.1:" + port + "/" + database, p);
    }

    static void check(boolean holds, String what) {
        if (!holds) throw new AssertionError(what);
    }

    static void fails(String code, Work work) throws Exception {
        try {
            work.run();
        } catch (SQLException e) {
            check(code.equals(e.getSQLState()), code + ": " + e.getSQLState() + " " + e.getMessage());
            return;
        }
        throw new AssertionError("no error " + code);
    }

    static int number(Connection c, String sql) throws SQLException {
        try (Statement s = c.createStatement(); ResultSet r = s.executeQuery(sql)) {
            r.next();
            return r.getInt(1);
        }
    }

    /** Five executions without a name, then prepared by name: in autocommit, so that servers change in between. */
    static void prepared(String... how) throws Exception {
        try (Connection c = connect(how)) {
            try (PreparedStatement p = c.prepareStatement("SELECT ?::int + 1")) {
                for (int i = 0; i < 20; i++) {
                    p.setInt(1, i);
                    try (ResultSet r = p.executeQuery()) { r.next(); check(r.getInt(1) == i + 1, "prepared " + i); }
                }
            }
            // More than the driver keeps: it closes them again.
            for (int n = 0; n < 300; n++) {
                try (PreparedStatement p = c.prepareStatement("SELECT ?::int + " + n)) {
                    p.setInt(1, 1);
                    try (ResultSet r = p.executeQuery()) { r.next(); check(r.getInt(1) == n + 1, "text " + n); }
                }
            }
            try (Statement s = c.createStatement()) {
                s.execute("CREATE TABLE IF NOT EXISTS changing_jdbc (i int)");
                s.execute("INSERT INTO changing_jdbc VALUES (1)");
                try (PreparedStatement p = c.prepareStatement("SELECT * FROM changing_jdbc")) {
                    for (int i = 0; i < 8; i++) p.executeQuery().close();
                    s.execute("ALTER TABLE changing_jdbc ADD COLUMN t text");
                    try (ResultSet r = p.executeQuery()) { check(r.getMetaData().getColumnCount() == 2, "new column"); }
                }
                s.execute("DROP TABLE changing_jdbc");
                check(s.execute("SELECT 1; SELECT 2"), "two results");
                check(s.getMoreResults(), "the second one");
            }
        }
    }

    static void batches(String... how) throws Exception {
        try (Connection c = connect(how)) {
            c.createStatement().execute("CREATE TABLE IF NOT EXISTS batch_jdbc (i int primary key, t text)");
            c.createStatement().execute("TRUNCATE batch_jdbc");
            for (int round = 0; round < 8; round++) {
                try (PreparedStatement p = c.prepareStatement("INSERT INTO batch_jdbc VALUES (?, ?)", Statement.RETURN_GENERATED_KEYS)) {
                    for (int i = 0; i < 300; i++) {
                        p.setInt(1, round * 1000 + i);
                        p.setString(2, "value " + i);
                        p.addBatch();
                    }
                    check(p.executeBatch().length == 300, "batch");
                }
            }
            fails("23505", () -> {
                try (PreparedStatement p = c.prepareStatement("INSERT INTO batch_jdbc VALUES (?, 'x')")) {
                    for (int i : new int[] {90001, 0, 90002}) { p.setInt(1, i); p.addBatch(); }
                    try { p.executeBatch(); } catch (BatchUpdateException e) { throw e.getNextException() != null ? e.getNextException() : e; }
                }
            });
            int n = number(c, "SELECT count(*) FROM batch_jdbc");
            check(n == 2400, "rows " + n);
            c.createStatement().execute("DROP TABLE batch_jdbc");
        }
    }

    static void transactions() throws Exception {
        try (Connection c = connect()) {
            c.setAutoCommit(false);
            int n = number(c, "UPDATE counter SET n = n + 1 WHERE id = 2 RETURNING n");
            Savepoint a = c.setSavepoint("a");
            fails("22012", () -> number(c, "SELECT 1/0"));
            c.rollback(a);
            check(number(c, "SELECT n FROM counter WHERE id = 2") == n, "savepoint");
            c.rollback();
            try (Statement s = c.createStatement()) {
                s.setFetchSize(7);
                int seen = 0;
                try (ResultSet r = s.executeQuery("SELECT generate_series(1, 100)")) { while (r.next()) seen++; }
                check(seen == 100, "fetch size " + seen);
                ResultSet half = s.executeQuery("SELECT generate_series(1, 100)");
                half.next();
                half.close();
            }
            c.commit();
            c.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            try (Statement s = c.createStatement(); ResultSet r = s.executeQuery("SHOW transaction_isolation")) {
                r.next();
                check(r.getString(1).equals("serializable"), "isolation");
            }
            c.rollback();
            c.setReadOnly(true);
            check(number(c, "SELECT 42") == 42, "read only");
            fails("25006", () -> number(c, "UPDATE counter SET n = n + 1 WHERE id = 2 RETURNING n"));
            c.rollback();
        }
        try (Connection c = connect("autosave", "always")) {
            c.setAutoCommit(false);
            fails("22012", () -> number(c, "SELECT 1/0"));
            check(number(c, "SELECT 42") == 42, "autosave");
            c.commit();
        }
    }

    static void copies() throws Exception {
        try (Connection c = connect()) {
            c.setAutoCommit(false);
            c.createStatement().execute("CREATE TEMP TABLE rows (i int, t text) ON COMMIT DROP");
            CopyManager copy = c.unwrap(PGConnection.class).getCopyAPI();
            StringBuilder lines = new StringBuilder();
            for (int i = 0; i < 5000; i++) lines.append(i).append("\tvalue ").append(i).append('\n');
            check(copy.copyIn("COPY rows FROM STDIN", new StringReader(lines.toString())) == 5000, "copy in");
            StringWriter out = new StringWriter();
            copy.copyOut("COPY (SELECT * FROM rows ORDER BY i) TO STDOUT", out);
            check(out.toString().equals(lines.toString()), "copy out");
            c.rollback();
            fails("22P02", () -> copy.copyIn("COPY copy_target FROM STDIN", new StringReader("not a number\n")));
            c.rollback();
            var half = copy.copyIn("COPY copy_target FROM STDIN");
            half.writeToCopy("1\n".getBytes(), 0, 2);
            half.cancelCopy();
            c.rollback();
            check(number(c, "SELECT 42") == 42, "after copy");
        }
    }

    static void objects() throws Exception {
        try (Connection c = connect()) {
            c.setAutoCommit(false);
            LargeObjectManager m = c.unwrap(PGConnection.class).getLargeObjectAPI();
            long oid = m.createLO(LargeObjectManager.READWRITE);
            LargeObject o = m.open(oid, LargeObjectManager.WRITE);
            o.write(new byte[100000]);
            o.close();
            c.commit();
            o = m.open(oid, LargeObjectManager.READ);
            check(o.read(200000).length == 100000, "large object");
            o.close();
            m.delete(oid);
            c.commit();
        }
    }

    static void cancels() throws Exception {
        try (Connection c = connect(); Statement s = c.createStatement()) {
            Timer timer = new Timer(true);
            timer.schedule(new TimerTask() {
                public void run() { try { s.cancel(); } catch (SQLException e) { throw new RuntimeException(e); } }
            }, 300);
            fails("57014", () -> s.executeQuery("SELECT pg_sleep(60)"));
            check(number(c, "SELECT 7") == 7, "after cancel");
            s.setQueryTimeout(1);
            fails("57014", () -> s.executeQuery("SELECT pg_sleep(60)"));
            check(number(c, "SELECT 8") == 8, "after timeout");
        }
    }

    static void noticesAndListen() throws Exception {
        try (Connection c = connect(); Connection other = connect(); Statement s = c.createStatement()) {
            s.execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$");
            check(s.getWarnings() != null && s.getWarnings().getMessage().equals("hello"), "notice");
            s.execute("LISTEN channel_jdbc");
            other.createStatement().execute("NOTIFY channel_jdbc, 'payload'");
            var heard = c.unwrap(PGConnection.class).getNotifications(20000);
            check(heard != null && heard.length == 1 && heard[0].getParameter().equals("payload"), "notification");
        }
    }

    static void metadata() throws Exception {
        try (Connection c = connect()) {
            try (ResultSet r = c.getMetaData().getColumns(null, "public", "counter", null)) {
                check(r.next() && r.next() && !r.next(), "columns");
            }
            check(c.isValid(5), "valid");
            c.setSchema("pg_catalog");
            check(c.getSchema().equals("pg_catalog"), "schema");
            c.setClientInfo("ApplicationName", "other");
            check(number(c, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'other'") >= 1, "name");
        }
    }

    public static void main(String[] args) throws Exception {
        port = args[0];
        sslmode = args[1];
        database = args[2];
        prepared();
        prepared("prepareThreshold", "1");
        prepared("preferQueryMode", "simple");
        prepared("assumeMinServerVersion", "15");
        batches();
        batches("reWriteBatchedInserts", "true");
        transactions();
        copies();
        objects();
        cancels();
        noticesAndListen();
        metadata();
        System.out.println(org.postgresql.util.DriverInfo.DRIVER_VERSION);
    }
}

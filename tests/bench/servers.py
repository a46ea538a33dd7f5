"""PostgreSQL for the benchmarks: one primary with pgbench's tables and some large values, and standbys on demand.
Loopback only; everything is below one directory, which the caller removes."""

import os
import pathlib
import socket
import subprocess

SERVER_USER = "postgres"
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("PG")} | {"LC_ALL": "C"}

SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{dir}'
max_connections = 400
shared_buffers = 256MB
fsync = off
synchronous_commit = off
autovacuum = off
password_encryption = 'scram-sha-256'
wal_level = replica
"""

HBA = """
local all all trust
host replication all 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""

# A megabyte that is not compressed, and rows to copy: about 100 bytes each.
TABLES = """
create table big (id int primary key, v text);
alter table big alter v set storage external;
insert into big select i, repeat('x', 1000000) from generate_series(1, 8) i;
create table wide as select i as id, repeat('y', 90) as v from generate_series(1, 1000000) i;
create unlogged table copied (id int, v text);
alter table big owner to bench; alter table wide owner to bench; alter table copied owner to bench;
analyze
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def unprivileged():
    """What makes a command run as the servers' user, if we are root."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={SERVER_USER}", f"--regid={SERVER_USER}", "--init-groups"]


class Server:
    """One PostgreSQL server."""

    def __init__(self, directory, name):
        found = [p.parent for p in pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb")]
        if not found:
            raise SystemExit("bench: PostgreSQL is not installed; run: make setup")
        self.bin = max(found, key=lambda p: int(p.parent.name))
        self.dir, self.data, self.port, self.name = directory, directory / name, free_port(), name

    def run(self, program, *args):
        with open(self.dir / "servers.log", "ab") as log:
            subprocess.run([*unprivileged(), self.bin / program, *map(str, args)], check=True, cwd=self.dir,
                           env=ENVIRONMENT | {"HOME": str(self.dir), "PGPASSWORD": "bench"},
                           stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def sql(self, database, *statements):
        commands = [word for statement in statements for word in ("-c", statement)]
        self.run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-h", self.dir, "-p", self.port, "-U", SERVER_USER,
                 "-d", database, *commands)

    def start(self):
        (self.data / "postgresql.conf").write_text(SETTINGS.format(port=self.port, dir=self.dir))
        self.run("pg_ctl", "start", "-w", "-s", "-D", self.data, "-l", self.data / "server.log")

    def make(self, scale):
        self.run("initdb", "-N", "-A", "trust", "-E", "UTF8", "--locale=C", "-U", SERVER_USER, "-D", self.data)
        (self.data / "pg_hba.conf").write_text(HBA)
        self.start()
        self.sql("postgres", "create role bench login password 'bench'", "create database bench owner bench")
        self.run("pgbench", "-i", "-q", "-s", scale, "-h", "127.0.0.1", "-p", self.port, "-U", "bench", "bench")
        self.sql("bench", TABLES)

    def follow(self, primary):
        self.run("pg_basebackup", "-R", "-c", "fast", "-h", "127.0.0.1", "-p", primary.port, "-U", SERVER_USER,
                 "-D", self.data)
        self.start()

    def stop(self):
        if (self.data / "postmaster.pid").exists():
            self.run("pg_ctl", "stop", "-w", "-s", "-m", "immediate", "-D", self.data)

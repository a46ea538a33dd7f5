"""The programs under test: our proxy, PgBouncer, HAProxy in TCP mode, PostgreSQL itself, and others by a command line.
Each listens on a port of its own and costs what /proc says of its process."""

import dataclasses
import os
import pathlib
import pwd
import re
import shutil
import socket
import subprocess
import time

from servers import ENVIRONMENT, SERVER_USER, free_port, unprivileged

TICK = os.sysconf("SC_CLK_TCK")

PROXY_CONFIG = """
listen_address = "127.0.0.1:{listen}"
admin_address = "127.0.0.1:{admin}"
{workers}
[client_tls]
mode = "{tls}"

[pool_mode]
mode = "transaction"
max_pool_size = {pool}
acquire_timeout_secs = 60

[load_balancer]
read_write_split = {split}
read_strategy = "least_connections"

[[users]]
name = "bench"
password = "bench"
"""

NODE = """
[[nodes]]
host = "127.0.0.1"
port = {port}
role = "{role}"
"""

PGBOUNCER_CONFIG = """
[databases]
* = host=127.0.0.1 port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = {pool}
max_client_conn = 10000
ignore_startup_parameters = extra_float_digits
logfile =
pidfile =
{tls}
"""

HAPROXY_CONFIG = """
global
  maxconn 6000
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen bench
  bind 127.0.0.1:{listen}
  server one 127.0.0.1:{port}
"""


class Target:
    """A program under test, listening on `port`; without a command it is somebody else's process, which costs nothing."""

    def __init__(self, name, command, port, log):
        self.name, self.port, self.log, self.process = name, port, log, None
        if command:
            with open(log, "wb") as out:
                self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                                env=ENVIRONMENT | {"RUST_LOG": "warn"}, start_new_session=True)
        self.wait()

    def wait(self):
        end = time.monotonic() + 20
        while True:
            if self.process and self.process.poll() is not None:
                raise SystemExit(f"bench: {self.name} ended with {self.process.returncode}:\n{self.tail()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > end:
                    raise SystemExit(f"bench: {self.name} does not listen:\n{self.tail()}") from None
                time.sleep(0.05)

    def tail(self):
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def cost(self):
        """CPU seconds and context switches of all threads so far."""
        if not self.process:
            return {"cpu": 0.0, "switches": 0}
        proc = pathlib.Path(f"/proc/{self.process.pid}")
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        switches = 0
        for status in proc.glob("task/*/status"):
            switches += sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", status.read_text())))
        return {"cpu": (int(fields[11]) + int(fields[12])) / TICK, "switches": switches}

    def rss_kib(self):
        if not self.process:
            return 0
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+)", status, re.M).group(1))

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()


def certificate(place, kind):
    """A private key of a kind, as openssl has it, and a certificate of its own."""
    key, cert = place / "key.pem", place / "cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", *kind, "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-keyout", key, "-out", cert], check=True, capture_output=True)
    return key, cert


def heliosproxy(options, place, shape, servers):
    listen, config = free_port(), place / "proxy.toml"
    config.touch(mode=0o600)
    workers = f"workers = {options.workers}\n" if options.workers else ""
    admin = free_port()
    text = PROXY_CONFIG.format(listen=listen, admin=admin, pool=shape.pool, split=str(shape.split).lower(),
                               tls="require" if shape.tls else "disable", workers=workers)
    nodes = servers if shape.nodes > 1 else servers[:1]
    if shape.key:
        key, cert = certificate(place, shape.key)
        text = text.replace("[client_tls]", f'[client_tls]\ntls_cert_file = "{cert}"\ntls_key_file = "{key}"')
    text += "".join(NODE.format(port=s.port, role="primary" if i == 0 else "replica") for i, s in enumerate(nodes))
    if shape.cache:
        text += "\n[cache]\nenabled = true\n"
    config.write_text(text)
    target = Target("heliosproxy", [options.proxy, "--config", config], listen, place / "proxy.log")
    target.admin = admin
    return target


def uncached(options, place, shape, servers):
    """The same proxy without its result cache."""
    return heliosproxy(options, place, dataclasses.replace(shape, cache=False), servers)


def one_worker(options, place, shape, servers):
    """The same proxy with one thread for its sessions."""
    return heliosproxy(dataclasses.replace(options, workers=1), place, shape, servers)


def pgbouncer(_options, place, shape, servers):
    program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    if not os.access(program, os.X_OK):
        raise SystemExit("bench: PgBouncer is not installed; run: make setup")
    listen, config, users = free_port(), place / "pgbouncer.ini", place / "users.txt"
    users.write_text('"bench" "bench"\n')
    tls, files = "", [users, config]
    if shape.tls:
        key, cert = certificate(place, ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        tls = f"client_tls_sslmode = require\nclient_tls_key_file = {key}\nclient_tls_cert_file = {cert}\n"
        files += [key, cert]
    config.write_text(PGBOUNCER_CONFIG.format(listen=listen, port=servers[0].port, users=users, pool=shape.pool, tls=tls))
    if os.geteuid() == 0:
        owner = pwd.getpwnam(SERVER_USER)
        for path in files:
            os.chown(path, owner.pw_uid, owner.pw_gid)
    return Target("pgbouncer", [*unprivileged(), program, config], listen, place / "pgbouncer.log")


def haproxy(_options, place, _shape, servers):
    program = shutil.which("haproxy") or "/usr/sbin/haproxy"
    if not os.access(program, os.X_OK):
        raise SystemExit("bench: HAProxy is not installed; run: make setup")
    listen, config = free_port(), place / "haproxy.cfg"
    config.write_text(HAPROXY_CONFIG.format(listen=listen, port=servers[0].port))
    return Target("haproxy", [program, "-db", "-f", config], listen, place / "haproxy.log")


def direct(_options, place, _shape, servers):
    return Target("direct", None, servers[0].port, place / "none.log")


def other(name, command):
    """A pooler by its command line, in which {listen}, {port}, {pool} and {dir} are replaced."""
    def start(_options, place, shape, servers):
        listen = free_port()
        words = command.format(listen=listen, port=servers[0].port, pool=shape.pool, dir=place)
        return Target(name, ["sh", "-c", f"exec {words}"], listen, place / f"{name}.log")
    return start


KNOWN = {"heliosproxy": heliosproxy, "uncached": uncached, "one-worker": one_worker, "pgbouncer": pgbouncer, "haproxy": haproxy, "direct": direct}

#!/usr/bin/python3
"""The proxy against PgBouncer: the same pgbench through each in turn, on one cluster, loopback only.

Each round runs every workload through every target, in an order that changes, so that a noisy minute hits all of
them. Figures are medians over rounds; ratios are medians of the ratios within rounds. CPU is what the target's own
process used (user and system time of all its threads, from /proc), divided by the transactions it carried."""

import argparse
import json
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

SERVER_USER = "postgres"
TICK = os.sysconf("SC_CLK_TCK")
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("PG")} | {"LC_ALL": "C"}

# Arguments of pgbench by workload.
WORKLOADS = {
    "select-simple": ["-S", "-M", "simple"],
    "select-extended": ["-S", "-M", "extended"],
    "select-prepared": ["-S", "-M", "prepared"],
    "tpcb-simple": ["-M", "simple"],
}
# Debian's PgBouncer 1.18 has no prepared statements in transaction mode.
ONLY_PROXY = {"select-prepared"}

SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{dir}'
max_connections = 100
shared_buffers = 256MB
fsync = off
synchronous_commit = off
autovacuum = off
password_encryption = 'scram-sha-256'
"""

HBA = """
local all all trust
host all all 127.0.0.1/32 scram-sha-256
"""

PROXY_CONFIG = """
listen_address = "127.0.0.1:{listen}"
admin_address = "127.0.0.1:{admin}"
{workers}
[client_tls]
mode = "disable"

[pool_mode]
mode = "transaction"
max_pool_size = {pool}

[load_balancer]
read_write_split = {split}
read_strategy = "least_connections"

[[users]]
name = "bench"
password = "bench"

[[nodes]]
host = "127.0.0.1"
port = {port}
role = "primary"
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
"""


def fail(text):
    raise SystemExit(f"bench: {text}")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def unprivileged():
    """What makes a command run as the servers' user, if we are root."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={SERVER_USER}", f"--regid={SERVER_USER}", "--init-groups"]


class Cluster:
    """One server, with pgbench's tables in database bench of role bench."""

    def __init__(self, directory, scale):
        found = [p.parent for p in pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb")]
        if not found:
            fail("PostgreSQL is not installed; run: make setup")
        self.bin = max(found, key=lambda p: int(p.parent.name))
        self.dir, self.data, self.port, self.scale = directory, directory / "data", free_port(), scale

    def run(self, program, *args):
        with open(self.dir / "bench.log", "ab") as log:
            subprocess.run([*unprivileged(), self.bin / program, *map(str, args)], check=True, cwd=self.dir,
                           env=ENVIRONMENT | {"HOME": str(self.dir), "PGPASSWORD": "bench"},
                           stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def start(self):
        self.run("initdb", "-N", "-A", "trust", "-E", "UTF8", "--locale=C", "-U", SERVER_USER, "-D", self.data)
        (self.data / "postgresql.conf").write_text(SETTINGS.format(port=self.port, dir=self.dir))
        (self.data / "pg_hba.conf").write_text(HBA)
        self.run("pg_ctl", "start", "-w", "-s", "-D", self.data, "-l", self.data / "server.log")
        self.run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-h", self.dir, "-p", self.port, "-U", SERVER_USER,
                 "-d", "postgres", "-c", "create role bench login password 'bench'",
                 "-c", "create database bench owner bench")
        self.run("pgbench", "-i", "-q", "-s", self.scale, "-h", "127.0.0.1", "-p", self.port, "-U", "bench", "bench")

    def stop(self):
        if (self.data / "postmaster.pid").exists():
            self.run("pg_ctl", "stop", "-w", "-s", "-m", "immediate", "-D", self.data)


class Target:
    """A program under test, listening on `port`."""

    def __init__(self, name, command, port, log):
        self.name, self.port, self.log = name, port, log
        with open(log, "wb") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                            env=ENVIRONMENT | {"RUST_LOG": "warn"}, start_new_session=True)
        end = time.monotonic() + 20
        while True:
            if self.process.poll() is not None:
                fail(f"{name} ended with {self.process.returncode}:\n{log.read_text()[-4000:]}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > end:
                    fail(f"{name} does not listen:\n{log.read_text()[-4000:]}")
                time.sleep(0.05)

    def cpu_seconds(self):
        """User and system time of all threads so far."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def rss_kib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+)", status, re.M).group(1))

    def stop(self):
        self.process.kill()
        self.process.wait()


def start_proxy(program, directory, cluster, pool, split, workers):
    listen, config = free_port(), directory / "proxy.toml"
    config.touch(mode=0o600)
    config.write_text(PROXY_CONFIG.format(listen=listen, admin=free_port(), pool=pool, port=cluster.port,
                                          split=str(split).lower(),
                                          workers=f"workers = {workers}\n" if workers else ""))
    return Target("heliosproxy", [program, "--config", config], listen, directory / "proxy.log")


def start_pgbouncer(directory, cluster, pool):
    program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    if not os.access(program, os.X_OK):
        fail("PgBouncer is not installed; run: make setup")
    listen, config, users = free_port(), directory / "pgbouncer.ini", directory / "users.txt"
    users.write_text('"bench" "bench"\n')
    config.write_text(PGBOUNCER_CONFIG.format(listen=listen, port=cluster.port, users=users, pool=pool))
    if os.geteuid() == 0:
        owner = pwd.getpwnam(SERVER_USER)
        for path in (users, config):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    return Target("pgbouncer", [*unprivileged(), program, config], listen, directory / "pgbouncer.log")


def percentile(ordered, share):
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def measure(target, workload, options, directory):
    """One run of pgbench: what it cost and how it went."""
    logs = directory / "latency"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    command = ["pgbench", "-n", *WORKLOADS[workload], "-c", str(options.clients), "-j", str(options.threads),
               "-T", str(options.seconds), "--log", "--log-prefix", str(logs / "log"),
               "-h", "127.0.0.1", "-p", str(target.port), "-U", "bench", "bench"]
    cpu = target.cpu_seconds()
    done = subprocess.run(command, env=ENVIRONMENT | {"PGPASSWORD": "bench"}, capture_output=True, text=True,
                          check=False)
    cpu = target.cpu_seconds() - cpu
    if done.returncode != 0 or "aborted" in done.stderr:
        fail(f"{workload} through {target.name}: {done.stdout}{done.stderr}\n{target.log.read_text()[-2000:]}")
    transactions = int(re.search(r"actually processed: (\d+)", done.stdout).group(1))
    tps = float(re.search(r"tps = ([\d.]+) \(without initial", done.stdout).group(1))
    latencies = []
    for log in logs.iterdir():
        with open(log, encoding="ascii") as lines:
            latencies.extend(int(line.split(" ", 3)[2]) for line in lines)
    latencies.sort()
    return {"tps": tps, "p50_us": percentile(latencies, 0.50), "p99_us": percentile(latencies, 0.99),
            "cpu_us": cpu * 1e6 / transactions, "rss_kib": target.rss_kib(), "transactions": transactions}


def summarise(samples):
    """Medians of every figure, and of the ratios within rounds."""
    figures = ("tps", "p50_us", "p99_us", "cpu_us", "rss_kib")
    rows = []
    for (workload, name), rounds in samples.items():
        row = {"workload": workload, "target": name, "rounds": len(rounds)}
        row.update({f: statistics.median(r[f] for r in rounds) for f in figures})
        base = samples.get((workload, "pgbouncer"))
        if base and name != "pgbouncer":
            row["ratio"] = {f: statistics.median(r[f] / b[f] for r, b in zip(rounds, base) if b[f]) for f in figures}
        rows.append(row)
    return sorted(rows, key=lambda r: (list(WORKLOADS).index(r["workload"]), r["target"]))


def markdown(rows):
    lines = ["| workload | target | tps | p50 µs | p99 µs | CPU µs/tx | RSS MiB | tps × | p99 × | CPU × |",
             "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for r in rows:
        ratio = r.get("ratio")
        ratios = " | ".join(f"{ratio[f]:.2f}" for f in ("tps", "p99_us", "cpu_us")) if ratio else " | | "
        lines.append(f"| {r['workload']} | {r['target']} | {r['tps']:.0f} | {r['p50_us']:.0f} | {r['p99_us']:.0f} | "
                     f"{r['cpu_us']:.1f} | {r['rss_kib'] / 1024:.1f} | {ratios} |")
    return "\n".join(lines)


def bench(options, directory):
    cluster, targets = Cluster(directory, options.scale), []
    try:
        print("bench: preparing the cluster ...", file=sys.stderr, flush=True)
        cluster.start()
        targets.append(start_proxy(options.proxy, directory, cluster, options.pool, options.split,
                                   options.workers))
        targets.append(start_pgbouncer(directory, cluster, options.pool))
        samples = {}
        for round_number in range(options.rounds):
            for workload in options.workloads:
                order = targets if round_number % 2 == 0 else targets[::-1]
                for target in order:
                    if workload in ONLY_PROXY and target.name == "pgbouncer":
                        continue
                    sample = measure(target, workload, options, directory)
                    samples.setdefault((workload, target.name), []).append(sample)
                    print(f"bench: round {round_number + 1} {workload} {target.name}: {sample['tps']:.0f} tps, "
                          f"{sample['cpu_us']:.1f} µs CPU", file=sys.stderr, flush=True)
        return samples
    finally:
        for target in targets:
            target.stop()
        cluster.stop()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxy", help="the program heliosdb-proxy; default: that of --profile")
    parser.add_argument("--profile", default="release", help="build profile of the proxy, without --proxy")
    parser.add_argument("--rounds", type=int, default=3, help="at least 3 for a figure that counts")
    parser.add_argument("--seconds", type=int, default=8, help="of each run")
    parser.add_argument("--workloads", default="select-simple,select-extended", help=", ".join(WORKLOADS))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="of pgbench")
    parser.add_argument("--pool", type=int, default=8, help="server connections")
    parser.add_argument("--scale", type=int, default=10)
    parser.add_argument("--workers", type=int, help="threads of the proxy; default: its own default")
    parser.add_argument("--split", action="store_true", help="read_write_split in the proxy")
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures to this file")
    options = parser.parse_args()
    options.workloads = options.workloads.split(",")
    unknown = [w for w in options.workloads if w not in WORKLOADS]
    if unknown:
        parser.error(f"unknown workload: {', '.join(unknown)}")
    if not options.proxy:
        root = pathlib.Path(__file__).resolve().parents[2]
        target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target"))
        options.proxy = str(target / options.profile / "heliosdb-proxy")
    if not os.access(options.proxy, os.X_OK):
        parser.error(f"{options.proxy} is not built; run: make bench")
    return options


def main():
    options = arguments()
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: sys.exit("bench: ended"))
    directory = pathlib.Path(tempfile.mkdtemp(prefix="helios-bench-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(directory, SERVER_USER, SERVER_USER)
        samples = bench(options, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    rows = summarise(samples)
    settings = {k: getattr(options, k) for k in ("rounds", "seconds", "clients", "threads", "pool", "scale", "split")}
    print(markdown(rows))
    print(f"\n{settings['clients']} clients, pool {settings['pool']}, {settings['rounds']} rounds of "
          f"{settings['seconds']} s, scale {settings['scale']}; × is heliosproxy over pgbouncer.\n")
    runs = [{"workload": w, "target": t, "samples": s} for (w, t), s in samples.items()]
    figures = json.dumps({"settings": settings, "medians": rows, "runs": runs})
    print(f"```json\n{figures}\n```")
    if options.json:
        options.json.write_text(figures + "\n")


if __name__ == "__main__":
    main()

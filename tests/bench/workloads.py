"""What is run through each target, and how one run of it is measured. Figures are of one run; rounds are the caller's."""

import base64
import concurrent.futures
import dataclasses
import hashlib
import hmac
import multiprocessing
import os
import pathlib
import re
import shutil
import socket
import ssl
import struct
import subprocess
import time
import urllib.request

from servers import ENVIRONMENT

POOLERS = ("heliosproxy", "pgbouncer")
SMALL = "\\set aid random(1, 100000 * :scale)\nselect abalance from pgbench_accounts where aid = :aid;\n"


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a target is started for; targets of one shape are shared by workloads."""

    pool: int = 8
    nodes: int = 1
    split: bool = False
    tls: bool = False
    cache: bool = False
    # A private key as openssl names it; empty: the proxy makes one of its own.
    key: tuple = ()


@dataclasses.dataclass(frozen=True)
class Workload:
    """One workload."""

    kind: str = "pgbench"
    args: tuple = ()
    script: str = ""
    clients: int = 16
    shape: Shape = Shape()
    against: tuple = POOLERS
    # Transactions, and bytes, that one transaction of pgbench stands for.
    times: int = 1
    size: int = 0


def pipeline(length):
    return "\\startpipeline\n" + SMALL * length + "\\endpipeline\n"


def unseen(size):
    """A read whose literal is never the same, of about this many bytes."""
    padding = f" and '{'x' * (size - 120)}' <> ''" if size > 120 else ""
    return f"\\set aid random(1, 100000 * :scale)\n\\set n random(1, 1000000000)\n" \
           f"select abalance + :n from pgbench_accounts where aid = :aid{padding};\n"


def select(clients, pool, mode, **more):
    return Workload(args=("-S", "-M", mode), clients=clients, shape=Shape(pool=pool), **more)


def workloads():
    found = {f"select-{mode}": select(16, 8, mode) for mode in ("simple", "extended", "prepared")}
    found["tpcb-simple"] = Workload(args=("-M", "simple"), against=("heliosproxy", "one-worker", "pgbouncer"))
    for clients, pool in ((1, 8), (64, 8), (64, 50), (500, 20), (2000, 50), (5000, 50)):
        found[f"select-{clients}-over-{pool}"] = select(clients, pool, "simple")
    everybody = ("heliosproxy", "pgbouncer", "haproxy", "direct")
    found["floor-simple"] = select(16, 16, "simple", against=everybody)
    found["connect-storm"] = Workload(args=("-S", "-C"), clients=8)
    large = {"clients": 4, "against": ("heliosproxy", "pgbouncer", "haproxy")}
    found["rows-1mb"] = Workload(script="select v from big where id = 1 + :client_id % 8;", size=1_000_000, **large)
    found["rows-10000"] = Workload(script="select * from wide where id <= 10000;", size=1_050_000, **large)
    found["copy-out"] = Workload(kind="copy-out", size=100_000_000, **large)
    found["copy-in"] = Workload(kind="copy-in", size=100_000_000, **large)
    found["tls-simple"] = Workload(args=("-S", "-M", "simple"), shape=Shape(tls=True))
    for length in (10, 100):
        found[f"pipeline-{length}"] = Workload(args=("-M", "extended"), script=pipeline(length), times=length)
    # 90 % reads; against the same proxy without the split.
    mixed = ("-b", "select-only@9", "-b", "simple-update@1")
    found["mixed-one-node"] = Workload(args=mixed, against=("heliosproxy",))
    found["mixed-split"] = Workload(args=mixed, against=("heliosproxy",), shape=Shape(nodes=3, split=True))
    for size, name in ((100, "100b"), (1_000, "1kb"), (100_000, "100kb")):
        found[f"unseen-{name}"] = Workload(script=unseen(size), shape=Shape(split=True))
    # A thousand texts that are asked again and again.
    hits = "\\set aid random(1, 1000)\nselect abalance from pgbench_accounts where aid = :aid;\n"
    found["cache-hits"] = Workload(script=hits, shape=Shape(cache=True), against=("heliosproxy", "uncached", "pgbouncer"))
    # Work that is the proxy's alone: a signature with a large key for each new connection.
    found["handshakes"] = Workload(kind="handshakes", clients=6, shape=Shape(tls=True, key=("rsa:4096",)),
                                   against=("heliosproxy", "one-worker"))
    found["idle"] = Workload(kind="idle", clients=2000)
    return found


ALL = workloads()
# Debian's PgBouncer 1.18 has no prepared statements in transaction mode.
ONLY_PROXY = {"select-prepared"}


def percentile(ordered, share):
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def client_environment(workload):
    return ENVIRONMENT | {"PGPASSWORD": "bench", "PGSSLMODE": "require" if workload.shape.tls else "disable"}


def pgbench(target, workload, options, place):
    """Transactions, their rate and their latencies."""
    logs = place / "latency"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    # The time that pgbench is given includes that of connecting.
    seconds = options.seconds + workload.clients // 80
    command = ["pgbench", "-n", *workload.args, "-c", str(workload.clients), "-j", str(options.threads),
               "-T", str(seconds), "--log", "--log-prefix", str(logs / "log"), "-s", str(options.scale)]
    if workload.script:
        script = place / "script.sql"
        script.write_text(workload.script)
        command += ["-f", str(script)]
    command += ["-h", "127.0.0.1", "-p", str(target.port), "-U", "bench", "bench"]
    done = subprocess.run(command, env=client_environment(workload), capture_output=True, text=True, check=False)
    if done.returncode != 0 or "aborted" in done.stderr:
        raise SystemExit(f"bench: through {target.name}: {done.stdout[-2000:]}{done.stderr[-2000:]}\n{target.tail()}")
    latencies = []
    for log in logs.iterdir():
        with open(log, encoding="ascii") as lines:
            latencies.extend(int(line.split(" ", 3)[2]) for line in lines)
    latencies.sort()
    transactions = int(re.search(r"actually processed: (\d+)", done.stdout).group(1)) * workload.times
    name = "including reconnection" if "-C" in workload.args else "without initial"
    rate = re.search(rf"tps = ([\d.]+) \({name}", done.stdout)
    if not rate or not transactions:
        raise SystemExit(f"bench: through {target.name}: no transaction in {options.seconds} s: {done.stdout[-1000:]}")
    tps = float(rate.group(1)) * workload.times
    return {"tps": tps, "transactions": transactions, "p50_us": percentile(latencies, 0.50),
            "p95_us": percentile(latencies, 0.95), "p99_us": percentile(latencies, 0.99)}


def copy(target, workload, _options, place):
    """Clients that copy a table out, or in, at once."""
    data = place.parent / "wide.copy"
    connect = f"host=127.0.0.1 port={target.port} user=bench dbname=bench"
    environment = client_environment(workload)
    if not data.exists():
        with open(data, "wb") as out:
            subprocess.run(["psql", "-X", "-q", connect, "-c", "copy wide to stdout"], stdout=out, env=environment, check=True)
    began = time.monotonic()
    if workload.kind == "copy-out":
        start = lambda: subprocess.Popen(["psql", "-X", "-q", connect, "-c", "copy wide to stdout"],
                                         stdout=subprocess.DEVNULL, env=environment)
    else:
        sql = ["-c", "begin", "-c", "copy copied from stdin", "-c", "rollback"]
        start = lambda: subprocess.Popen(["psql", "-X", "-q", connect, *sql], stdin=open(data, "rb"), env=environment)
    clients = [start() for _ in range(workload.clients)]
    if any([client.wait() for client in clients]):
        raise SystemExit(f"bench: a copy through {target.name} failed\n{target.tail()}")
    seconds = time.monotonic() - began
    return {"tps": workload.clients / seconds, "transactions": workload.clients,
            "size": data.stat().st_size, "p50_us": seconds * 1e6, "p95_us": seconds * 1e6, "p99_us": seconds * 1e6}


class Idle:
    """A client that logs in by SCRAM-SHA-256 (RFC 5802) and then says nothing."""

    salted = {}

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        body = struct.pack("!i", 196608) + b"user\0bench\0database\0bench\0\0"
        self.socket.sendall(struct.pack("!i", len(body) + 4) + body)
        self.file = self.socket.makefile("rb")
        self.scram()
        while self.message()[0] != b"Z":
            pass

    def message(self):
        tag, length = struct.unpack("!ci", self.file.read(5))
        body = self.file.read(length - 4)
        if tag == b"E":
            raise SystemExit(f"bench: {body}")
        return tag, body

    def say(self, body):
        self.socket.sendall(b"p" + struct.pack("!i", len(body) + 4) + body)

    def scram(self):
        self.message()
        nonce = base64.b64encode(os.urandom(18)).decode()
        first = f"n=,r={nonce}"
        data = f"n,,{first}".encode()
        self.say(b"SCRAM-SHA-256\0" + struct.pack("!i", len(data)) + data)
        answer = self.message()[1][4:].decode()
        parts = dict(part.split("=", 1) for part in answer.split(","))
        key = (parts["s"], parts["i"])
        if key not in self.salted:
            self.salted[key] = hashlib.pbkdf2_hmac("sha256", b"bench", base64.b64decode(parts["s"]), int(parts["i"]))
        digest = lambda key, text: hmac.new(key, text, "sha256").digest()
        client = digest(self.salted[key], b"Client Key")
        final = f"c=biws,r={parts['r']}"
        signature = digest(hashlib.sha256(client).digest(), f"{first},{answer},{final}".encode())
        proof = base64.b64encode(bytes(a ^ b for a, b in zip(client, signature))).decode()
        self.say(f"{final},p={proof}".encode())


def idle(target, workload, _options, _place):
    """Memory that each client costs which has logged in and says nothing."""
    before, began = target.rss_kib(), time.monotonic()
    clients = [Idle(target.port) for _ in range(workload.clients)]
    seconds = time.monotonic() - began
    each = (target.rss_kib() - before) / len(clients)
    for client in clients:
        client.socket.close()
    nothing = float("nan")
    return {"tps": len(clients) / seconds, "transactions": len(clients), "p50_us": nothing, "p95_us": nothing,
            "p99_us": nothing, "kib_per_client": each, "base_kib": before}


def handshake(port, seconds):
    """Asks for TLS anew each time, always with the same ClientHello, and reads what the server has signed: the client's part
    costs nothing. How many; nobody logs in."""
    context, outgoing = ssl.create_default_context(), ssl.MemoryBIO()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    except ssl.SSLWantReadError:
        pass
    hello = outgoing.read()
    end, done = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as plain:
            plain.sendall(struct.pack("!ii", 8, 80877103))
            if plain.recv(1) != b"S":
                raise SystemExit("bench: no TLS")
            plain.sendall(hello)
            if len(plain.recv(65536)) < 100:
                raise SystemExit("bench: no handshake")
        done += 1
    return done


def handshakes(target, workload, options, _place):
    """The same by several processes at once."""
    began, places = time.monotonic(), range(workload.clients)
    with concurrent.futures.ProcessPoolExecutor(workload.clients, multiprocessing.get_context("fork")) as pool:
        done = sum(pool.map(handshake, [target.port for _ in places], [options.seconds for _ in places]))
    seconds, nothing = time.monotonic() - began, float("nan")
    return {"tps": done / seconds, "transactions": done, "p50_us": nothing, "p95_us": nothing, "p99_us": nothing}


KINDS = {"handshakes": handshakes, "pgbench": pgbench, "copy-out": copy, "copy-in": copy, "idle": idle}


def system_calls(target, workload, options, place):
    """System calls of the target for each transaction, by strace, over a short run of its own; None without strace."""
    if not shutil.which("strace") or not target.process or workload.kind != "pgbench":
        return None
    counted = place / "strace.txt"
    tracer = subprocess.Popen(["strace", "-c", "-f", "-o", counted, "-p", str(target.process.pid)],
                              stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    try:
        done = pgbench(target, workload, dataclasses.replace(options, seconds=3), place)
    finally:
        tracer.terminate()
        tracer.wait()
    total = re.search(r"^100\.00\s+\S+\s+\S+\s+(\d+).*total$", counted.read_text(), re.M)
    return int(total.group(1)) / done["transactions"] if total else None


def on_standbys(target):
    """Plain reads that standbys have got so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{target.admin}/metrics") as answer:
        text = answer.read().decode()
    return float(re.search(r'^heliosproxy_routing_decisions_total{reason="read_query"} (\S+)$', text, re.M).group(1))


def measure(target, workload, options, place):
    """One run, and what it cost the target."""
    place = pathlib.Path(place)
    split = workload.shape.split and workload.shape.nodes > 1
    read = on_standbys(target) if split else None
    before = target.cost()
    figures = KINDS[workload.kind](target, workload, options, place)
    after = target.cost()
    transactions = figures["transactions"]
    cpu = after["cpu"] - before["cpu"]
    figures["cpu_us"] = cpu * 1e6 / transactions
    figures["switches"] = (after["switches"] - before["switches"]) / transactions
    figures["rss_kib"] = target.rss_kib()
    if split:
        figures["standby_share"] = (on_standbys(target) - read) / transactions
    size = figures.pop("size", workload.size)
    if size:
        figures["cpu_s_per_gb"] = cpu * 1e9 / (size * transactions)
    return figures

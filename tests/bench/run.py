#!/usr/bin/python3
"""The proxy against other poolers: the same work through each in turn, on one cluster, loopback only.

Each round runs every workload through every target, in an order that changes, so that a noisy minute hits all of
them. Figures are medians over rounds; ratios are medians of the ratios within rounds, with the least and the greatest.
CPU is what the target's own process used (user and system time of all its threads, from /proc), divided by the
transactions it carried."""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile

import report
import targets
import workloads
from servers import SERVER_USER, Server


@dataclasses.dataclass
class Options:
    """What the command line says."""

    proxy: str
    rounds: int
    seconds: int
    threads: int
    scale: int
    workers: int
    syscalls: bool
    workloads: list
    others: dict


class Stand:
    """Servers and targets, started when they are needed first."""

    def __init__(self, options, directory):
        self.options, self.dir, self.servers, self.running = options, directory, [], {}

    def need(self, nodes):
        while len(self.servers) < nodes:
            server = Server(self.dir, f"server-{len(self.servers)}")
            if self.servers:
                server.follow(self.servers[0])
            else:
                server.make(self.options.scale)
            self.servers.append(server)

    def target(self, name, shape):
        key = (name, shape)
        if key not in self.running:
            self.need(shape.nodes)
            place = self.dir / f"target-{len(self.running)}"
            place.mkdir()
            if os.geteuid() == 0:
                shutil.chown(place, SERVER_USER, SERVER_USER)
            start = self.options.others.get(name) or targets.KNOWN[name]
            self.running[key] = start(self.options, place, shape, self.servers)
        return self.running[key]

    def stop(self):
        for target in self.running.values():
            target.stop()
        for server in reversed(self.servers):
            server.stop()


def names(workload, options):
    """The targets of a workload: its own, and those that the command line adds."""
    own = workloads.ALL[workload].against
    fit = [name for name in own if not (workload in workloads.ONLY_PROXY and name != "heliosproxy")]
    return fit + (list(options.others) if "pgbouncer" in own else [])


def bench(options, directory):
    stand, samples = Stand(options, directory), {}
    say = lambda text: print(f"bench: {text}", file=sys.stderr, flush=True)
    try:
        say("preparing the cluster ...")
        stand.need(1)
        for round_number in range(options.rounds):
            for name in options.workloads:
                workload = workloads.ALL[name]
                order = names(name, options)
                for target_name in order if round_number % 2 == 0 else order[::-1]:
                    target = stand.target(target_name, workload.shape)
                    sample = workloads.measure(target, workload, options, directory)
                    if options.syscalls and round_number == 0:
                        sample["syscalls"] = workloads.system_calls(target, workload, options, directory)
                    samples.setdefault(name, {}).setdefault(target_name, []).append(sample)
                    say(f"round {round_number + 1} {name} {target_name}: {sample['tps']:.0f} tps, "
                        f"{sample['cpu_us']:.1f} µs CPU")
        return {name: {t: samples[name][t] for t in names(name, options)} for name in samples}
    finally:
        stand.stop()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxy", help="the program heliosdb-proxy; default: the release build")
    parser.add_argument("--rounds", type=int, default=3, help="at least 3 for a figure that counts")
    parser.add_argument("--seconds", type=int, default=8, help="of each run")
    parser.add_argument("--workloads", default="select-simple,select-extended",
                        help="separated by commas, or all: " + ", ".join(workloads.ALL))
    parser.add_argument("--threads", type=int, default=1, help="of pgbench")
    parser.add_argument("--scale", type=int, default=10)
    parser.add_argument("--workers", type=int, help="threads of the proxy; default: its own default")
    parser.add_argument("--syscalls", action="store_true", help="count system calls too, in runs of their own (strace)")
    parser.add_argument("--other", action="append", default=[], metavar="NAME=COMMAND",
                        help="another pooler; {listen}, {port}, {pool} and {dir} in its command are replaced; role and "
                             "database are bench, the password is bench")
    parser.add_argument("--json", type=pathlib.Path, help="also write every figure to this file")
    parser.add_argument("--svg", type=pathlib.Path, help="also draw the ratios into this file")
    found = parser.parse_args()
    chosen = list(workloads.ALL) if found.workloads == "all" else found.workloads.split(",")
    unknown = [w for w in chosen if w not in workloads.ALL]
    if unknown:
        parser.error(f"unknown workload: {', '.join(unknown)}")
    root = pathlib.Path(__file__).resolve().parents[2]
    built = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target")) / "release/heliosdb-proxy"
    proxy = found.proxy or str(built)
    if not os.access(proxy, os.X_OK):
        parser.error(f"{proxy} is not built; run: make bench")
    pairs = [other.partition("=") for other in found.other]
    if not all(name and command for name, _, command in pairs):
        parser.error("--other is NAME=COMMAND")
    others = {name: targets.other(name, command) for name, _, command in pairs}
    options = Options(proxy, found.rounds, found.seconds, found.threads, found.scale, found.workers or 0,
                      found.syscalls, chosen, others)
    return options, found.json, found.svg


def main():
    options, to_json, to_svg = arguments()
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: sys.exit("bench: ended"))
    directory = pathlib.Path(tempfile.mkdtemp(prefix="helios-bench-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(directory, SERVER_USER, SERVER_USER)
        samples = bench(options, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    rows = report.summarise(samples)
    settings = f"{options.rounds} rounds of {options.seconds} s, scale {options.scale}"
    print(report.markdown(rows))
    print(f"\n{settings}; × is heliosproxy over the other, median and range of the rounds.")
    if to_json:
        to_json.write_text(json.dumps({"settings": settings, "medians": rows, "runs": samples}) + "\n")
    if to_svg:
        to_svg.write_text(report.chart(rows, f"HeliosProxy over others, {settings}"))


if __name__ == "__main__":
    main()

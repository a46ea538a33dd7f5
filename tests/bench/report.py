"""Tables and a picture of what the benchmarks measured. Ratios are of one round each; what is shown of them is the median,
and how far they lie apart."""

import statistics
from xml.sax.saxutils import escape

FIGURES = ("tps", "p50_us", "p95_us", "p99_us", "cpu_us", "switches", "rss_kib", "syscalls", "cpu_s_per_gb",
           "kib_per_client", "base_kib", "standby_share")


def base_of(targets):
    """What the others are compared with: PgBouncer, else HAProxy, else another proxy of ours."""
    known = ("pgbouncer", "haproxy", "direct", "one-worker", "uncached")
    return next((name for name in known if name in targets), None)


def summarise(samples):
    """A row for each workload and target, from `{workload: {target: [figures of a round]}}`."""
    rows = []
    for workload, targets in samples.items():
        for name, rounds in targets.items():
            row = {"workload": workload, "target": name, "rounds": len(rounds), "ratios": {}}
            for figure in FIGURES:
                values = [r[figure] for r in rounds if r.get(figure) is not None]
                if values:
                    row[figure] = statistics.median(values)
            for other in targets:
                if other != name:
                    row["ratios"][other] = ratios(rounds, targets[other])
            rows.append(row)
    return rows


def ratios(rounds, base):
    """By figure: the median of the ratios within rounds, the least and the greatest."""
    found = {}
    for figure in FIGURES:
        pairs = [(r.get(figure), b.get(figure)) for r, b in zip(rounds, base)]
        values = sorted(mine / theirs for mine, theirs in pairs if mine is not None and theirs)
        if values:
            found[figure] = (statistics.median(values), values[0], values[-1])
    return found


def number(value, digits=1):
    return "" if value is None or value != value else f"{value:.{digits}f}"


def markdown(rows):
    lines = ["| workload | target | tps | p50 µs | p95 µs | p99 µs | CPU µs/tx | switches/tx | calls/tx | RSS MiB | against | tps × | p99 × | CPU × |",
             "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|"]
    for row in rows:
        cells = [row["workload"], row["target"], number(row.get("tps"), 0), number(row.get("p50_us"), 0),
                 number(row.get("p95_us"), 0), number(row.get("p99_us"), 0), number(row.get("cpu_us")),
                 number(row.get("switches"), 2), number(row.get("syscalls"), 2), number(row.get("rss_kib", 0) / 1024)]
        others = [name for name in row["ratios"] if row["target"] == "heliosproxy"]
        if not others:
            lines.append("| " + " | ".join(cells) + " | | | | |")
        for other in others:
            shown = []
            for figure in ("tps", "p99_us", "cpu_us"):
                found = row["ratios"][other].get(figure)
                shown.append(f"{found[0]:.2f} ({found[1]:.2f}–{found[2]:.2f})" if found else "")
            lines.append("| " + " | ".join([*cells, other, *shown]) + " |")
    extra = [f"- {row['workload']}, {row['target']}: " + ", ".join(
        f"{number(row[figure], 2)} {words}" for figure, words in
        (("cpu_s_per_gb", "s of CPU a GB"), ("kib_per_client", "KiB a client"), ("base_kib", "KiB without clients"), ("standby_share", "of the transactions on a standby"))
        if figure in row) for row in rows if {"cpu_s_per_gb", "kib_per_client", "standby_share"} & set(row)]
    return "\n".join(lines + ([""] + extra if extra else []))


BAR, HEIGHT, LEFT, WIDTH = 10, 34, 190, 860


def chart(rows, title):
    """Bars of throughput and CPU of our proxy over those of what it is compared with; an SVG picture."""
    bars = []
    for row in rows:
        base = base_of(row["ratios"]) if row["target"] == "heliosproxy" else None
        if base and "tps" in row["ratios"][base]:
            bars.append((row["workload"], base, row["ratios"][base]["tps"], row["ratios"][base].get("cpu_us")))
    scale, parts = (WIDTH - LEFT - 90) / 2.0, []
    for i, (workload, base, tps, cpu) in enumerate(bars):
        top = 58 + i * HEIGHT
        parts.append(f'<text x="{LEFT - 8}" y="{top + 14}" text-anchor="end">{escape(workload)} / {escape(base)}</text>')
        for offset, colour, found in ((0, "#2b6cb0", tps), (BAR + 2, "#dd6b20", cpu)):
            if not found:
                continue
            length, least, most = (min(value, 2.0) * scale for value in found)
            y = top + offset
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>'
                         f'<line x1="{LEFT + least:.1f}" x2="{LEFT + most:.1f}" y1="{y + BAR / 2}" y2="{y + BAR / 2}" stroke="#1a202c"/>'
                         f'<text x="{LEFT + max(length, most) + 5:.1f}" y="{y + BAR}">{found[0]:.2f}</text>')
    height = 70 + len(bars) * HEIGHT
    one = LEFT + scale
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="11">'
            f'<rect width="100%" height="100%" fill="white"/><text x="12" y="20" font-size="14">{escape(title)}</text>'
            f'<text x="12" y="38"><tspan fill="#2b6cb0">■ throughput (more is better)</tspan> '
            f'<tspan fill="#dd6b20">■ CPU per transaction (less is better)</tspan> · thin line: least to greatest round</text>'
            f'<line x1="{one}" x2="{one}" y1="46" y2="{height - 12}" stroke="#718096" stroke-dasharray="3 3"/>'
            + "".join(parts) + "</svg>\n")

"""The Markdown table, and the journal of results as they come."""
import json, os, statistics
from pathlib import Path

from .machine import Broken
from .scenarios import SCENARIOS

# scenario kind -> columns: key, heading, format
COLS = {
    "load": [("rps", "req/s", "{:,.0f}"), ("cpu_us", "CPU µs/req", "{:.1f}"), ("sys_share", "kernel share", "{:.0%}"),
             ("rate_cpu_us", "CPU µs/req at fixed rate", "{:.1f}"), ("p50_us", "p50 µs", "{:,.0f}"), ("p90_us", "p90", "{:,.0f}"),
             ("p99_us", "p99", "{:,.0f}"), ("p999_us", "p99.9", "{:,.0f}"), ("peak_rss_mib", "peak RSS MiB", "{:.1f}"), ("failed", "failed", "{:.0f}")],
    "bulk": [("mib_s", "MiB/s", "{:,.0f}"), ("cpu_us_mib", "CPU µs/MiB", "{:.0f}"), ("sys_share", "kernel share", "{:.0%}"),
             ("stalled_kib", "KiB per stalled client", "{:,.0f}"), ("peak_rss_mib", "peak RSS MiB", "{:.1f}"), ("failed", "failed", "{:.0f}")],
    "idle": [("kib_per_conn", "KiB/connection", "{:.1f}"), ("rss_mib", "RSS MiB", "{:.1f}"), ("idle_cpu_pct", "CPU % while idle", "{:.3f}"),
             ("wakes_s", "wake-ups/s while idle", "{:.1f}")],
    "burst": [("burst_mib", "peak above idle MiB", "{:.1f}"), ("kept_mib", "still above idle after 2 s MiB", "{:.1f}"), ("failed", "failed", "{:.0f}")],
    "flaky": [("success_pct", "success %", "{:.2f}"), ("amplification", "upstream requests per request", "{:.3f}"),
              ("cpu_us", "CPU µs/req", "{:.1f}"), ("p50_us", "p50 µs", "{:,.0f}"), ("p90_us", "p90", "{:,.0f}"), ("p99_us", "p99", "{:,.0f}")],
    "down": [("p50_us", "p50 µs", "{:,.0f}"), ("p90_us", "p90", "{:,.0f}"), ("p99_us", "p99", "{:,.0f}"), ("max_us", "max", "{:,.0f}"),
             ("cpu_us", "CPU µs/req", "{:.1f}")],
    "syscalls": [("syscalls", "system calls/request", "{:.2f}"), ("breakdown", "which", "{}")],
    "instructions": [("instructions", "user-space instructions/request", "{:,.0f}")],
    "access-log": [("off_cpu_us", "CPU µs/req without", "{:.1f}"), ("on_cpu_us", "with", "{:.1f}"), ("cpu_ratio", "with/without", "{:.2f}×"),
             ("off_rate_cpu_us", "at fixed rate without", "{:.1f}"), ("on_rate_cpu_us", "with", "{:.1f}"), ("rate_cpu_ratio", "with/without", "{:.2f}×"),
             ("on_p99_us", "p99 µs with", "{:,.0f}"), ("lines_pct", "requests with a line %", "{:.1f}"), ("failed", "failed", "{:.0f}")],
    "rest": [("rest_mib", "MiB before any request", "{:.1f}"), ("used_mib", "after one to each", "{:.1f}"), ("threads", "threads", "{:.0f}")],
    "growth": [("upstreams_cpu", "1,000 upstreams: CPU", "{:.2f}×"), ("upstreams_instr", "instructions", "{:.3f}×"),
             ("routes_cpu", "100 routes: CPU", "{:.2f}×"), ("routes_instr", "instructions", "{:.3f}×"),
             ("keys_cpu", "10,000 keys: CPU", "{:.2f}×"), ("keys_instr", "instructions", "{:.3f}×"), ("cpu_us", "CPU µs/req of one", "{:.1f}"),
             ("instructions", "instructions of one", "{:,.0f}"), ("upstream_kib", "KiB/upstream", "{:.1f}"), ("key_bytes", "bytes/key", "{:.0f}")],
    "reload": [("one_ms", "ms, one upstream changed", "{:.1f}"), ("one_cpu_ms", "CPU ms", "{:.1f}"), ("all_ms", "ms, all changed", "{:.1f}"),
             ("all_cpu_ms", "CPU ms", "{:.1f}"), ("busy_ms", "ms under load", "{:.1f}"), ("p99_us", "p99 µs without", "{:,.0f}"),
             ("with_p99_us", "p99 with", "{:,.0f}"), ("max_us", "max without", "{:,.0f}"), ("with_max_us", "max with", "{:,.0f}"),
             ("reloads", "reloads under load", "{:.0f}"), ("failed", "failed", "{:.0f}")],
    "steady": [("rss_by_quarter", "RSS MiB by quarter", "{}"), ("rss_growth", "last/first", "{:.2f}×"), ("p50_by_quarter", "p50 µs by quarter", "{}"),
             ("p50_growth", "last/first", "{:.2f}×"), ("p99_by_quarter", "p99 µs by quarter", "{}"), ("p99_growth", "last/first", "{:.2f}×"),
             ("cpu_us", "CPU µs/req", "{:.1f}"), ("failed", "failed", "{:.0f}")],
    "intercept": [("cpu_us", "CPU µs/req", "{:,.0f}"), ("cpu_us_tunnel", "CPU µs/new tunnel", "{:,.0f}"), ("p50_us", "p50 µs", "{:,.0f}"),
                  ("p99_us", "p99", "{:,.0f}"), ("intercepted", "intercepted", "{}"), ("peak_rss_mib", "peak RSS MiB", "{:.1f}")],
}
RATIO = {"load": ["cpu_us", "rate_cpu_us", "rps", "p99_us"], "bulk": ["cpu_us_mib", "mib_s"], "idle": ["kib_per_conn"], "burst": ["burst_mib", "kept_mib"],
         "flaky": ["cpu_us"], "down": ["p50_us"], "syscalls": ["syscalls"], "instructions": ["instructions"], "intercept": ["cpu_us", "cpu_us_tunnel"],
         "access-log": ["on_cpu_us"], "rest": ["rest_mib", "used_mib"], "growth": [], "reload": [], "steady": ["cpu_us"]}


BRIEF = ("rps", "cpu_us", "rate_cpu_us", "p50_us", "p99_us", "mib_s", "cpu_us_mib", "kib_per_conn", "stalled_kib", "burst_mib", "kept_mib",
         "success_pct", "amplification", "syscalls", "breakdown", "instructions", "cpu_us_tunnel", "idle_cpu_pct", "wakes_s", "cpu_ratio",
         "rate_cpu_ratio", "lines_pct", "rest_mib", "used_mib", "threads", "upstreams_cpu", "routes_cpu", "keys_cpu", "upstreams_instr",
         "routes_instr", "keys_instr", "upstream_kib", "key_bytes", "one_ms", "all_ms", "one_cpu_ms", "all_cpu_ms", "busy_ms", "with_p99_us",
         "max_us", "with_max_us", "rss_by_quarter", "p50_by_quarter", "p99_by_quarter", "failed", "errors", "error")


def brief(rec):
    """A result in one line, as progress shows it."""
    short = lambda v: (round(v, 3) if abs(v) < 10 else round(v, 1)) if isinstance(v, float) else v.splitlines()[0] if isinstance(v, str) and v else v
    said = ", ".join(f"{k} {short(rec[k])}" for k in BRIEF if rec.get(k) not in (None, {}, 0))
    return f"{rec['scenario']:12} r{rec['round']} {rec['peer']:20} {said}"


class Journal:
    """Every result, a JSON line, as soon as it is there: PREFIX.jsonl. Its first line says how they were measured."""

    def __init__(self, path, meta, resume):
        self.path, self.results = Path(path), []
        same = ("seconds", "warmup", "workers", "pinned", "minutes")
        if resume and self.path.exists():
            # What was being written as it was interrupted is measured again.
            lines = [x for x in self.path.read_text().splitlines(keepends=True) if x.endswith("\n")]
            read = [json.loads(x) for x in lines]
            old = read[0]["meta"] if read else meta
            differs = [k for k in same if old.get(k) != meta[k]]
            differs += [f"the version of {p}" for p, v in meta["versions"].items() if old["versions"].get(p, v) != v]
            if differs:
                raise Broken(f"{path} was measured otherwise ({', '.join(differs)}): give the same options, or another --out")
            self.results = [r for r in read[1:] if "error" not in r]
        elif self.path.exists():
            # Whoever forgot --resume has not lost hours.
            self.path.replace(self.path.with_name(self.path.name + ".old"))
        self.path.write_text("".join(json.dumps(x) + "\n" for x in [{"meta": meta}, *self.results]))
        self.done = {(r["scenario"], r["round"], r["peer"]) for r in self.results}

    def has(self, scenario, rnd, peer):
        return (scenario, rnd, peer) in self.done

    def add(self, rec):
        self.results.append(rec)
        with self.path.open("a") as f:
            f.write(json.dumps(rec) + "\n")


def med(recs, key):
    v = [r[key] for r in recs if r.get(key) is not None]
    if v and isinstance(v[0], str):
        return v[-1]
    return statistics.median(v) if v else None


def spread(recs, key):
    v = [r[key] for r in recs if r.get(key) is not None]
    return (min(v), max(v)) if len(v) > 1 else None


def report(results, peers, ref, names, meta):
    o = [f"# Benchmark — {meta['date']}", "",
         f"{meta['cpus']} CPUs, {meta['cpu']}, kernel {meta['kernel']}; {meta['rounds']} round(s) of {meta['seconds']} s, "
         f"interleaved, workers per proxy: {meta['workers']}, pinned: {'yes' if meta['pinned'] else 'no'}. "
         "Medians; in brackets the smallest and largest round.", ""]
    o += ["| peer | version | binary MiB | start-up ms | idle RSS MiB |", "|---|---|---:|---:|---:|"]
    for p in peers:
        rs = [r for r in results if r["peer"] == p.name and "startup_ms" in r]
        f = lambda k, s: s.format(med(rs, k)) if med(rs, k) is not None else "–"
        size = os.path.getsize(p.bin) / 2**20 if p.bin and open(p.bin, "rb").read(2) != b"#!" else None
        o.append(f"| {p.name} | {meta['versions'].get(p.name, '') or '–'} | {f'{size:.1f}' if size else '–'} | {f('startup_ms', '{:.0f}')} | {f('idle_rss_mib', '{:.1f}')} |")
    for n in names:
        kind = SCENARIOS[n]["kind"]
        rows = {p.name: [r for r in results if r["peer"] == p.name and r["scenario"] == n and "error" not in r] for p in peers}
        rows = {k: v for k, v in rows.items() if v}
        if not rows:
            continue
        o += ["", f"## {n}: {SCENARIOS[n]['about']}", ""]
        cols = [c for c in COLS[kind] if any(med(v, c[0]) is not None for v in rows.values())]
        o += ["| peer | " + " | ".join(c[1] for c in cols) + " |", "|---|" + "---:|" * len(cols)]
        for k, v in rows.items():
            cells = []
            for key, _, fmt in cols:
                m, s = med(v, key), spread(v, key)
                t = fmt.format(bool(m) if key == "intercepted" and m is not None else m) if m is not None else "–"
                if s and key in ("cpu_us", "rate_cpu_us", "rps", "cpu_us_mib", "p99_us"):
                    t += f" ({fmt.format(s[0])}–{fmt.format(s[1])})"
                cells.append(t)
            o.append(f"| {k} | " + " | ".join(cells) + " |")
        # ratios are taken within a round, then the median of those
        if ref in rows:
            keys = [k for k in RATIO[kind] if any(c[0] == k for c in cols) and med(rows[ref], k)]
            heads = {c[0]: c[1] for c in cols}
            if keys:
                o += ["", f"Ratio to {ref} (median of per-round ratios):", "",
                      "| peer | " + " | ".join(heads[k] for k in keys) + " |", "|---|" + "---:|" * len(keys)]
                base = {r["round"]: r for r in rows[ref]}
                for k, v in rows.items():
                    if k == ref:
                        continue
                    cells = []
                    for key in keys:
                        q = [r[key] / base[r["round"]][key] for r in v if r.get(key) and r["round"] in base and base[r["round"]].get(key)]
                        cells.append(f"{statistics.median(q):.2f}×" if q else "–")
                    o.append(f"| {k} | " + " | ".join(cells) + " |")
    bad = [r for r in results if "error" in r]
    if bad:
        o += ["", "## Not measured", ""] + [f"- {r['peer']} / {r['scenario']}: {r['error'].splitlines()[0]}" for r in bad]
    return "\n".join(o) + "\n"

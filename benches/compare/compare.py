#!/usr/bin/env python3
"""Side-by-side benchmark of HTTP proxies on one machine. Standard library only.

For every scenario and round, and for every peer in turn (A B C A B C ...), it
starts one proxy between an origin and a load generator, drives load through
it, reads what the proxy cost from /proc, and stops it. Everything listens on
127.0.0.1, every load is bounded in time, and only processes started here are
ever signalled. README.md says which figure to trust.

  compare.py --list
  compare.py --quick
  compare.py --peers outrigger,envoy,haproxy,floor-hyper --scenario reverse,policy --rounds 5
  compare.py --scenario steady --minutes 10 --rounds 1 --peers outrigger
"""
import argparse, atexit, json, os, re, resource, shutil, signal, sys, tempfile, time
from pathlib import Path

from harness.machine import Broken, stop
from harness.measure import KINDS, measure
from harness.peers import Peer, Running
from harness.report import Journal, brief, report
from harness.scenarios import QUICK, SCENARIOS, left_out, seconds
from harness.tools import HERE, Origin, build
from harness.variants import KINDS as VARIANTS

ORDER = ["direct", "floor-l4", "floor-hyper-conn", "floor-hyper", "floor-hyper-percore", "floor-pingora", "outrigger"]


def options():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--peers", help="comma list; default: every peer whose program is installed")
    ap.add_argument("--scenario", help="comma list; default: all but those that take hours")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--seconds", type=float, default=3.0, help="length of each measured load (3)")
    ap.add_argument("--warmup", type=float, default=0.5, help="seconds before it (0.5)")
    ap.add_argument("--minutes", type=float, default=10.0, help="length of 'steady' (10)")
    ap.add_argument("--workers", type=int, default=1, help="worker threads per proxy (1)")
    ap.add_argument("--pin", action="store_true", help="proxy on the last CPU, load and origin on the others")
    ap.add_argument("--quick", action="store_true", help=f"one short round of {', '.join(QUICK)}; under 60 s")
    ap.add_argument("--budget", type=float, default=None, help="start nothing more after this many seconds")
    ap.add_argument("--ref", default=None, help="peer that ratios refer to (default: outrigger when run, else floor-hyper)")
    ap.add_argument("--peers-dir", action="append", default=[], help="more descriptors")
    ap.add_argument("--out", default="bench-results", help="prefix of the .jsonl, .json and .md files")
    ap.add_argument("--resume", action="store_true", help="go on with the results in the .jsonl file of --out")
    ap.add_argument("--list", action="store_true", help="print peers and scenarios, and end")
    ap.add_argument("--plan", action="store_true", help="print what would run and for how long, and end")
    ap.add_argument("--render", metavar="DIR", help="write every peer's configuration in each of its modes to DIR, and end")
    return ap.parse_args()


def descriptors(a):
    """Every peer by its name, those of --peers-dir last."""
    found = {}
    for d in [HERE / "peers", *map(Path, a.peers_dir)]:
        for f in sorted(d.glob("*.json")):
            p = Peer(f)
            found[p.name] = p
    return found


def listing(found):
    for p in found.values():
        print(f"{p.name:20} {'ready' if p.available() else 'missing':8} {p.about}" + ("" if p.available() else f"  [{p.install}]"))
    for n, s in SCENARIOS.items():
        print(f"  {n:20} {s['about']}")


def rendered(found, d):
    """For a look at the configurations, and for a test of them. Certificates are looked for beside them."""
    d.mkdir(parents=True, exist_ok=True)
    ports = dict(http=18001, tls1=18002, tls2=18003, dead=18004, intercept=18002, listen=18005, admin=18006)
    counts = dict(upstreams=2, routes=3, keyed=1)
    for p in found.values():
        for mode in p.modes if p.config else []:
            for name, c in [(mode, {})] + ([(mode + "-more", counts)] if mode in ("rest", "growth", "reload") else []):
                f = d / f"{p.name}-{name}{Path(p.config).suffix}"
                f.write_text(p.text(p.values(mode, ports, d, d, 1, c)))
                print(f)


def chosen_scenarios(a):
    names = a.scenario.split(",") if a.scenario else QUICK if a.quick else [n for n, s in SCENARIOS.items() if not s.get("hours")]
    for n in names:
        if n not in SCENARIOS:
            raise Broken(f"no such scenario: {n} (there are {', '.join(SCENARIOS)})")
    return names


def chosen_peers(a, found):
    """In the order in which they run."""
    if a.peers:
        peers = [found[n] for n in a.peers.split(",")]
    else:
        peers = sorted((p for p in found.values() if p.available()), key=lambda p: (ORDER.index(p.name) if p.name in ORDER else 99, p.name))
        if a.quick:
            peers = [p for p in peers if p.name in ("direct", "floor-hyper", "outrigger", "envoy", "haproxy")]
    for p in peers:
        if not p.available():
            raise Broken(f"{p.name} is not installed ({p.install})")
    return peers


def machine(a, peers):
    """What a reader has to know about how it was measured."""
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return dict(date=time.strftime("%Y-%m-%d"), cpus=os.cpu_count() or 1, cpu=model.group(1) if model else "?",
                kernel=os.uname().release.split("-")[0], rounds=a.rounds, seconds=a.seconds, warmup=a.warmup, minutes=a.minutes,
                workers=a.workers, pinned=bool(a.pin_proxy), versions={p.name: p.version() for p in peers})


def one(name, p, rnd, origin, base, a):
    """One peer in one round of one scenario; None where there is nothing to measure again."""
    sc = SCENARIOS[name]
    rec = dict(peer=p.name, scenario=name, round=rnd, load1=os.getloadavg()[0])
    try:
        if sc["kind"] in VARIANTS:
            got = VARIANTS[sc["kind"]](p, sc, origin, base, a, rnd == 0)
            return {**rec, **got} if got else None
        counts = dict(upstreams=sc["upstreams"] - 1) if "upstreams" in sc else {}
        run = Running(p, sc["mode"], origin, base, a, counts=counts)
        try:
            rec.update(measure(run, sc, origin, a))
        finally:
            run.stop()
    except Exception as e:  # one that can't be measured must not cost the others
        rec["error"] = str(e) if isinstance(e, Broken) else repr(e)
    return rec


def spoken(s):
    return f"{s / 3600:.1f} h" if s >= 5400 else f"{s / 60:.0f} min" if s >= 90 else f"{s:.0f} s"


def run():
    a = options()
    if a.quick:
        a.rounds, a.seconds, a.warmup = 1, 0.8, 0.2
    found = descriptors(a)
    if a.list:
        return listing(found)
    if a.render:
        return rendered(found, Path(a.render).resolve())
    names, wanted = chosen_scenarios(a), a.peers.split(",") if a.peers else []
    for n in wanted:
        if n not in found:
            raise Broken(f"no such peer: {n} (there are {', '.join(found)})")
    if not a.plan:
        build()
        if "floor-pingora" in wanted or not wanted and not a.quick:
            build_pingora(needed="floor-pingora" in wanted)
        found = descriptors(a)
    peers = chosen_peers(a, found)
    ncpu = os.cpu_count() or 1
    apart = a.pin and ncpu > 1
    a.pin_proxy, a.pin_load = (["taskset", "-c", str(ncpu - 1)], ["taskset", "-c", f"0-{ncpu - 2}"]) if apart else ([], [])
    meta = machine(a, peers)
    todo = [(n, rnd, p) for n in names for rnd in range(a.rounds) for p in peers if not left_out(p, n, SCENARIOS[n])]
    cost = lambda todo: sum(max(0, seconds(SCENARIOS[n], a, rnd == 0)) for n, rnd, _ in todo)
    if a.plan:
        for n in names:
            these = [x for x in todo if x[0] == n]
            print(f"{n:20} {spoken(cost(these)):>8}  {', '.join(dict.fromkeys(p.name for _, _, p in these))}")
        return print(f"{'all':20} {spoken(cost(todo)):>8}  {a.rounds} round(s) of {a.seconds:g} s")
    journal = Journal(a.out + ".jsonl", meta, a.resume)
    todo = [(n, rnd, p) for n, rnd, p in todo if not journal.has(n, rnd, p.name)]
    print(f"{len(peers)} peers, {len(names)} scenarios, {a.rounds} round(s): about {spoken(cost(todo))}"
          + (f", {len(journal.results)} results are there" if journal.results else ""), file=sys.stderr, flush=True)
    raise_descriptor_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    base = Path(tempfile.mkdtemp(prefix="bench-"))
    os.chmod(base, 0o755)
    atexit.register(shutil.rmtree, base, True)
    ref = a.ref or ("outrigger" if any(p.name == "outrigger" for p in peers) else "floor-hyper")

    def save():
        Path(a.out + ".json").write_text(json.dumps(dict(meta=meta, results=journal.results), indent=1))
        md = report(journal.results, peers, ref, names, meta)
        Path(a.out + ".md").write_text(md)
        return md

    origin, t0 = Origin(base, a.pin_load), time.monotonic()
    try:
        for i, (n, rnd, p) in enumerate(todo):
            if a.budget and time.monotonic() - t0 > a.budget:
                print("the budget is used up: go on with --resume", file=sys.stderr)
                break
            rec = one(n, p, rnd, origin, base, a)
            if rec:
                journal.add(rec)
                print(brief(rec), file=sys.stderr, flush=True)
            if i + 1 == len(todo) or todo[i + 1][0] != n:
                save()
    finally:
        stop(origin.p)
        md = save()
    print(md)


def build_pingora(needed):
    """It wants a C++ compiler and cmake, which not every machine has."""
    try:
        build("tools-pingora")
    except Broken as e:
        if needed:
            raise
        print(f"{e}: left out", file=sys.stderr)


def raise_descriptor_limit():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (65536, hard):
        try:
            return resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, hard)))
        except (ValueError, OSError):
            continue


def main():
    try:
        run()
    except (Broken, OSError) as e:
        sys.exit(f"compare.py: {e}")


if __name__ == "__main__":
    main()

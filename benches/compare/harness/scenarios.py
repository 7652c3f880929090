"""What is measured. `compare.py --list` prints it."""

# mode:  which sections of a peer's template are used
# kind:  how it is measured (measure.py); what it prints is in report.py
# hours: not among the scenarios that run when none is named
SCENARIOS = {
    "reverse":    dict(mode="reverse", kind="load", uri="/bytes/1024", conns=64, rate=1000,
                       about="HTTP/1.1 keep-alive, routed by Host, 1 KiB response"),
    "forward":    dict(mode="forward", kind="load", uri="http://{origin}/bytes/1024", conns=64, rate=1000,
                       about="HTTP/1.1 keep-alive, absolute-form request, 1 KiB response"),
    "tls-h1":     dict(mode="tls1", kind="load", uri="/bytes/1024", conns=64, rate=1000,
                       about="TLS origination, HTTP/1.1 upstream, 1 KiB response"),
    "tls-h2":     dict(mode="tls2", kind="load", uri="/bytes/1024", conns=64, rate=1000,
                       about="TLS origination, HTTP/2 upstream, 1 KiB response"),
    "post16k":    dict(mode="reverse", kind="load", uri="/echo", method="POST", body=16384, conns=64, rate=500,
                       about="POST 16 KiB, body echoed"),
    "policy":     dict(mode="policy", kind="load", uri="/bytes/1024", conns=64, rate=1000,
                       about="as 'reverse' with timeouts, retries, breaker/outlier detection and rate limit configured"),
    "access-log": dict(mode="policy", kind="access-log", uri="/bytes/1024", conns=64, rate=1000, needs="access-log",
                       about="'policy' with an access line a request, to a file, against the same without"),
    "newconn":    dict(mode="reverse", kind="load", uri="/bytes/1024", conns=16, rate=300, close=True,
                       about="new client connection for every request"),
    "download":   dict(mode="reverse", kind="bulk", uri="/bytes/10485760", conns=4,
                       about="10 MiB responses: throughput, CPU per MiB, memory while clients stall"),
    "tunnel":     dict(mode="forward", kind="bulk", uri="/bytes/10485760", conns=4, connect=True,
                       about="CONNECT tunnels kept open, 10 MiB responses inside"),
    "tunnel-new": dict(mode="forward", kind="load", uri="/bytes/1024", conns=16, rate=300, connect=True, close=True,
                       about="new CONNECT tunnel for every 1 KiB request"),
    "rest":       dict(mode="rest", kind="rest", upstreams=20,
                       about="20 upstreams: memory 2 s after the start, before any request, and after one to each"),
    "idle-1k":    dict(mode="reverse", kind="idle", n=1000, about="1,000 idle keep-alive client connections: memory, CPU, wake-ups"),
    "idle-10k":   dict(mode="reverse", kind="idle", n=10000, about="10,000 of them"),
    "burst":      dict(mode="reverse", kind="burst", uri="/bytes/262144", conns=500,
                       about="500 connections load 256 KiB bodies, then go: memory at the peak and kept 2 s later"),
    "flaky":      dict(mode="policy", kind="flaky", uri="/flaky/10/1024", conns=32, rate=500,
                       about="upstream answers 503 to 10% of requests, retries on"),
    "down":       dict(mode="dead", kind="down", uri="/bytes/1024", conns=8, rate=200,
                       about="upstream port closed: time to fail"),
    "syscalls":   dict(mode="reverse", kind="syscalls", uri="/bytes/1024", conns=1,
                       about="system calls per request on one keep-alive connection (needs strace; no noise)"),
    "instructions": dict(mode="reverse", kind="instructions", uri="/bytes/1024", conns=1,
                       about="user-space instructions per request (needs valgrind; no noise)"),
    "instructions-policy": dict(mode="policy", kind="instructions", uri="/bytes/1024", conns=1,
                       about="the same with the policies on"),
    "intercept":  dict(mode="intercept", kind="intercept", rate=40,
                       about="CONNECT with TLS interception (proxy-made certificates), keep-alive"),
    "growth":     dict(mode="growth", kind="growth", uri="/bytes/1024", conns=64,
                       about="1 against 1,000 upstreams, 1 against 100 routes, 1 against 10,000 rate limit keys: "
                             "CPU a request, and instructions (needs valgrind)"),
    "reload":     dict(mode="reload", kind="reload", uri="/bytes/1024", conns=64, rate=1000, upstreams=1000,
                       about="1,000 upstreams reloaded, alone and at a fixed rate: time, CPU, and what requests notice"),
    "steady":     dict(mode="policy", kind="steady", uri="/bytes/1024", conns=64, rate=1000, hours=True,
                       about="'policy' at a fixed rate for --minutes: memory and latency of each quarter (only by name)"),
}
QUICK = ["reverse", "forward", "policy"]

# How long a proxy takes to start and to end here, and what stands around a measurement, in seconds.
AROUND = 1.0


def seconds(sc, a, first):
    """About how long one peer takes for one round of a scenario. `first`: the first round, where what never changes is counted."""
    load, valgrind = a.seconds + a.warmup, 25.0
    return AROUND + {
        "load": 2 * load,
        "access-log": 2 * (2 * load + AROUND),
        "bulk": a.seconds + 1.2,
        "rest": 3.5,
        "idle": max(a.seconds, 4) + 1 + sc.get("n", 0) / 1500,
        "burst": a.seconds + 2.5,
        "flaky": 2 * a.seconds,
        "down": load,
        "syscalls": 4.0,
        "instructions": valgrind if first else -AROUND,
        "intercept": 1.3 * a.seconds,
        "growth": 5 * (load + AROUND) + (5 * valgrind if first else 0),
        "reload": 2 * load + 4,
        "steady": a.minutes * 60,
    }[sc["kind"]]


def left_out(peer, name, sc):
    """Why a peer is not measured in a scenario; None where it is."""
    reason = peer.skips(name, sc.get("needs", sc["mode"]))
    # The load generator alone costs nothing of its own, and has no configuration.
    if peer.direct and (sc["kind"] not in ("load", "bulk") or sc["mode"] not in ("reverse", "forward") or name == "tunnel-new"):
        return "not a proxy"
    return reason

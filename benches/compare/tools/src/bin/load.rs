//! HTTP/1.1 load generator: one thread, epoll, no runtime.
//!
//! Closed loop (no --rate): every connection sends its next request as soon as
//! the previous response ended. Open loop (--rate R): requests have intended
//! start times t0 + k/R; latency counts from the intended time, so time spent
//! waiting for a free connection is included (no coordinated omission).
//!
//! --values NAME N sends the header NAME with N values in turn. --parts N also
//! tells the latencies of each Nth of the duration.
//!
//! Prints one JSON object on stdout.
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::time::{Duration, Instant};

struct Opts {
    target: SocketAddr,
    conns: usize,
    duration: f64,
    warmup: f64,
    rate: f64,
    count: u64,
    close: bool,
    timeout: f64,
    prelude: Option<Vec<u8>>,
    request: Vec<u8>,
    /// How many values the header of `--values` has, and where its digits stand in `request`.
    values: u64,
    digits: usize,
    parts: usize,
}

/// Digits of a value of `--values`.
const DIGITS: usize = 8;

fn usage() -> ! {
    eprintln!(
        "load --target IP:PORT --uri PATH_OR_URL --host NAME [--method M] [--body BYTES] [--conns N]\n\
         \x20    [--duration S] [--warmup S] [--rate R] [--count N] [--close] [--connect HOST:PORT]\n\
         \x20    [--timeout S] [--header 'K: V']...\n\
         \x20    [--values NAME N] [--parts N]"
    );
    std::process::exit(2)
}

fn parse_opts() -> Opts {
    let mut a = std::env::args().skip(1);
    let (mut target, mut uri, mut host, mut method) = (None, "/".to_string(), String::new(), "GET".to_string());
    let (mut body, mut conns, mut duration, mut warmup, mut rate, mut count) = (0usize, 64, 5.0, 1.0, 0.0, 0u64);
    let (mut close, mut connect, mut timeout, mut headers) = (false, None::<String>, 10.0, String::new());
    let (mut values, mut parts) = (0u64, 1usize);
    while let Some(k) = a.next() {
        let mut v = || a.next().unwrap_or_else(|| usage());
        match k.as_str() {
            "--target" => target = v().parse().ok(),
            "--uri" => uri = v(),
            "--host" => host = v(),
            "--method" => method = v(),
            "--body" => body = v().parse().unwrap_or_else(|_| usage()),
            "--conns" => conns = v().parse().unwrap_or_else(|_| usage()),
            "--duration" => duration = v().parse().unwrap_or_else(|_| usage()),
            "--warmup" => warmup = v().parse().unwrap_or_else(|_| usage()),
            "--rate" => rate = v().parse().unwrap_or_else(|_| usage()),
            "--count" => count = v().parse().unwrap_or_else(|_| usage()),
            "--timeout" => timeout = v().parse().unwrap_or_else(|_| usage()),
            "--close" => close = true,
            "--connect" => connect = Some(v()),
            "--values" => {
                headers.push_str(&format!("{}: v{:0DIGITS$}\r\n", v(), 0));
                values = v().parse().unwrap_or_else(|_| usage());
            }
            "--parts" => parts = v().parse().unwrap_or_else(|_| usage()),
            "--header" => headers.push_str(&format!("{}\r\n", v())),
            _ => usage(),
        }
    }
    let target = target.unwrap_or_else(|| usage());
    let prelude = connect.map(|c| format!("CONNECT {c} HTTP/1.1\r\nHost: {c}\r\n\r\n").into_bytes());
    let mut request = format!("{method} {uri} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bench-load\r\nAccept: */*\r\n{headers}");
    if close {
        request.push_str("Connection: close\r\n");
    }
    if body > 0 {
        request.push_str(&format!("Content-Type: application/octet-stream\r\nContent-Length: {body}\r\n"));
    }
    request.push_str("\r\n");
    let mut request = request.into_bytes();
    let zeros = format!(": v{:0DIGITS$}\r\n", 0);
    let digits = request.windows(zeros.len()).position(|w| w == zeros.as_bytes()).map_or(0, |at| at + 3);
    if parts == 0 || (values > 0 && digits == 0) {
        usage()
    }
    request.extend((0..body).map(|i| b'a' + (i % 26) as u8));
    Opts { target, conns, duration, warmup, rate, count, close, timeout, prelude, request, values, digits, parts }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum St {
    Closed,
    Connecting,
    Prelude,
    Idle,
    Busy,
}

#[derive(Clone, Copy)]
enum Body {
    Length(u64),
    Chunked { left: u64, phase: u8 },
    UntilClose,
}

struct Conn {
    sock: Option<std::net::TcpStream>,
    st: St,
    out: usize,
    /// The request with its own value; empty without `--values`.
    own: Vec<u8>,
    head: Vec<u8>,
    body: Option<Body>,
    status: u16,
    intended: Instant,
    started: Instant,
    keep: bool,
    want_write: bool,
    used: bool,
}

#[derive(Default)]
struct Stats {
    ok: u64,
    err: BTreeMap<&'static str, u64>,
    status: BTreeMap<u16, u64>,
    bytes: u64,
    conns_opened: u64,
    lat: Vec<u32>, // microseconds * 10, from the intended time
    svc: Vec<u32>, // microseconds * 10, from the actual send
    parts: Vec<Vec<u32>>, // `lat` by the part of the duration; empty where there is but one
}

fn find_head_end(b: &[u8]) -> Option<usize> {
    b.windows(4).position(|w| w == b"\r\n\r\n").map(|p| p + 4)
}

fn parse_head(h: &[u8], method_head: bool) -> (u16, Body, bool) {
    let s = String::from_utf8_lossy(h);
    let mut lines = s.split("\r\n");
    let first = lines.next().unwrap_or("");
    let status: u16 = first.get(9..12).and_then(|x| x.parse().ok()).unwrap_or(0);
    let mut keep = first.starts_with("HTTP/1.1");
    let mut body = Body::UntilClose;
    for l in lines {
        let Some((k, v)) = l.split_once(':') else { continue };
        let v = v.trim();
        if k.eq_ignore_ascii_case("content-length") {
            body = Body::Length(v.parse().unwrap_or(0));
        } else if k.eq_ignore_ascii_case("transfer-encoding") && v.to_ascii_lowercase().contains("chunked") {
            body = Body::Chunked { left: 0, phase: 0 };
        } else if k.eq_ignore_ascii_case("connection") || k.eq_ignore_ascii_case("proxy-connection") {
            let v = v.to_ascii_lowercase();
            if v.contains("close") {
                keep = false;
            } else if v.contains("keep-alive") {
                keep = true;
            }
        }
    }
    if status == 204 || status == 304 || method_head {
        body = Body::Length(0);
    }
    (status, body, keep)
}

/// Feeds body bytes; returns true when the body is complete.
fn feed(body: &mut Body, mut b: &[u8]) -> bool {
    match body {
        Body::Length(n) => {
            *n = n.saturating_sub(b.len() as u64);
            *n == 0
        }
        Body::UntilClose => false,
        // phases: 0 size digits, 1 skip to LF after size, 2 data, 3 CRLF after data, 4 trailer line start, 5 in trailer line
        Body::Chunked { left, phase } => {
            while !b.is_empty() {
                match *phase {
                    0 => {
                        let c = b[0];
                        b = &b[1..];
                        match (c as char).to_digit(16) {
                            Some(d) => *left = *left * 16 + d as u64,
                            None if c == b'\n' => *phase = if *left == 0 { 4 } else { 2 },
                            None => *phase = 1,
                        }
                    }
                    1 => {
                        let c = b[0];
                        b = &b[1..];
                        if c == b'\n' {
                            *phase = if *left == 0 { 4 } else { 2 };
                        }
                    }
                    2 => {
                        let n = (*left).min(b.len() as u64) as usize;
                        b = &b[n..];
                        *left -= n as u64;
                        if *left == 0 {
                            *phase = 3;
                        }
                    }
                    3 => {
                        let c = b[0];
                        b = &b[1..];
                        if c == b'\n' {
                            *phase = 0;
                        }
                    }
                    4 => {
                        let c = b[0];
                        b = &b[1..];
                        if c == b'\n' {
                            return true;
                        }
                        if c != b'\r' {
                            *phase = 5;
                        }
                    }
                    _ => {
                        let c = b[0];
                        b = &b[1..];
                        if c == b'\n' {
                            *phase = 4;
                        }
                    }
                }
            }
            false
        }
    }
}

fn open_socket(t: SocketAddr) -> io::Result<std::net::TcpStream> {
    let SocketAddr::V4(v4) = t else { return Err(io::Error::other("IPv4 only")) };
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let s = std::net::TcpStream::from_raw_fd(fd);
        s.set_nodelay(true)?;
        let sa = sockaddr(v4);
        let r = libc::connect(fd, &sa as *const _ as *const libc::sockaddr, std::mem::size_of_val(&sa) as u32);
        if r < 0 {
            let e = io::Error::last_os_error();
            if e.raw_os_error() != Some(libc::EINPROGRESS) {
                return Err(e);
            }
        }
        Ok(s)
    }
}

fn sockaddr(v4: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: v4.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
        sin_zero: [0; 8],
    }
}

struct Loop {
    o: Opts,
    ep: RawFd,
    conns: Vec<Conn>,
    idle: VecDeque<usize>,
    backlog: VecDeque<Instant>,
    buf: Vec<u8>,
    s: Stats,
    measure_from: Instant,
    stop_sending: Instant,
    part: Duration,
    sent: u64,
    in_flight: usize,
}

impl Loop {
    fn ctl(&self, op: i32, i: usize, write: bool) {
        let Some(sock) = &self.conns[i].sock else { return };
        let fd = sock.as_raw_fd();
        let mut ev = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLRDHUP | if write { libc::EPOLLOUT } else { 0 }) as u32,
            u64: i as u64,
        };
        unsafe { libc::epoll_ctl(self.ep, op, fd, &mut ev) };
    }

    fn err(&mut self, k: &'static str) {
        *self.s.err.entry(k).or_default() += 1;
    }

    /// Starts a request on connection i, opening it first when needed.
    fn start(&mut self, i: usize, intended: Instant) {
        let now = Instant::now();
        let value = self.o.values.checked_sub(1).map(|last| self.sent % (last + 1));
        self.sent += 1;
        self.in_flight += 1;
        let c = &mut self.conns[i];
        if let Some(mut value) = value {
            c.own.clone_from(&self.o.request);
            for digit in c.own[self.o.digits..][..DIGITS].iter_mut().rev() {
                *digit = b'0' + (value % 10) as u8;
                value /= 10;
            }
        }
        c.intended = intended;
        c.started = now;
        c.out = 0;
        c.head.clear();
        c.body = None;
        if c.sock.is_none() {
            match open_socket(self.o.target) {
                Ok(s) => {
                    let c = &mut self.conns[i];
                    c.sock = Some(s);
                    c.st = St::Connecting;
                    c.want_write = true;
                    c.used = false;
                    self.s.conns_opened += 1;
                    self.ctl(libc::EPOLL_CTL_ADD, i, true);
                }
                Err(_) => {
                    self.err("connect");
                    self.finish(i, false);
                }
            }
        } else {
            c.st = St::Busy;
            self.write(i);
        }
    }

    fn write(&mut self, i: usize) {
        loop {
            let c = &mut self.conns[i];
            let data: &[u8] = match c.st {
                St::Prelude => self.o.prelude.as_deref().unwrap_or(&[]),
                St::Busy if c.own.is_empty() => &self.o.request,
                St::Busy => &c.own,
                _ => return,
            };
            if c.out >= data.len() {
                if c.want_write {
                    c.want_write = false;
                    self.ctl(libc::EPOLL_CTL_MOD, i, false);
                }
                return;
            }
            match c.sock.as_mut().unwrap().write(&data[c.out..]) {
                Ok(n) => c.out += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !c.want_write {
                        c.want_write = true;
                        self.ctl(libc::EPOLL_CTL_MOD, i, true);
                    }
                    return;
                }
                Err(_) => {
                    // The peer may have answered before reading everything: let the read side decide.
                    c.out = data.len();
                    return self.read(i);
                }
            }
        }
    }

    fn close(&mut self, i: usize) {
        self.conns[i].sock = None; // closing removes it from epoll
        self.conns[i].st = St::Closed;
    }

    fn finish(&mut self, i: usize, ok: bool) {
        let now = Instant::now();
        self.in_flight -= 1;
        let c = &self.conns[i];
        if c.intended >= self.measure_from && c.intended < self.stop_sending {
            if ok {
                let us10 = |d: Duration| (d.as_nanos() / 100).min(u32::MAX as u128) as u32;
                self.s.ok += 1;
                *self.s.status.entry(c.status).or_default() += 1;
                self.s.lat.push(us10(now - c.intended));
                if !self.s.parts.is_empty() {
                    let part = (c.intended - self.measure_from).as_nanos() / self.part.as_nanos().max(1);
                    let part = (part as usize).min(self.s.parts.len() - 1);
                    self.s.parts[part].push(us10(now - c.intended));
                }
                self.s.svc.push(us10(now - c.started));
            }
        }
        if !ok || !c.keep || self.o.close {
            self.close(i);
        } else {
            self.conns[i].st = St::Idle;
            self.conns[i].used = true;
        }
        self.next(i, now);
    }

    fn may_send(&self, now: Instant) -> bool {
        now < self.stop_sending && (self.o.count == 0 || self.sent < self.o.count)
    }

    fn next(&mut self, i: usize, now: Instant) {
        if self.o.rate > 0.0 {
            if let Some(t) = self.backlog.pop_front() {
                self.start(i, t);
            } else {
                self.idle.push_back(i);
            }
        } else {
            // Closed loop; a closed connection is reopened from the event loop, not recursively.
            if self.conns[i].sock.is_some() && self.may_send(now) {
                self.start(i, now);
            } else {
                self.idle.push_back(i);
            }
        }
    }

    fn read(&mut self, i: usize) {
        loop {
            let c = &mut self.conns[i];
            let Some(sock) = c.sock.as_mut() else { return };
            let n = match sock.read(&mut self.buf) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    if matches!(c.st, St::Idle) {
                        return self.close(i);
                    }
                    if c.used && c.head.is_empty() && c.body.is_none() {
                        return self.resend(i);
                    }
                    self.err("read");
                    return self.finish(i, false);
                }
            };
            if n == 0 {
                match (c.st, c.body) {
                    (St::Idle, _) => return self.close(i),
                    (St::Busy, Some(Body::UntilClose)) => {
                        c.keep = false;
                        return self.finish(i, true);
                    }
                    (St::Busy, None) if c.used && c.head.is_empty() => return self.resend(i),
                    _ => {
                        self.err("eof");
                        return self.finish(i, false);
                    }
                }
            }
            self.s.bytes += n as u64;
            let mut data = 0..n;
            if c.body.is_none() {
                c.head.extend_from_slice(&self.buf[..n]);
                let Some(e) = find_head_end(&c.head) else { continue };
                let extra = c.head.len() - e;
                let (status, body, keep) = parse_head(&c.head[..e], false);
                if c.st == St::Prelude {
                    if status != 200 {
                        c.status = status;
                        c.keep = false;
                        return self.finish(i, true);
                    }
                    c.st = St::Busy;
                    c.out = 0;
                    c.head.clear();
                    self.write(i);
                    continue;
                }
                c.status = status;
                c.keep = keep;
                c.head.clear();
                if (100..200).contains(&status) {
                    let rest = self.buf[n - extra..n].to_vec();
                    c.head = rest;
                    continue;
                }
                c.body = Some(body);
                data = n - extra..n;
                if let Some(Body::Length(0)) = c.body {
                    return self.finish(i, true);
                }
            }
            let c = &mut self.conns[i];
            if !data.is_empty() && feed(c.body.as_mut().unwrap(), &self.buf[data]) {
                return self.finish(i, true);
            }
            if n < self.buf.len() {
                return; // level-triggered: the rest will wake us
            }
        }
    }

    /// A kept connection was closed under us before any response byte: open a new one, same intended time.
    fn resend(&mut self, i: usize) {
        self.err("stale");
        self.close(i);
        let t = self.conns[i].intended;
        self.in_flight -= 1;
        self.sent -= 1;
        self.start(i, t);
    }

    fn event(&mut self, i: usize, ev: u32) {
        if self.conns[i].st == St::Connecting {
            let c = &mut self.conns[i];
            match c.sock.as_ref().unwrap().take_error() {
                Ok(None) if ev & libc::EPOLLOUT as u32 != 0 => {
                    c.st = if self.o.prelude.is_some() { St::Prelude } else { St::Busy };
                    c.out = 0;
                    self.write(i);
                }
                Ok(None) => {}
                _ => {
                    self.err("connect");
                    return self.finish(i, false);
                }
            }
            return;
        }
        if ev & libc::EPOLLOUT as u32 != 0 {
            self.write(i);
        }
        if ev & (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0 {
            self.read(i);
        }
    }
}

fn pct(v: &[u32], p: f64) -> f64 {
    if v.is_empty() {
        return f64::NAN;
    }
    let k = ((v.len() as f64 * p).ceil() as usize).clamp(1, v.len()) - 1;
    v[k] as f64 / 10.0
}

fn lat_json(v: &mut [u32]) -> String {
    v.sort_unstable();
    if v.is_empty() {
        return "null".into();
    }
    let mean = v.iter().map(|&x| x as f64).sum::<f64>() / v.len() as f64 / 10.0;
    format!(
        "{{\"mean\":{:.1},\"p50\":{:.1},\"p90\":{:.1},\"p99\":{:.1},\"p999\":{:.1},\"max\":{:.1}}}",
        mean,
        pct(v, 0.5),
        pct(v, 0.9),
        pct(v, 0.99),
        pct(v, 0.999),
        pct(v, 1.0)
    )
}

fn main() {
    let o = parse_opts();
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    let ep = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    let now = Instant::now();
    let (n, duration, parts) = (o.conns, o.duration, o.parts);
    let t0 = now + Duration::from_millis(5);
    let measure_from = t0 + Duration::from_secs_f64(o.warmup);
    let stop_sending = measure_from + Duration::from_secs_f64(o.duration);
    let timeout = Duration::from_secs_f64(o.timeout);
    let conns = (0..n)
        .map(|_| Conn {
            sock: None,
            st: St::Closed,
            out: 0,
            own: Vec::new(),
            head: Vec::with_capacity(1024),
            body: None,
            status: 0,
            intended: now,
            started: now,
            keep: true,
            want_write: false,
            used: false,
        })
        .collect();
    let mut l = Loop {
        o,
        ep,
        conns,
        idle: (0..n).collect(),
        backlog: VecDeque::new(),
        buf: vec![0; 256 * 1024],
        s: Stats { parts: vec![Vec::new(); if parts > 1 { parts } else { 0 }], ..Stats::default() },
        measure_from,
        stop_sending,
        part: Duration::from_secs_f64(duration / parts as f64),
        sent: 0,
        in_flight: 0,
    };
    let mut scheduled: u64 = 0;
    let step = if l.o.rate > 0.0 { 1.0 / l.o.rate } else { 0.0 };
    let due = |k: u64| t0 + Duration::from_secs_f64(k as f64 * step);
    let mut evs: Vec<libc::epoll_event> = vec![libc::epoll_event { events: 0, u64: 0 }; 1024];
    let mut last_scan = now;
    let mut marked: Option<(Instant, u64)> = None;
    let mut bytes_start = 0;
    let mut end = stop_sending;
    loop {
        let now = Instant::now();
        if marked.is_none() && now >= measure_from {
            marked = Some((now, l.sent));
            bytes_start = l.s.bytes;
        }
        if l.o.rate > 0.0 {
            while due(scheduled) <= now && due(scheduled) < stop_sending && (l.o.count == 0 || scheduled < l.o.count) {
                let t = due(scheduled);
                scheduled += 1;
                match l.idle.pop_front() {
                    Some(i) => l.start(i, t),
                    None => l.backlog.push_back(t),
                }
            }
        } else {
            let mut k = l.idle.len();
            while k > 0 && l.may_send(now) {
                k -= 1;
                let i = l.idle.pop_front().unwrap();
                l.start(i, Instant::now());
            }
        }
        let drained = l.in_flight == 0 && l.backlog.is_empty();
        let all_sent = l.o.count > 0 && if l.o.rate > 0.0 { scheduled >= l.o.count } else { l.sent >= l.o.count };
        if drained && (now >= stop_sending || all_sent) {
            end = now.min(stop_sending);
            break;
        }
        if now >= stop_sending + timeout {
            let k = l.in_flight as u64 + l.backlog.len() as u64;
            *l.s.err.entry("unfinished").or_default() += k;
            break;
        }
        if now - last_scan > Duration::from_millis(100) {
            last_scan = now;
            for i in 0..n {
                let c = &l.conns[i];
                if matches!(c.st, St::Busy | St::Connecting | St::Prelude) && now - c.started > timeout {
                    l.err("timeout");
                    l.finish(i, false);
                }
            }
        }
        let mut wait = Duration::from_millis(50);
        if l.o.rate > 0.0 && due(scheduled) < stop_sending {
            wait = wait.min(due(scheduled).saturating_duration_since(Instant::now()));
        } else if l.o.rate == 0.0 && !l.idle.is_empty() && l.may_send(now) {
            wait = Duration::from_millis(0);
        }
        let ts = libc::timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as i64 };
        let r = unsafe {
            libc::syscall(libc::SYS_epoll_pwait2, ep, evs.as_mut_ptr(), evs.len() as i32, &ts as *const _, std::ptr::null::<u8>(), 0usize)
        };
        for ev in evs.iter().take(r.max(0) as usize) {
            let (i, e) = (ev.u64 as usize, ev.events);
            if l.conns[i].sock.is_some() {
                l.event(i, e);
            }
        }
    }
    let from = marked.map(|m| m.0).unwrap_or(t0);
    let dur = (end - from).as_secs_f64().max(1e-9);
    let map = |m: Vec<(String, u64)>| m.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect::<Vec<_>>().join(",");
    let errs = map(l.s.err.iter().map(|(k, v)| (k.to_string(), *v)).collect());
    let sts = map(l.s.status.iter().map(|(k, v)| (k.to_string(), *v)).collect());
    let (lat, svc) = (lat_json(&mut l.s.lat), lat_json(&mut l.s.svc));
    let parts = l.s.parts.iter_mut().map(|part| lat_json(part)).collect::<Vec<_>>().join(",");
    println!(
        "{{\"requests\":{},\"total_sent\":{},\"duration\":{:.4},\"rps\":{:.1},\"bytes\":{},\"mbps\":{:.1},\"connections\":{},\"status\":{{{}}},\"errors\":{{{}}},\"latency_us\":{},\"service_us\":{},\"parts_us\":[{}]}}",
        l.s.ok,
        l.sent,
        dur,
        l.s.ok as f64 / dur,
        l.s.bytes,
        (l.s.bytes - bytes_start) as f64 / 1e6 / dur,
        l.s.conns_opened,
        sts,
        errs,
        lat,
        svc,
        parts
    );
}

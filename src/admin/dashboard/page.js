// What is known, and the page that shows it.

const KINDS = ["requests", "failed", "hung_up", "attempts", "attempts_failed", "retries", "p95_ms", "standing"];

const known = {
  upstreams: new Map(), order: [], history: new Map(), taken: 0, kept: 180, seconds: 5,
  failures: [], reloads: [], config: null, draining: false, version: "", at: 0,
};
const cards = new Map();
let heardAt = 0;
let drawing = false;
let dirty = { failures: true, reloads: true };

// Events.

function heard(event, data) {
  heardAt = Date.now();
  if (event === "state") {
    known.upstreams.clear();
    known.history.clear();
    known.failures = [];
    at("failures-rows").replaceChildren();
    dirty.failures = true;
    known.taken = 0;
    known.version = data.version;
  }
  known.at = data.now_ms;
  known.draining = data.draining;
  if (data.order) known.order = data.order;
  for (const upstream of data.upstreams) known.upstreams.set(upstream.name, upstream);
  if (data.history) addHistory(data.history, event === "state");
  if (data.failures) addFailures(data.failures, data.failures_kept);
  if (data.reloads) {
    known.reloads = data.reloads;
    known.config = data.config;
    dirty.reloads = true;
  }
  connected(true);
  later();
}

function addHistory(history, whole) {
  if (!whole && history.taken <= known.taken) return;
  known.taken = history.taken;
  known.kept = history.kept;
  known.seconds = history.interval_ms / 1000;
  for (const name of known.history.keys()) if (!Object.hasOwn(history.upstreams, name)) known.history.delete(name);
  for (const [name, samples] of Object.entries(history.upstreams)) {
    const before = whole ? null : known.history.get(name);
    const after = { number: history.taken };
    for (const kind of KINDS) after[kind] = before ? [...before[kind], ...samples[kind]].slice(-known.kept) : samples[kind];
    known.history.set(name, after);
  }
}

function addFailures(failures, kept) {
  const newest = known.failures.length > 0 ? known.failures[0].number : 0;
  const fresh = failures.filter((failure) => failure.number > newest);
  if (fresh.length === 0) return;
  const still = kept && new Set(kept);
  known.failures = [...fresh, ...known.failures].filter((failure) => !still || still.has(failure.number) || failure.number > kept[kept.length - 1]);
  dirty.failures = true;
}

/** Shows what is known before the next frame, once however many events came. */
function later() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    render();
  });
}

// The page.

function render() {
  show(at("main"), true);
  show(at("sign-in"), false);
  show(at("reload"), true);
  show(at("forget"), token !== "");
  // A link can't send a token.
  show(at("links"), token === "");
  show(at("draining"), known.draining);
  put(at("version"), `Outrigger ${known.version}`);
  renderUpstreams();
  renderSummary();
  renderProblems();
  if (dirty.failures) renderFailures();
  if (dirty.reloads) renderReloads();
  dirty = { failures: false, reloads: false };
}

function renderUpstreams() {
  const shown = [];
  const wanted = at("filter").value.trim().toLowerCase();
  known.order.forEach((name, index) => {
    const upstream = known.upstreams.get(name);
    if (!upstream) return;
    let card = cards.get(name);
    if (!card) cards.set(name, (card = new Card(name)));
    card.update(upstream, known.history.get(name), known.at, known.seconds);
    card.index = index;
    // Hosts that no upstream names are worth a card only where there are any.
    const unnamed = upstream.hosts === null && card.element.dataset.quiet;
    const fits = `${name} ${where(upstream)}`.toLowerCase().includes(wanted);
    if (fits && !unnamed) shown.push(card);
  });
  for (const name of cards.keys()) if (!known.order.includes(name)) cards.delete(name);
  shown.sort((a, b) => a.urgency - b.urgency || a.index - b.index);
  arrange(at("upstreams"), shown);
  const named = known.order.length - 1;
  show(at("filter-label"), named > 8);
  show(at("upstreams-none"), shown.length === 0);
  put(at("upstreams-none"), named > 0 ? "No upstream fits the filter." : "The configuration names no upstream yet, and nothing has been asked for.");
}

function renderSummary() {
  const all = [...known.upstreams.values()].filter((upstream) => known.order.includes(upstream.name));
  const sum = (of) => all.reduce((total, upstream) => total + of(upstream), 0);
  const troubled = all.filter((upstream) => cards.has(upstream.name) && cards.get(upstream.name).urgency <= TROUBLE && upstream.hosts !== null);
  const named = all.filter((upstream) => upstream.hosts !== null).length;
  const app = share(sum((one) => one.recent.app.failed), sum((one) => one.recent.app.count - one.recent.hung_up));
  const upstream = share(sum((one) => one.recent.upstream.failed), sum((one) => one.recent.upstream.count));
  const worst = troubled.some((one) => cards.get(one.name).urgency === CUT_OFF) ? "bad" : troubled.length > 0 ? "warn" : named > 0 ? "good" : "";
  const tone = (value) => (value === null || value >= 0.99 ? "" : value >= 0.9 ? "warn" : "bad");
  const tiles = [
    ["In trouble", troubled.length > 0 ? String(troubled.length) : "None", `of ${named}`, worst],
    ["Requests", rate(sum((one) => one.recent.requests_per_second)), "/s", ""],
    ["Success, for apps", percent(app), "", tone(app)],
    ["Success, of upstreams", percent(upstream), "", tone(upstream)],
    ["Retries", rate(sum((one) => one.recent.retries_per_second)), "/s", ""],
    ["In flight", String(sum((one) => one.in_flight)), "", ""],
  ];
  const text = JSON.stringify(tiles);
  const element = at("summary");
  if (element.dataset.shown !== text) {
    element.dataset.shown = text;
    element.replaceChildren(...tiles.map(([name, value, unit, tone]) =>
      make("div", { "data-tone": tone }, make("dt", {}, name), make("dd", {}, value, unit ? make("small", {}, ` ${unit}`) : ""))));
  }
  const bad = known.config && !known.config.in_effect;
  const title = bad ? "Configuration refused" : troubled.length > 0 ? `${troubled.length} in trouble` : "";
  const whole = title ? `${title} – Outrigger` : "Outrigger";
  if (document.title !== whole) document.title = whole;
  drawIcon(bad || worst === "bad" ? "%23d5303e" : worst === "warn" ? "%23d99a16" : "%231f9254");
}

function drawIcon(colour) {
  const icon = `data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'><circle cx='8' cy='8' r='7' fill='${colour}'/></svg>`;
  mark(at("icon"), "href", icon);
}

function renderProblems() {
  const config = known.config;
  const bad = Boolean(config && !config.in_effect);
  const element = at("problems");
  const text = bad ? JSON.stringify(config) : "";
  if (element.dataset.shown === text) return;
  element.dataset.shown = text;
  if (bad) {
    put(at("problems-title"), `The configuration file was refused: ${count(config.problem_count, "problem", "problems")}`);
    const more = config.problem_count - config.problems.length;
    at("problems-list").replaceChildren(...config.problems.map(problemLine),
      ...(more > 0 ? [make("li", {}, `And ${count(more, "problem", "problems")} more: outrigger check prints all of them.`)] : []));
  }
  show(element, bad);
}

function problemLine(problem) {
  const place = problem.file ? `${problem.file}:${problem.line}:${problem.column}` : "";
  const setting = problem.setting ? `${problem.setting}: ` : "";
  return make("li", {},
    place ? make("code", { class: "place" }, place) : "",
    make("span", { class: "message" }, setting + problem.message),
    problem.help ? make("span", { class: "help-text" }, problem.help) : "");
}

function renderFailures() {
  const rows = at("failures-rows");
  const held = new Map([...rows.children].map((row) => [Number(row.dataset.number), row]));
  rows.replaceChildren(...known.failures.map((failure) => held.get(failure.number) || failureRow(failure)));
  show(at("failures"), known.failures.length > 0);
  show(at("failures-none"), known.failures.length === 0);
}

function failureRow(failure) {
  const cell = (name, ...children) => make("td", { role: "cell", class: name }, ...children);
  const target = failure.host + (failure.path ?? "");
  const request = [failure.method, target].filter(Boolean).join(" ") || "A head that could not be read";
  const reason = failure.error || "upstream answered";
  const attempts = [String(failure.attempts), failure.no_retry ? make("small", {}, ` not again: ${failure.no_retry}`) : ""];
  const route = failure.route ? make("small", {}, ` ${failure.route}`) : "";
  const status = cell("status", failure.status === 499 ? "499 hung up" : String(failure.status));
  mark(status, "data-tone", failure.status < 500 ? "warn" : "");
  const row = make("tr", { role: "row", "data-number": failure.number },
    cell("nowrap", moment(failure.at_ms)),
    cell("upstream", failure.upstream, route),
    cell("request", request),
    status,
    cell("reason", make("b", {}, reason), failure.detail ? make("span", {}, failure.detail) : ""),
    cell("attempts", ...attempts),
    cell("nowrap", took(failure.total_ms)),
    cell("trace", make("code", { title: failure.trace_id }, failure.trace_id)));
  return row;
}

const CAUSES = { start: "Outrigger started", file: "The file changed", signal: "SIGHUP", request: "Asked for" };

function renderReloads() {
  at("reloads").replaceChildren(...known.reloads.map((reload) => {
    const ok = reload.result === "success";
    const cause = CAUSES[reload.cause] || reload.cause;
    const how = reload.cause === "start" ? "" : !ok ? `: refused, ${count(reload.count, "problem", "problems")}`
      : reload.count === 0 ? ": nothing changed" : `: ${count(reload.count, "setting", "settings")} changed`;
    const more = reload.count - reload.lines.length;
    const lines = reload.lines.map((line) => make("li", {}, make("code", {}, line)));
    if (more > 0) lines.push(make("li", {}, `and ${more} more`));
    return make("li", {}, moment(reload.at * 1000),
      make("strong", { "data-tone": ok ? "" : "bad" }, cause + how), lines.length > 0 ? make("ul", {}, ...lines) : "");
  }));
}

// The connection.

let live = null;

function connected(now) {
  if (live === now) return;
  if (live === false && now) announce("Connected again.");
  live = now;
  const pill = at("connection");
  mark(pill, "data-tone", now ? "good" : "warn");
  mark(pill, "data-shape", now ? "full" : "cross");
  put(at("connection-word"), now ? "Live" : "Connection lost");
  show(at("lost"), !now);
  document.body.classList.toggle("stale", !now);
  if (!now) tellAge();
}

let lostBecause = "";

function tellAge() {
  const what = heardAt === 0 ? "No connection yet" : `Connection lost, showing the state of ${lasts(Date.now() - heardAt)} ago`;
  put(at("lost-text"), `${what}${lostBecause ? ` (${lostBecause})` : ""}. Trying again…`);
}

const stream = new Stream({
  heard,
  lost(reason) {
    lostBecause = reason;
    const before = live;
    connected(false);
    if (before !== false) announce("Connection lost.");
    tellAge();
  },
  refused() {
    const wrong = token !== "";
    keepToken("");
    forgetAll();
    show(at("sign-in-wrong"), wrong);
    show(at("sign-in"), true);
    put(at("connection-word"), "Not signed in");
    at("token").value = "";
    at("token").focus();
  },
});

/** Nothing of what was shown may stay behind. */
function forgetAll() {
  live = null;
  heardAt = 0;
  Object.assign(known, { upstreams: new Map(), order: [], history: new Map(), failures: [], reloads: [], config: null });
  cards.clear();
  dirty = { failures: true, reloads: true };
  for (const id of ["upstreams", "failures-rows", "reloads", "summary", "problems-list"]) at(id).replaceChildren();
  for (const id of ["main", "reload", "forget", "links", "problems", "lost", "draining"]) show(at(id), false);
  for (const id of ["summary", "problems"]) delete at(id).dataset.shown;
  mark(at("connection"), "data-tone", "");
  document.title = "Outrigger";
}

setInterval(() => { if (live === false) tellAge(); }, 1000);
at("again").addEventListener("click", () => stream.start());
at("sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(at("token").value.trim());
  stream.start();
});
at("forget").addEventListener("click", () => {
  stream.stop();
  keepToken("");
  forgetAll();
  stream.start();
});
at("filter").addEventListener("input", later);

// Orders. Each asks once.

let agreed = null;

function ask(title, text, yes, tone, act) {
  put(at("ask-title"), title);
  put(at("ask-text"), text);
  put(at("ask-yes"), yes);
  mark(at("ask-yes"), "data-tone", tone);
  agreed = act;
  at("ask").showModal();
}

at("ask-no").addEventListener("click", () => at("ask").close());
at("ask-yes").addEventListener("click", async () => {
  const act = agreed;
  at("ask").close();
  try {
    await act?.();
  } catch {
    outcome("That could not be asked for: the connection is lost.");
  }
});
at("ask").addEventListener("close", () => { agreed = null; });

const ORDERS = {
  auto: { title: (name) => `Leave ${name}’s circuit to the breaker?`, text: "Failures cut it off, and probes let traffic flow again.", yes: "Auto", tone: "", done: "left to the breaker" },
  open: { title: (name) => `Hold ${name}’s circuit open?`, text: "Every request to it, on all its routes, is refused with 503 until you choose another order. A reload does not end this.", yes: "Hold open", tone: "bad", done: "held open" },
  closed: { title: (name) => `Hold ${name}’s circuit closed?`, text: "Every request is let through, however many fail, on all its routes, until you choose another order. A reload does not end this.", yes: "Hold closed", tone: "bad", done: "held closed" },
};

function askForCircuit(name, state) {
  const { title, text, yes, tone, done } = ORDERS[state];
  ask(title(name), text, yes, tone, async () => {
    const { ok, status, value } = await order(`/api/upstreams/${encodeURIComponent(name)}/circuit`, { state });
    if (status === 401) return stream.start();
    if (!ok) return outcome(`${name}: ${value.detail || `refused with ${status}`}`);
    known.upstreams.set(name, value);
    later();
    outcome(`${name}: circuit ${done}.`);
  });
}

at("reload").addEventListener("click", () => {
  ask("Reload the configuration?", "The file is read now. If it is valid it takes effect at once; if not, nothing changes.", "Reload", "", async () => {
    const { ok, status, value } = await order("/reload");
    if (status === 401) return stream.start();
    if (ok) outcome(value.changed.length === 0 ? "Reloaded: nothing changed." : `Reloaded: ${count(value.changed.length, "setting", "settings")} changed.`);
    else if (value.problems) outcome(`Refused: ${count(value.problems.length, "problem", "problems")}, the configuration in effect stays.`);
    else outcome(value.detail || `The reload was refused with ${status}.`);
  });
});

stream.start();

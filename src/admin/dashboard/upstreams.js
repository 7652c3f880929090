// A card for each upstream, those in trouble first.

/** How a lane's circuit stands, in words: tone, shape, word, and a sentence where there is more to say. */
function standing(lane) {
  const circuit = lane.circuit;
  if (circuit && circuit.manual === "open") {
    return { tone: "bad", shape: "square", word: "Held open", why: "Held open by an operator: every request is refused." };
  }
  if (circuit && circuit.state === "open") {
    const next = circuit.next_probe_ms === null ? "" : ` Next probe in ${lasts(circuit.next_probe_ms)}.`;
    return { tone: "bad", shape: "cross", word: "Open", why: `Cut off after failures.${next}` };
  }
  if (circuit && circuit.state === "half_open") {
    return { tone: "warn", shape: "half", word: "Half-open", why: "Being probed: the next answers decide." };
  }
  if (lane.paused_ms !== null) {
    return { tone: "warn", shape: "pause", word: "Paused", why: `The upstream asked for a pause: ${lasts(lane.paused_ms)} left.` };
  }
  if (circuit && circuit.manual === "closed") {
    return { tone: "warn", shape: "square", word: "Held closed", why: "Held closed by an operator: failures do not cut it off." };
  }
  if (!circuit) return { tone: "", shape: "", word: "No breaker", why: "" };
  const row = circuit.consecutive_failures;
  return { tone: "good", shape: "full", word: "Closed", why: row > 1 ? `${row} failures in a row.` : "" };
}

/** What an upstream is in, in order of urgency: cut off, in trouble, busy, at rest. */
const CUT_OFF = 0, TROUBLE = 1, BUSY = 2, AT_REST = 3;

function judge(upstream, quiet) {
  const lanes = upstream.lanes.map((lane) => ({ lane, ...standing(lane) }));
  const own = lanes[0];
  const others = lanes.slice(1).filter(({ lane }) => (lane.circuit && lane.circuit.own) || (lane.paused_ms !== null && own.lane.paused_ms === null))
    // What holds for both alike, as an operator's order does, is said once.
    .map((one) => (one.why === own.why ? { ...one, why: "" } : one));
  const success = upstream.recent.app.success;
  const failing = success !== null && success < 0.99;
  const bad = others.find((one) => one.tone === "bad") || others.find((one) => one.tone === "warn");
  let { tone, why } = own;
  if (tone !== "bad" && tone !== "warn" && bad) {
    tone = bad.tone === "bad" ? "bad" : "warn";
    why = "";
  } else if (tone !== "bad" && failing) {
    tone = "warn";
    const { failed, count } = upstream.recent.app;
    why = [why, `${failed.toLocaleString("en")} of ${count.toLocaleString("en")} requests failed in the last minute.`].filter(Boolean).join(" ");
  }
  const urgency = tone === "bad" ? CUT_OFF : tone === "warn" || upstream.queued > 0 ? TROUBLE : quiet ? AT_REST : BUSY;
  return { own, others, tone, why, urgency };
}

function success(cell, share) {
  put(cell, percent(share));
  mark(cell, "data-tone", share === null || share >= 0.99 ? "" : share >= 0.9 ? "warn" : "bad");
}

function fact(list, name, value, tone) {
  list.push({ name, value, tone });
}

function facts(upstream) {
  const own = upstream.lanes[0];
  const { active, idle, connecting, max } = upstream.connections;
  const list = [];
  fact(list, "Retries", `${rate(upstream.recent.retries_per_second)}/s`);
  if (own.retry_budget_remaining !== null) {
    fact(list, "Budget left", String(own.retry_budget_remaining), own.retry_budget_remaining === 0 ? "warn" : "");
  }
  const slots = own.slots === null ? "" : ` of ${own.slots}`;
  fact(list, "In flight", slots ? `${upstream.in_flight} (slots ${own.slots_taken}${slots})` : String(upstream.in_flight));
  fact(list, "Queued", String(upstream.queued), upstream.queued > 0 ? "warn" : "");
  if (own.burst !== null) {
    const tokens = own.tokens === null ? "a bucket for each key" : `${own.tokens} of ${own.burst}`;
    fact(list, "Tokens", tokens, own.tokens === 0 ? "warn" : "");
  }
  const opening = connecting > 0 ? `, ${connecting} opening` : "";
  fact(list, "Connections", `${active} active, ${idle} idle${opening}`, active >= max ? "warn" : "");
  if (upstream.tunnels > 0) fact(list, "Tunnels", String(upstream.tunnels));
  if (upstream.recent.hung_up > 0) fact(list, "Hung up", String(upstream.recent.hung_up));
  return list;
}

function putFacts(element, list) {
  const text = JSON.stringify(list);
  if (element.dataset.shown === text) return;
  element.dataset.shown = text;
  element.replaceChildren(...list.map(({ name, value, tone }) =>
    make("div", { "data-tone": tone }, make("dt", {}, name), make("dd", {}, value))));
}

function putRoutes(element, others) {
  show(element, others.length > 0);
  const text = JSON.stringify(others.map(({ lane, word, why }) => [lane.route, word, why]));
  if (element.dataset.shown === text) return;
  element.dataset.shown = text;
  element.replaceChildren(...others.map(({ lane, tone, shape, word, why }) =>
    make("li", {},
      make("b", {}, `Route ${lane.route}`),
      make("span", { class: "pill", "data-tone": tone, "data-shape": shape }, make("span", { class: "mark", "aria-hidden": "true" }), word),
      why ? make("span", { class: "long" }, why) : "")));
}

function where(upstream) {
  if (upstream.hosts === null) return "Hosts that no upstream names";
  const to = upstream.to.length > 0 ? ` → ${upstream.to.join(", ")}` : "";
  return upstream.hosts.join(", ") + to;
}

/** One card, and what is known of its upstream. */
class Card {
  constructor(name) {
    this.name = name;
    this.element = at("card").content.firstElementChild.cloneNode(true);
    this.parts = Object.fromEntries([...this.element.querySelectorAll("[data-is]")].map((one) => [one.dataset.is, one]));
    put(this.parts.name, name);
    const id = `upstream-${name}`;
    this.parts.name.id = id;
    this.element.dataset.upstream = name;
    this.parts.orders.setAttribute("aria-label", `Circuit of ${name}`);
    this.parts.routes.setAttribute("aria-label", `Routes of ${name} with a circuit of their own`);
    for (const button of this.parts.orders.querySelectorAll("button")) {
      button.addEventListener("click", () => askForCircuit(name, button.dataset.order));
    }
    this.urgency = AT_REST;
    this.calmSince = null;
    this.word = null;
  }

  /** Shows the upstream's state. Says aloud when its circuit changed. */
  update(upstream, history, now, seconds) {
    const { parts, element } = this;
    const quiet = !history && upstream.recent.app.count === 0 && upstream.in_flight === 0 && upstream.tunnels === 0;
    const judged = judge(upstream, quiet);
    const { own, others, tone, why } = judged;
    put(parts["state-word"], own.word);
    mark(parts.state, "data-tone", own.tone);
    mark(parts.state, "data-shape", own.shape);
    put(parts.where, where(upstream));
    mark(parts.where, "title", where(upstream));
    put(parts.why, why);
    show(parts.why, why !== "");
    mark(element, "data-tone", quiet && tone === "good" ? "" : tone);
    mark(element, "data-quiet", quiet ? "yes" : "");
    putRoutes(parts.routes, others);
    show(parts.busy, !quiet);
    show(parts.facts, !quiet);
    show(parts.quiet, quiet);
    if (!quiet) {
      const { app, upstream: up } = upstream.recent;
      put(parts.rate, rate(upstream.recent.requests_per_second));
      success(parts["app-success"], app.success);
      success(parts["up-success"], up.success);
      for (const which of ["p50", "p95", "p99"]) {
        put(parts[`app-${which}`], within(app[`${which}_ms`]));
        put(parts[`up-${which}`], within(up[`${which}_ms`]));
      }
      putFacts(parts.facts, facts(upstream));
    }
    const circuits = upstream.hosts !== null && upstream.lanes.some((lane) => lane.circuit);
    show(parts.orders, circuits);
    const manual = upstream.lanes.find((lane) => lane.circuit)?.circuit.manual;
    for (const button of parts.orders.querySelectorAll("button")) {
      mark(button, "aria-pressed", String(button.dataset.order === manual));
    }
    if (this.word !== null && this.word !== own.word) announce(`${this.name}: circuit ${own.word}. ${own.why}`);
    this.word = own.word;
    this.settle(judged.urgency, now);
    if (!history) this.drawn = undefined;
    else if (this.drawn !== history.number) {
      this.drawn = history.number;
      drawTraffic(parts.traffic, history, seconds);
      const low = drawSuccess(parts.success, history);
      put(parts["success-low"], `lowest ${percent(low)}`);
      put(parts["p95-high"], `highest ${within(drawSlow(parts.slow, history) || null)}`);
    }
  }

  /** Trouble goes up at once, and down only when it has been calm for a while: cards don't jump about. */
  settle(urgency, now) {
    if (urgency <= this.urgency) {
      this.urgency = urgency;
      this.calmSince = null;
    } else if (this.calmSince === null) {
      this.calmSince = now;
    } else if (now - this.calmSince >= 10000) {
      this.urgency = urgency;
      this.calmSince = null;
    }
  }
}

/** Brings the cards into this order, moving as few as possible, and the focus stays where it is. */
function arrange(list, cards) {
  const focused = document.activeElement;
  let next = list.firstElementChild;
  for (const card of cards) {
    if (card.element === next) next = next.nextElementSibling;
    else list.insertBefore(card.element, next);
  }
  while (next) {
    const gone = next;
    next = next.nextElementSibling;
    gone.remove();
  }
  if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

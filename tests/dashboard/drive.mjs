// What the dashboard shows while upstreams die, recover and are throttled, and what can be done there. No step sleeps: each
// waits for what it expects.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { AXE, Browser, OUT, Proxy, Shop, Upstream, eventually } from "./rig.mjs";

const browser = await Browser.start();
const shop = await Shop.start();
let page = await browser.open(shop.proxy.url);

const card = (name) => page.locator(`[data-upstream="${name}"]`);
/** What a person would read there. Cards out of sight are not laid out, so they are brought into it. */
async function text(locator) {
  if ((await locator.innerText()) === "") await locator.scrollIntoViewIfNeeded();
  return (await locator.innerText()).replace(/\s+/g, " ");
}
const shows = (locator, wanted) =>
  eventually(`${locator} shows ${wanted}`, async () => {
    if ((await locator.count()) === 0 || !(await locator.first().isVisible())) return false;
    return wanted instanceof RegExp ? wanted.test(await text(locator.first())) : (await text(locator.first())).includes(wanted);
  });
const names = () => page.locator("#upstreams > li").evaluateAll((all) => all.map((one) => one.dataset.upstream));
const failures = () => page.locator("#failures-rows tr");
const button = (where, name) => where.getByRole("button", { name, exact: true });

/** Calls until it looks as wanted. */
async function callUntil(host, target, wanted) {
  await eventually(`${host}${target} answers ${wanted}`, async () => (await shop.proxy.call(host, target)) === wanted);
}

/** Calls until a part of the page shows what is wanted. */
async function callUntilShown(host, target, locator, wanted) {
  await eventually(`${locator} shows ${wanted}`, async () => {
    await shop.proxy.call(host, target);
    return wanted.test(await text(locator));
  });
}

async function picture(name) {
  await page.screenshot({ path: path.join(OUT, `${name}.png`) });
}

/** Whatever an accessibility checker finds. */
async function accessible(what) {
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    // By the protocol, past the page's policy, which lets no script in from outside.
    const found = await page.evaluate(`(async () => { ${AXE}; const result = await axe.run(document, { resultTypes: ["violations"] });
      return result.violations.map((one) => one.id + ": " + one.nodes.map((node) => node.html + " " + node.failureSummary).join("; ")); })()`);
    assert.deepEqual(found, [], `${what}, ${colorScheme}`);
  }
  await page.emulateMedia({ colorScheme: null });
}

async function fits(width) {
  await page.setViewportSize({ width, height: 740 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  const cut = await page.evaluate(() => [...document.querySelectorAll(".card *, .summary *, .failures *")]
    .filter((one) => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest(".unseen")).map((one) => one.outerHTML.slice(0, 80)));
  await page.setViewportSize({ width: 1280, height: 800 });
  assert.ok(wide <= width, `${wide} wide at ${width}`);
  assert.deepEqual(cut, []);
}

const steps = {
  async "nothing has happened yet, and that reads well"() {
    await shows(page.locator("#connection"), "Live");
    await shows(page.locator("#failures-none"), "No request has failed");
    await shows(card("payments"), "No traffic in the last 15 minutes");
    await shows(page.locator("#reloads"), "Outrigger started");
    await shows(page.locator("#summary"), "None of 5");
    assert.equal(await card("unmatched").count(), 0);
    assert.equal(await page.title(), "Outrigger");
    await accessible("at rest");
  },

  async "traffic that goes well shows as such"() {
    for (let at = 0; at < 30; at++) assert.equal(await shop.proxy.call("payments.test", "/v1/charges"), 200);
    await shows(card("payments").locator("tr.app"), /100 % .* ms/);
    await shows(card("payments").locator("tr.up"), "100 %");
    await shows(card("payments").locator(".rate"), /[1-9].* requests\/s/);
    await shows(card("payments").locator(".pill").first(), "Closed");
  },

  async "retries hide failures from the app, and both sides show"() {
    shop.payments.does = (request, response, number) => (number % 3 === 0 ? Upstream.answering(503) : Upstream.well)(request, response);
    for (let at = 0; at < 12; at++) await shop.proxy.call("payments.test", "/v1/balance");
    await shows(card("payments").locator("tr.up .big"), /^[0-9.]+ %$/);
    await eventually("the upstream's success is below the app's", async () => {
      const [app, up] = await Promise.all(["app", "up"].map(async (side) => parseFloat(await card("payments").locator(`tr.${side} .big`).innerText())));
      return up < 95 && app > up;
    });
    await shows(card("payments").locator(".facts"), /Retries (0\.[1-9]|[1-9])/);
  },

  async "a circuit opens, and the upstream comes first, with the time to its next probe"() {
    shop.payments.does = Upstream.answering(503);
    const trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    await shop.proxy.call("payments.test", "/v1/charges?card=4242424242424242", { method: "POST", headers: { traceparent: `00-${trace}-00f067aa0ba902b7-01` } });
    await callUntilShown("payments.test", "/v1/charges", card("payments").locator(".pill").first(), /^Open$/);
    await callUntilShown("payments.test", "/v1/charges", card("payments").locator(".why"), /Cut off after failures\. Next probe in [0-9]+ s/);
    assert.equal((await names())[0], "payments");
    await eventually("the title tells", async () => (await page.title()).startsWith("1 in trouble"));
    const row = failures().filter({ hasText: trace });
    await shows(row, "503");
    await shows(row, "POST payments.test/v1/charges?card=***");
    await shows(row, "not again: not_idempotent");
    await shop.proxy.call("payments.test", "/v1/charges");
    await shows(failures().filter({ hasText: "circuit_open" }), "the circuit is open");
    await picture("trouble");
    await accessible("in trouble");
    await fits(360);
  },

  async "the upstream recovers, and the circuit closes"() {
    shop.payments.does = Upstream.well;
    await callUntil("payments.test", "/v1/charges", 200);
    await shows(card("payments").locator(".pill").first(), "Closed");
  },

  async "a route with a circuit of its own is shown with its upstream"() {
    shop.payments.does = Upstream.answering(500);
    for (let at = 0; at < 2; at++) await shop.proxy.call("payments.test", "/v1/refunds", { method: "POST" });
    shop.payments.does = Upstream.well;
    await shows(card("payments").locator(".routes"), /Route refunds Open Cut off after failures/);
    await shows(card("payments").locator(".pill").first(), "Closed");
    assert.equal(await shop.proxy.call("payments.test", "/v1/charges"), 200);
  },

  async "a Retry-After pauses the upstream, and the pause is shown"() {
    shop.search.does = Upstream.answering(429, { "retry-after": "15" });
    shop.proxy.call("search.test", "/find", { timeout: 1000 });
    await shows(card("search").locator(".pill").first(), "Paused");
    await shows(card("search").locator(".why"), /asked for a pause: [0-9]+ s left/);
    await shows(card("search").locator(".facts"), "Tokens");
    shop.search.does = Upstream.well;
  },

  async "what apps ask for is shown as text"() {
    shop.mail.does = Upstream.answering(500);
    const target = `/"onerror=hacked()/'x'&lt;b&gt;/{{1}}/$\{hacked()}`;
    assert.equal(await shop.proxy.call("mail.test", target, { method: "POST" }), 500);
    await shows(failures().filter({ hasText: "onerror" }), target);
    // A head that is refused is shown without what it said.
    assert.equal(await shop.proxy.call("mail.test", "/<script>hacked()</script>"), 400);
    await shows(failures().filter({ hasText: "bad_request" }), "A head that could not be read");
    shop.mail.does = Upstream.well;
    await callUntil("mail.test", "/", 200);
  },

  async "whatever a text holds, it is no markup"() {
    const evil = `<img src=x onerror="hacked()"><script>hacked()</script>`;
    const known = /^(closed|open|half_open|auto|success|failure|start|file|request|signal)$/;
    const spoil = (value) => {
      if (typeof value === "string") return known.test(value) ? value : evil + value;
      if (Array.isArray(value)) return value.map(spoil);
      if (value === null || typeof value !== "object") return value;
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, key === "upstreams" && !Array.isArray(one)
        ? Object.fromEntries(Object.entries(one).map(([name, samples]) => [evil + name, samples])) : spoil(one)]));
    };
    const state = await page.evaluate(async () => {
      const reader = (await fetch("/api/events")).body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      while (!text.includes("\n\n")) text += (await reader.read()).value;
      await reader.cancel();
      return JSON.parse(text.split("\n")[1].slice("data: ".length));
    });
    const problem = { file: "f", line: 1, column: 2, setting: "s", message: "m", help: "h" };
    Object.assign(state.config, { in_effect: false, problems: [problem], problem_count: 1 });
    state.reloads.push({ ...state.reloads[0], number: 0, cause: "file", lines: ["a: 1 → 2"], count: 1 });
    const spoilt = `event: state\ndata: ${JSON.stringify(spoil(state))}\n\n`;
    const other = await browser.context.newPage();
    await other.route("**/api/events", (route) => route.fulfill({ body: spoilt, contentType: "text/event-stream" }));
    await other.goto(shop.proxy.url);
    await eventually("it is shown", async () => (await other.locator("#failures-rows").innerText()).includes(`${evil}GET`));
    for (const id of ["upstreams", "failures-rows", "reloads", "problems", "version"]) {
      assert.ok((await other.locator(`#${id}`).innerText()).includes(evil), id);
    }
    assert.deepEqual(await other.evaluate(() => [document.querySelectorAll("img").length, document.scripts.length, window.hacked, window.violations]), [0, 1, undefined, []]);
    await other.close();
  },

  async "an invalid file raises a banner with every problem, and a mended one takes it away"() {
    const good = shop.proxy.text;
    shop.proxy.write(good.replace("open_for: 3s,", "open_for: soon, <img src=x onerror=hacked()>: 1,").replace("requests: 100", "requests: 0"));
    const banner = page.locator("#problems");
    await shows(banner, /refused: 3 problems/);
    await shows(banner, /outrigger\.yaml:[0-9]+:[0-9]+/);
    await shows(banner, "<img src=x onerror=hacked()>");
    await eventually("the title tells", async () => (await page.title()).startsWith("Configuration refused"));
    await shows(page.locator("#reloads > li").first(), "The file changed: refused, 3 problems");
    await picture("refused");
    await accessible("refused");
    await fits(360);
    shop.proxy.write(good.replace("attempt: 1s", "attempt: 2s"));
    await eventually("the banner is gone", async () => !(await banner.isVisible()));
    await shows(page.locator("#reloads > li").first(), "1 setting changed");
    await shows(page.locator("#reloads > li").first(), "upstreams.maps.timeouts.attempt: 1s → 2s");
  },

  async "the reload button asks once, and says how it went"() {
    const ask = page.getByRole("dialog");
    await button(page, "Reload configuration").click();
    await shows(ask, "Reload the configuration?");
    await button(ask, "Cancel").click();
    await eventually("the question is gone", async () => !(await ask.isVisible()));
    await button(page, "Reload configuration").click();
    await button(ask, "Reload").click();
    await shows(page.locator("#outcome"), "Reloaded: nothing changed");
    await shows(page.locator("#reloads > li").first(), "Asked for: nothing changed");
  },

  async "a circuit is held open and given back, by the keyboard alone"() {
    const hold = button(card("mail"), "Hold open");
    await hold.focus();
    await page.keyboard.press("Enter");
    const ask = page.getByRole("dialog", { name: "Hold mail’s circuit open?" });
    await shows(ask, "refused with 503");
    const focused = () => page.evaluate(() => document.activeElement.textContent);
    assert.equal(await focused(), "Cancel");
    await page.keyboard.press("Escape");
    await eventually("the question is gone", async () => !(await ask.isVisible()));
    assert.equal(await focused(), "Hold open");
    assert.equal(await shop.proxy.call("mail.test"), 200);
    await page.keyboard.press("Enter");
    await page.keyboard.press("Tab");
    assert.equal(await focused(), "Hold open");
    await page.keyboard.press("Enter");
    await shows(card("mail").locator(".pill").first(), "Held open");
    await shows(page.locator("#outcome"), "mail: circuit held open");
    assert.equal(await hold.getAttribute("aria-pressed"), "true");
    assert.equal(await shop.proxy.call("mail.test"), 503);
    // The card went up, and the focus with it.
    assert.equal(await page.evaluate(() => document.activeElement.closest("li").dataset.upstream), "mail");
    await button(card("mail"), "Hold closed").click();
    await button(page.getByRole("dialog"), "Hold closed").click();
    await shows(card("mail").locator(".pill").first(), "Held closed");
    assert.equal(await shop.proxy.call("mail.test"), 200);
    await button(card("mail"), "Auto").click();
    await button(page.getByRole("dialog"), "Auto").click();
    await shows(card("mail").locator(".pill").first(), "Closed");
  },

  async "every control can be reached by Tab, in the order it is read"() {
    await page.reload();
    await shows(page.locator("#connection"), "Live");
    await eventually("all cards are there", async () => (await names()).includes("archive"));
    const met = [];
    for (let at = 0; at < 40; at++) {
      await page.keyboard.press("Tab");
      const one = await page.evaluate(() => {
        const here = document.activeElement;
        const outline = getComputedStyle(here).outlineStyle;
        return here === document.body ? null : { text: here.textContent.trim(), upstream: here.closest("li")?.dataset.upstream ?? "", outline };
      });
      if (!one) break;
      met.push(one);
    }
    assert.deepEqual(met.filter((one) => one.outline === "none").map((one) => one.text), []);
    const told = met.map((one) => `${one.upstream} ${one.text}`.trim());
    assert.deepEqual(told.slice(0, 2), ["Skip to the upstreams", "Reload configuration"]);
    for (const name of (await names()).filter((one) => one !== "unmatched")) {
      const orders = told.filter((one) => one.startsWith(`${name} `));
      assert.deepEqual(orders, ["Auto", "Hold open", "Hold closed"].map((one) => `${name} ${one}`));
    }
  },

  async "a lost connection is said, with the age of what is shown, and comes back"() {
    const before = browser.complaints.length;
    await shop.proxy.stop();
    await shows(page.locator("#lost"), /Connection lost, showing the state of [0-9]+ s ago/);
    await shows(card("payments"), "payments");
    await picture("lost");
    await accessible("lost");
    const [proxy, admin] = [shop.proxy.address, shop.proxy.admin];
    shop.proxy.write(shop.proxy.text.replace("proxy: 127.0.0.1:0, admin: 127.0.0.1:0", `proxy: ${proxy}, admin: ${admin}`));
    await shop.proxy.run();
    await button(page, "Try now").click();
    await shows(page.locator("#connection"), "Live");
    await eventually("the warning is gone", async () => !(await page.locator("#lost").isVisible()));
    // It is another process: what the old one had seen is not shown as this one's.
    await shows(page.locator("#failures-none"), "No request has failed");
    // The browser itself writes of requests that could not be made.
    browser.complaints.splice(before, Infinity, ...browser.complaints.slice(before).filter((one) => !one.includes("net::ERR_")));
  },

  async "a hundred upstreams stay quick, and the one in trouble comes first"() {
    const many = Array.from({ length: 100 }, (_, at) => `  n${at}:\n    hosts: [n${at}.test]\n    to: ["${shop.mail.origin}"]\n`).join("");
    shop.proxy.write(shop.proxy.text + many);
    await eventually("all are shown", async () => (await page.locator("#upstreams > li").count()) === 105);
    await Promise.all(Array.from({ length: 100 }, (_, at) => shop.proxy.call(`n${at}.test`)));
    await button(card("n99"), "Hold open").click();
    await button(page.getByRole("dialog"), "Hold open").click();
    await eventually("n99 comes first", async () => (await names())[0] === "n99");
    await page.getByRole("searchbox", { name: "Filter" }).fill("n4");
    await eventually("eleven fit", async () => (await page.locator("#upstreams > li").count()) === 11);
    await page.getByRole("searchbox", { name: "Filter" }).fill("");
    await eventually("all are shown again", async () => (await page.locator("#upstreams > li").count()) === 105);
    const longest = await page.evaluate(async () => {
      const lasted = [];
      new PerformanceObserver((list) => lasted.push(...list.getEntries().map((one) => one.duration))).observe({ type: "longtask" });
      const heard = document.getElementById("news");
      for (let frame = 0; frame < 180 && heard; frame++) await new Promise(requestAnimationFrame);
      return Math.max(0, ...lasted);
    });
    console.log(`  the longest task with 105 upstreams took ${Math.round(longest)} ms`);
    assert.ok(longest < 1000, `${longest} ms`);
    await picture("many");
    await fits(360);
  },

  async "a name as long as names may be leaves room for the rest of its failure"() {
    const name = "a-name-that-is-as-long-as-names-of-upstreams-may-be-in-a-file";
    shop.proxy.write(`${shop.proxy.text}  ${name}:\n    hosts: [long.test]\n    to: ["http://127.0.0.1:9"]\n    retry: off\n`);
    await page.locator(`#upstream-${name}`).waitFor();
    await callUntil("long.test", "/", 502);
    const row = page.locator("#failures-rows tr").filter({ hasText: name }).first();
    await row.waitFor();
    for (const width of [360, 1280]) {
      await page.setViewportSize({ width, height: 800 });
      const over = await row.locator("td").evaluateAll((cells) => cells.filter((one) => one.scrollWidth > one.clientWidth && one.className !== "trace").map((one) => one.textContent));
      assert.deepEqual(over, [], `at ${width}`);
    }
    await page.setViewportSize({ width: 1280, height: 800 });
  },

  async "the page says what it is before it is told anything, and keeps nothing"() {
    const held = await page.evaluate(() => [document.cookie, localStorage.length, sessionStorage.length]);
    assert.deepEqual(held, ["", 0, 0]);
  },

  async "with a token nothing is shown until it is given, and it is kept in this tab only"() {
    await page.close();
    const secret = path.join(shop.proxy.dir, "token");
    fs.writeFileSync(secret, "geheim\n");
    const guarded = await Proxy.start(`${shop.config()}admin_token: "\${file:${secret}}"\n`);
    try {
      const before = browser.complaints.length;
      page = await browser.open(guarded.url);
      await shows(page.locator("#sign-in"), "asks for its token");
      assert.equal(await page.locator("#main").isVisible(), false);
      await accessible("asking");
      await fits(360);
      await page.getByLabel("Token").fill("falsch");
      await page.keyboard.press("Enter");
      await shows(page.locator("#sign-in-wrong"), "That is not the token");
      await page.getByLabel("Token").fill("geheim");
      await button(page, "Show the dashboard").click();
      await shows(page.locator("#connection"), "Live");
      await button(card("mail"), "Hold open").click();
      await button(page.getByRole("dialog"), "Hold open").click();
      await shows(card("mail").locator(".pill").first(), "Held open");
      assert.deepEqual(await page.evaluate(() => [document.cookie, localStorage.length, sessionStorage.length]), ["", 0, 1]);
      await page.reload();
      await shows(card("mail").locator(".pill").first(), "Held open");
      // Another token takes effect for streams that are open, too.
      fs.writeFileSync(secret, "anders\n");
      await shows(page.locator("#sign-in"), "asks for its token");
      await page.getByLabel("Token").fill("anders");
      await page.keyboard.press("Enter");
      await shows(page.locator("#connection"), "Live");
      await button(page, "Forget the token").click();
      await shows(page.locator("#sign-in"), "asks for its token");
      assert.deepEqual(await page.evaluate(() => [sessionStorage.length, document.querySelectorAll("#upstreams li").length]), [0, 0]);
      // The browser itself writes of every 401.
      browser.complaints.splice(before, Infinity, ...browser.complaints.slice(before).filter((one) => !/401|net::ERR_/.test(one)));
    } finally {
      await guarded.stop();
      fs.rmSync(guarded.dir, { recursive: true, force: true });
    }
  },

  async "nothing was loaded from elsewhere, nothing was forbidden, nothing went wrong"() {
    assert.deepEqual(browser.complaints, []);
    assert.deepEqual(browser.requests.filter((url) => !/^(http:\/\/127\.0\.0\.1:[0-9]+\/|data:)/.test(url)), []);
  },
};

let failed = false;
for (const [name, step] of Object.entries(steps)) {
  try {
    await step();
    const found = page.isClosed() ? [] : await page.evaluate(() => [...window.violations, ...(window.hacked ? ["hacked"] : [])]);
    assert.deepEqual(found, []);
    console.log(`ok    ${name}`);
  } catch (error) {
    console.log(`FAILED ${name}\n${error.stack}`);
    if (!page.isClosed()) await picture("failed");
    failed = true;
    break;
  }
}
await browser.stop();
await shop.stop();
process.exit(failed ? 1 : 0);

// A real proxy, upstreams that do what they are told, an app that calls through, and a browser.

import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import fs from "node:fs";
import http from "node:http";
import path from "node:path";
import { fileURLToPath } from "node:url";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const ROOT = path.resolve(HERE, "../..");
export const OUT = path.join(ROOT, "target/dashboard");
const require = createRequire(path.join(OUT, "node_modules/"));
const { chromium } = require("playwright-core");
export const AXE = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

/** Longer than anything here takes. Milliseconds. */
export const PATIENCE = 30000;

/** Waits for something that has no event of its own. */
export async function eventually(what, holds) {
  const end = Date.now() + PATIENCE;
  for (;;) {
    if (await holds()) return;
    if (Date.now() > end) throw new Error(`never: ${what}`);
    await new Promise((next) => setTimeout(next, 50));
  }
}

/** An upstream. `does` answers a request: `(request, response, number)`. */
export class Upstream {
  static async start(does = Upstream.well) {
    const upstream = new Upstream();
    upstream.does = does;
    upstream.number = 0;
    upstream.server = http.createServer((request, response) => {
      request.resume();
      upstream.does(request, response, upstream.number++);
    });
    await new Promise((ready) => upstream.server.listen(0, "127.0.0.1", ready));
    upstream.origin = `http://127.0.0.1:${upstream.server.address().port}`;
    return upstream;
  }

  static well(_request, response) {
    response.end("well\n");
  }

  static answering(status, headers = {}) {
    return (_request, response) => response.writeHead(status, headers).end("no\n");
  }

  stop() {
    this.server.closeAllConnections();
    this.server.close();
  }
}

/** A proxy with a configuration file of its own. */
export class Proxy {
  static async start(text) {
    const proxy = new Proxy();
    proxy.dir = fs.mkdtempSync(path.join(OUT, "proxy-"));
    proxy.file = path.join(proxy.dir, "outrigger.yaml");
    proxy.write(text);
    await proxy.run();
    return proxy;
  }

  async run() {
    this.process = spawn(process.env.OUTRIGGER || path.join(ROOT, "target/debug/outrigger"), ["run", "--config", this.file]);
    this.errors = "";
    this.process.stderr.on("data", (data) => (this.errors += data));
    const ended = new Promise((_, fail) => this.process.once("exit", () => fail(new Error(`the proxy ended: ${this.errors}`))));
    ended.catch(() => {});
    const ready = new Promise((found) => {
      let text = "";
      this.process.stdout.on("data", (data) => {
        if (text === null) return;
        text += data;
        const line = text.split("\n").slice(0, -1).map((one) => JSON.parse(one)).find((one) => one.message === "ready");
        if (line) {
          text = null;
          found(line);
        }
      });
    });
    const { proxy, admin } = await Promise.race([ready, ended]);
    this.address = proxy;
    this.admin = admin;
    this.url = `http://${admin}/`;
  }

  write(text) {
    this.text = text;
    fs.writeFileSync(`${this.file}.new`, text);
    fs.renameSync(`${this.file}.new`, this.file);
  }

  /** Ends the process; the addresses stay in `address` and `admin`. */
  async stop() {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const gone = new Promise((done) => this.process.once("exit", done));
    this.process.kill("SIGKILL");
    await gone;
  }

  /** A request of the app's: its status, or 0 where there was no answer. */
  call(host, target = "/", { method = "GET", headers = {}, timeout = 0 } = {}) {
    const [name, port] = this.address.split(":");
    return new Promise((done) => {
      const request = http.request(
        { host: name, port, method, path: `http://${host}${target}`, headers: { host, ...headers } },
        (response) => {
          response.on("error", () => done(response.statusCode));
          response.on("close", () => done(response.statusCode));
          response.resume();
        },
      );
      if (timeout) request.setTimeout(timeout, () => request.destroy());
      request.on("error", () => done(0));
      request.end();
    });
  }
}

/** A browser that notes whatever goes wrong in its pages. */
export class Browser {
  static async start() {
    const browser = new Browser();
    browser.dir = fs.mkdtempSync(path.join(OUT, "browser-"));
    browser.complaints = [];
    browser.requests = [];
    browser.context = await chromium.launchPersistentContext(browser.dir, {
      executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
      headless: true,
      args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync"],
      viewport: { width: 1280, height: 800 },
    });
    await browser.context.addInitScript(() => {
      window.violations = [];
      document.addEventListener("securitypolicyviolation", (event) => {
        window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
      });
    });
    return browser;
  }

  async open(url) {
    const page = await this.context.newPage();
    page.on("pageerror", (error) => this.complaints.push(String(error)));
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) this.complaints.push(`${message.text()} ${message.location().url}`);
    });
    page.on("request", (request) => this.requests.push(request.url()));
    page.setDefaultTimeout(PATIENCE);
    await page.goto(url);
    return page;
  }

  async stop() {
    await this.context.close();
    fs.rmSync(this.dir, { recursive: true, force: true });
  }
}

/** The shop whose upstreams the tests and the picture show. */
export class Shop {
  static async start() {
    const shop = new Shop();
    for (const name of ["payments", "search", "mail", "maps"]) shop[name] = await Upstream.start();
    shop.proxy = await Proxy.start(shop.config());
    return shop;
  }

  config(more = "") {
    return `version: 1
listeners: {proxy: 127.0.0.1:0, admin: 127.0.0.1:0, probes: off}
shutdown: {quiet: 10ms, grace: 1s}
upstreams:
  mail:
    hosts: [mail.test]
    to: ["${this.mail.origin}"]
    concurrency: {max_in_flight: 20}
  maps:
    hosts: ["*.maps.test"]
    to: ["${this.maps.origin}"]
    timeouts: {attempt: 1s, request: 3s}
  payments:
    hosts: [payments.test]
    to: ["${this.payments.origin}"]
    retry: {backoff: {base: 10ms, max: 50ms}}
    circuit_breaker: {consecutive_failures: 6, failure_rate: off, open_for: 3s, max_open_for: 3s}
    routes:
      - name: refunds
        match: {path: /v1/refunds}
        circuit_breaker: {consecutive_failures: 2, failure_rate: off, open_for: 20s, max_open_for: 1m}
  search:
    hosts: [search.test]
    to: ["${this.search.origin}"]
    retry: {max_retry_after: 20s}
    rate_limit: {requests: 100, per: 1s, burst: 100}
  archive:
    hosts: [archive.test]
    to: ["http://127.0.0.1:9"]
${more}`;
  }

  async stop() {
    await this.proxy.stop();
    for (const name of ["payments", "search", "mail", "maps"]) this[name].stop();
    fs.rmSync(this.proxy.dir, { recursive: true, force: true });
  }
}

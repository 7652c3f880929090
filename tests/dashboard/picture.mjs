// The picture in the README: a quarter of an hour of a shop's traffic, some of it going wrong.

import path from "node:path";
import { Browser, OUT, Shop, Upstream, eventually } from "./rig.mjs";

const minutes = Number(process.argv[2] || 15);
const into = process.argv[3] || path.join(OUT, "dashboard.png");
const shop = await Shop.start();
const browser = await Browser.start();
const began = Date.now();
const age = () => (Date.now() - began) / (minutes * 60000);
const between = (from, to) => age() >= from && age() < to;

/** Answers after a while, long ones now and then. */
function slowly(usual) {
  return (request, response) => setTimeout(() => Upstream.well(request, response), usual * (0.5 + Math.random()) + (Math.random() < 0.04 ? usual * 8 : 0));
}

shop.mail.does = slowly(6);
shop.search.does = (request, response) => {
  if (between(0.6, 0.75) && Math.random() < 0.01) return Upstream.answering(429, { "retry-after": "4" })(request, response);
  return slowly(25)(request, response);
};
shop.maps.does = (request, response) => slowly(between(0.35, 0.5) ? 350 : 60)(request, response);
shop.payments.does = (request, response) => {
  if (between(0.44, 0.5) || age() > 0.985) return Upstream.answering(503)(request, response);
  if (Math.random() < (between(0.15, 0.9) ? 0.12 : 0.01)) return Upstream.answering(503)(request, response);
  return slowly(40)(request, response);
};

const app = (host, target, perSecond) => {
  const next = () => {
    if (age() > 1.5) return;
    shop.proxy.call(host, target());
    setTimeout(next, (1000 / (perSecond * (1 + 0.3 * Math.sin(age() * 20)))) * (0.5 + Math.random()));
  };
  next();
};
app("mail.test", () => "/send", 3);
app("search.test", () => `/find?q=${Math.random()}`, 12);
app("eu.maps.test", () => "/route", 5);
app("payments.test", () => ["/v1/charges", "/v1/charges/ch_3MmlLrLkdIwHu7ix", "/v1/balance"][Math.floor(Math.random() * 3)], 8);

setTimeout(() => shop.proxy.write(shop.config().replace("attempt: 1s", "attempt: 2s")), minutes * 60000 * 0.3);
await new Promise((done) => setTimeout(done, minutes * 60000 * 0.99));
const page = await browser.open(shop.proxy.url);
await page.setViewportSize({ width: 1320, height: 1100 });
await eventually("payments is open", async () => (await page.getByText("Cut off after failures").count()) > 0);
await page.screenshot({ path: into });
for (const [name, width, height, scheme] of [["dark", 1320, 1100, "dark"], ["phone", 360, 1500, "light"], ["wall", 2560, 1440, "dark"]]) {
  await page.setViewportSize({ width, height });
  await page.emulateMedia({ colorScheme: scheme });
  await page.screenshot({ path: into.replace(/\.png$/, `-${name}.png`) });
}
await browser.stop();
await shop.stop();
process.exit(0);

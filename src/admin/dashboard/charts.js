// Charts of 15 minutes: a step of five seconds is one unit wide, the newest stands at the right edge.

const WIDTH = 180;
/** What a sample says about its upstream's standing. */
const HALF_OPEN = 1, OPEN = 2, PAUSED = 3;

/** A stepped area of `values` in units of `highest`, `height` high. */
function area(values, highest, height) {
  if (highest <= 0) return "";
  const start = WIDTH - values.length;
  let path = `M${start} ${height}`;
  for (const value of values) path += `V${(height - (value / highest) * (height - 2)).toFixed(1)}h1`;
  return `${path}V${height}Z`;
}

/** A line through `values`, which is broken where there is none. `low` and `high` are its bottom and top. */
function line(values, low, high, height) {
  const start = WIDTH - values.length;
  const y = (value) => (height - 1.5 - ((Math.min(value, high) - low) / (high - low || 1)) * (height - 3)).toFixed(1);
  let path = "";
  let open = false;
  values.forEach((value, index) => {
    if (value === null) {
      open = false;
    } else {
      path += `${open ? "L" : "M"}${start + index} ${y(value)}h1`;
      open = true;
    }
  });
  return path;
}

/** Bands behind a chart where `fits` holds. */
function bands(values, fits, height) {
  const start = WIDTH - values.length;
  return values.map((value, index) => (fits(value) ? `M${start + index} 0h1v${height}h-1z` : "")).join("");
}

function draw(svg, selector, path) {
  mark(svg.querySelector(selector), "d", path || "M0 0");
}

function drawTraffic(svg, history, seconds) {
  const highest = Math.max(1, ...history.requests);
  draw(svg, ".band-bad", bands(history.standing, (one) => one === OPEN, 40));
  draw(svg, ".band-warn", bands(history.standing, (one) => one === HALF_OPEN || one === PAUSED, 40));
  draw(svg, ".area", area(history.requests, highest, 40));
  draw(svg, ".area-bad", area(history.failed, highest, 40));
  const failed = history.failed.reduce((sum, one) => sum + one, 0);
  const all = history.requests.reduce((sum, one) => sum + one, 0);
  mark(svg, "aria-label", `Requests over 15 minutes: ${all.toLocaleString("en")}, of which ${failed.toLocaleString("en")} failed for the app; at most ${rate(highest / seconds)} a second`);
}

function share(failed, all) {
  return all > 0 ? Math.max(0, 1 - failed / all) : null;
}

/** Draws both success lines and gives the lowest share there was. */
function drawSuccess(svg, history) {
  const app = history.requests.map((all, index) => share(history.failed[index], all - history.hung_up[index]));
  const upstream = history.attempts.map((all, index) => share(history.attempts_failed[index], all));
  const lowest = (values) => values.reduce((low, value) => (value === null ? low : Math.min(low, value)), 1);
  const low = Math.min(lowest(app), lowest(upstream));
  const floor = low >= 0.99 ? 0.98 : low >= 0.9 ? 0.85 : low >= 0.5 ? 0.4 : 0;
  draw(svg, ".line-app", line(app, floor, 1, 30));
  draw(svg, ".line-up", line(upstream, floor, 1, 30));
  mark(svg, "aria-label", `Success over 15 minutes: lowest ${percent(lowest(app))} for the app, ${percent(lowest(upstream))} at the upstream`);
  return [...app, ...upstream].some((value) => value !== null) ? low : null;
}

/** Draws the p95 line and gives its highest value. */
function drawSlow(svg, history) {
  const highest = history.p95_ms.reduce((high, value) => Math.max(high, value ?? 0), 0);
  draw(svg, ".line-p95", line(history.p95_ms, 0, highest, 30));
  mark(svg, "aria-label", `95 % of requests over 15 minutes took at most: highest ${within(highest)}`);
  return highest;
}

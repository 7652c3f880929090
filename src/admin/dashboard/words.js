// Elements, numbers and durations in words. Whatever comes from outside goes in as text, never as markup.

const at = (id) => document.getElementById(id);

/** Changes a text only where it differs, so that nothing is laid out or read out in vain. */
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function show(element, shown) {
  if (element.hidden === shown) element.hidden = !shown;
}

function mark(element, name, value) {
  if (value === null || value === undefined || value === "") {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== String(value)) {
    element.setAttribute(name, value);
  }
}

/** An element with a class, attributes and children; strings become text. */
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) mark(element, name, value);
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

function count(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** A share, cut and not rounded: 99.96 % never shows as 100 %. */
function percent(share) {
  if (share === null || share === undefined) return "–";
  const digits = share >= 0.99 ? 2 : share >= 0.1 ? 1 : 2;
  const scale = 10 ** digits;
  const cut = Math.floor(share * 100 * scale + 1e-6) / scale;
  return `${cut.toFixed(cut === 100 || cut === 0 ? 0 : digits)}\u00a0%`;
}

function rate(number) {
  if (number === 0) return "0";
  if (number < 0.1) return "<0.1";
  return number < 10 ? number.toFixed(1) : Math.round(number).toLocaleString("en");
}

/** How long something took. */
function took(millis) {
  if (millis === null || millis === undefined) return "–";
  if (millis >= 5400000) return `${(millis / 3600000).toFixed(1)}\u00a0h`;
  if (millis >= 99500) return `${(millis / 60000).toFixed(1)}\u00a0min`;
  if (millis >= 9950) return `${Math.round(millis / 1000)}\u00a0s`;
  if (millis >= 999.5) return `${(millis / 1000).toFixed(1)}\u00a0s`;
  if (millis >= 9.95) return `${Math.round(millis)}\u00a0ms`;
  return `${millis.toFixed(1)}\u00a0ms`;
}

/** A percentile: the last bound of the histograms stands for whatever took longer. */
function within(millis) {
  return millis >= 60000 ? "≥\u00a060\u00a0s" : took(millis);
}

/** How long something still lasts: rounded up, since it never ends early. */
function lasts(millis) {
  const seconds = Math.max(1, Math.ceil(millis / 1000));
  if (seconds < 100) return `${seconds}\u00a0s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)}\u00a0min` : `${Math.round(seconds / 3600)}\u00a0h`;
}

/** A moment as an element: the time, with the day where it is not today. */
function moment(millis) {
  const when = new Date(millis);
  const time = when.toLocaleTimeString("en-GB");
  const today = new Date().toDateString() === when.toDateString();
  const text = today ? time : `${when.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time}`;
  return make("time", { datetime: when.toISOString(), title: when.toString() }, text);
}

/** Tells a screen reader, politely. */
function announce(text) {
  put(at("news"), text);
}

let outcomeTimer = 0;

/** Says how an order went, for a while. */
function outcome(text) {
  put(at("outcome"), text);
  clearTimeout(outcomeTimer);
  outcomeTimer = setTimeout(() => put(at("outcome"), ""), 8000);
}

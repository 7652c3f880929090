// The stream of events: fetched, since an EventSource can't send a token. Silence is a lost connection, too.

const TOKEN = "outrigger-token";
/** Events come each second; after so many without one the connection is given up. Milliseconds. */
const SILENCE = 6000;

let token = sessionStorage.getItem(TOKEN) || "";

function keepToken(value) {
  token = value;
  if (value) sessionStorage.setItem(TOKEN, value);
  else sessionStorage.removeItem(TOKEN);
}

function headers() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** An order, as a POST. Gives whether it was followed, and what was answered. */
async function order(path, body) {
  const answer = await fetch(path, { method: "POST", headers: headers(), body: body === undefined ? null : JSON.stringify(body) });
  return { ok: answer.ok, status: answer.status, value: await answer.json().catch(() => ({})) };
}

class Stream {
  /** `heard(event, data)` gets every event, `lost(reason)` hears why there are none, `refused()` that the token is wrong. */
  constructor({ heard, lost, refused }) {
    Object.assign(this, { heard, lost, refused });
    this.wait = 1000;
    this.timer = 0;
    this.abort = null;
  }

  /** Connects, at once. */
  async start() {
    this.stop();
    const abort = (this.abort = new AbortController());
    let silence = setTimeout(() => abort.abort(), SILENCE);
    let reason = "";
    try {
      const answer = await fetch("/api/events", { headers: headers(), signal: abort.signal, cache: "no-store" });
      if (answer.status === 401) {
        clearTimeout(silence);
        if (this.abort === abort) this.refused();
        return;
      }
      if (!answer.ok) {
        const problem = await answer.json().catch(() => ({}));
        throw new Error(problem.detail || `answered ${answer.status}`);
      }
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        clearTimeout(silence);
        silence = setTimeout(() => abort.abort(), SILENCE);
        text += value;
        const frames = text.split("\n\n");
        text = frames.pop();
        for (const frame of frames) this.frame(frame);
        this.wait = 1000;
      }
    } catch (error) {
      if (!abort.signal.aborted && !(error instanceof TypeError)) reason = error.message;
    }
    clearTimeout(silence);
    if (this.abort !== abort) return;
    this.lost(reason);
    this.timer = setTimeout(() => this.start(), this.wait);
    this.wait = Math.min(this.wait * 2, 10000);
  }

  /** Ends it, without a word. */
  stop() {
    clearTimeout(this.timer);
    const abort = this.abort;
    this.abort = null;
    abort?.abort();
  }

  frame(frame) {
    let event = "message";
    let data = "";
    for (const line of frame.split("\n")) {
      if (line.startsWith("event: ")) event = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (data) this.heard(event, JSON.parse(data));
  }
}

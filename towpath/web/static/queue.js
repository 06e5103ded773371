"use strict";

// Responses that do not concern the item itself: it is retried without limit.
const WAIT = {
  401: "you are signed out; sign in again in another tab",
  403: "this account may not rate",
  408: "the server is slow", 421: "the server does not serve this host", 425: "the server is not ready",
  429: "too many requests", 502: "the server is unavailable", 503: "the server is unavailable", 504: "the server is unavailable", 507: "the server's disk is full",
};
const MAX_TRIES = 4; // responses such as 500 after which an item is moved to the unsaved list
const MAX_PAUSE = 60; // seconds

// Thrown for an item that the server refused, or that failed too often; it is listed on the page.
class NotSaved extends Error {}

// The outbox: verdicts that the server has not acknowledged. They survive reloads and lost connections.
// Each item has a key, so the server stores it once however often it is sent.
class Outbox {
  constructor(rater, report) {
    const name = encodeURIComponent(rater);
    this.rater = name;
    this.prefix = `towpath/outbox/${name}/`;
    this.unsavedPrefix = `towpath/unsaved/${name}/`;
    this.report = report;
    this.waiting = new Map();
    this.memory = new Map();
    this.sending = null;
    this.wake = () => {};
    window.addEventListener("online", () => this.wake());
    window.addEventListener("storage", () => this.report(this.state("")));
  }

  // ---- storage: localStorage, or this tab's memory if that is unavailable

  keys(prefix) {
    let stored = [];
    try {
      stored = Object.keys(localStorage).filter((name) => name.startsWith(prefix));
    } catch {
      stored = [];
    }
    return [...new Set([...stored, ...[...this.memory.keys()].filter((name) => name.startsWith(prefix))])].sort();
  }

  read(name) {
    let text = this.memory.get(name) ?? null;
    try {
      text ??= localStorage.getItem(name);
      return text === null ? null : JSON.parse(text);
    } catch {
      return null;
    }
  }

  write(name, value) {
    const text = JSON.stringify(value);
    try {
      localStorage.setItem(name, text);
      this.memory.delete(name);
    } catch {
      this.memory.set(name, text);
    }
  }

  forget(name) {
    this.memory.delete(name);
    try {
      localStorage.removeItem(name);
    } catch {
      return;
    }
  }

  get size() {
    return this.keys(this.prefix).length;
  }

  // The state shown on the page. `volatile`: closing the tab would lose items.
  state(reason) {
    return { count: this.size, reason, volatile: this.memory.size > 0, unsaved: this.unsaved() };
  }

  // ---- items that could not be saved

  unsaved() {
    return this.keys(this.unsavedPrefix).flatMap((name) => {
      const item = this.read(name);
      return item === null ? [] : [{ name, ...item }];
    });
  }

  moveToUnsaved(name, item, reason) {
    this.write(name.replace(this.prefix, this.unsavedPrefix), { ...item, reason, tries: 0 });
    this.forget(name);
  }

  retry(name) {
    const item = this.read(name);
    if (item === null) return Promise.resolve({});
    const answer = this.put(item.path, item.body, item.what);
    this.forget(name); // after put, so that the item is stored at all times
    return answer;
  }

  discard(name) {
    this.forget(name);
    this.report(this.state(""));
  }

  // ---- sending

  // Resolves with the server's response, however long that takes; rejects with NotSaved. `what` describes the item;
  // an item without a description has no content of the rater, and is dropped when it is refused.
  put(path, body, what = "") {
    const name = `${this.prefix}${Date.now()}-${String(performance.now()).padStart(20, "0")}`;
    this.write(name, { path, body, what, tries: 0 });
    const answer = new Promise((resolve, reject) => this.waiting.set(name, { resolve, reject }));
    this.flush();
    return answer;
  }

  flush() {
    this.sending ??= this.exclusively(() => this.sendAll()).finally(() => {
      this.sending = null;
      if (this.size > 0) this.flush();
    });
    return this.sending;
  }

  // One tab sends at a time, so that items are sent in the order in which they were created.
  exclusively(work) {
    return navigator.locks ? navigator.locks.request(this.prefix, work) : work();
  }

  async sendAll() {
    let pause = 1;
    for (;;) {
      const name = this.keys(this.prefix)[0];
      if (name === undefined) break;
      const item = this.read(name);
      if (item === null) {
        this.forget(name);
        continue;
      }
      const outcome = await this.send(item.path, item.body);
      if (outcome.wait) {
        const tries = outcome.counts ? item.tries + 1 : item.tries;
        if (tries >= MAX_TRIES) {
          this.refuse(name, item, outcome.reason);
          continue;
        }
        this.write(name, { ...item, tries });
        this.report(this.state(outcome.reason));
        await this.sleep(Math.max(pause, outcome.after ?? 0));
        pause = Math.min(pause * 2, 20);
        continue;
      }
      pause = 1;
      if (outcome.error) {
        this.refuse(name, item, outcome.error);
        continue;
      }
      this.forget(name);
      this.settle(name, (promise) => promise.resolve(outcome.answer));
    }
    this.report(this.state(""));
    // An item of this tab that is gone was handled by another tab.
    for (const name of [...this.waiting.keys()]) {
      const unsaved = this.read(name.replace(this.prefix, this.unsavedPrefix));
      this.settle(name, (promise) => (unsaved === null ? promise.resolve({ again: true }) : promise.reject(new NotSaved(unsaved.reason))));
    }
  }

  refuse(name, item, reason) {
    if (item.what) this.moveToUnsaved(name, item, reason);
    else this.forget(name);
    this.settle(name, (promise) => promise.reject(new NotSaved(reason)));
  }

  settle(name, work) {
    const promise = this.waiting.get(name);
    this.waiting.delete(name);
    if (promise) work(promise);
  }

  sleep(seconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, seconds * 1000);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  // Each request names the page's rater, so that the server rejects it after someone else has signed in.
  headers(more = {}) {
    return { accept: "application/json", "x-towpath-rater": this.rater, ...more };
  }

  // One attempt. Final are a JSON response, and a JSON refusal (409, 422), which concern this item.
  // Everything else is retried; a response such as 500, which the item may have caused, counts as a try.
  async send(path, body) {
    let response;
    try {
      response = await fetch(path, {
        method: "POST",
        headers: this.headers({ "content-type": "application/json" }),
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(20000),
      });
    } catch {
      return { wait: true, reason: "no connection" };
    }
    const after = Outbox.retryAfter(response);
    if (response.status in WAIT) return { wait: true, after, reason: WAIT[response.status] };
    let data = null;
    try {
      data = await response.json();
    } catch {
      data = null;
    }
    const ours = data !== null && typeof data === "object";
    if (response.ok) return ours ? { answer: data } : { wait: true, after, reason: "a proxy answered in place of the server" };
    if (ours && (response.status === 409 || response.status === 422)) {
      return { error: typeof data.error === "string" ? data.error : "The server did not accept this." };
    }
    return { wait: true, counts: true, after, reason: `server error (${response.status})` };
  }

  // Seconds of the Retry-After header, a number or a date.
  static retryAfter(response) {
    const header = response.headers.get("retry-after");
    if (!header) return undefined;
    const seconds = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
    return Number.isFinite(seconds) ? Math.min(Math.max(seconds, 0), MAX_PAUSE) : undefined;
  }
}

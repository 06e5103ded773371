"use strict";

// Answers of the server that say nothing about the item itself: it waits, however long that takes.
const WAIT = {
  401: "you are signed out; sign in again in another tab",
  403: "this account may not rate at present",
  408: "the server is slow", 421: "the server does not know this address", 425: "the server is not ready",
  429: "too many requests", 502: "the server is away", 503: "the server is away", 504: "the server is away", 507: "the server's disk is full",
};
const TRIES = 4; // answers such as 500 after which an item is set aside
const LONGEST_PAUSE = 60; // seconds

// Thrown for an item that the server refused, or that was set aside; it is still listed on the page.
class NotSaved extends Error {}

// Verdicts that the server has not acknowledged. They stay on this device over reloads and lost connections.
// Each item carries its own key, so the server takes it once however often it is sent.
class Outbox {
  constructor(rater, report) {
    const name = encodeURIComponent(rater);
    this.rater = name;
    this.prefix = `towpath/outbox/${name}/`;
    this.aside = `towpath/unsaved/${name}/`;
    this.report = report;
    this.waiting = new Map();
    this.memory = new Map();
    this.sending = null;
    this.wake = () => {};
    window.addEventListener("online", () => this.wake());
    window.addEventListener("storage", () => this.report(this.state("")));
  }

  // ---- what is kept: in localStorage, or in this tab where the browser stores nothing

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

  // What the page shows of the queue. `volatile`: closing the tab would lose it.
  state(reason) {
    return { count: this.size, reason, volatile: this.memory.size > 0, unsaved: this.unsaved() };
  }

  // ---- items that could not be saved

  unsaved() {
    return this.keys(this.aside).flatMap((name) => {
      const item = this.read(name);
      return item === null ? [] : [{ name, ...item }];
    });
  }

  setAside(name, item, reason) {
    this.write(name.replace(this.prefix, this.aside), { ...item, reason, tries: 0 });
    this.forget(name);
  }

  tryAgain(name) {
    const item = this.read(name);
    if (item === null) return Promise.resolve({});
    const answer = this.put(item.path, item.body, item.what);
    this.forget(name); // only now, so that the item is stored at every moment
    return answer;
  }

  discard(name) {
    this.forget(name);
    this.report(this.state(""));
  }

  // ---- sending

  // Resolves with the server's answer, however long that takes; rejects with NotSaved. `what` says in words what the item is;
  // an item without words carries nothing of the rater's own, and is dropped when it is refused.
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

  // Of several tabs one sends at a time, so that items are sent in the order in which they were made.
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
        if (tries >= TRIES) {
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
      this.settle(name, (asker) => asker.resolve(outcome.answer));
    }
    this.report(this.state(""));
    // An item of this tab that is no longer here was dealt with by another tab.
    for (const name of [...this.waiting.keys()]) {
      const unsaved = this.read(name.replace(this.prefix, this.aside));
      this.settle(name, (asker) => (unsaved === null ? asker.resolve({ again: true }) : asker.reject(new NotSaved(unsaved.reason))));
    }
  }

  refuse(name, item, reason) {
    if (item.what) this.setAside(name, item, reason);
    else this.forget(name);
    this.settle(name, (asker) => asker.reject(new NotSaved(reason)));
  }

  settle(name, work) {
    const asker = this.waiting.get(name);
    this.waiting.delete(name);
    if (asker) work(asker);
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

  // Each request says whose page this is: where someone else has signed in meanwhile, the server does not take it for theirs.
  headers(more = {}) {
    return { accept: "application/json", "x-towpath-rater": this.rater, ...more };
  }

  // One try. Final are an answer in JSON, and a refusal (409, 422) in JSON: those are the server's word on this very item.
  // All else waits; an answer such as 500, which may come of the item, counts as a try.
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
    const after = Outbox.pauseOf(response);
    if (response.status in WAIT) return { wait: true, after, reason: WAIT[response.status] };
    let told = null;
    try {
      told = await response.json();
    } catch {
      told = null;
    }
    const ours = told !== null && typeof told === "object";
    if (response.ok) return ours ? { answer: told } : { wait: true, after, reason: "no connection to the server itself" };
    if (ours && (response.status === 409 || response.status === 422)) {
      return { error: typeof told.error === "string" ? told.error : "The server did not accept this." };
    }
    return { wait: true, counts: true, after, reason: `the server failed (${response.status})` };
  }

  // Seconds that the server asks to wait, as a number or a date.
  static pauseOf(response) {
    const told = response.headers.get("retry-after");
    if (!told) return undefined;
    const seconds = /^\d+$/.test(told.trim()) ? Number(told) : (Date.parse(told) - Date.now()) / 1000;
    return Number.isFinite(seconds) ? Math.min(Math.max(seconds, 0), LONGEST_PAUSE) : undefined;
  }
}

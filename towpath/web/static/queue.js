"use strict";

// What was said and is not yet acknowledged. It stays on this device until the server has it, over reloads and lost connections.
// Each item carries its own key, so the server takes it once however often it is sent.
class Outbox {
  constructor(rater, told) {
    this.prefix = `towpath/outbox/${encodeURIComponent(rater)}/`;
    this.told = told;
    this.waiting = new Map();
    this.memory = new Map();
    this.sending = null;
    this.wake = () => {};
    window.addEventListener("online", () => this.wake());
  }

  names() {
    try {
      return Object.keys(localStorage).filter((name) => name.startsWith(this.prefix)).sort();
    } catch {
      return [...this.memory.keys()].sort();
    }
  }

  get size() {
    return this.names().length;
  }

  // Resolves with the server's answer, however long that takes; rejects when the server will not have it.
  put(path, body) {
    const name = `${this.prefix}${Date.now()}-${String(performance.now()).padStart(20, "0")}`;
    const text = JSON.stringify({ path, body });
    try {
      localStorage.setItem(name, text);
    } catch {
      this.memory.set(name, text);
    }
    const answer = new Promise((resolve, reject) => this.waiting.set(name, { resolve, reject }));
    this.flush();
    return answer;
  }

  flush() {
    this.sending ??= this.exclusively(() => this.sendAll()).finally(() => {
      this.sending = null;
      if (this.size + this.memory.size > 0) this.flush();
    });
    return this.sending;
  }

  // Of several tabs one sends at a time, so that what was said first is sent first.
  exclusively(work) {
    return navigator.locks ? navigator.locks.request(this.prefix, work) : work();
  }

  async sendAll() {
    let pause = 1;
    for (;;) {
      const name = this.names()[0] ?? [...this.memory.keys()].sort()[0];
      if (name === undefined) break;
      const text = this.memory.get(name) ?? localStorage.getItem(name);
      if (text === null) continue;
      const { path, body } = JSON.parse(text);
      const { done, answer, error, reason } = await Outbox.send(path, body);
      if (!done) {
        this.told(this.size || this.memory.size, reason);
        await this.sleep(pause);
        pause = Math.min(pause * 2, 20);
        continue;
      }
      pause = 1;
      this.forget(name);
      const asker = this.waiting.get(name);
      this.waiting.delete(name);
      if (error) asker?.reject(new Error(error));
      else asker?.resolve(answer);
    }
    this.told(0, "");
    // What is ours and no longer here was sent by another tab.
    for (const asker of this.waiting.values()) asker.resolve({ again: true });
    this.waiting.clear();
  }

  forget(name) {
    this.memory.delete(name);
    try {
      localStorage.removeItem(name);
    } catch {
      return;
    }
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

  // One try: done or not; a refusal is done too, for asking again would not change it.
  static async send(path, body) {
    let response;
    try {
      response = await fetch(path, {
        method: "POST",
        headers: { "content-type": "application/json", accept: "application/json" },
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(20000),
      });
    } catch {
      return { done: false, reason: "no connection" };
    }
    if (response.status === 401) return { done: false, reason: "you are signed out; sign in again in another tab" };
    if (response.status >= 500 || response.status === 429) return { done: false, reason: "the server is busy" };
    let told = {};
    try {
      told = await response.json();
    } catch {
      if (response.ok) return { done: false, reason: "no connection" };
    }
    if (response.ok) return { done: true, answer: told };
    const error = typeof told.error === "string" ? told.error : "The server did not accept this.";
    return { done: true, error };
  }
}

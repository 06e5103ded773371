"use strict";

// Comments, flags and better answers that are being written. They survive a reload, and go when the server has them.
class Drafts {
  constructor(rater) {
    this.prefix = `towpath/draft/${encodeURIComponent(rater)}/`;
    this.most = 50;
  }

  get(comparison) {
    try {
      return JSON.parse(localStorage.getItem(this.prefix + comparison)) ?? {};
    } catch {
      return {};
    }
  }

  // Whether the browser has stored it.
  put(comparison, change) {
    if (!comparison) return false;
    const draft = { ...this.get(comparison), ...change, at: Date.now() };
    const empty = !draft.comment && !draft.write && !draft.flag;
    try {
      if (empty) localStorage.removeItem(this.prefix + comparison);
      else localStorage.setItem(this.prefix + comparison, JSON.stringify(draft));
    } catch {
      return false;
    }
    this.prune();
    return true;
  }

  // Drafts of pairs that never came back go, the oldest first.
  prune() {
    const names = Object.keys(localStorage).filter((name) => name.startsWith(this.prefix));
    if (names.length <= this.most) return;
    const age = (name) => this.get(name.slice(this.prefix.length)).at ?? 0;
    for (const name of names.sort((a, b) => age(b) - age(a)).slice(this.most)) localStorage.removeItem(name);
  }
}

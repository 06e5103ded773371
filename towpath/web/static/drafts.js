"use strict";

// Drafts of comments, flags and written answers. They survive a reload and are removed once saved.
class Drafts {
  constructor(rater) {
    this.prefix = `towpath/draft/${encodeURIComponent(rater)}/`;
    this.maxDrafts = 50;
  }

  get(comparison) {
    try {
      return JSON.parse(localStorage.getItem(this.prefix + comparison)) ?? {};
    } catch {
      return {};
    }
  }

  // Returns whether the browser stored it.
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

  // Remove the oldest drafts of pairs that never came back.
  prune() {
    const names = Object.keys(localStorage).filter((name) => name.startsWith(this.prefix));
    if (names.length <= this.maxDrafts) return;
    const age = (name) => this.get(name.slice(this.prefix.length)).at ?? 0;
    for (const name of names.sort((a, b) => age(b) - age(a)).slice(this.maxDrafts)) localStorage.removeItem(name);
  }
}

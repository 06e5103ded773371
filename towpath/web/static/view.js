"use strict";

// A rater's display settings on this device: text size, spacing, shortcuts.
function stored(name) {
  try {
    return localStorage.getItem(`towpath/${name}`);
  } catch {
    return null;
  }
}

function store(name, value) {
  try {
    localStorage.setItem(`towpath/${name}`, value);
  } catch {
    return;
  }
}

// A checkbox whose state is stored.
function setting(id, initially, changed = () => {}) {
  const box = document.getElementById(id);
  const value = stored(id);
  box.checked = value === null ? initially : value === "yes";
  box.addEventListener("change", () => {
    store(id, box.checked ? "yes" : "no");
    changed(box.checked);
  });
  changed(box.checked);
  return box;
}

const SIZES = ["very small", "small", "normal", "large", "very large", "huge"];
const NORMAL_SIZE = 2;

class TextSize {
  constructor(announce) {
    this.announce = announce;
    const size = Number(stored("text-size") ?? NORMAL_SIZE);
    this.set(Number.isInteger(size) && size in SIZES ? size : NORMAL_SIZE);
    document.getElementById("smaller").addEventListener("click", () => this.step(-1));
    document.getElementById("larger").addEventListener("click", () => this.step(1));
  }

  set(size) {
    this.size = size;
    document.body.dataset.size = String(size);
    document.getElementById("text-size").textContent = SIZES[size];
  }

  step(by) {
    this.set(Math.min(Math.max(this.size + by, 0), SIZES.length - 1));
    store("text-size", String(this.size));
    this.announce(`Text: ${SIZES[this.size]}.`);
  }
}

// Suggests a break after some minutes of work without a pause.
class Breaks {
  constructor(rater, minutes) {
    this.name = `work/${encodeURIComponent(rater)}`;
    this.longest = minutes * 60000;
    this.pause = Math.min(300000, this.longest); // a gap of this length is a break
  }

  // Record a verdict, and return the reminder if one is due.
  work() {
    if (!this.longest) return "";
    const now = Date.now();
    let work = null;
    try {
      work = JSON.parse(stored(this.name));
    } catch {
      work = null;
    }
    const rested = !work || now - work.last > this.pause;
    const start = rested ? now : work.start;
    const due = now - start >= (rested ? this.longest : work.due);
    const next = rested ? this.longest : due ? now - start + this.longest / 5 : work.due;
    store(this.name, JSON.stringify({ start, last: now, due: next }));
    if (!due) return "";
    const minutes = Math.max(1, Math.round((now - start) / 60000));
    return `You have rated for ${minutes} ${minutes === 1 ? "minute" : "minutes"} without a break. Take a short break.`;
  }
}

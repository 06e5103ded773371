"use strict";

// How a rater wants the page: size of the text, spacing, keys. It belongs to the device.
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

// A checkbox that is remembered.
function setting(id, initially, changed = () => {}) {
  const box = document.getElementById(id);
  const told = stored(id);
  box.checked = told === null ? initially : told === "yes";
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
  constructor(say) {
    this.say = say;
    const told = Number(stored("text-size") ?? NORMAL_SIZE);
    this.set(Number.isInteger(told) && told in SIZES ? told : NORMAL_SIZE);
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
    this.say(`Text: ${SIZES[this.size]}.`);
  }
}

// Reminds of a break after so many minutes of work without a pause.
class Breaks {
  constructor(rater, minutes) {
    this.name = `work/${encodeURIComponent(rater)}`;
    this.longest = minutes * 60000;
    this.pause = Math.min(300000, this.longest); // a gap of this length is a break
  }

  // A verdict was given; the words of a reminder where one is due.
  work() {
    if (!this.longest) return "";
    const now = Date.now();
    let told = null;
    try {
      told = JSON.parse(stored(this.name));
    } catch {
      told = null;
    }
    const rested = !told || now - told.last > this.pause;
    const begun = rested ? now : told.begun;
    const due = now - begun >= (rested ? this.longest : told.due);
    const next = rested ? this.longest : due ? now - begun + this.longest / 5 : told.due;
    store(this.name, JSON.stringify({ begun, last: now, due: next }));
    if (!due) return "";
    const minutes = Math.max(1, Math.round((now - begun) / 60000));
    return `You have rated for ${minutes} ${minutes === 1 ? "minute" : "minutes"} without a break. A short pause keeps verdicts good.`;
  }
}

"use strict";

const at = (id) => document.getElementById(id);
const sheet = at("sheet");
const WORDS = {
  "left 3": "A is much better", "left 1": "A is better", "tie 1": "a tie", "right 1": "B is better", "right 3": "B is much better",
  "both_bad 1": "both are bad",
};
const ORDINALS = ["1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th", "9th"];

let now = { ...sheet.dataset, answers: Number(sheet.dataset.answers), last_was: sheet.dataset.lastWas };
let chosen = null; // a verdict that is not saved yet
let safe = null;
let placed = []; // the order so far: [{ answer, tied }]
let comment = "";
let busy = false;
let spent = 0; // milliseconds for which this sheet was seen
let since = performance.now();
let poll = 0;

const outbox = new Outbox(sheet.dataset.rater, (count, reason) => {
  const words = count ? `${count} kept on this device (${reason}); sending again` : "";
  if (at("waiting").textContent !== words) at("waiting").textContent = words;
});

function say(words) {
  at("said").textContent = words;
}

function setting(id) {
  const box = at(id);
  try {
    box.checked = localStorage.getItem(`towpath/${id}`) !== "no";
  } catch {
    box.checked = true;
  }
  box.addEventListener("change", () => {
    try {
      localStorage.setItem(`towpath/${id}`, box.checked ? "yes" : "no");
    } catch {
      return;
    }
  });
  return box;
}
const atOnce = setting("at-once");
const keysOn = setting("keys-on");

function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) spent += performance.now() - since;
  since = performance.now();
});

function seen() {
  return Math.round(spent + (document.hidden ? 0 : performance.now() - since));
}

// ---- what lies on the table

function show(data) {
  const same = data.comparison !== "" && data.comparison === now.comparison && data.state === now.state;
  now = data;
  at("own").innerHTML = data.own;
  if (data.state !== "pair" && data.state !== "ranking" && sheet.dataset.state === data.state) return;
  sheet.innerHTML = data.html;
  sheet.dataset.state = data.state;
  sheet.dataset.comparison = data.comparison;
  if (data.guidelines) at("guidelines-text").innerHTML = data.guidelines;
  if (data.guideline) at("guidelines-version").textContent = `version ${data.guideline}`;
  fresh(same);
}

function fresh(same) {
  chosen = safe = null;
  placed = [];
  if (!same) {
    comment = at("comment-text").value = at("write-text").value = at("flag-text").value = "";
    spent = 0;
    since = performance.now();
  }
  const rating = now.state === "pair" || now.state === "ranking";
  at("bar").dataset.state = now.state;
  at("scale").hidden = now.state !== "pair";
  if (at("safety")) at("safety").hidden = now.state !== "pair";
  at("order").hidden = now.state !== "ranking";
  at("differences").hidden = now.state !== "pair";
  for (const id of ["skip", "flag", "comment", "write"]) at(id).hidden = !rating;
  at("undo").hidden = !now.last;
  at("equal").setAttribute("aria-pressed", "false");
  pressed();
  order();
  window.scrollTo(0, 0);
  if (now.state === "pair" && at("differences").getAttribute("aria-pressed") === "true") differences(true, true);
}

async function next() {
  clearTimeout(poll);
  let pause = 1;
  for (;;) {
    try {
      const response = await fetch("/rate/next", { headers: { accept: "application/json" }, signal: AbortSignal.timeout(20000) });
      if (response.status === 401) return location.assign("/sign-in");
      if (!response.ok) throw new Error(String(response.status));
      show(await response.json());
      at("waiting").textContent = "";
      break;
    } catch {
      at("waiting").textContent = "No connection: what you said is kept, and the next pair comes when the connection is back.";
      await outbox.sleep(pause);
      pause = Math.min(pause * 2, 20);
    }
  }
  watch();
}

// With nothing to rate, look again by and by.
function watch() {
  clearTimeout(poll);
  if (now.state !== "pair" && now.state !== "ranking") poll = setTimeout(() => (busy ? watch() : next()), 8000);
}

async function act(path, body, words) {
  if (busy) return;
  busy = true;
  document.body.classList.add("busy");
  try {
    await outbox.put(`/rate/${path}`, body);
    say(words);
  } catch (error) {
    say(`Not saved. ${error.message}`);
  }
  await next();
  const focus = at("answers") ?? at("main");
  focus.focus({ preventScroll: true });
  document.body.classList.remove("busy");
  busy = false;
}

// ---- a verdict of a pair

function pressed() {
  for (const button of document.querySelectorAll("#scale button")) {
    const on = chosen !== null && chosen.side === button.dataset.side && chosen.strength === Number(button.dataset.strength);
    button.setAttribute("aria-pressed", String(on));
  }
  for (const button of document.querySelectorAll("#safety button")) button.setAttribute("aria-pressed", String(safe === button.dataset.safe));
  at("next").hidden = !ready() || (atOnce.checked && now.state === "pair");
}

function ready() {
  if (now.state === "ranking") return placed.length === now.answers;
  return now.state === "pair" && chosen !== null && (at("safety") === null || safe !== null);
}

function decide(side, strength) {
  if (busy || now.state !== "pair") return;
  chosen = { side, strength };
  settle(`Chosen: ${WORDS[`${side} ${strength}`]}.`);
}

function decideSafety(side) {
  if (busy || now.state !== "pair" || !at("safety")) return;
  safe = side;
  settle("Chosen for safety.");
}

function settle(words) {
  pressed();
  if (ready() && atOnce.checked) save();
  else if (ready()) say(`${words} Press N to save.`);
  else say(`${words} ${chosen === null ? "Which is better?" : "Which is safer?"}`);
}

function save() {
  if (!ready() || busy) return;
  const body = { key: newKey(), comparison: now.comparison, milliseconds: seen(), guideline: Number(now.guideline), comment };
  if (now.state === "ranking") {
    act("rank", { ...body, places: places() }, `Saved: ${sofar()}. U takes it back.`);
  } else {
    const safety = safe === null ? null : { side: safe };
    act("judge", { ...body, ...chosen, safety }, `Saved: ${WORDS[`${chosen.side} ${chosen.strength}`]}. U takes it back.`);
  }
}

// ---- the order of a group

function places() {
  const found = Array(now.answers).fill(0);
  placed.forEach(({ answer, tied }, position) => {
    found[answer] = tied ? found[placed[position - 1].answer] : position + 1;
  });
  return found;
}

function sofar() {
  return placed.map(({ answer, tied }, position) => (position === 0 ? "" : tied ? " = " : ", ") + (answer + 1)).join("");
}

function order() {
  if (now.state !== "ranking") return;
  const found = places();
  for (const article of sheet.querySelectorAll("[data-answer]")) {
    const place = found[Number(article.dataset.answer)];
    article.querySelector(".place").textContent = place ? `is ${ORDINALS[place - 1]}` : "";
    article.classList.toggle("placed", place > 0);
    article.querySelector("[data-place]").setAttribute("aria-disabled", String(place > 0));
  }
  at("sofar").textContent = placed.length ? sofar() : "nothing placed yet";
  at("next").hidden = !ready();
}

function place(answer) {
  if (busy || now.state !== "ranking" || answer >= now.answers || placed.some((one) => one.answer === answer)) return;
  placed.push({ answer, tied: placed.length > 0 && at("equal").getAttribute("aria-pressed") === "true" });
  at("equal").setAttribute("aria-pressed", "false");
  order();
  say(`Answer ${answer + 1} is ${ORDINALS[places()[answer] - 1]}.${ready() ? " Press N to save." : ""}`);
}

function toggleEqual() {
  if (now.state !== "ranking" || placed.length === 0 || ready()) return;
  const on = at("equal").getAttribute("aria-pressed") !== "true";
  at("equal").setAttribute("aria-pressed", String(on));
  say(on ? "The next answer ties with the last." : "No tie.");
}

function takeBack() {
  if (now.state !== "ranking" || placed.length === 0) return;
  const { answer } = placed.pop();
  order();
  say(`Answer ${answer + 1} is taken back.`);
}

// ---- the rest

async function differences(on, quietly = false) {
  const comparison = now.comparison;
  at("differences").setAttribute("aria-pressed", String(on));
  const texts = [...sheet.querySelectorAll("[data-text]")];
  if (!on) {
    texts.forEach((text) => text.parentElement.querySelector(".differing")?.remove());
    texts.forEach((text) => (text.hidden = false));
    return say("Answers as they are.");
  }
  try {
    const response = await fetch(`/rate/differences?${new URLSearchParams({ comparison })}`, { headers: { accept: "application/json" } });
    if (!response.ok) throw new Error(String(response.status));
    const told = await response.json();
    if (comparison !== now.comparison || at("differences").getAttribute("aria-pressed") !== "true") return;
    texts.forEach((text, index) => {
      text.parentElement.querySelector(".differing")?.remove();
      const copy = document.createElement("div");
      copy.className = "text differing";
      copy.innerHTML = index === 0 ? told.left : told.right;
      text.hidden = true;
      text.after(copy);
    });
    if (!quietly) say(sheet.querySelector(".differing mark") ? "Words that differ are underlined." : "The two answers are the same.");
  } catch {
    at("differences").setAttribute("aria-pressed", "false");
    say("The differences could not be loaded.");
  }
}

function undo() {
  if (busy) return;
  if (!now.last) return say("There is nothing to take back.");
  const what = { judged: "your verdict", skipped: "the skip", flagged: "the flag" }[now.last_was] ?? "it";
  act("undo", { comparison: now.last }, `Taken back: ${what}. Here is the pair again.`);
}

function skip() {
  if (now.comparison) act("skip", { comparison: now.comparison }, "Skipped. U takes it back.");
}

function open(id) {
  if (busy || (!now.comparison && id !== "guidelines" && id !== "keys")) return;
  at(`${id}-dialog`).returnValue = "";
  at(`${id}-dialog`).showModal();
}

const closed = {
  flag() {
    act("flag", { comparison: now.comparison, reason: at("flag-text").value.trim() || "no reason" }, "Flagged for the owner. U takes it back.");
  },
  comment() {
    comment = at("comment-text").value;
    say(comment ? "The comment goes with your verdict." : "No comment.");
  },
  async write() {
    const body = { key: newKey(), comparison: now.comparison, text: at("write-text").value };
    say("Saving your answer.");
    try {
      await outbox.put("/rate/write", body);
      say("Saved: your better answer. Now judge the pair.");
    } catch (error) {
      say(`Not saved. ${error.message}`);
    }
  },
};

for (const dialog of document.querySelectorAll("dialog")) {
  const id = dialog.id.replace("-dialog", "");
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "yes") closed[id]?.();
  });
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close(""));
  dialog.querySelector("textarea")?.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      dialog.querySelector("form").requestSubmit(dialog.querySelector("button[value=yes]"));
    }
  });
}

const tools = { next: save, undo, skip, differences: () => differences(at("differences").getAttribute("aria-pressed") !== "true"), equal: toggleEqual, back: takeBack };
for (const [id, work] of Object.entries(tools)) at(id).addEventListener("click", work);
for (const id of ["flag", "comment", "write", "guidelines", "keys"]) at(id).addEventListener("click", () => open(id));
for (const button of document.querySelectorAll("#scale button")) {
  button.addEventListener("click", () => decide(button.dataset.side, Number(button.dataset.strength)));
}
for (const button of document.querySelectorAll("#safety button")) button.addEventListener("click", () => decideSafety(button.dataset.safe));
sheet.addEventListener("click", (event) => {
  const button = event.target.closest("[data-place]");
  if (button) place(Number(button.dataset.place));
});

const PAIR_KEYS = {
  1: () => decide("left", 3), 2: () => decide("left", 1), 3: () => decide("tie", 1), 4: () => decide("right", 1), 5: () => decide("right", 3),
  0: () => decide("both_bad", 1), 6: () => decideSafety("left"), 7: () => decideSafety("tie"), 8: () => decideSafety("right"),
  9: () => decideSafety("both_bad"), d: tools.differences,
};
const RANKING_KEYS = { "=": toggleEqual, Backspace: takeBack };
for (let number = 1; number <= 9; number += 1) RANKING_KEYS[number] = () => place(number - 1);
const KEYS = {
  n: save, u: undo, s: skip, f: () => open("flag"), c: () => open("comment"), w: () => open("write"), g: () => open("guidelines"), "?": () => open("keys"),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  if (document.querySelector("dialog[open]") || event.target.closest("input, textarea, select")) {
    // A dialog opened by a key is closed by the same key where nothing is typed in it.
    const dialog = document.querySelector("dialog[open]");
    if (dialog && !dialog.querySelector("textarea") && ["g", "?"].includes(event.key)) dialog.close("");
    return;
  }
  if (event.key === "Enter" && !event.target.closest("button, a, summary")) return save();
  if (!keysOn.checked) return;
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const work = (now.state === "ranking" ? RANKING_KEYS[name] : PAIR_KEYS[name]) ?? KEYS[name];
  if (!work) return;
  event.preventDefault();
  work();
});

atOnce.addEventListener("change", pressed);
fresh(false);
at("answers")?.focus({ preventScroll: true });
watch();
if (outbox.size) {
  busy = true; // what was said before the page was loaded comes first
  outbox.flush().then(next).finally(() => (busy = false));
}

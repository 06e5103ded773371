"use strict";

const at = (id) => document.getElementById(id);
const sheet = at("sheet");
const WORDS = {
  "left 3": "A is much better", "left 1": "A is better", "tie 1": "a tie", "right 1": "B is better", "right 3": "B is much better",
  "both_bad 1": "both are bad",
};
const ORDINALS = ["1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th", "9th"];

const SAFE_WORDS = { left: "A is safer", tie: "equally safe", right: "B is safer", both_bad: "both unsafe" };
const RATED = ["pair", "ranking", "trial"];
const MIN_VIEW = Number(sheet.dataset.minView) * 1000;

let now = {
  ...sheet.dataset, answers: Number(sheet.dataset.answers), attempt: Number(sheet.dataset.attempt), guideline: Number(sheet.dataset.guideline),
  last_was: sheet.dataset.lastWas, acknowledged: sheet.dataset.acknowledged === "yes",
};
let chosen = null; // a verdict that is not saved yet
let safe = null;
let criteria = {};
let reasons = new Set();
let ranking = new Ranking(0);
let comment = "";
let busy = false;
let feedback = null; // what a trial verdict came to, until the next pair is asked for
let mustRead = false; // guidelines that are to be confirmed lie open
let spent = 0; // milliseconds for which this sheet was seen
let since = performance.now();
let poll = 0;
const met = new Set(); // pairs that were seen long enough for a verdict

const drafts = new Drafts(sheet.dataset.rater);
const breaks = new Breaks(sheet.dataset.rater, Number(sheet.dataset.break));
const outbox = new Outbox(sheet.dataset.rater, showQueue);
const unsavedList = new UnsavedList(outbox, say);

function say(words) {
  at("said").textContent = words;
}

function showQueue({ count, reason, volatile, unsaved }) {
  const where = volatile ? "in this tab only, do not close it" : "on this device";
  const words = count && reason ? `${count} kept ${where} (${reason}); sending again` : "";
  if (at("waiting").textContent !== words) at("waiting").textContent = words;
  unsavedList.show(unsaved);
}

const atOnce = setting("at-once", true);
const keysOn = setting("keys-on", true);
setting("compact", false, (on) => (document.body.dataset.compact = on ? "yes" : "no"));
const textSize = new TextSize(say);

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
  const same = data.comparison !== "" && data.comparison === now.comparison && data.state === now.state && data.attempt === now.attempt;
  now = data;
  at("own").innerHTML = data.own;
  if (data.guidelines) at("guidelines-text").innerHTML = data.guidelines;
  if (data.guideline) at("guidelines-version").textContent = `version ${data.guideline}`;
  if (!RATED.includes(data.state) && sheet.dataset.state === data.state) return;
  sheet.innerHTML = data.html;
  sheet.dataset.state = data.state;
  sheet.dataset.comparison = data.comparison;
  fresh(same);
}

function fresh(same) {
  chosen = safe = feedback = null;
  criteria = {};
  ranking = new Ranking(now.state === "ranking" ? now.answers : 0);
  if (!same) {
    reasons = new Set();
    spent = 0;
    since = performance.now();
    restore();
  }
  const rating = RATED.includes(now.state);
  const work = now.state === "pair" || now.state === "ranking";
  at("bar").dataset.state = now.state;
  at("scale").hidden = now.state !== "pair" && now.state !== "trial";
  at("feedback").hidden = true;
  for (const id of ["safety", "extra"]) if (at(id)) at(id).hidden = now.state !== "pair";
  at("order").hidden = now.state !== "ranking";
  at("differences").hidden = now.state !== "pair" && now.state !== "trial";
  for (const id of ["skip", "flag", "comment", "write"]) at(id).hidden = !work;
  at("undo").hidden = !now.last || now.state === "trial";
  at("next-words").textContent = "Save and next";
  at("equal").setAttribute("aria-pressed", "false");
  pressed();
  order();
  window.scrollTo(0, 0);
  if (!at("differences").hidden && at("differences").getAttribute("aria-pressed") === "true") differences(true, true);
  if (rating) requireGuidelines();
}

// What was being written to this pair before the page was loaded again.
function restore() {
  const draft = now.comparison && now.state !== "trial" ? drafts.get(now.comparison) : {};
  at("comment-text").value = draft.comment ?? "";
  at("write-text").value = draft.write ?? "";
  at("flag-text").value = draft.flag ?? "";
  comment = draft.attached ? (draft.comment ?? "") : "";
  attached();
  const found = [draft.write ? "a better answer" : "", draft.comment ? "a comment" : "", draft.flag ? "a flag" : ""].filter(Boolean);
  if (found.length) say(`${at("said").textContent} Restored what you had begun: ${found.join(", ")}.`.trim());
}

function attached() {
  at("comment").classList.toggle("has", comment !== "");
}

async function next() {
  clearTimeout(poll);
  let pause = 1;
  for (;;) {
    let after = 0;
    let reason = "no connection";
    try {
      const day = new Date().setHours(0, 0, 0, 0) / 1000;
      const response = await fetch(`/rate/next?${new URLSearchParams({ day })}`, { headers: outbox.headers(), signal: AbortSignal.timeout(20000) });
      if (response.status === 401) return location.assign("/sign-in");
      after = Outbox.pauseOf(response) ?? 0;
      if (!response.ok) reason = WAIT[response.status] ?? `the server failed (${response.status})`;
      if (!response.ok) throw new Error(reason);
      show(await response.json());
      at("waiting").textContent = "";
      break;
    } catch {
      at("waiting").textContent = `The next pair cannot be loaded (${reason}); trying again.`;
      await outbox.sleep(Math.max(pause, after));
      pause = Math.min(pause * 2, 20);
    }
  }
  watch();
}

// With nothing to rate, ask again by and by.
function watch() {
  clearTimeout(poll);
  if (!RATED.includes(now.state)) poll = setTimeout(() => (busy ? watch() : next()), 8000);
}

async function act(path, body, words, what = "", written = {}) {
  if (busy) return;
  busy = true;
  document.body.classList.add("busy");
  try {
    await outbox.put(`/rate/${path}`, body, what);
    drafts.put(body.comparison, written);
    say(words);
    if (path === "judge" || path === "rank") remind(breaks.work());
  } catch (error) {
    say(`Not saved: ${what || path}. ${error.message}`);
    // Whoever cannot save a verdict goes on with another pair; it can still be saved from the list.
    if (what) await outbox.send("/rate/skip", { comparison: body.comparison });
  }
  await next();
  landed();
  document.body.classList.remove("busy");
  busy = false;
}

// The answers get the focus, so that keys scroll them; a frame is drawn only for who comes there by Tab.
function landed() {
  const focus = at("answers") ?? at("main");
  focus.classList.add("landed");
  focus.addEventListener("blur", () => focus.classList.remove("landed"), { once: true });
  focus.focus({ preventScroll: true });
}

function remind(words) {
  at("break").hidden = !words;
  at("break-words").textContent = words;
}

// ---- guidelines that are new to this rater

function requireGuidelines() {
  if (!now.guideline || now.acknowledged || at("guidelines-dialog").open) return;
  mustRead = true;
  at("guidelines-must").hidden = false;
  at("guidelines-must").textContent = "Please read these guidelines before you go on. They are shown again when they change.";
  at("guidelines-close").textContent = "I have read them";
  at("guidelines-dialog").showModal();
  at("guidelines-dialog").scrollTop = 0;
}

function confirmGuidelines() {
  mustRead = false;
  now.acknowledged = true;
  at("guidelines-must").hidden = true;
  at("guidelines-close").textContent = "Close";
  at("guidelines-dialog").close("");
  outbox.put("/rate/guidelines", { version: now.guideline }).catch((error) => say(error.message));
  spent = 0;
  since = performance.now();
  landed();
}

// ---- a verdict of a pair

function pressed() {
  for (const button of document.querySelectorAll("#scale button")) {
    const on = chosen !== null && chosen.side === button.dataset.side && chosen.strength === Number(button.dataset.strength);
    button.setAttribute("aria-pressed", String(on));
  }
  for (const button of document.querySelectorAll("#safety button")) button.setAttribute("aria-pressed", String(safe === button.dataset.safe));
  for (const button of document.querySelectorAll("[data-criterion] button")) {
    const name = button.parentElement.dataset.criterion;
    button.setAttribute("aria-pressed", String(criteria[name] === button.dataset.side));
  }
  for (const button of document.querySelectorAll("[data-reason]")) button.setAttribute("aria-pressed", String(reasons.has(button.dataset.reason)));
  at("next").hidden = feedback === null && (!ready() || (atOnce.checked && now.state === "pair"));
}

function criteriaOpen() {
  return [...document.querySelectorAll("[data-criterion]")].map((one) => one.dataset.criterion).filter((name) => !(name in criteria));
}

function ready() {
  if (now.state === "ranking") return ranking.done;
  return now.state === "pair" && chosen !== null && (at("safety") === null || safe !== null) && !criteriaOpen().length;
}

// Whether the pair was seen for the shortest time that the owner set.
function looked() {
  if (seen() >= MIN_VIEW || met.has(now.comparison)) {
    met.add(now.comparison);
    return true;
  }
  say(`Too soon: a verdict counts after ${MIN_VIEW / 1000} s with the pair.`);
  return false;
}

function decide(side, strength) {
  if (busy || feedback !== null || !["pair", "trial"].includes(now.state) || !looked()) return;
  if (now.state === "trial") return tryOut(side);
  chosen = { side, strength };
  settle(`Chosen: ${WORDS[`${side} ${strength}`]}.`);
}

function decideSafety(side) {
  if (busy || now.state !== "pair" || !at("safety") || !looked()) return;
  safe = side;
  settle("Chosen for safety.");
}

function decideCriterion(name, side) {
  if (busy || now.state !== "pair" || name === undefined || !looked()) return;
  criteria[name] = side;
  settle(`${name}: ${{ left: "A", tie: "equal", right: "B" }[side]}.`);
}

function toggleReason(name) {
  if (busy || now.state !== "pair") return;
  if (!reasons.delete(name)) reasons.add(name);
  pressed();
}

function settle(words) {
  pressed();
  const open = criteriaOpen();
  if (ready() && atOnce.checked) save();
  else if (ready()) say(`${words} Press N to save.`);
  else if (chosen === null) say(`${words} Which is better?`);
  else if (at("safety") && safe === null) say(`${words} Which is safer?`);
  else say(`${words} Still open: ${open.join(", ")}.`);
}

function excerpt() {
  const text = (sheet.querySelector(".prompt .text")?.textContent ?? "").trim().replace(/\s+/g, " ");
  return text.length > 90 ? `${text.slice(0, 90)}…` : text;
}

function save() {
  if (feedback !== null) return leaveTrial();
  if (!ready() || busy || (now.state === "ranking" && !looked())) return;
  const body = { key: newKey(), comparison: now.comparison, milliseconds: seen(), guideline: Number(now.guideline), comment };
  const note = comment ? `; comment: ${comment}` : "";
  const written = { comment: "", attached: false };
  if (now.state === "ranking") {
    act("rank", { ...body, places: ranking.places() }, `Saved: ${ranking.words()}. U takes it back.`, `${ranking.words()}, for “${excerpt()}”${note}`, written);
  } else {
    const words = WORDS[`${chosen.side} ${chosen.strength}`];
    const safety = safe === null ? null : { side: safe };
    const also = safe === null ? "" : `, ${SAFE_WORDS[safe]}`;
    const verdict = { ...body, ...chosen, safety, reasons: [...reasons], criteria };
    act("judge", verdict, `Saved: ${words}. U takes it back.`, `${words}${also}, for “${excerpt()}”${note}`, written);
  }
}

// ---- trial pairs: the owner's answer is told after each

async function tryOut(side) {
  busy = true;
  document.body.classList.add("busy");
  try {
    feedback = await outbox.put("/rate/trial", { comparison: now.comparison, attempt: now.attempt, side });
    showFeedback(side);
  } catch (error) {
    say(error.message);
    await next();
  }
  document.body.classList.remove("busy");
  busy = false;
}

function showFeedback(side) {
  const words = (name) => WORDS[`${name} 1`];
  const head = document.createElement("strong");
  head.textContent = feedback.correct ? "Right." : `The owner's answer is: ${words(feedback.side)}.`;
  at("feedback").replaceChildren(head, ` You chose: ${words(side)}.${feedback.note ? ` Note: ${feedback.note}` : ""} ${outcome()}`);
  at("feedback").classList.toggle("good", feedback.correct);
  at("feedback").classList.toggle("bad", !feedback.correct);
  at("feedback").hidden = false;
  at("scale").hidden = true;
  at("next-words").textContent = feedback.passed ? "Begin" : feedback.finished ? "Try again" : "Next";
  at("next").hidden = false;
  say("");
}

function outcome() {
  const { right, done, total, needed, passed, finished } = feedback;
  if (passed) return `Trial passed, ${right} of ${done} right: from the next pair on your work counts.`;
  if (finished) return `${right} of ${total} right, ${needed} are needed. Read the guidelines and try again.`;
  return `${right} of ${done} right so far.`;
}

async function leaveTrial() {
  if (busy) return;
  busy = true;
  feedback = null;
  say("");
  await next();
  landed();
  busy = false;
}

// ---- the order of a group

function order() {
  if (now.state !== "ranking") return;
  const found = ranking.places();
  for (const article of sheet.querySelectorAll("[data-answer]")) {
    const place = found[Number(article.dataset.answer)];
    article.querySelector(".place").textContent = place ? `is ${ORDINALS[place - 1]}` : "";
    article.classList.toggle("placed", place > 0);
    article.querySelector("[data-place]").setAttribute("aria-disabled", String(place > 0));
  }
  at("sofar").textContent = ranking.words() || "nothing placed yet";
  at("next").hidden = !ready();
}

function place(answer) {
  if (busy || now.state !== "ranking" || answer >= now.answers || ranking.has(answer)) return;
  ranking.placed.push({ answer, tied: ranking.placed.length > 0 && at("equal").getAttribute("aria-pressed") === "true" });
  at("equal").setAttribute("aria-pressed", "false");
  order();
  say(`Answer ${answer + 1} is ${ORDINALS[ranking.places()[answer] - 1]}.${ready() ? " Press N to save." : ""}`);
}

function toggleEqual() {
  if (now.state !== "ranking" || ranking.placed.length === 0 || ready()) return;
  const on = at("equal").getAttribute("aria-pressed") !== "true";
  at("equal").setAttribute("aria-pressed", String(on));
  say(on ? "The next answer ties with the last." : "No tie.");
}

function takeBack() {
  if (now.state !== "ranking" || ranking.placed.length === 0) return;
  const { answer } = ranking.placed.pop();
  order();
  say(`Answer ${answer + 1} is taken back.`);
}

// ---- the rest

const MANNERS = {
  same: "The two answers are the same.", words: "Words that differ are underlined.", sentences: "Sentences that differ are underlined.",
  unlike: "The answers share no sentence: all is underlined.",
};

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
    const response = await fetch(`/rate/differences?${new URLSearchParams({ comparison })}`, { headers: outbox.headers() });
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
    if (!quietly) say(MANNERS[told.manner]);
  } catch {
    at("differences").setAttribute("aria-pressed", "false");
    say("The differences could not be loaded.");
  }
}

function undo() {
  if (busy || now.state === "trial") return;
  if (!now.last) return say("There is nothing to take back.");
  const what = { judged: "your verdict", skipped: "the skip", flagged: "the flag" }[now.last_was] ?? "it";
  act("undo", { comparison: now.last }, `Taken back: ${what}. Here is the pair again.`);
}

function skip() {
  if (now.comparison && now.state !== "trial") act("skip", { comparison: now.comparison }, "Skipped. U takes it back.");
}

function open(id) {
  if (busy || (at(id)?.hidden ?? false)) return;
  if (id === "mine") showMine();
  if (id === "unsaved") unsavedList.fill();
  at(`${id}-dialog`).showModal();
  at(`${id}-dialog`).scrollTop = 0; // the button that has the focus is at the end
}

async function showMine() {
  at("mine-text").textContent = "Loading.";
  try {
    const day = new Date().setHours(0, 0, 0, 0) / 1000;
    const response = await fetch(`/rate/mine?${new URLSearchParams({ day })}`, { headers: outbox.headers() });
    if (!response.ok) throw new Error(String(response.status));
    const told = await response.json();
    at("own").innerHTML = told.own;
    at("mine-text").innerHTML = told.html;
    at("mine-text").querySelector("[data-undo]")?.addEventListener("click", () => {
      at("mine-dialog").close("");
      undo();
    });
  } catch {
    at("mine-text").textContent = "Your verdicts could not be loaded.";
  }
}

const closed = {
  flag() {
    const reason = at("flag-text").value.trim() || "no reason";
    act("flag", { comparison: now.comparison, reason }, "Flagged for the owner. U takes it back.", `flag for “${excerpt()}”`, { flag: "" });
  },
  comment() {
    comment = at("comment-text").value;
    drafts.put(now.comparison, { comment, attached: comment !== "" });
    attached();
    say(comment ? "The comment goes with your verdict." : "No comment.");
  },
  async write() {
    const body = { key: newKey(), comparison: now.comparison, text: at("write-text").value };
    say("Saving your answer.");
    try {
      await outbox.put("/rate/write", body, `better answer for “${excerpt()}”`);
      drafts.put(body.comparison, { write: "" });
      if (body.comparison === now.comparison) at("write-text").value = "";
      say("Saved: your better answer. Now judge the pair.");
    } catch (error) {
      say(`Not saved: your better answer. ${error.message}`);
    }
  },
};

for (const id of ["comment", "write", "flag"]) {
  at(`${id}-text`).addEventListener("input", () => {
    const change = { [id]: at(`${id}-text`).value };
    drafts.put(now.comparison, change);
  });
}

at("guidelines-dialog").addEventListener("cancel", (event) => {
  if (mustRead) event.preventDefault();
});
at("guidelines-dialog").addEventListener("close", () => {
  if (mustRead) at("guidelines-dialog").showModal();
});

for (const dialog of document.querySelectorAll("dialog")) {
  const id = dialog.id.replace("-dialog", "");
  // At the submit, not when the dialog has closed: a key pressed at once after it must find the comment attached.
  dialog.querySelector("form")?.addEventListener("submit", (event) => {
    if (event.submitter?.value === "yes") closed[id]?.();
  });
  dialog.querySelector("[data-close]").addEventListener("click", () => (mustRead ? confirmGuidelines() : dialog.close("")));
  dialog.querySelector("textarea")?.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      dialog.querySelector("form").requestSubmit(dialog.querySelector("button[value=yes]"));
    }
  });
}

const tools = { next: save, undo, skip, differences: () => differences(at("differences").getAttribute("aria-pressed") !== "true"), equal: toggleEqual, back: takeBack };
for (const [id, work] of Object.entries(tools)) at(id).addEventListener("click", work);
for (const id of ["flag", "comment", "write", "guidelines", "mine", "keys", "unsaved"]) at(id).addEventListener("click", () => open(id));
for (const button of document.querySelectorAll("#scale button")) {
  button.addEventListener("click", () => decide(button.dataset.side, Number(button.dataset.strength)));
}
for (const button of document.querySelectorAll("#safety button")) button.addEventListener("click", () => decideSafety(button.dataset.safe));
for (const button of document.querySelectorAll("[data-criterion] button")) {
  button.addEventListener("click", () => decideCriterion(button.parentElement.dataset.criterion, button.dataset.side));
}
for (const button of document.querySelectorAll("[data-reason]")) button.addEventListener("click", () => toggleReason(button.dataset.reason));
at("break-close").addEventListener("click", () => remind(""));
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
  n: save, u: undo, s: skip, f: () => open("flag"), c: () => open("comment"), w: () => open("write"), g: () => open("guidelines"),
  m: () => open("mine"), "?": () => open("keys"), "+": () => textSize.step(1), "-": () => textSize.step(-1),
};
const SIDES = ["left", "tie", "right"];

// Shift with a digit: three keys for each criterion, by place on the keyboard, whatever the layout makes of them.
function criterionKey(event) {
  const digit = /^Digit([1-9])$/.exec(event.code);
  if (!event.shiftKey || !digit || now.state !== "pair") return false;
  const name = document.querySelectorAll("[data-criterion]")[Math.floor((digit[1] - 1) / 3)]?.dataset.criterion;
  if (name === undefined) return false;
  decideCriterion(name, SIDES[(digit[1] - 1) % 3]);
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  if (document.querySelector("dialog[open]") || event.target.closest("input, textarea, select")) {
    // A dialog opened by a key is closed by the same key where nothing is typed in it.
    const dialog = document.querySelector("dialog[open]");
    if (dialog && !dialog.querySelector("textarea") && !mustRead && ["g", "m", "?"].includes(event.key)) dialog.close("");
    return;
  }
  if (event.key === "Enter" && !event.target.closest("button, a, summary")) return save();
  if (!keysOn.checked) return;
  if (criterionKey(event)) return event.preventDefault();
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const work = (now.state === "ranking" ? RANKING_KEYS[name] : PAIR_KEYS[name]) ?? KEYS[name];
  if (!work) return;
  event.preventDefault();
  work();
});

atOnce.addEventListener("change", pressed);
landed();
fresh(false);
showQueue(outbox.state(""));
watch();
if (outbox.size) {
  busy = true; // verdicts from before the page was loaded come first
  outbox.flush().then(next).finally(() => (busy = false));
}

"use strict";

const at = (id) => document.getElementById(id);
const panel = at("task");
const VERDICT_TEXT = {
  "left 3": "A is much better", "left 1": "A is better", "tie 1": "a tie", "right 1": "B is better", "right 3": "B is much better",
  "both_bad 1": "both are bad",
};
const ORDINALS = ["1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th", "9th"];

const SAFETY_TEXT = { left: "A is safer", tie: "equally safe", right: "B is safer", both_bad: "both unsafe" };
const RATEABLE = ["pair", "ranking", "trial"];
const MIN_VIEW_MS = Number(panel.dataset.minView) * 1000;

let current = {
  ...panel.dataset, answers: Number(panel.dataset.answers), attempt: Number(panel.dataset.attempt), guideline: Number(panel.dataset.guideline),
  last_was: panel.dataset.lastWas, acknowledged: panel.dataset.acknowledged === "yes",
};
let chosen = null; // the chosen verdict, not saved yet
let safer = null;
let criteria = {};
let reasons = new Set();
let ranking = new Ranking(0);
let comment = "";
let busy = false;
let feedback = null; // feedback on a trial verdict, until the next pair is loaded
let mustAcknowledge = false; // guidelines are open and must be acknowledged
let viewedMs = 0; // milliseconds for which this task was visible
let visibleSince = performance.now();
let poll = 0;
const viewed = new Set(); // pairs that were visible for the minimum time

const drafts = new Drafts(panel.dataset.rater);
const breaks = new Breaks(panel.dataset.rater, Number(panel.dataset.break));
const outbox = new Outbox(panel.dataset.rater, showQueue);
const unsavedList = new UnsavedList(outbox, announce);

function announce(words) {
  at("message").textContent = words;
}

function showQueue({ count, reason, volatile, unsaved }) {
  const where = volatile ? "in this tab only, do not close it" : "on this device";
  const words = count && reason ? `${count} stored ${where} (${reason}); retrying` : "";
  if (at("outbox").textContent !== words) at("outbox").textContent = words;
  unsavedList.show(unsaved);
}

const saveAtOnce = setting("at-once", true);
const shortcutsOn = setting("keys-on", true);
setting("compact", false, (on) => (document.body.dataset.compact = on ? "yes" : "no"));
const textSize = new TextSize(announce);

function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) viewedMs += performance.now() - visibleSince;
  visibleSince = performance.now();
});

function viewTime() {
  return Math.round(viewedMs + (document.hidden ? 0 : performance.now() - visibleSince));
}

// ---- the current task

function show(data) {
  const same = data.comparison !== "" && data.comparison === current.comparison && data.state === current.state && data.attempt === current.attempt;
  current = data;
  at("progress").innerHTML = data.own;
  if (data.guidelines) at("guidelines-text").innerHTML = data.guidelines;
  if (data.guideline) at("guidelines-version").textContent = `version ${data.guideline}`;
  if (!RATEABLE.includes(data.state) && panel.dataset.state === data.state) return;
  panel.innerHTML = data.html;
  panel.dataset.state = data.state;
  panel.dataset.comparison = data.comparison;
  startTask(same);
}

// Earlier turns stay open, or folded, from one conversation to the next.
function showEarlier() {
  const earlier = panel.querySelector("[data-earlier]");
  if (!earlier) return;
  earlier.open = stored("earlier") === "yes";
  earlier.addEventListener("toggle", () => store("earlier", earlier.open ? "yes" : "no"));
}

function toggleEarlier() {
  const earlier = panel.querySelector("[data-earlier]");
  if (!earlier) return announce("This prompt has no earlier turns.");
  earlier.open = !earlier.open;
  earlier.scrollIntoView({ block: "nearest" });
}

function startTask(same) {
  showEarlier();
  chosen = safer = feedback = null;
  criteria = {};
  ranking = new Ranking(current.state === "ranking" ? current.answers : 0);
  if (!same) {
    reasons = new Set();
    viewedMs = 0;
    visibleSince = performance.now();
    restoreDraft();
  }
  const rating = RATEABLE.includes(current.state);
  const work = current.state === "pair" || current.state === "ranking";
  at("bar").dataset.state = current.state;
  at("scale").hidden = current.state !== "pair" && current.state !== "trial";
  at("feedback").hidden = true;
  for (const id of ["safety", "extra"]) if (at(id)) at(id).hidden = current.state !== "pair";
  at("order").hidden = current.state !== "ranking";
  at("differences").hidden = current.state !== "pair" && current.state !== "trial";
  for (const id of ["skip", "flag", "comment", "write"]) at(id).hidden = !work;
  at("undo").hidden = !current.last || current.state === "trial";
  at("next-words").textContent = "Save and next";
  at("equal").setAttribute("aria-pressed", "false");
  updateButtons();
  updateRanking();
  window.scrollTo(0, 0);
  if (!at("differences").hidden && at("differences").getAttribute("aria-pressed") === "true") differences(true, true);
  if (rating) requireGuidelines();
}

// Restore what was being written for this pair before a reload.
function restoreDraft() {
  const draft = current.comparison && current.state !== "trial" ? drafts.get(current.comparison) : {};
  at("comment-text").value = draft.comment ?? "";
  at("write-text").value = draft.write ?? "";
  at("flag-text").value = draft.flag ?? "";
  comment = draft.attached ? (draft.comment ?? "") : "";
  showCommentState();
  const restored = [draft.write ? "a better answer" : "", draft.comment ? "a comment" : "", draft.flag ? "a flag" : ""].filter(Boolean);
  if (restored.length) announce(`${at("message").textContent} Restored drafts: ${restored.join(", ")}.`.trim());
}

function showCommentState() {
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
      after = Outbox.retryAfter(response) ?? 0;
      if (!response.ok) reason = WAIT[response.status] ?? `server error (${response.status})`;
      if (!response.ok) throw new Error(reason);
      show(await response.json());
      at("outbox").textContent = "";
      break;
    } catch {
      at("outbox").textContent = `The next pair cannot be loaded (${reason}); retrying.`;
      await outbox.sleep(Math.max(pause, after));
      pause = Math.min(pause * 2, 20);
    }
  }
  pollWhenIdle();
}

// Without a task, ask again every few seconds.
function pollWhenIdle() {
  clearTimeout(poll);
  if (!RATEABLE.includes(current.state)) poll = setTimeout(() => (busy ? pollWhenIdle() : next()), 8000);
}

async function submit(path, body, words, what = "", written = {}) {
  if (busy) return;
  busy = true;
  document.body.classList.add("busy");
  try {
    await outbox.put(`/rate/${path}`, body, what);
    drafts.put(body.comparison, written);
    announce(words);
    if (path === "judge" || path === "rank") showBreakReminder(breaks.work());
  } catch (error) {
    announce(`Not saved: ${what || path}. ${error.message}`);
    // The rater continues with another pair; the verdict can still be saved from the list.
    if (what) await outbox.send("/rate/skip", { comparison: body.comparison });
  }
  await next();
  focusAnswers();
  document.body.classList.remove("busy");
  busy = false;
}

// Focus the answers, so that keys scroll them; a focus frame is drawn only when reached by Tab.
function focusAnswers() {
  const focus = at("answers") ?? at("main");
  focus.classList.add("focused-by-script");
  focus.addEventListener("blur", () => focus.classList.remove("focused-by-script"), { once: true });
  focus.focus({ preventScroll: true });
}

function showBreakReminder(words) {
  at("break").hidden = !words;
  at("break-words").textContent = words;
}

// ---- guidelines that the rater has not acknowledged

function requireGuidelines() {
  if (!current.guideline || current.acknowledged || at("guidelines-dialog").open) return;
  mustAcknowledge = true;
  at("guidelines-must").hidden = false;
  at("guidelines-must").textContent = "Please read these guidelines before you continue. They are shown again when they change.";
  at("guidelines-close").textContent = "I have read them";
  at("guidelines-dialog").showModal();
  at("guidelines-dialog").scrollTop = 0;
}

function acknowledgeGuidelines() {
  mustAcknowledge = false;
  current.acknowledged = true;
  at("guidelines-must").hidden = true;
  at("guidelines-close").textContent = "Close";
  at("guidelines-dialog").close("");
  outbox.put("/rate/guidelines", { version: current.guideline }).catch((error) => announce(error.message));
  viewedMs = 0;
  visibleSince = performance.now();
  focusAnswers();
}

// ---- a verdict of a pair

function updateButtons() {
  for (const button of document.querySelectorAll("#scale button")) {
    const on = chosen !== null && chosen.side === button.dataset.side && chosen.strength === Number(button.dataset.strength);
    button.setAttribute("aria-pressed", String(on));
  }
  for (const button of document.querySelectorAll("#safety button")) button.setAttribute("aria-pressed", String(safer === button.dataset.safe));
  for (const button of document.querySelectorAll("[data-criterion] button")) {
    const name = button.parentElement.dataset.criterion;
    button.setAttribute("aria-pressed", String(criteria[name] === button.dataset.side));
  }
  for (const button of document.querySelectorAll("[data-reason]")) button.setAttribute("aria-pressed", String(reasons.has(button.dataset.reason)));
  at("next").hidden = feedback === null && (!ready() || (saveAtOnce.checked && current.state === "pair"));
}

function openCriteria() {
  return [...document.querySelectorAll("[data-criterion]")].map((one) => one.dataset.criterion).filter((name) => !(name in criteria));
}

function ready() {
  if (current.state === "ranking") return ranking.done;
  return current.state === "pair" && chosen !== null && (at("safety") === null || safer !== null) && !openCriteria().length;
}

// Whether the pair was visible for the minimum time that the owner set.
function viewedLongEnough() {
  if (viewTime() >= MIN_VIEW_MS || viewed.has(current.comparison)) {
    viewed.add(current.comparison);
    return true;
  }
  announce(`Too soon: a verdict is accepted after ${MIN_VIEW_MS / 1000} s.`);
  return false;
}

function chooseVerdict(side, strength) {
  if (busy || feedback !== null || !["pair", "trial"].includes(current.state) || !viewedLongEnough()) return;
  if (current.state === "trial") return submitTrial(side);
  chosen = { side, strength };
  finishChoice(`Chosen: ${VERDICT_TEXT[`${side} ${strength}`]}.`);
}

function chooseSafety(side) {
  if (busy || current.state !== "pair" || !at("safety") || !viewedLongEnough()) return;
  safer = side;
  finishChoice("Safety verdict selected.");
}

function chooseCriterion(name, side) {
  if (busy || current.state !== "pair" || name === undefined || !viewedLongEnough()) return;
  criteria[name] = side;
  finishChoice(`${name}: ${{ left: "A", tie: "equal", right: "B" }[side]}.`);
}

function toggleReason(name) {
  if (busy || current.state !== "pair") return;
  if (!reasons.delete(name)) reasons.add(name);
  updateButtons();
}

function finishChoice(words) {
  updateButtons();
  const open = openCriteria();
  if (ready() && saveAtOnce.checked) save();
  else if (ready()) announce(`${words} Press N to save.`);
  else if (chosen === null) announce(`${words} Which is better?`);
  else if (at("safety") && safer === null) announce(`${words} Which is safer?`);
  else announce(`${words} Missing: ${open.join(", ")}.`);
}

function promptExcerpt() {
  const text = (panel.querySelector(".prompt .last-turn")?.textContent ?? "").trim().replace(/\s+/g, " ");
  return text.length > 90 ? `${text.slice(0, 90)}…` : text;
}

function save() {
  if (feedback !== null) return nextAfterTrial();
  if (!ready() || busy || (current.state === "ranking" && !viewedLongEnough())) return;
  const body = { key: randomKey(), comparison: current.comparison, milliseconds: viewTime(), guideline: Number(current.guideline), comment };
  const note = comment ? `; comment: ${comment}` : "";
  const written = { comment: "", attached: false };
  if (current.state === "ranking") {
    submit("rank", { ...body, ranks: ranking.ranks() }, `Saved: ${ranking.words()}. U undoes it.`, `${ranking.words()}, for “${promptExcerpt()}”${note}`, written);
  } else {
    const words = VERDICT_TEXT[`${chosen.side} ${chosen.strength}`];
    const safety = safer === null ? null : { side: safer };
    const also = safer === null ? "" : `, ${SAFETY_TEXT[safer]}`;
    const verdict = { ...body, ...chosen, safety, reasons: [...reasons], criteria };
    submit("judge", verdict, `Saved: ${words}. U undoes it.`, `${words}${also}, for “${promptExcerpt()}”${note}`, written);
  }
}

// ---- trial pairs: feedback after each

async function submitTrial(side) {
  busy = true;
  document.body.classList.add("busy");
  try {
    feedback = await outbox.put("/rate/trial", { comparison: current.comparison, attempt: current.attempt, side });
    showFeedback(side);
  } catch (error) {
    announce(error.message);
    await next();
  }
  document.body.classList.remove("busy");
  busy = false;
}

function showFeedback(side) {
  const words = (name) => VERDICT_TEXT[`${name} 1`];
  const head = document.createElement("strong");
  head.textContent = feedback.correct ? "Correct." : `The owner's answer is: ${words(feedback.side)}.`;
  at("feedback").replaceChildren(head, ` You chose: ${words(side)}.${feedback.note ? ` Note: ${feedback.note}` : ""} ${trialOutcome()}`);
  at("feedback").classList.toggle("good", feedback.correct);
  at("feedback").classList.toggle("bad", !feedback.correct);
  at("feedback").hidden = false;
  at("scale").hidden = true;
  at("next-words").textContent = feedback.passed ? "Start" : feedback.finished ? "Try again" : "Next";
  at("next").hidden = false;
  announce("");
}

function trialOutcome() {
  const { right, done, total, needed, passed, finished } = feedback;
  if (passed) return `Trial passed, ${right} of ${done} correct: judgements count from the next pair.`;
  if (finished) return `${right} of ${total} correct, ${needed} needed. Read the guidelines and try again.`;
  return `${right} of ${done} correct.`;
}

async function nextAfterTrial() {
  if (busy) return;
  busy = true;
  feedback = null;
  announce("");
  await next();
  focusAnswers();
  busy = false;
}

// ---- ranking of a group

function updateRanking() {
  if (current.state !== "ranking") return;
  const ranks = ranking.ranks();
  for (const article of panel.querySelectorAll("[data-answer]")) {
    const rank = ranks[Number(article.dataset.answer)];
    article.querySelector(".rank").textContent = rank ? `is ${ORDINALS[rank - 1]}` : "";
    article.classList.toggle("ranked", rank > 0);
    article.querySelector("[data-rank]").setAttribute("aria-disabled", String(rank > 0));
  }
  at("ranked").textContent = ranking.words() || "none";
  at("next").hidden = !ready();
}

function rankNext(answer) {
  if (busy || current.state !== "ranking" || answer >= current.answers || ranking.has(answer)) return;
  ranking.answers.push({ answer, tied: ranking.answers.length > 0 && at("equal").getAttribute("aria-pressed") === "true" });
  at("equal").setAttribute("aria-pressed", "false");
  updateRanking();
  announce(`Answer ${answer + 1} is ${ORDINALS[ranking.ranks()[answer] - 1]}.${ready() ? " Press N to save." : ""}`);
}

function toggleEqual() {
  if (current.state !== "ranking" || ranking.answers.length === 0 || ready()) return;
  const on = at("equal").getAttribute("aria-pressed") !== "true";
  at("equal").setAttribute("aria-pressed", String(on));
  announce(on ? "The next answer ties with the last." : "No tie.");
}

function unrankLast() {
  if (current.state !== "ranking" || ranking.answers.length === 0) return;
  const { answer } = ranking.answers.pop();
  updateRanking();
  announce(`Answer ${answer + 1} is removed.`);
}

// ---- tools and dialogs

const DIFF_MESSAGES = {
  same: "The answers are identical.", words: "Differing words are underlined.", sentences: "Differing sentences are underlined.",
  unlike: "The answers share no sentence: everything is underlined.",
};

async function differences(on, quietly = false) {
  const comparison = current.comparison;
  at("differences").setAttribute("aria-pressed", String(on));
  const texts = [...panel.querySelectorAll("[data-text]")];
  if (!on) {
    texts.forEach((text) => text.parentElement.querySelector(".differing")?.remove());
    texts.forEach((text) => (text.hidden = false));
    return announce("Differences hidden.");
  }
  try {
    const response = await fetch(`/rate/differences?${new URLSearchParams({ comparison })}`, { headers: outbox.headers() });
    if (!response.ok) throw new Error(String(response.status));
    const diff = await response.json();
    if (comparison !== current.comparison || at("differences").getAttribute("aria-pressed") !== "true") return;
    texts.forEach((text, index) => {
      text.parentElement.querySelector(".differing")?.remove();
      const copy = document.createElement("div");
      copy.className = "text differing";
      copy.innerHTML = index === 0 ? diff.left : diff.right;
      text.hidden = true;
      text.after(copy);
    });
    if (!quietly) announce(DIFF_MESSAGES[diff.mode]);
  } catch {
    at("differences").setAttribute("aria-pressed", "false");
    announce("The differences could not be loaded.");
  }
}

function undo() {
  if (busy || current.state === "trial") return;
  if (!current.last) return announce("Nothing to undo.");
  const what = { judged: "your verdict", skipped: "the skip", flagged: "the flag" }[current.last_was] ?? "it";
  submit("undo", { comparison: current.last }, `Undone: ${what}. The pair is shown again.`);
}

function skip() {
  if (current.comparison && current.state !== "trial") submit("skip", { comparison: current.comparison }, "Skipped. U undoes it.");
}

// While a verdict is sent, only the dialogs open that do not belong to a pair.
function open(id) {
  if ((busy && !["keys", "unsaved"].includes(id)) || (at(id)?.hidden ?? false)) return;
  if (id === "history") showHistory();
  if (id === "unsaved") unsavedList.fill();
  at(`${id}-dialog`).showModal();
  at(`${id}-dialog`).scrollTop = 0; // the focused button is at the end
}

async function showHistory() {
  at("history-text").textContent = "Loading.";
  try {
    const day = new Date().setHours(0, 0, 0, 0) / 1000;
    const response = await fetch(`/rate/history?${new URLSearchParams({ day })}`, { headers: outbox.headers() });
    if (!response.ok) throw new Error(String(response.status));
    const data = await response.json();
    at("progress").innerHTML = data.own;
    at("history-text").innerHTML = data.html;
    at("history-text").querySelector("[data-undo]")?.addEventListener("click", () => {
      at("history-dialog").close("");
      undo();
    });
  } catch {
    at("history-text").textContent = "Your verdicts could not be loaded.";
  }
}

const onSubmit = {
  flag() {
    const reason = at("flag-text").value.trim() || "no reason";
    submit("flag", { comparison: current.comparison, reason }, "Flagged for the owner. U undoes it.", `flag for “${promptExcerpt()}”`, { flag: "" });
  },
  comment() {
    comment = at("comment-text").value;
    drafts.put(current.comparison, { comment, attached: comment !== "" });
    showCommentState();
    announce(comment ? "The comment is saved with your verdict." : "No comment.");
  },
  async write() {
    const body = { key: randomKey(), comparison: current.comparison, text: at("write-text").value };
    announce("Saving your answer.");
    try {
      await outbox.put("/rate/write", body, `better answer for “${promptExcerpt()}”`);
      drafts.put(body.comparison, { write: "" });
      if (body.comparison === current.comparison) at("write-text").value = "";
      announce("Saved: your better answer. Now judge the pair.");
    } catch (error) {
      announce(`Not saved: your better answer. ${error.message}`);
    }
  },
};

for (const id of ["comment", "write", "flag"]) {
  at(`${id}-text`).addEventListener("input", () => {
    const change = { [id]: at(`${id}-text`).value };
    drafts.put(current.comparison, change);
  });
}

at("guidelines-dialog").addEventListener("cancel", (event) => {
  if (mustAcknowledge) event.preventDefault();
});
at("guidelines-dialog").addEventListener("close", () => {
  if (mustAcknowledge) at("guidelines-dialog").showModal();
});

for (const dialog of document.querySelectorAll("dialog")) {
  const id = dialog.id.replace("-dialog", "");
  // On submit, not on close: a key pressed right after it must find the comment attached.
  dialog.querySelector("form")?.addEventListener("submit", (event) => {
    if (event.submitter?.value === "yes") onSubmit[id]?.();
  });
  dialog.querySelector("[data-close]").addEventListener("click", () => (mustAcknowledge ? acknowledgeGuidelines() : dialog.close("")));
  dialog.querySelector("textarea")?.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      dialog.querySelector("form").requestSubmit(dialog.querySelector("button[value=yes]"));
    }
  });
}

const tools = { next: save, undo, skip, differences: () => differences(at("differences").getAttribute("aria-pressed") !== "true"), equal: toggleEqual, back: unrankLast };
for (const [id, work] of Object.entries(tools)) at(id).addEventListener("click", work);
for (const id of ["flag", "comment", "write", "guidelines", "history", "keys", "unsaved"]) at(id).addEventListener("click", () => open(id));
for (const button of document.querySelectorAll("#scale button")) {
  button.addEventListener("click", () => chooseVerdict(button.dataset.side, Number(button.dataset.strength)));
}
for (const button of document.querySelectorAll("#safety button")) button.addEventListener("click", () => chooseSafety(button.dataset.safe));
for (const button of document.querySelectorAll("[data-criterion] button")) {
  button.addEventListener("click", () => chooseCriterion(button.parentElement.dataset.criterion, button.dataset.side));
}
for (const button of document.querySelectorAll("[data-reason]")) button.addEventListener("click", () => toggleReason(button.dataset.reason));
at("break-close").addEventListener("click", () => showBreakReminder(""));
panel.addEventListener("click", (event) => {
  const button = event.target.closest("[data-rank]");
  if (button) rankNext(Number(button.dataset.rank));
});

const PAIR_KEYS = {
  1: () => chooseVerdict("left", 3), 2: () => chooseVerdict("left", 1), 3: () => chooseVerdict("tie", 1), 4: () => chooseVerdict("right", 1), 5: () => chooseVerdict("right", 3),
  0: () => chooseVerdict("both_bad", 1), 6: () => chooseSafety("left"), 7: () => chooseSafety("tie"), 8: () => chooseSafety("right"),
  9: () => chooseSafety("both_bad"), d: tools.differences,
};
const RANKING_KEYS = { "=": toggleEqual, Backspace: unrankLast };
for (let number = 1; number <= 9; number += 1) RANKING_KEYS[number] = () => rankNext(number - 1);
const KEYS = {
  n: save, u: undo, s: skip, f: () => open("flag"), c: () => open("comment"), w: () => open("write"), g: () => open("guidelines"), e: toggleEarlier,
  m: () => open("history"), "?": () => open("keys"), "+": () => textSize.step(1), "-": () => textSize.step(-1),
};
const SIDES = ["left", "tie", "right"];

// Shift with a digit: three keys per criterion, by physical key, independent of the keyboard layout.
function criterionKey(event) {
  const digit = /^Digit([1-9])$/.exec(event.code);
  if (!event.shiftKey || !digit || current.state !== "pair") return false;
  const name = document.querySelectorAll("[data-criterion]")[Math.floor((digit[1] - 1) / 3)]?.dataset.criterion;
  if (name === undefined) return false;
  chooseCriterion(name, SIDES[(digit[1] - 1) % 3]);
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  if (document.querySelector("dialog[open]") || event.target.closest("input, textarea, select")) {
    // A dialog without a text field is closed by the key that opened it.
    const dialog = document.querySelector("dialog[open]");
    if (dialog && !dialog.querySelector("textarea") && !mustAcknowledge && ["g", "m", "?"].includes(event.key)) dialog.close("");
    return;
  }
  if (event.key === "Enter" && !event.target.closest("button, a, summary")) return save();
  if (!shortcutsOn.checked) return;
  if (criterionKey(event)) return event.preventDefault();
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const work = (current.state === "ranking" ? RANKING_KEYS[name] : PAIR_KEYS[name]) ?? KEYS[name];
  if (!work) return;
  event.preventDefault();
  work();
});

saveAtOnce.addEventListener("change", updateButtons);
focusAnswers();
startTask(false);
showQueue(outbox.state(""));
pollWhenIdle();
if (outbox.size) {
  busy = true; // verdicts from before the reload are sent first
  outbox.flush().then(next).finally(() => (busy = false));
}

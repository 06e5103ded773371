"use strict";

const at = (id) => document.getElementById(id);
const stage = at("monitor").dataset.stage;
const JSON_ONLY = { headers: { accept: "application/json" } };
const SILENT = 7000; // milliseconds without a word from the server after which the connection counts as lost
const APPENDED = 240; // rows drawn as they come before the server is asked to thin anew

const axis = new Axis();
const wall = new Wall(at("charts"), axis);
let view = null; // all steps; or { low, high }; or { last }
let cursor = "";
let appended = 0;
let asking = null; // the request under way
let again = false; // whether another is wanted after it
let redrawAt = 0;

// ---- what is asked of the server

class SignedOut extends Error {}

async function ask(path, values) {
  const response = await fetch(`${path}?${new URLSearchParams(values)}`, { ...JSON_ONLY, signal: AbortSignal.timeout(30000) });
  if (response.status === 401) throw new SignedOut();
  if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error ?? String(response.status));
  return response.json();
}

axis.exact = (step) => ask("/monitor/step", { stage, step });

function wanted() {
  const values = { stage, buckets: Math.min(1000, Math.max(200, Math.round(at("charts").clientWidth / 4))), smooth: pressed("smooth") };
  if (view?.last) values.low = Math.max(axis.last - view.last + 1, axis.first);
  else if (view) Object.assign(values, view);
  return values;
}

async function load() {
  if (asking) {
    again = true;
    return;
  }
  do {
    again = false;
    try {
      asking = ask("/monitor/curves", wanted());
      show(await asking);
    } catch (error) {
      if (error instanceof SignedOut) signedOut();
      else lost();
    } finally {
      asking = null;
    }
  } while (again);
}

function show(told) {
  cursor = told.cursor;
  appended = 0;
  redrawAt = performance.now();
  [axis.first, axis.last] = [told.first, told.last];
  range();
  axis.tip.forget();
  showState(told.state);
  showMarks(told.marks);
  at("nothing").hidden = told.groups.length > 0;
  wall.show(told.groups);
  find();
  document.body.dataset.drawn = String(told.last);
}

function range() {
  axis.low = view?.last ? Math.max(axis.last - view.last + 1, axis.first) : (view?.low ?? axis.first);
  axis.high = Math.max(view?.high ?? axis.last, axis.low + 1);
  const zoomed = Boolean(view);
  at("all").hidden = !zoomed;
  at("range").textContent = zoomed ? `steps ${count(axis.low)} to ${count(axis.high)}` : "";
  placeStrip();
}

// ---- what comes by itself

let source = null;
let heard = 0;
let retry = 1000;
let timer = 0;

function listen() {
  clearTimeout(timer);
  source?.close();
  source = new EventSource(`/monitor/events?${new URLSearchParams({ stage, after: cursor })}`);
  const on = (name, work) =>
    source.addEventListener(name, (event) => {
      found();
      if (event.lastEventId) cursor = event.lastEventId;
      work(event.data ? JSON.parse(event.data) : null);
    });
  on("pulse", () => {});
  on("rows", rows);
  on("again", load);
  on("state", showState);
  on("marks", showMarks);
  source.addEventListener("error", () => {
    lost();
    if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
    clearTimeout(timer);
    timer = setTimeout(async () => {
      await load();
      if (at("link").dataset.state !== "out") listen();
    }, retry);
    retry = Math.min(retry * 2, 15000);
  });
}

setInterval(() => {
  if (heard && performance.now() - heard > SILENT && !document.hidden && at("link").dataset.state !== "out") {
    lost();
    heard = performance.now();
    listen();
  }
}, 1000);

function link(state, words) {
  if (at("link").dataset.state === state) return;
  at("link").dataset.state = state;
  at("link-words").textContent = words;
}

function found() {
  heard = performance.now();
  retry = 1000;
  link("live", "Live");
}

function lost() {
  link("lost", "Connection lost. What you see is what was known; trying again.");
}

function signedOut() {
  source?.close();
  link("out", "");
  at("link-words").replaceChildren("You are signed out. ");
  const sign = document.createElement("a");
  sign.href = "/sign-in";
  sign.textContent = "Sign in again";
  at("link-words").append(sign);
}

function rows(told) {
  const last = Math.max(axis.last, ...told.map((row) => row.step));
  const known = wall.append(told);
  axis.last = last;
  appended += told.length;
  range();
  axis.redraw();
  axis.tip.forget();
  document.body.dataset.drawn = String(last);
  // A smoothed line and a number that is new are the server's to draw, not more often than it has time for.
  const smoothing = pressed("smooth") && performance.now() - redrawAt > (last > 20000 ? 10000 : 1500);
  if (!known || appended > APPENDED || smoothing) load();
}

// ---- the top of the page

function showState(state) {
  const list = at("headline");
  const items = state.headline.map((number) => {
    const item = document.createElement("li");
    if (number.tone) item.dataset.tone = number.tone;
    html("span", {}, item, number.label);
    html("b", {}, item, number.value);
    if (number.share !== null) html("progress", { max: "1", value: String(number.share), "aria-label": "share of the steps done" }, item);
    html("small", {}, item, number.note);
    return item;
  });
  list.replaceChildren(...items);
  for (const [name, told] of Object.entries(state.stages)) {
    const tab = document.querySelector(`[data-tab="${CSS.escape(name)}"] small`);
    if (tab && tab.textContent !== told) tab.textContent = told;
  }
  at("waits").hidden = !state.waiting_for;
  at("waits").textContent = state.waiting_for ? `The run waits for: ${state.waiting_for}` : "";
}

// ---- findings and interventions

let listed = "";

function showMarks(told) {
  axis.marks = told.marks;
  axis.redraw();
  const words = JSON.stringify(told);
  if (words === listed) return;
  listed = words;
  strip();
  fill(at("findings"), told.findings.map(finding), "No finding.");
  fill(at("interventions"), told.interventions.map(intervention).reverse(), "No intervention.");
  fill(at("other"), told.other.map(finding), "");
  at("other-box").hidden = !told.other.length;
  at("other-count").textContent = String(told.other.length);
  const worst = told.findings.some((one) => ["critical", "error"].includes(one.severity)) ? "bad" : told.findings.length ? "doubt" : "good";
  at("findings-count").textContent = told.findings.length ? String(told.findings.length) : "";
  at("findings-link").dataset.tone = worst;
  at("findings-link").textContent = told.findings.length === 1 ? "1 finding" : `${told.findings.length || "no"} findings`;
}

function fill(list, items, empty) {
  if (items.length) list.replaceChildren(...items);
  else list.replaceChildren(...(empty ? [html("li", { class: "soft" }, undefined, empty)] : []));
}

function finding(one) {
  const item = html("li", { class: `finding ${one.severity}` });
  const head = html("p", {}, item);
  html("span", { class: "chip" }, head, one.severity);
  html("b", {}, head, one.code);
  if (Number.isFinite(one.first_step) && one.first_step !== null) head.append(jump(one.first_step, "from step"));
  if (one.evidence) html("p", {}, item, one.evidence);
  if (one.cause) html("p", {}, item, `Cause: ${one.cause}`);
  if (one.remedy) html("p", {}, item, `Remedy: ${one.remedy}`);
  if (one.ruled_out?.length) {
    const more = html("details", {}, item);
    html("summary", {}, more, `${one.ruled_out.length} other ${one.ruled_out.length === 1 ? "cause" : "causes"} ruled out`);
    const list = html("ul", {}, more);
    for (const cause of one.ruled_out) html("li", {}, list, cause);
  }
  return item;
}

function intervention(one) {
  const item = html("li", { class: "turn" });
  const head = html("p", {}, item);
  html("b", {}, head, one.stop ? "training stopped" : (one.knob ?? "knob"));
  head.append(one.stop ? "" : ` ${short(one.from)} → ${short(one.to)}`, jump(one.step, "after step"));
  if (one.reason) html("p", {}, item, one.reason);
  if (one.finding) html("p", { class: "soft" }, item, `Because of the finding ${one.finding}.`);
  return item;
}

const short = (value) => (typeof value === "number" ? digits(value, 4) : String(value ?? "–"));

function jump(step, words) {
  const button = html("button", { type: "button", class: "quiet" }, undefined, step > 0 ? `${words} ${count(step)}` : "before training");
  button.addEventListener("click", () => {
    const span = Math.max(20, Math.round((axis.last - axis.first) * 0.1));
    zoom(Math.max(axis.first, step - span), Math.min(axis.last, step + span));
    at("charts").querySelector(".plot")?.focus();
    axis.look(step, [...axis.charts][0]);
  });
  return button;
}

// One line over the whole width with everything that is marked; each mark can be reached by key.
function strip() {
  const box = at("strip");
  const marks = axis.marks.slice(-300);
  box.hidden = !marks.length;
  const items = marks.map((mark) => {
    const item = document.createElement("li");
    const button = html("button", { type: "button", class: `mark ${mark.kind}`, "aria-label": `step ${mark.step}: ${mark.label}. ${mark.reason}` }, item);
    const picture = svg("svg", { width: "14", height: "14", viewBox: "-7 -11 14 14", "aria-hidden": "true" }, button);
    svg("path", { d: SIGNS[mark.kind] ?? SIGNS.info }, picture);
    item.dataset.step = mark.step;
    for (const name of ["mouseenter", "focus"]) button.addEventListener(name, () => axis.tip.tell(button, mark.step, mark));
    for (const name of ["mouseleave", "blur"]) button.addEventListener(name, () => axis.look(null));
    button.addEventListener("click", () => {
      const span = Math.max(20, Math.round((axis.last - axis.first) * 0.05));
      zoom(Math.max(axis.first, mark.step - span), Math.min(axis.last, mark.step + span));
    });
    return item;
  });
  at("strip-marks").replaceChildren(...items);
  placeStrip();
}

function placeStrip() {
  for (const item of at("strip-marks").children) {
    const share = (Number(item.dataset.step) - axis.first) / Math.max(axis.last - axis.first, 1);
    item.style.left = `${Math.min(Math.max(share, 0), 1) * 100}%`;
  }
}

// ---- what a visitor sets

const pressed = (id) => at(id).getAttribute("aria-pressed") === "true";

function toggle(id, work) {
  try {
    if (localStorage.getItem(`towpath/monitor/${id}`) === "yes") at(id).setAttribute("aria-pressed", "true");
  } catch {
    /* a browser that keeps nothing */
  }
  at(id).addEventListener("click", () => {
    const on = !pressed(id);
    at(id).setAttribute("aria-pressed", String(on));
    try {
      localStorage.setItem(`towpath/monitor/${id}`, on ? "yes" : "no");
    } catch {
      /* as above */
    }
    work(on);
  });
}

toggle("smooth", load);
toggle("log", (on) => {
  axis.logarithmic = on;
  axis.redraw();
});
axis.logarithmic = pressed("log");

function zoom(low, high) {
  view = low === null ? null : { low, high };
  at("span").value = "";
  range();
  axis.redraw();
  load();
}
axis.zoomed = zoom;
at("all").addEventListener("click", () => zoom(null));
at("span").addEventListener("change", () => {
  view = at("span").value ? { last: Number(at("span").value) } : null;
  range();
  load();
});

function find() {
  const wantedWords = at("find").value.trim().toLowerCase();
  for (const chart of axis.charts) {
    const words = [chart.data.title, ...chart.data.lines.flatMap((line) => [line.name, line.label])].join(" ").toLowerCase();
    chart.figure.hidden = wantedWords !== "" && !words.includes(wantedWords);
  }
  for (const section of document.querySelectorAll(".wall")) section.hidden = !section.querySelector("figure:not([hidden])");
  const folded = document.querySelector("details.wall");
  if (folded && wantedWords !== "") folded.open = !folded.hidden;
}
at("find").addEventListener("input", find);

// Everything that was told at one step.
axis.picked = async (step) => {
  const told = await ask("/monitor/step", { stage, step }).catch(() => null);
  if (!told) return;
  const box = at("everything-rows");
  box.replaceChildren();
  at("everything-title").textContent = `Everything at step ${count(told.train?.step ?? told.validation?.step ?? step)}`;
  const train = told.train?.numbers ?? {}, look = told.validation?.numbers ?? {};
  at("everything-look").textContent = told.validation ? `held out, step ${count(told.validation.step)}` : "held out";
  for (const name of [...new Set([...Object.keys(train), ...Object.keys(look)])]) {
    const row = html("tr", {}, box);
    html("th", { scope: "row" }, row, name);
    for (const numbers of [train, look]) {
      const value = numbers[name];
      html("td", { class: "num" }, row, value === undefined ? "" : typeof value === "string" ? "not finite" : digits(value, 6));
    }
  }
  at("everything").showModal();
};
at("everything-close").addEventListener("click", () => at("everything").close());
at("keys").addEventListener("click", () => at("keys-dialog").showModal());
at("keys-close").addEventListener("click", () => at("keys-dialog").close());

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
  const work = { s: () => at("smooth").click(), l: () => at("log").click(), "/": () => at("find").focus(), "?": () => at("keys-dialog").showModal() }[event.key];
  if (!work) return;
  event.preventDefault();
  work();
});

if (stage) load().then(listen);

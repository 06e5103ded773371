"use strict";

const at = (id) => document.getElementById(id);
const stage = at("monitor").dataset.stage;
const JSON_ONLY = { headers: { accept: "application/json" } };
const SILENCE_MS = 7000; // milliseconds without an event after which the connection counts as lost
const MAX_APPENDED = 240; // rows appended before the server downsamples again

const axis = new Axis();
const wall = new Wall(at("charts"), axis);
let view = null; // all steps; or { low, high }; or { last }
let cursor = "";
let appended = 0;
let request = null; // the running request
let reloadWanted = false; // whether to request again after it
let redrawAt = 0;

// ---- requests

class SignedOut extends Error {}

async function fetchJson(path, values) {
  const response = await fetch(`${path}?${new URLSearchParams(values)}`, { ...JSON_ONLY, signal: AbortSignal.timeout(30000) });
  if (response.status === 401) throw new SignedOut();
  if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error ?? String(response.status));
  return response.json();
}

axis.exact = (step) => fetchJson("/monitor/step", { stage, step });

function curveParameters() {
  const values = { stage, buckets: Math.min(1000, Math.max(200, Math.round(at("charts").clientWidth / 4))), smooth: pressed("smooth") };
  if (view?.last) values.low = Math.max(axis.last - view.last + 1, axis.first);
  else if (view) Object.assign(values, view);
  return values;
}

async function load() {
  if (request) {
    reloadWanted = true;
    return;
  }
  do {
    reloadWanted = false;
    try {
      request = fetchJson("/monitor/curves", curveParameters());
      show(await request);
    } catch (error) {
      if (error instanceof SignedOut) showSignedOut();
      else showLost();
    } finally {
      request = null;
    }
  } while (reloadWanted);
}

function show(data) {
  cursor = data.cursor;
  appended = 0;
  redrawAt = performance.now();
  [axis.first, axis.last] = [data.first, data.last];
  range();
  axis.tip.forget();
  showState(data.state);
  showMarks(data.marks);
  at("nothing").hidden = data.groups.length > 0;
  wall.show(data.groups);
  filterCharts();
  document.body.dataset.drawn = String(data.last);
}

function range() {
  axis.low = view?.last ? Math.max(axis.last - view.last + 1, axis.first) : (view?.low ?? axis.first);
  axis.high = Math.max(view?.high ?? axis.last, axis.low + 1);
  const zoomed = Boolean(view);
  at("all").hidden = !zoomed;
  at("range").textContent = zoomed ? `steps ${formatStep(axis.low)} to ${formatStep(axis.high)}` : "";
  placeStrip();
}

// ---- live events

let source = null;
let lastEventAt = 0;
let retry = 1000;
let timer = 0;

function listen() {
  clearTimeout(timer);
  source?.close();
  source = new EventSource(`/monitor/events?${new URLSearchParams({ stage, after: cursor })}`);
  const on = (name, work) =>
    source.addEventListener(name, (event) => {
      markAlive();
      if (event.lastEventId) cursor = event.lastEventId;
      work(event.data ? JSON.parse(event.data) : null);
    });
  on("pulse", () => {});
  on("rows", appendRows);
  on("again", load);
  on("state", showState);
  on("marks", showMarks);
  source.addEventListener("error", () => {
    showLost();
    if (source.readyState !== EventSource.CLOSED) return; // the browser reconnects
    clearTimeout(timer);
    timer = setTimeout(async () => {
      await load();
      if (at("link").dataset.state !== "out") listen();
    }, retry);
    retry = Math.min(retry * 2, 15000);
  });
}

setInterval(() => {
  if (lastEventAt && performance.now() - lastEventAt > SILENCE_MS && !document.hidden && at("link").dataset.state !== "out") {
    showLost();
    lastEventAt = performance.now();
    listen();
  }
}, 1000);

function link(state, words) {
  if (at("link").dataset.state === state) return;
  at("link").dataset.state = state;
  at("link-words").textContent = words;
}

function markAlive() {
  lastEventAt = performance.now();
  retry = 1000;
  link("live", "Live");
}

function showLost() {
  link("lost", "Connection lost; reconnecting. The page shows the last known state.");
}

function showSignedOut() {
  source?.close();
  link("out", "");
  at("link-words").replaceChildren("You are signed out. ");
  const sign = document.createElement("a");
  sign.href = "/sign-in";
  sign.textContent = "Sign in again";
  at("link-words").append(sign);
}

function appendRows(rows) {
  const last = Math.max(axis.last, ...rows.map((row) => row.step));
  const known = wall.append(rows);
  axis.last = last;
  appended += rows.length;
  range();
  axis.redraw();
  axis.tip.forget();
  document.body.dataset.drawn = String(last);
  // The server computes smoothed lines and new metrics, not more often than it can.
  const smoothing = pressed("smooth") && performance.now() - redrawAt > (last > 20000 ? 10000 : 1500);
  if (!known || appended > MAX_APPENDED || smoothing) load();
}

// ---- the top of the page

function showState(state) {
  const list = at("headline");
  const items = state.headline.map((number) => {
    const item = document.createElement("li");
    if (number.tone) item.dataset.tone = number.tone;
    html("span", {}, item, number.label);
    html("b", {}, item, number.value);
    if (number.share !== null) html("progress", { max: "1", value: String(number.share), "aria-label": "share of steps completed" }, item);
    html("small", {}, item, number.note);
    return item;
  });
  list.replaceChildren(...items);
  for (const [name, status] of Object.entries(state.stages)) {
    const tab = document.querySelector(`[data-tab="${CSS.escape(name)}"] small`);
    if (tab && tab.textContent !== status) tab.textContent = status;
  }
  showWorkers(state.workers);
  at("time").hidden = !state.time;
  at("time").textContent = state.time;
  at("waits").hidden = !state.waiting_for;
  at("waits").textContent = state.waiting_for ? `Waiting for: ${state.waiting_for}` : "";
}

const PHASE_COLOURS = { sampling: 0, scoring: 1, training: 2, "weight sync": 3, other: 5, waiting: 7 };

function showWorkers(panel) {
  at("workers").hidden = !panel;
  if (!panel) return;
  at("workers-note").textContent = panel.note;
  at("workers-note").className = panel.tone || "soft";
  const phases = new Set(panel.rows.flatMap((row) => row.phases.map((phase) => phase.name)));
  at("workers-phases").replaceChildren(
    ...[...phases].map((name) => html("li", { class: `c${PHASE_COLOURS[name]}` }, undefined, name)),
  );
  at("workers-rows").replaceChildren(...panel.rows.map(workerRow));
}

function workerRow(worker) {
  const row = html("tr", {});
  const head = html("th", { scope: "row" }, row, worker.name);
  html("small", { class: "soft" }, head, `${worker.location}, process ${worker.process}`);
  html("td", {}, row, worker.verb || "–");
  const words = worker.phases.map((phase) => `${phase.name} ${phase.seconds}`).join(", ");
  const bar = svg("svg", { class: "phases", role: "img", "aria-label": words, preserveAspectRatio: "none" }, html("td", {}, row));
  svg("title", {}, bar).textContent = words;
  let left = 0;
  for (const phase of worker.phases) {
    svg("rect", { class: `c${PHASE_COLOURS[phase.name]}`, x: `${100 * left}%`, width: `${100 * phase.share}%`, height: "100%" }, bar);
    left += phase.share;
  }
  for (const value of [worker.sampled, worker.trained, worker.memory]) html("td", { class: "num" }, row, value);
  html("td", { class: `num ${worker.tone}` }, row, worker.heartbeat);
  return row;
}

// ---- findings and interventions

let listed = "";

function showMarks(data) {
  axis.marks = data.marks;
  axis.redraw();
  const words = JSON.stringify(data);
  if (words === listed) return;
  listed = words;
  strip();
  fill(at("findings"), data.findings.map(finding), "No findings.");
  fill(at("interventions"), data.interventions.map(intervention).reverse(), "No interventions.");
  fill(at("other"), data.other.map(finding), "");
  at("other-box").hidden = !data.other.length;
  at("other-count").textContent = String(data.other.length);
  const worst = data.findings.some((one) => ["critical", "error"].includes(one.severity)) ? "bad" : data.findings.length ? "doubt" : "good";
  at("findings-count").textContent = data.findings.length ? String(data.findings.length) : "";
  at("findings-link").dataset.tone = worst;
  at("findings-link").textContent = data.findings.length === 1 ? "1 finding" : `${data.findings.length || "no"} findings`;
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
  const item = html("li", { class: "intervention" });
  const head = html("p", {}, item);
  html("b", {}, head, one.stop ? "training stopped" : (one.knob ?? "knob"));
  head.append(one.stop ? "" : ` ${short(one.from)} → ${short(one.to)}`, jump(one.step, "after step"));
  if (one.reason) html("p", {}, item, one.reason);
  if (one.finding) html("p", { class: "soft" }, item, `Finding: ${one.finding}.`);
  return item;
}

const short = (value) => (typeof value === "number" ? formatNumber(value, 4) : String(value ?? "–"));

function jump(step, words) {
  const button = html("button", { type: "button", class: "quiet" }, undefined, step > 0 ? `${words} ${formatStep(step)}` : "before training");
  button.addEventListener("click", () => {
    const span = Math.max(20, Math.round((axis.last - axis.first) * 0.1));
    zoom(Math.max(axis.first, step - span), Math.min(axis.last, step + span));
    at("charts").querySelector(".plot")?.focus();
    axis.setCursor(step, [...axis.charts][0]);
  });
  return button;
}

// A strip over the full width with all marks; each is reachable by keyboard.
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
    for (const name of ["mouseenter", "focus"]) button.addEventListener(name, () => axis.tip.showMark(button, mark.step, mark));
    for (const name of ["mouseleave", "blur"]) button.addEventListener(name, () => axis.setCursor(null));
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

// ---- controls

const pressed = (id) => at(id).getAttribute("aria-pressed") === "true";

function toggle(id, work) {
  try {
    if (localStorage.getItem(`towpath/monitor/${id}`) === "yes") at(id).setAttribute("aria-pressed", "true");
  } catch {
    /* storage is unavailable */
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

function filterCharts() {
  const query = at("find").value.trim().toLowerCase();
  for (const chart of axis.charts) {
    const words = [chart.data.title, ...chart.data.lines.flatMap((line) => [line.name, line.label])].join(" ").toLowerCase();
    chart.figure.hidden = query !== "" && !words.includes(query);
  }
  for (const section of document.querySelectorAll(".wall")) section.hidden = !section.querySelector("figure:not([hidden])");
  const folded = document.querySelector("details.wall");
  if (folded && query !== "") folded.open = !folded.hidden;
}
at("find").addEventListener("input", filterCharts);

// All metrics at one step.
axis.picked = async (step) => {
  const data = await fetchJson("/monitor/step", { stage, step }).catch(() => null);
  if (!data) return;
  const box = at("everything-rows");
  box.replaceChildren();
  at("everything-title").textContent = `All metrics at step ${formatStep(data.train?.step ?? data.validation?.step ?? step)}`;
  const train = data.train?.numbers ?? {}, validation = data.validation?.numbers ?? {};
  at("everything-validation").textContent = data.validation ? `held out, step ${formatStep(data.validation.step)}` : "held out";
  for (const name of [...new Set([...Object.keys(train), ...Object.keys(validation)])]) {
    const row = html("tr", {}, box);
    html("th", { scope: "row" }, row, name);
    for (const numbers of [train, validation]) {
      const value = numbers[name];
      html("td", { class: "num" }, row, value === undefined ? "" : typeof value === "string" ? "not finite" : formatNumber(value, 6));
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

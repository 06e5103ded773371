"use strict";

const at = (id) => document.getElementById(id);
const { stage } = at("choice").dataset;
const [runs, names] = [JSON.parse(at("choice").dataset.runs), JSON.parse(at("choice").dataset.names)];
const MAX_RUNS = 8;

async function fetchJson(path, values) {
  const response = await fetch(`/monitor/compare/${path}?${new URLSearchParams(values)}`, { headers: { accept: "application/json" }, signal: AbortSignal.timeout(30000) });
  if (response.status === 401) location.assign("/sign-in");
  if (!response.ok) throw new Error(String(response.status));
  return response.json();
}

const runParameters = () => runs.map((name) => ["runs", name]);

// ---- curves

const axis = new Axis();
const wall = new Wall(at("charts"), axis);
let view = null;

const pressed = (id) => at(id).getAttribute("aria-pressed") === "true";

async function load() {
  const values = [["stage", stage], ["smooth", pressed("smooth")], ["buckets", 400], ...runParameters(), ...names.map((name) => ["names", name])];
  if (view) values.push(["low", view.low], ["high", view.high]);
  try {
    const data = await fetchJson("curves", values);
    [axis.first, axis.last] = [data.first, data.last];
    [axis.low, axis.high] = view ? [view.low, view.high] : [axis.first, Math.max(axis.last, axis.first + 1)];
    at("all").hidden = !view;
    for (const chart of data.groups[0].charts) for (const line of chart.lines) line.run = true; // exact values exist only for the server's own run
    at("message").textContent = data.groups[0].charts.length ? "" : "No data for the selected runs and metrics.";
    wall.show(data.groups);
    document.body.dataset.drawn = String(data.last);
  } catch {
    at("message").textContent = "Connection lost; reconnecting.";
  }
}

axis.zoomed = (low, high) => {
  view = low === null ? null : { low, high };
  load();
};
at("all").addEventListener("click", () => axis.zoomed(null));
for (const id of ["smooth", "log"]) {
  at(id).addEventListener("click", () => {
    at(id).setAttribute("aria-pressed", String(!pressed(id)));
    axis.logarithmic = pressed("log");
    if (id === "smooth") load();
    else axis.redraw();
  });
}

// At most as many runs as colours.
const boxes = [...document.querySelectorAll('input[name="runs"]')];
function limit() {
  const full = boxes.filter((box) => box.checked).length >= MAX_RUNS;
  for (const box of boxes) box.disabled = full && !box.checked;
}
for (const box of boxes) box.addEventListener("change", limit);
limit();

// ---- the frontier

let data = { points: [], reference: [], by: "win" };
let chosen = -1;
let positions = [];
const plane = at("plane");
const picture = plane.querySelector("svg");
const tip = new Tip(axis);

async function frontier() {
  try {
    data = await fetchJson("frontier", [["by", pressed("by-win") ? "win" : "reward"], ...runParameters()]);
  } catch {
    return;
  }
  const form = data.by === "win" ? "percent" : "number";
  at("gain").textContent = data.by === "win" ? "win rate" : "reward";
  at("points").replaceChildren(
    ...data.points.map((point) => {
      const row = document.createElement("tr");
      html("th", { scope: "row" }, row, point.run);
      html("td", {}, row, point.label);
      html("td", { class: "num" }, row, formatNumber(point.kl));
      html("td", { class: "num" }, row, FORMS[form](point.value));
      html("td", { class: "num" }, row, point.n ? formatStep(point.n) : "");
      return row;
    }),
  );
  draw();
}

function draw() {
  const width = plane.clientWidth, height = plane.clientHeight;
  if (!width) return;
  const win = data.by === "win", edge = { left: 56, right: 16, top: 14, bottom: 40 };
  const all = [...data.points.map((point) => [point.kl, point.value]), ...data.reference];
  const high = win ? 1 : Math.max(...all.map(([, y]) => y), 0), low = win ? Math.min(0.5, ...all.map(([, y]) => y)) : Math.min(...all.map(([, y]) => y), 0);
  const span = high - low || 1;
  const [x0, x1, y0, y1] = [Math.min(0, ...all.map(([x]) => x)), Math.max(0.1, ...all.map(([x]) => x)) * 1.02, low - (win ? 0.02 : span * 0.06), high + (win ? 0 : span * 0.06)];
  const x = (kl) => edge.left + ((kl - x0) / (x1 - x0)) * (width - edge.left - edge.right);
  const y = (value) => height - edge.bottom - ((value - y0) / (y1 - y0)) * (height - edge.top - edge.bottom);
  const parts = document.createDocumentFragment();
  const rows = ticks(y0, y1, 6);
  formatTicks(rows, win ? "percent" : "number", false).forEach((words, index) => {
    svg("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: y(rows[index]), y2: y(rows[index]) }, parts);
    svg("text", { class: "tick", x: edge.left - 8, y: y(rows[index]) + 4, "text-anchor": "end" }, parts).textContent = words;
  });
  const columns = ticks(x0, x1, 7);
  formatTicks(columns, "number", false).forEach((words, index) => {
    svg("text", { class: "tick", x: x(columns[index]), y: height - edge.bottom + 17, "text-anchor": "middle" }, parts).textContent = words;
  });
  svg("line", { class: "base", x1: edge.left, x2: width - edge.right, y1: height - edge.bottom, y2: height - edge.bottom }, parts);
  svg("text", { class: "tick", x: width - edge.right, y: height - 6, "text-anchor": "end" }, parts).textContent = "KL to the tuned model, nats per prompt";
  if (data.reference.length) svg("path", { class: "best", d: `M${data.reference.map(([a, b]) => `${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("L")}` }, parts);
  if (win) {
    for (const n of [2, 4, 8, 16, 32, 64]) {
      const kl = Math.log(n) - (n - 1) / n;
      if (kl < x1 * 0.97) svg("text", { class: "n", x: x(kl), y: y(n / (n + 1)) - 7, "text-anchor": "middle" }, parts).textContent = `n=${n}`;
    }
  }
  for (const name of data.runs ?? []) {
    const trail = data.points.filter((point) => point.run === name && !point.evaluated);
    if (trail.length > 1) svg("path", { class: `trail c${trail[0].tone}`, d: `M${trail.map((point) => `${x(point.kl).toFixed(1)} ${y(point.value).toFixed(1)}`).join("L")}` }, parts);
  }
  positions = data.points.map((point) => [x(point.kl), y(point.value)]);
  data.points.forEach((point, index) => {
    const [cx, cy] = positions[index];
    if (point.evaluated) svg("circle", { class: `dot c${point.tone}`, cx, cy, r: index === chosen ? 9 : 7 }, parts);
    else svg("g", { class: `line validation c${point.tone}` }, parts).append(svg("circle", { cx, cy, r: index === chosen ? 6 : 4 }));
  });
  if (!data.points.length) svg("text", { class: "tick", x: width / 2, y: height / 2, "text-anchor": "middle" }, parts).textContent = "No validations yet";
  picture.setAttribute("width", width);
  picture.setAttribute("height", height);
  picture.replaceChildren(parts);
}

function choose(index) {
  chosen = index;
  draw();
  const point = data.points[index];
  if (!point) {
    tip.box.hidden = true;
    return;
  }
  tip.box.replaceChildren();
  html("p", { class: "step" }, tip.box, `${point.run}, ${point.label}`);
  const list = html("dl", {}, tip.box);
  const gain = data.by === "win" ? "win rate" : "reward";
  for (const [name, value] of [["KL", formatNumber(point.kl)], [gain, FORMS[data.by === "win" ? "percent" : "number"](point.value)], ...(point.n ? [["prompts", formatStep(point.n)]] : [])]) {
    html("dt", { class: `c${point.tone}` }, list, name);
    html("dd", {}, list, value);
  }
  const around = plane.getBoundingClientRect();
  tip.moveTo({ left: around.left, top: around.top + positions[index][1] - 20 }, positions[index][0]);
  if (document.activeElement === plane) tip.spoken.textContent = tip.box.innerText;
}

plane.addEventListener("pointermove", (event) => {
  const around = plane.getBoundingClientRect();
  const far = positions.map(([x, y]) => Math.hypot(event.clientX - around.left - x, event.clientY - around.top - y));
  const best = far.indexOf(Math.min(...far));
  const near = far[best] < 30 ? best : -1;
  if (near !== chosen) choose(near);
});
plane.addEventListener("pointerleave", () => choose(-1));
plane.addEventListener("blur", () => choose(-1));
plane.addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!by || !data.points.length) return;
  event.preventDefault();
  choose(chosen < 0 && by < 0 ? data.points.length - 1 : (chosen + by + data.points.length) % data.points.length);
});
for (const by of ["win", "reward"]) {
  at(`by-${by}`).addEventListener("click", () => {
    for (const other of ["win", "reward"]) at(`by-${other}`).setAttribute("aria-pressed", String(by === other));
    frontier();
  });
}
new ResizeObserver(draw).observe(plane);

load();
frontier();
setInterval(() => {
  if (document.hidden) return;
  load();
  if (chosen < 0) frontier();
}, 10000);

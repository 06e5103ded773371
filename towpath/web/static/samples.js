"use strict";

const at = (id) => document.getElementById(id);
const JSON_ONLY = { headers: { accept: "application/json" } };
const stage = at("browser").dataset.stage;
const POLL_MS = 4000; // milliseconds between two polls for newer answers
const SIDES = ["left", "right"];

let prompts = [];
let now = null; // the selected prompt with its answers
let marked = {}; // cached differences by pair of answers

const axis = new Axis();
const wall = new Wall(at("line"), axis);
axis.picked = (step) => choose("right", nearestKey(step));

async function fetchJson(path, values) {
  const response = await fetch(`/monitor/samples/${path}?${new URLSearchParams(values)}`, { ...JSON_ONLY, signal: AbortSignal.timeout(20000) });
  if (response.status === 401) location.assign("/sign-in");
  if (!response.ok) throw new Error(String(response.status));
  return response.json();
}

// ---- the list

async function loadList() {
  if (!stage) return;
  let list;
  try {
    list = await fetchJson("list", { stage, domain: at("domain").value, sort: at("sort").value });
  } catch {
    at("about").textContent = "Connection lost; reconnecting.";
    return;
  }
  if (list.length && at("browser").hidden) return location.reload(); // the first samples, with their domains
  const same = JSON.stringify(list) === JSON.stringify(prompts);
  prompts = list;
  if (!same || !at("prompts").children.length) drawList();
  const still = prompts.find((one) => one.id === now?.id) ?? prompts[0];
  if (still && (still.id !== now?.id || still.answers !== now.versions.length)) await open(still.id);
  document.body.dataset.drawn = String(prompts.length);
}

function drawList() {
  const focused = at("prompts").contains(document.activeElement) ? document.activeElement.dataset.id : "";
  at("prompts").replaceChildren(
    ...prompts.map((one) => {
      const item = document.createElement("li");
      const button = html("button", { type: "button", "aria-pressed": String(one.id === now?.id) }, item);
      button.dataset.id = one.id;
      html("span", {}, button, one.prompt);
      html("b", { class: one.change > 0 ? "rise" : one.change < 0 ? "fall" : "" }, button, change(one.change));
      html("small", {}, button, [one.domain, `${one.answers} ${one.answers === 1 ? "answer" : "answers"}`].filter(Boolean).join(" · "));
      button.addEventListener("click", () => open(one.id));
      if (one.id === focused) setTimeout(() => button.focus());
      return item;
    }),
  );
}

function change(value) {
  return value === null ? "" : `${value > 0 ? "+" : ""}${formatNumber(value, 2)}`;
}

// ---- one prompt

async function open(id) {
  let prompt;
  try {
    prompt = await fetchJson("prompt", { stage, id });
  } catch {
    at("about").textContent = "This prompt could not be loaded; retrying.";
    return;
  }
  const before = now?.id === id ? now : null;
  const selected = now ? SIDES.map((side) => at(side).value) : null;
  const wasLast = before && selected?.[1] === before.versions[before.versions.length - 1].key;
  now = prompt;
  marked = {};
  at("prompt").textContent = prompt.prompt;
  at("earlier").hidden = !prompt.history.length;
  at("earlier").querySelector("summary").textContent = `${prompt.history.length} earlier turns`;
  at("turns").replaceChildren(
    ...prompt.history.map((turn) => {
      const row = html("div", { class: `turn ${turn.role}` });
      html("p", { class: "speaker" }, row, turn.role);
      html("p", { class: "answer-text" }, row, turn.content);
      return row;
    }),
  );
  at("about").textContent = [prompt.domain, prompt.change === null ? "" : `reward ${change(prompt.change)} against the tuned model`].filter(Boolean).join(" · ");
  for (const side of SIDES) at(side).replaceChildren(...prompt.versions.map((version) => html("option", { value: version.key }, undefined, version.label)));
  const keys = prompt.versions.map((version) => version.key);
  const first = keys.includes("0") ? "0" : keys.includes("sft") ? "sft" : keys[0];
  at("left").value = selected && keys.includes(selected[0]) ? selected[0] : first;
  at("right").value = selected && keys.includes(selected[1]) && !wasLast ? selected[1] : keys[keys.length - 1];
  for (const button of at("prompts").querySelectorAll("button")) {
    const on = button.dataset.id === id;
    button.setAttribute("aria-pressed", String(on));
    if (on) button.scrollIntoView({ block: "nearest" });
  }
  rewards();
  show();
}

function version(side) {
  return now.versions.find((one) => one.key === at(side).value);
}

function show() {
  for (const side of SIDES) {
    const one = version(side);
    const scores = Object.entries(one.scores).map(([name, value]) => `${name} ${formatNumber(value)}`);
    at(`${side}-scores`).textContent = scores.join(" · ") || "no score";
    at(`${side}-text`).textContent = one.text || "(empty)";
    const index = now.versions.indexOf(one);
    at(`${side}-before`).disabled = index === 0;
    at(`${side}-after`).disabled = index === now.versions.length - 1;
  }
  if (pressed()) differ();
}

const pressed = () => at("differences").getAttribute("aria-pressed") === "true";

async function differ() {
  const [left, right] = SIDES.map((side) => at(side).value), { id } = now;
  const key = `${left}\n${right}`;
  try {
    marked[key] ??= await fetchJson("differences", { stage, id, left, right });
  } catch {
    at("about").textContent = "The differences could not be loaded.";
    return;
  }
  if (!pressed() || now.id !== id || SIDES.some((side, index) => at(side).value !== [left, right][index])) return;
  for (const side of SIDES) at(`${side}-text`).innerHTML = marked[key][side] || "(empty)"; // escaped by the server
}

function choose(side, key) {
  if (!now || key === undefined) return;
  at(side).value = key;
  show();
}

function step(side, by) {
  const keys = now?.versions.map((one) => one.key) ?? [];
  choose(side, keys[Math.max(0, Math.min(keys.length - 1, keys.indexOf(at(side).value) + by))]);
}

function selectPrompt(by) {
  const index = prompts.findIndex((one) => one.id === now?.id);
  const next = prompts[Math.max(0, Math.min(prompts.length - 1, index + by))];
  if (next && next.id !== now?.id) open(next.id);
}

// The reward of this prompt over steps; Enter or a click selects the right answer.
function rewards() {
  const scored = now.versions.filter((one) => /^\d+$/.test(one.key) && one.reward !== null);
  if (scored.length < 2) return wall.show([]);
  const steps = scored.map((one) => Number(one.key));
  [axis.first, axis.last] = [axis.low, axis.high] = [steps[0], steps[steps.length - 1]];
  const line = { name: "reward", label: "reward", phase: "validation", tone: 0, steps, values: scored.map((one) => one.reward) };
  wall.show([{ title: "", charts: [{ key: "reward", title: "Reward of this prompt", form: "number", log: false, guides: [], lines: [line] }] }]);
}

function nearestKey(step) {
  const steps = now.versions.filter((one) => /^\d+$/.test(one.key)).map((one) => Number(one.key));
  return String(steps[nearest(steps, step)]);
}

// ---- controls

for (const side of SIDES) {
  at(side).addEventListener("change", show);
  at(`${side}-before`).addEventListener("click", () => step(side, -1));
  at(`${side}-after`).addEventListener("click", () => step(side, 1));
}
function toggle() {
  at("differences").setAttribute("aria-pressed", String(!pressed()));
  show();
}
at("differences").addEventListener("click", toggle);
at("domain").addEventListener("change", loadList);
at("sort").addEventListener("change", loadList);
at("stage")?.addEventListener("change", () => location.assign(`/monitor/samples?${new URLSearchParams({ stage: at("stage").value })}`));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, .plot")) return;
  const work = {
    j: () => selectPrompt(1), k: () => selectPrompt(-1), ArrowRight: () => step("right", 1), ArrowLeft: () => step("right", -1),
    "]": () => step("left", 1), "[": () => step("left", -1), d: toggle,
  }[event.key];
  if (!work) return;
  event.preventDefault();
  work();
});

loadList();
setInterval(() => {
  if (!document.hidden) loadList();
}, POLL_MS);

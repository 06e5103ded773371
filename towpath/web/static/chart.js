"use strict";

// SVG line charts over steps. All charts of a page share one axis: its range, cursor and marks.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 168;
const EDGE = { left: 46, right: 12, top: 10, bottom: 24 };
const MARK_DISTANCE = 6; // pixels within which a mark is hovered

function svg(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent?.append(element);
  return element;
}

function html(name, attributes, parent, text) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}

// ---- number formats

function formatNumber(value, digits = 3) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e").replaceAll("-", "−");
  const places = Math.max(digits - 1 - Math.floor(Math.log10(size)), 0);
  const [whole, part = ""] = value.toFixed(places).split(".");
  const rest = part.replace(/0+$/, "");
  return (whole.replace(/\B(?=(\d{3})+$)/g, "\u00a0") + (rest ? `.${rest}` : "")).replace("-", "−");
}

const FORMS = {
  number: (value) => formatNumber(value),
  percent: (value) => `${formatNumber(value * 100)} %`,
  seconds: (value) => (value >= 120 ? `${formatNumber(value / 60)} min` : `${formatNumber(value)} s`),
  bytes: (value) => (value >= 2 ** 30 ? `${formatNumber(value / 2 ** 30)} GiB` : `${formatNumber(value / 2 ** 20)} MiB`),
};

function formatValue(value, form = "number") {
  return Number.isFinite(value) ? (FORMS[form] ?? FORMS.number)(value) : "–";
}

// Tick labels with enough decimals to distinguish them.
function formatTicks(values, form, logarithmic) {
  if (logarithmic || values.length < 2) return values.map((value) => formatValue(value, form));
  const scale = { percent: 100, bytes: 2 ** -30, number: 1, seconds: 1 }[form] ?? 1;
  const step = Math.abs(values[1] - values[0]) * scale, most = Math.max(...values.map(Math.abs)) * scale;
  if (most >= 1e6 || most < 1e-3) return values.map((value) => formatNumber(value, 2 + Math.max(0, Math.floor(Math.log10(most / step)))));
  const places = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const unit = { percent: " %", bytes: " GiB", seconds: " s" }[form] ?? "";
  return values.map((value) => (places ? (value * scale).toFixed(places).replace("-", "−") : formatStep(Math.round(value * scale))) + unit);
}

const formatStep = (step) => String(step).replace(/\B(?=(\d{3})+$)/g, "\u00a0").replace("-", "−");

// ---- scales

function niceStep(span, most) {
  const rough = span / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough * 0.999);
}

function ticks(low, high, most, least = 0) {
  const step = Math.max(niceStep(high - low || 1, most), least);
  const values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) values.push(Number((i * step).toPrecision(12)));
  return values;
}

function logTicks(low, high) {
  const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high));
  const factors = to - from > 2 ? [1] : [1, 2, 5];
  const every = Math.ceil((to - from) / 5);
  const values = [];
  for (let power = from; power <= to; power += every) {
    for (const factor of factors) values.push(factor * 10 ** power);
  }
  return values.filter((value) => value >= low * 0.999 && value <= high * 1.001);
}

// The index of the nearest step in sorted steps.
function nearest(steps, step) {
  let low = 0, high = steps.length - 1;
  if (high < 0) return -1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
}

// ---- the shared axis

class Axis {
  constructor() {
    this.low = 0;
    this.high = 1;
    this.first = 0;
    this.last = 0;
    this.cursor = null;
    this.logarithmic = false;
    this.marks = [];
    this.charts = new Set();
    this.zoomed = () => {}; // (low, high) or (null) for all
    this.picked = () => {}; // show all values of a step
    this.exact = null; // (step) => a promise of the metrics at this step
    this.waiting = false;
    this.tip = new Tip(this);
  }

  // Redraw all charts at most once per frame; charts out of view when they become visible.
  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      for (const chart of this.charts) chart.drawWhenVisible();
    });
  }

  setCursor(step, chart) {
    this.cursor = step === null ? null : Math.max(this.low, Math.min(this.high, step));
    for (const one of this.charts) one.drawCursor();
    this.tip.show(this.cursor, chart);
  }

  zoomBy(factor, around) {
    const centre = around ?? (this.low + this.high) / 2;
    const low = Math.round(centre - (centre - this.low) * factor), high = Math.round(centre + (this.high - centre) * factor);
    if (low <= this.first && high >= this.last) this.zoomed(null);
    else if (high - low >= 4) this.zoomed(Math.max(low, this.first), Math.min(high, this.last));
  }

  pan(share) {
    const by = Math.round((this.high - this.low) * share);
    const move = Math.max(this.first - this.low, Math.min(this.last - this.high, by));
    if (move) this.zoomed(this.low + move, this.high + move);
  }
}

// ---- the tooltip

class Tip {
  constructor(axis) {
    this.axis = axis;
    this.box = html("div", { class: "tip", hidden: "" }, document.body);
    this.spoken = html("p", { class: "unseen", "aria-live": "polite" }, document.body);
    this.known = new Map();
    this.timer = 0;
  }

  show(step, chart) {
    clearTimeout(this.timer);
    if (step === null || !chart) {
      this.box.hidden = true;
      return;
    }
    this.fill(step, chart);
    const { exact } = this.axis;
    if (!exact || this.known.has(step)) return;
    this.timer = setTimeout(async () => {
      const row = await exact(step).catch(() => null);
      if (row === null) return;
      if (this.known.size > 300) this.known.clear();
      this.known.set(step, row);
      if (this.axis.cursor === step && !this.box.hidden) this.fill(step, chart);
    }, 70);
  }

  forget() {
    this.known.clear();
  }

  fill(step, chart) {
    const rows = chart.at(step, this.known.get(step));
    const marks = chart.marksAt(step);
    this.box.replaceChildren();
    html("p", { class: "step" }, this.box, `step ${formatStep(step)}`);
    if (rows.length) {
      const list = html("dl", {}, this.box);
      for (const row of rows) {
        html("dt", { class: `c${row.tone}${row.phase === "validation" ? " validation" : ""}` }, list, row.label);
        html("dd", {}, list, row.away === null ? row.text : `${row.text} (step ${formatStep(row.away)})`);
      }
    }
    for (const mark of marks) {
      const line = html("p", { class: `what ${mark.kind}` }, this.box);
      html("b", {}, line, mark.label);
      if (mark.reason) line.append(` ${mark.reason}`);
    }
    this.moveTo(chart.plot.getBoundingClientRect(), chart.x(step));
    if (chart.plot === document.activeElement) {
      this.spoken.textContent = [`step ${step}`, ...rows.map((row) => `${row.label} ${row.text}`), ...marks.map((mark) => `${mark.label}: ${mark.reason}`)].join("; ");
    }
  }

  moveTo(around, x) {
    this.box.hidden = false;
    const { width, height } = this.box.getBoundingClientRect();
    const wide = document.documentElement.clientWidth;
    const right = around.left + x + 14;
    const left = right + width < wide - 8 ? right : around.left + x - width - 14;
    this.box.style.left = `${Math.max(8, Math.min(left, wide - width - 8))}px`;
    const below = around.top + 8;
    this.box.style.top = `${Math.max(8, Math.min(below, window.innerHeight - height - 8))}px`;
  }

  // Show a mark outside of any chart.
  showMark(element, step, mark) {
    this.box.replaceChildren();
    html("p", { class: "step" }, this.box, `step ${formatStep(step)}`);
    const line = html("p", { class: `what ${mark.kind}` }, this.box);
    html("b", {}, line, mark.label);
    if (mark.reason) line.append(` ${mark.reason}`);
    const around = element.getBoundingClientRect();
    this.moveTo({ left: around.left, top: around.bottom }, around.width / 2);
  }
}

// ---- one chart

const lineKey = (line) => `${line.phase}/${line.name}/${line.label}`;

// Entries of the legend: a line, with its validation points if they have the same colour.
function legendEntries(lines) {
  const entries = [];
  for (const line of lines) {
    const [before] = entries.at(-1) ?? [];
    if (line.phase === "validation" && before?.phase === "train" && before.name === line.name && before.tone === line.tone) entries.at(-1).push(line);
    else entries.push([line]);
  }
  return entries;
}

class Chart {
  constructor(data, axis, parent) {
    this.axis = axis;
    this.hidden = new Set();
    this.figure = html("figure", { class: "chart" }, parent);
    const head = html("figcaption", {}, this.figure);
    this.title = html("h3", {}, head, data.title);
    this.enlargeButton = html("button", { type: "button", class: "quiet", "aria-pressed": "false", "aria-label": `${data.title}: larger` }, head, "Larger");
    this.tableButton = html("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-label": `${data.title}: table` }, head, "Table");
    this.legend = html("ul", { class: "legend" }, this.figure);
    this.plot = html("div", { class: "plot", tabindex: "0", role: "application", "aria-roledescription": "chart" }, this.figure);
    this.picture = svg("svg", { "aria-hidden": "true" }, this.plot);
    this.table = html("div", { class: "scroll values", tabindex: "0", role: "region", "aria-label": `${data.title}: values`, hidden: "" }, this.figure);
    this.left = EDGE.left;
    this.visible = true;
    this.stale = true;
    this.listen();
    this.update(data);
    axis.charts.add(this);
    this.watcher = new IntersectionObserver(([entry]) => {
      this.visible = entry.isIntersecting;
      if (this.visible && this.stale) this.draw();
    }, { rootMargin: "300px" });
    this.watcher.observe(this.figure);
    this.sizes = new ResizeObserver(() => this.axis.redraw());
    this.sizes.observe(this.plot);
  }

  remove() {
    this.axis.charts.delete(this);
    this.watcher.disconnect();
    this.sizes.disconnect();
    this.figure.remove();
  }

  update(data) {
    const same = this.data && this.data.lines.map((line) => line.label + line.name + line.phase).join() === data.lines.map((line) => line.label + line.name + line.phase).join();
    this.data = data;
    this.figure.dataset.chart = data.key;
    this.entries = legendEntries(data.lines);
    if (!same) this.drawLegend();
    this.labels();
    this.stale = true;
  }

  // Append a new row to the lines.
  append(row) {
    let fresh = false;
    for (const line of this.data.lines) {
      if (line.phase !== row.phase || !(line.name in row.numbers)) continue;
      if (line.steps.length && row.step <= line.steps[line.steps.length - 1]) continue;
      line.steps.push(row.step);
      line.values.push(row.numbers[line.name]);
      fresh = true;
    }
    if (fresh) {
      this.labels();
      this.stale = true;
    }
  }

  drawLegend() {
    this.legend.replaceChildren();
    this.latest = this.entries.flatMap(([line, ...rings]) => {
      const button = html("button", { type: "button", class: `c${line.tone}` }, html("li", {}, this.legend));
      html("i", { "aria-hidden": "true", class: line.phase }, button);
      button.append(line.label);
      const values = [html("b", {}, button)];
      for (const ring of rings) {
        html("i", { role: "img", "aria-label": "held out", title: "held out", class: ring.phase }, button);
        values.push(html("b", {}, button));
      }
      const key = lineKey(line);
      button.setAttribute("aria-pressed", String(!this.hidden.has(key)));
      button.addEventListener("click", () => {
        if (!this.hidden.delete(key)) this.hidden.add(key);
        button.setAttribute("aria-pressed", String(!this.hidden.has(key)));
        this.draw();
      });
      return values;
    });
  }

  labels() {
    const texts = this.data.lines.map((line, index) => {
      const last = formatValue(line.values[line.values.length - 1], this.data.form);
      if (this.latest?.[index] && this.latest[index].textContent !== last) this.latest[index].textContent = last;
      return `${line.label} ${last}`;
    });
    this.plot.setAttribute("aria-label", `${this.data.title}. Latest: ${texts.join(", ")}. Arrow keys read values; plus and minus zoom; Enter lists all metrics at a step.`);
  }

  visibleLines() {
    return this.entries.filter(([line]) => !this.hidden.has(lineKey(line))).flat();
  }

  // ---- drawing

  drawWhenVisible() {
    if (this.visible) this.draw();
    else this.stale = true;
  }

  x(step) {
    const { low, high } = this.axis;
    return this.left + ((step - low) / Math.max(high - low, 1)) * (this.width - this.left - EDGE.right);
  }

  step(x) {
    const { low, high } = this.axis;
    return Math.round(low + ((x - this.left) / Math.max(this.width - this.left - EDGE.right, 1)) * (high - low));
  }

  y(value) {
    const height = this.height - EDGE.top - EDGE.bottom;
    const part = this.log ? Math.log(value / this.bottom) / Math.log(this.top / this.bottom) : (value - this.bottom) / (this.top - this.bottom);
    return EDGE.top + height * (1 - part);
  }

  range() {
    let low = Infinity, high = -Infinity, positive = Infinity;
    for (const line of this.visibleLines()) {
      for (const [steps, values] of [[line.steps, line.values], [line.smooth_steps ?? [], line.smooth_values ?? []]]) {
        for (let i = 0; i < steps.length; i += 1) {
          if (steps[i] < this.axis.low || steps[i] > this.axis.high) continue;
          const value = values[i];
          if (value < low) low = value;
          if (value > high) high = value;
          if (value > 0 && value < positive) positive = value;
        }
      }
    }
    if (low > high) [low, high, positive] = [0, 1, 0.1];
    for (const guide of this.data.guides) {
      if (guide.kind === "good" || guide.high <= high * 2) {
        high = Math.max(high, guide.high);
        if (guide.kind === "good") low = Math.min(low, guide.low);
      }
    }
    this.log = this.axis.logarithmic && this.data.log && positive < Infinity;
    if (this.log) {
      const spread = Math.max(high / positive, 1.2) ** 0.06;
      [this.bottom, this.top] = [positive / spread, Math.max(high, positive * 1.2) * spread];
      return;
    }
    if (low >= 0 && low < 0.4 * high) low = 0;
    if (this.data.form === "percent" && high > 0.85 && high <= 1) high = 1;
    if (low === high) {
      [this.bottom, this.top] = low === 0 ? [-1, 1] : [low - Math.abs(low) / 2, low + Math.abs(low) / 2];
      return;
    }
    const pad = (high - low) * 0.06;
    this.bottom = low === 0 ? 0 : low - pad;
    this.top = high === 1 && this.data.form === "percent" ? 1 : high + pad;
  }

  draw() {
    this.stale = false;
    this.width = this.plot.clientWidth;
    this.height = this.plot.clientHeight || HEIGHT;
    if (!this.width) return;
    this.range();
    this.values = this.log ? logTicks(this.bottom, this.top) : ticks(this.bottom, this.top, this.height > 260 ? 7 : 4);
    this.texts = formatTicks(this.values, this.data.form, this.log);
    this.left = Math.max(EDGE.left, 14 + 6.6 * Math.max(...this.texts.map((text) => text.length), 0));
    const picture = document.createDocumentFragment();
    this.drawAxes(picture);
    this.drawGuides(picture);
    this.drawMarks(picture);
    for (const line of this.visibleLines()) this.drawLine(line, picture);
    this.over = svg("g", { class: "over" }, picture);
    this.picture.setAttribute("width", this.width);
    this.picture.setAttribute("height", this.height);
    this.picture.replaceChildren(picture);
    this.drawCursor();
    if (!this.table.hidden) this.fillTable();
  }

  drawAxes(parent) {
    const bottom = this.height - EDGE.bottom, right = this.width - EDGE.right;
    this.values.forEach((value, index) => {
      const y = this.y(value);
      svg("line", { class: "grid", x1: this.left, x2: right, y1: y, y2: y }, parent);
      svg("text", { class: "tick", x: this.left - 7, y: y + 4, "text-anchor": "end" }, parent).textContent = this.texts[index];
    });
    svg("line", { class: "base", x1: this.left, x2: right, y1: bottom, y2: bottom }, parent);
    const { low, high } = this.axis;
    const room = 12 + 10 * formatStep(high).length; // pixels around the end labels without other labels
    const between = ticks(low, high, Math.max(2, Math.floor(this.width / 90)), 1).filter((step) => this.x(step) - this.x(low) > room && this.x(high) - this.x(step) > room);
    for (const step of [low, ...between, high]) {
      const x = this.x(step);
      svg("line", { class: "base", x1: x, x2: x, y1: bottom, y2: bottom + 4 }, parent);
      const anchor = x > right - 16 ? "end" : x < this.left + 10 ? "start" : "middle";
      svg("text", { class: "tick", x, y: bottom + 17, "text-anchor": anchor }, parent).textContent = formatStep(step);
    }
  }

  drawGuides(parent) {
    const right = this.width - EDGE.right;
    for (const guide of this.data.guides) {
      const low = Math.max(guide.low, this.bottom), high = Math.min(guide.high, this.top);
      if (guide.low > this.top || guide.high < this.bottom) continue;
      const at = this.y(high);
      if (guide.high > guide.low) svg("rect", { class: `band ${guide.kind}`, x: this.left, width: right - this.left, y: at, height: Math.max(this.y(low) - at, 1) }, parent);
      else svg("line", { class: `guide ${guide.kind}`, x1: this.left, x2: right, y1: at, y2: at }, parent);
      const inside = at - 4 > EDGE.top + 6 && guide.high === guide.low ? at - 4 : at + 12;
      const side = guide.kind === "good" ? { x: this.left + 3 } : { x: right - 3, "text-anchor": "end" }; // the labels of a target and an alarm do not overlap
      svg("text", { class: `guide ${guide.kind}`, y: inside, ...side }, parent).textContent = guide.label;
    }
  }

  drawMarks(parent) {
    const bottom = this.height - EDGE.bottom;
    for (const mark of this.axis.marks) {
      if (mark.step < this.axis.low || mark.step > this.axis.high) continue;
      const x = this.x(mark.step);
      const group = svg("g", { class: `mark ${mark.kind}` }, parent);
      svg("line", { x1: x, x2: x, y1: EDGE.top, y2: bottom }, group);
      svg("path", { d: SIGNS[mark.kind] ?? SIGNS.info, transform: `translate(${x} ${bottom})` }, group);
    }
  }

  path(steps, values) {
    const { low, high } = this.axis;
    const first = Math.max(nearest(steps, low) - 1, 0), end = Math.min(nearest(steps, high) + 1, steps.length - 1);
    let d = "", pen = "M";
    for (let i = first; i <= end; i += 1) {
      if (this.log && values[i] <= 0) {
        pen = "M";
        continue;
      }
      d += `${pen}${this.x(steps[i]).toFixed(1)} ${this.y(values[i]).toFixed(1)}`;
      pen = "L";
    }
    return d;
  }

  drawLine(line, parent) {
    const validation = line.phase === "validation";
    const group = svg("g", { class: `line c${line.tone}${validation ? " validation" : ""}`, "clip-path": `url(#${this.clip(parent)})` }, parent);
    if (line.smooth_steps) {
      svg("path", { class: "faint", d: this.path(line.steps, line.values) }, group);
      svg("path", { class: "smooth", d: this.path(line.smooth_steps, line.smooth_values) }, group);
    } else if (line.steps.length) {
      svg("path", { d: this.path(line.steps, line.values) }, group);
    }
    const visible = line.steps.reduce((sum, step) => sum + (step >= this.axis.low && step <= this.axis.high), 0);
    if (visible <= (validation ? 80 : 14)) {
      line.steps.forEach((step, i) => {
        if (step < this.axis.low || step > this.axis.high || (this.log && line.values[i] <= 0)) return;
        svg("circle", { cx: this.x(step), cy: this.y(line.values[i]), r: validation ? 3.2 : 2 }, group);
      });
    }
    for (const step of line.endless ?? []) {
      if (step >= this.axis.low && step <= this.axis.high) svg("path", { class: "endless", d: "M-5 9L5 9L0 0Z", transform: `translate(${this.x(step)} ${EDGE.top})` }, group);
    }
  }

  clip(parent) {
    const id = `clip-${(this.number ??= Chart.numbers++)}`;
    if (!parent.querySelector(`#${id}`)) {
      const clip = svg("clipPath", { id }, parent);
      svg("rect", { x: this.left - 4, y: 0, width: Math.max(this.width - this.left - EDGE.right + 8, 0), height: this.height }, clip);
    }
    return id;
  }

  drawCursor() {
    if (!this.over || this.stale) return;
    this.over.replaceChildren();
    const step = this.axis.cursor;
    if (step === null) return;
    const x = this.x(step), bottom = this.height - EDGE.bottom;
    svg("line", { class: "cursor", x1: x, x2: x, y1: EDGE.top, y2: bottom }, this.over);
    for (const line of this.visibleLines()) {
      const at = nearest(line.steps, step);
      if (at < 0 || Math.abs(this.x(line.steps[at]) - x) > 30 || (this.log && line.values[at] <= 0)) continue;
      svg("circle", { class: `spot c${line.tone}`, cx: this.x(line.steps[at]), cy: this.y(line.values[at]), r: 3.6 }, this.over);
    }
  }

  // ---- values

  at(step, exact) {
    const values = [];
    for (const line of this.visibleLines()) {
      const row = line.run ? undefined : exact?.[line.phase];
      const isExact = row && line.name in row.numbers;
      const at = nearest(line.steps, step);
      if (!isExact && at < 0) continue;
      const value = isExact ? Number(row.numbers[line.name]) : line.values[at];
      const where = isExact ? row.step : line.steps[at];
      const text = isExact && typeof row.numbers[line.name] === "string" ? "not finite" : formatValue(value, this.data.form);
      values.push({ label: line.label, tone: line.tone, phase: line.phase, text, away: where === step ? null : where });
    }
    return values;
  }

  marksAt(step) {
    const x = this.x(step);
    return this.axis.marks.filter((mark) => Math.abs(this.x(mark.step) - x) <= MARK_DISTANCE).slice(0, 4);
  }

  fillTable() {
    const lines = this.visibleLines();
    const all = [...new Set(lines.flatMap((line) => line.steps))].filter((step) => step >= this.axis.low && step <= this.axis.high).sort((a, b) => a - b);
    const every = Math.ceil(all.length / 30) || 1;
    const steps = all.filter((_, i) => (all.length - 1 - i) % every === 0).reverse();
    const table = document.createElement("table");
    const head = html("tr", {}, html("thead", {}, table));
    html("th", { scope: "col", class: "num" }, head, "step");
    for (const line of lines) html("th", { scope: "col", class: "num" }, head, line.label);
    const body = html("tbody", {}, table);
    for (const step of steps) {
      const row = html("tr", {}, body);
      html("th", { scope: "row", class: "num" }, row, formatStep(step));
      for (const line of lines) {
        const at = nearest(line.steps, step);
        const near = at >= 0 && (line.phase === "train" ? Math.abs(line.steps[at] - step) <= every * 2 : line.steps[at] === step);
        html("td", { class: "num" }, row, near ? formatValue(line.values[at], this.data.form) : "");
      }
    }
    this.table.replaceChildren(table);
  }

  // ---- pointer and keys

  listen() {
    let from = null, band = null;
    const inside = (event) => event.clientX - this.plot.getBoundingClientRect().left;
    this.plot.addEventListener("pointermove", (event) => {
      const x = inside(event);
      this.axis.setCursor(this.step(x), this);
      if (from === null || Math.abs(x - from) < MARK_DISTANCE) return;
      band ??= svg("rect", { class: "chosen", y: EDGE.top, height: this.height - EDGE.top - EDGE.bottom }, this.picture);
      if (!band.isConnected) this.picture.append(band);
      band.setAttribute("x", Math.max(Math.min(from, x), this.left));
      band.setAttribute("width", Math.abs(x - from));
    });
    this.plot.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      from = inside(event);
      this.plot.setPointerCapture(event.pointerId);
    });
    const drop = (event) => {
      if (from === null) return;
      const [low, high] = [this.step(Math.min(from, inside(event))), this.step(Math.max(from, inside(event)))];
      const dragged = Math.abs(inside(event) - from) >= MARK_DISTANCE;
      from = null;
      band?.remove();
      band = null;
      if (event.type === "pointercancel") return;
      if (dragged) this.axis.zoomed(Math.max(low, this.axis.first), Math.max(Math.min(high, this.axis.last), low + 2));
      else if (event.pointerType === "mouse") this.axis.picked(this.step(inside(event)));
    };
    this.plot.addEventListener("pointerup", drop);
    this.plot.addEventListener("pointercancel", drop);
    this.plot.addEventListener("pointerleave", () => {
      if (from === null) this.axis.setCursor(null);
    });
    this.plot.addEventListener("focus", () => {
      if (this.plot.matches(":focus-visible")) this.axis.setCursor(this.axis.cursor ?? this.axis.high, this);
    });
    this.plot.addEventListener("blur", () => this.axis.setCursor(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.tableButton.addEventListener("click", () => {
      this.table.hidden = !this.table.hidden;
      this.tableButton.setAttribute("aria-expanded", String(!this.table.hidden));
      if (!this.table.hidden) this.fillTable();
    });
    this.enlargeButton.addEventListener("click", () => {
      const on = this.figure.classList.toggle("large");
      this.enlargeButton.setAttribute("aria-pressed", String(on));
      this.draw();
    });
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { axis } = this;
    const here = axis.cursor ?? axis.high;
    const by = Math.max(1, Math.round((axis.high - axis.low) / 120)) * (event.shiftKey ? 10 : 1);
    const work = {
      ArrowLeft: () => axis.setCursor(here - by, this), ArrowRight: () => axis.setCursor(here + by, this),
      Home: () => axis.setCursor(axis.low, this), End: () => axis.setCursor(axis.high, this),
      "+": () => axis.zoomBy(0.5, here), "=": () => axis.zoomBy(0.5, here), "-": () => axis.zoomBy(2, here),
      "[": () => axis.pan(-0.5), "]": () => axis.pan(0.5), 0: () => axis.zoomed(null), Enter: () => axis.picked(here),
      Escape: () => (axis.low > axis.first || axis.high < axis.last ? axis.zoomed(null) : axis.setCursor(null)),
      m: () => {
        const next = axis.marks.find((mark) => mark.step > here) ?? axis.marks[0];
        if (next) axis.setCursor(next.step, this);
      },
    }[event.key];
    if (!work) return;
    event.preventDefault();
    work();
  }
}
Chart.numbers = 0;

const SIGNS = {
  intervention: "M-5 0L0 -8L5 0Z", checkpoint: "M-4 -8L4 -8L4 0L0 -3L-4 0Z", info: "M0 -8L4 -4L0 0L-4 -4Z", warning: "M0 -9L5 -4.500L0 0L-5 -4.500Z",
  critical: "M0 -10L5.500 -5L0 0L-5.500 -5Z", error: "M0 -10L5.500 -5L0 0L-5.500 -5Z",
};

// ---- many charts, in groups

class Wall {
  constructor(parent, axis) {
    this.parent = parent;
    this.axis = axis;
    this.charts = new Map();
    this.shape = "";
  }

  show(groups) {
    const shape = JSON.stringify(groups.map((group) => [group.title, group.charts.map((chart) => [chart.key, Boolean(chart.flat)])]));
    if (shape !== this.shape) this.build(groups);
    this.shape = shape;
    for (const group of groups) {
      for (const data of group.charts) this.charts.get(`${group.title}/${data.key}`).update(data);
    }
    this.axis.redraw();
  }

  build(groups) {
    for (const chart of this.charts.values()) chart.remove();
    this.charts.clear();
    this.parent.replaceChildren();
    groups.forEach((group, index) => {
      const charts = group.charts.filter((chart) => !chart.flat);
      if (!charts.length) return;
      const section = html("section", group.title ? { class: "wall", "aria-labelledby": `group-${index}` } : { class: "wall" }, this.parent);
      if (group.title) html("h2", { id: `group-${index}` }, section, group.title);
      this.fill(html("div", { class: "charts" }, section), group, charts);
    });
    this.fold(groups);
  }

  fill(grid, group, charts) {
    for (const data of charts) this.charts.set(`${group.title}/${data.key}`, new Chart(data, this.axis, grid));
  }

  // Empty or constant charts are folded at the end.
  fold(groups) {
    const flat = groups.flatMap((group) => group.charts.filter((chart) => chart.flat).map((chart) => [group, chart]));
    if (!flat.length) return;
    const box = html("details", { class: "wall folded" }, this.parent);
    const summary = html("summary", {}, box, `Constant or empty: ${flat.length} ${flat.length === 1 ? "chart" : "charts"} `);
    html("small", {}, summary, flat.map(([, chart]) => chart.title).join(", "));
    const grid = html("div", { class: "charts" }, box);
    for (const [group, chart] of flat) this.fill(grid, group, [chart]);
    box.addEventListener("toggle", () => this.axis.redraw());
  }

  // Append new rows; returns false if a metric has no chart yet.
  append(rows) {
    const known = new Set();
    for (const chart of this.charts.values()) {
      for (const line of chart.data.lines) known.add(`${line.phase}/${line.name}`);
      for (const row of rows) chart.append(row);
    }
    this.axis.redraw();
    return rows.every((row) => Object.keys(row.numbers).every((name) => known.has(`${row.phase}/${name}`)));
  }
}

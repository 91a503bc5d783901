// The curve: predicted and true lengths over the tokens, and the shifts below, on two canvases.
// The lower one is drawn when something changes; the upper one holds the cross of the pointer.
"use strict";

const DASHES = [[], [7, 3], [2, 3], [9, 3, 2, 3]];
const EDGE = { left: 62, right: 14, top: 14, bottom: 24, strip: 34, gap: 6 };
const curve = byId("curve");
const cross = byId("cross");
let plot = null; // geometry of the last drawing

const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function geometry() {
  const { width, height } = cross.getBoundingClientRect();
  const strips = page.models.length * (EDGE.strip + EDGE.gap);
  const bottom = height - EDGE.bottom - strips;
  const count = Math.max(1, state.to - state.from);
  const inner = width - EDGE.left - EDGE.right;
  return {
    width, height, bottom, inner, count,
    x: (i) => EDGE.left + ((i - state.from + 0.5) / count) * inner,
    index: (x) => {
      const i = Math.floor(state.from + ((x - EDGE.left) / inner) * count);
      return Math.max(state.from, Math.min(state.to - 1, i));
    },
  };
}

function pen(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.round(plot.width * ratio);
  const height = Math.round(plot.height * ratio);
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, plot.width, plot.height);
  context.font = "11px " + ink("--sans");
  return context;
}

function drawChart() {
  plot = geometry();
  const context = pen(curve);
  plot.top = highest();
  plot.y = (v) => plot.bottom - (v / plot.top) * (plot.bottom - EDGE.top);
  drawAxes(context);
  page.models.forEach((_, m) => drawFan(context, m));
  drawSmooth(context, (i) => truth(0, i), ink("--ink"), [4, 4], response().ended ? 1.2 : 0.8);
  page.models.forEach((_, m) =>
    drawLine(context, (i) => shown(m, i), ink("--model-" + (m % 4)), DASHES[m % 4], 1.7));
  page.models.forEach((_, m) => drawStrip(context, m));
  drawNames(context);
  describe();
  drawCross();
}

function highest() {
  if (state.view === "u") return 1;
  let top = 1;
  for (let i = state.from; i < state.to; i++) {
    top = Math.max(top, truth(0, i));
    for (let m = 0; m < page.models.length; m++) {
      const fan = series(m).fan;
      top = Math.max(top, shown(m, i), fan ? inView(m, i, fan[fan.length - 1][i]) : 0);
    }
  }
  return top * 1.06;
}

// Where a model knows a distribution: its 90 % interval, and the middle half darker.
function drawFan(context, model) {
  const fan = series(model).fan;
  if (!fan) return;
  const step = Math.max(1, Math.floor(plot.count / plot.inner));
  const at = [];
  for (let i = state.from; i < state.to; i += step) at.push(i);
  const edge = (level, i) => context.lineTo(plot.x(i), plot.y(inView(model, i, fan[level][i])));
  context.fillStyle = ink("--model-" + (model % 4));
  context.globalAlpha = 0.13;
  for (let level = 0; level < fan.length / 2; level++) {
    context.beginPath();
    at.forEach((i) => edge(level, i));
    [...at].reverse().forEach((i) => edge(fan.length - 1 - level, i));
    context.fill();
  }
  context.globalAlpha = 1;
}

// Many points per pixel: the lowest and the highest of each column, so that no peak is lost.
function drawLine(context, value, colour, dash, width) {
  context.beginPath();
  const per = plot.count / plot.inner;
  if (per <= 2) {
    for (let i = state.from; i < state.to; i++) context.lineTo(plot.x(i), plot.y(value(i)));
  } else {
    for (let column = 0; column < plot.inner; column++) {
      const begin = state.from + Math.floor(column * per);
      const end = Math.min(state.to, Math.max(begin + 1, state.from + Math.floor((column + 1) * per)));
      let low = Infinity;
      let high = -Infinity;
      for (let i = begin; i < end; i++) {
        const v = value(i);
        low = Math.min(low, v);
        high = Math.max(high, v);
      }
      if (low === Infinity) continue;
      context.lineTo(EDGE.left + column, plot.y(low));
      context.lineTo(EDGE.left + column, plot.y(high));
    }
  }
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.setLineDash(per <= 2 ? dash : []);
  context.lineJoin = "round";
  context.stroke();
  context.setLineDash([]);
}

// A line without peaks: one point per pixel is enough, so that it keeps its dashes.
function drawSmooth(context, value, colour, dash, width) {
  const step = Math.max(1, Math.floor(plot.count / plot.inner));
  context.beginPath();
  for (let i = state.from; i < state.to - 1; i += step) context.lineTo(plot.x(i), plot.y(value(i)));
  context.lineTo(plot.x(state.to - 1), plot.y(value(state.to - 1)));
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.setLineDash(dash);
  context.stroke();
  context.setLineDash([]);
}

function stripTop(model) {
  return plot.bottom + EDGE.gap + model * (EDGE.strip + EDGE.gap);
}

// Shifts of one model: bars up for longer, down for shorter, clipped at the colour scale.
function drawStrip(context, model) {
  const middle = stripTop(model) + EDGE.strip / 2;
  const unit = EDGE.strip / 2 / scale.limit;
  const scores = series(model).score;
  const bar = Math.max(1, Math.min(14, plot.inner / plot.count - 0.5));
  context.fillStyle = ink("--line");
  context.fillRect(EDGE.left, middle - 0.5, plot.inner, 1);
  for (const [sign, colour] of [[1, "--up"], [-1, "--down"]]) {
    context.fillStyle = "rgb(" + ink(colour) + ")";
    for (let i = state.from; i < state.to; i++) {
      const score = scores[i];
      if (score === null || score * sign <= 0) continue;
      const tall = Math.min(EDGE.strip / 2, Math.abs(score) * unit);
      if (tall < 0.3) continue;
      context.fillRect(plot.x(i) - bar / 2, sign > 0 ? middle - tall : middle, bar, tall);
    }
  }
  context.strokeStyle = ink("--soft");
  context.lineWidth = 0.7;
  context.setLineDash([2, 4]);
  for (const at of [-state.threshold, state.threshold]) {
    if (Math.abs(at) > scale.limit) continue;
    context.beginPath();
    context.moveTo(EDGE.left, middle - at * unit);
    context.lineTo(plot.width - EDGE.right, middle - at * unit);
    context.stroke();
  }
  context.setLineDash([]);
  context.fillStyle = ink("--model-" + (model % 4));
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.fillText(page.models.length > 1 ? "shift " + (model + 1) : "shift s", EDGE.left - 8, middle);
}

function ticks(low, high, about) {
  const rough = (high - low) / about;
  const power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough);
  const out = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) out.push(v);
  return out;
}

function drawAxes(context) {
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const v of ticks(0, plot.top, 5)) {
    context.fillStyle = ink("--line");
    context.fillRect(EDGE.left, plot.y(v), plot.inner, 0.7);
    context.fillStyle = ink("--soft");
    const text = state.view === "u" ? v.toFixed(2) : v.toLocaleString("en");
    context.fillText(text, EDGE.left - 8, plot.y(v));
  }
  context.textAlign = "center";
  context.textBaseline = "alphabetic";
  for (const v of ticks(state.from, state.to - 1, Math.max(3, plot.inner / 110))) {
    const named = plot.x(v) > plot.width - EDGE.right - 110; // the axis has its name there
    if (v !== Math.round(v) || named) continue;
    context.fillText(v.toLocaleString("en"), plot.x(v), plot.height - 7);
  }
  context.save();
  context.translate(12, (EDGE.top + plot.bottom) / 2);
  context.rotate(-Math.PI / 2);
  context.textBaseline = "middle";
  const units = { remaining: "tokens left", total: "tokens in all", u: "discounted length u" };
  context.fillText(units[state.view], 0, 0);
  context.restore();
  context.textAlign = "right";
  context.fillText("response token", plot.width - EDGE.right, plot.height - 7);
}

// Names of the lines, in a row over the plot.
function drawNames(context) {
  const names = page.models.map((m, i) => [m.name, "--model-" + (i % 4), DASHES[i % 4]]);
  names.push([response().ended ? "true" : "seen before the limit (at least)", "--ink", [4, 4]]);
  context.textAlign = "left";
  context.textBaseline = "middle";
  let x = plot.width - EDGE.right;
  for (const [name, colour, dash] of names.reverse()) {
    const wide = context.measureText(name).width;
    x -= wide + 44;
    context.fillStyle = ink("--panel");
    context.globalAlpha = 0.85;
    context.fillRect(x - 4, 3, wide + 40, 15);
    context.globalAlpha = 1;
    context.strokeStyle = ink(colour);
    context.lineWidth = 1.7;
    context.setLineDash(dash);
    context.beginPath();
    context.moveTo(x, 11);
    context.lineTo(x + 24, 11);
    context.stroke();
    context.setLineDash([]);
    context.fillStyle = ink(colour);
    context.fillText(name, x + 30, 11);
  }
}

function drawCross() {
  const context = pen(cross);
  if (drag) {
    context.fillStyle = ink("--accent");
    context.globalAlpha = 0.18;
    context.fillRect(Math.min(drag.begin, drag.end), 0, Math.abs(drag.end - drag.begin), plot.height);
    context.globalAlpha = 1;
  }
  const i = focused();
  if (i < state.from || i >= state.to) return;
  const x = plot.x(i);
  context.fillStyle = ink("--soft");
  context.fillRect(x - 0.5, EDGE.top, 1, plot.height - EDGE.top - EDGE.bottom);
  page.models.forEach((_, m) => {
    context.beginPath();
    context.arc(x, plot.y(shown(m, i)), 4, 0, 2 * Math.PI);
    context.fillStyle = ink("--model-" + (m % 4));
    context.fill();
    context.strokeStyle = ink("--panel");
    context.lineWidth = 1.5;
    context.stroke();
  });
}

function describe() {
  const first = page.models.map((m, k) => m.name + " " + tokens(series(k).length[0])).join(", ");
  curve.setAttribute("aria-label", "Predicted and true remaining length over " +
    response().tokens.length + " tokens; at the start: " + first);
}

let drag = null;

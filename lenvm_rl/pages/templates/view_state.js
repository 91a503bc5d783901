// What is shown, and how numbers and tokens are written. Text of a response reaches the page only
// through textContent.
"use strict";

const LEVELS = 8; // steps of colour on each side of zero
const page = JSON.parse(document.getElementById("data").textContent);
const state = {
  response: 0,
  model: 0, // whose shifts colour the text
  view: "remaining",
  hover: -1, // token under the pointer
  pin: -1, // token that was clicked
  from: 0, // first state on the chart
  to: 0, // one past the last
  columns: page.models.length > 1,
  threshold: 0.01,
};

const byId = (id) => document.getElementById(id);

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const response = () => page.responses[state.response];
const series = (model = state.model) => response().series[model];
const focused = () => (state.hover >= 0 ? state.hover : state.pin);

// The number that a view draws, before token i.
function shown(model, i) {
  const numbers = series(model);
  return state.view === "u" ? numbers.u[i] : inView(model, i, numbers.length[i]);
}

// Tokens to go, as a view writes them.
function inView(model, i, left) {
  if (state.view === "u") return 1 - Math.pow(page.models[model].gamma, left);
  return state.view === "total" ? i + left : left;
}

// What a model that knew the end would say; for a truncated response, the least it could be.
function truth(model, i) {
  const left = response().tokens.length - i;
  if (state.view === "u") return 1 - Math.pow(page.models[model].gamma, left);
  return state.view === "total" ? response().tokens.length : left;
}

// One colour scale for the page, so that responses can be compared: the 99th percentile of |s|,
// and on a page of few tokens at least a tenth of the largest.
const scale = (() => {
  const all = [];
  for (const one of page.responses)
    for (const numbers of one.series)
      for (const s of numbers.score) if (s !== null) all.push(Math.abs(s));
  const sorted = Float64Array.from(all).sort();
  const at = (q) => sorted[Math.floor(q * (sorted.length - 1))] || 1e-6;
  const largest = at(1);
  return { limit: Math.max(at(0.99), largest / 10), largest, usual: at(0.95) };
})();

function level(score) {
  if (score === null) return 0;
  return Math.round(LEVELS * Math.max(-1, Math.min(1, score / scale.limit)));
}

// A token as one line: what cannot be seen is written out.
const SIGNS = { "\n": "⏎", "\t": "→", "\r": "␍" };
function written(token, space = "·") {
  if (token === "") return "◌";
  return token.replace(/[\n\t\r]|^ +| +$|[\p{Cc}\p{Cf}\p{Co}]/gu, (found) => {
    if (found[0] === " ") return space.repeat(found.length);
    return SIGNS[found] || "\\u{" + found.codePointAt(0).toString(16) + "}";
  });
}

function tokens(x) {
  if (x === null) return "–";
  return x < 100 ? x.toFixed(1) : Math.round(x).toLocaleString("en");
}
function signed(x, digits) {
  if (x === null) return "–";
  return (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
}
const digits = scale.limit < 0.01 ? 5 : scale.limit < 0.1 ? 4 : 3;

// Events: everything changes `state`, then draws what depends on it.
"use strict";

function openResponse(r) {
  state.response = r;
  state.hover = state.pin = hot = -1;
  state.from = 0;
  state.to = response().tokens.length;
  markCurrent();
  drawPrompt();
  drawTexts();
  drawShifts();
  drawReadout();
  zoom(0, state.to);
}

function zoom(from, to) {
  state.from = from;
  state.to = to;
  byId("unzoom").hidden = from === 0 && to === response().tokens.length;
  drawChart();
}

function setModel(m) {
  state.model = m;
  if (!state.columns) drawTexts();
  colourTexts();
  drawShifts();
}

let waiting = false;
function focusChanged() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    focusText();
    drawCross();
    drawReadout();
  });
}

function hover(i) {
  if (i === state.hover) return;
  state.hover = i;
  focusChanged();
}

function pin(i, { scroll = false } = {}) {
  state.pin = i;
  if (i >= 0 && (i < state.from || i >= state.to)) zoom(0, response().tokens.length);
  if (scroll) showToken(i);
  focusChanged();
}

// Text: one listener for all tokens.
const indexOf = (event) => event.target.closest?.(".t")?.index ?? -1;
byId("texts").addEventListener("pointerover", (event) => hover(indexOf(event)));
byId("texts").addEventListener("pointerleave", () => hover(-1));
byId("texts").addEventListener("click", (event) => {
  if (getSelection().isCollapsed) pin(indexOf(event));
});
byId("shifts").addEventListener("click", (event) => {
  const entry = event.target.closest("button");
  if (entry) pin(Number(entry.value), { scroll: true });
});

// Chart: point, click, drag to zoom, double click to see all.
const chartX = (event) => event.clientX - cross.getBoundingClientRect().left;
cross.addEventListener("pointerdown", (event) => {
  drag = { begin: chartX(event), end: chartX(event) };
  cross.setPointerCapture(event.pointerId);
});
cross.addEventListener("pointermove", (event) => {
  if (drag) drag.end = chartX(event);
  hover(plot.index(chartX(event)));
  if (drag) focusChanged();
});
cross.addEventListener("pointerup", (event) => {
  const { begin, end } = drag ?? { begin: 0, end: 0 };
  drag = null;
  if (Math.abs(end - begin) < 6) return pin(plot.index(chartX(event)), { scroll: true });
  const [from, to] = [plot.index(Math.min(begin, end)), plot.index(Math.max(begin, end)) + 1];
  if (to - from >= 4) zoom(from, to);
});
cross.addEventListener("pointercancel", () => { drag = null; });
cross.addEventListener("pointerleave", () => hover(-1));
cross.addEventListener("dblclick", () => zoom(0, response().tokens.length));
byId("unzoom").addEventListener("click", () => zoom(0, response().tokens.length));

// Controls.
byId("list").addEventListener("click", (event) => {
  const entry = event.target.closest("button");
  if (entry) openResponse(Number(entry.value));
});
byId("order").addEventListener("change", drawList);
byId("model").addEventListener("change", (event) => setModel(Number(event.target.value)));
byId("columns").addEventListener("change", (event) => {
  state.columns = event.target.checked;
  hot = -1;
  drawTexts();
  focusChanged();
});
byId("marks").addEventListener("change", (event) =>
  byId("texts").classList.toggle("whitespace", event.target.checked));
byId("views").addEventListener("click", (event) => {
  if (event.target.dataset.view) setView(event.target.dataset.view);
});
function setView(view) {
  state.view = view;
  for (const button of byId("views").children)
    button.setAttribute("aria-pressed", String(button.dataset.view === view));
  if (plot) drawChart();
}

// The slider is logarithmic: 0 is a hundredth of the colour scale, 1000 the largest shift.
const lowest = scale.limit / 100;
const span = Math.log(Math.max(scale.largest / lowest, 2));
function setThreshold(threshold) {
  state.threshold = threshold;
  byId("limit").textContent = threshold.toFixed(digits);
}
byId("threshold").addEventListener("input", (event) => {
  setThreshold(lowest * Math.exp((span * Number(event.target.value)) / 1000));
  requestAnimationFrame(() => {
    colourTexts();
    drawChart();
  });
});

const THEMES = ["system", "light", "dark"];
byId("theme").addEventListener("click", (event) => {
  const now = document.documentElement.dataset.theme || "system";
  const next = THEMES[(THEMES.indexOf(now) + 1) % 3];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  event.target.textContent = "theme: " + next;
  drawChart();
  drawReadout();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  drawChart();
  drawReadout();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const last = response().tokens.length - 1;
  const step = { ArrowRight: 1, ArrowLeft: -1, "]": 1, "[": -1 }[event.key];
  if (event.key === "j") nextResponse(1);
  else if (event.key === "k") nextResponse(-1);
  else if (event.key === "Escape") pin(-1);
  else if (step) {
    const scores = series().score;
    const marked = (i) => scores[i] !== null && Math.abs(scores[i]) >= state.threshold;
    let i = state.pin + step;
    if (event.key === "]" || event.key === "[") while (i >= 0 && i <= last && !marked(i)) i += step;
    if (i < 0 || i > last) return;
    event.preventDefault();
    state.hover = -1;
    pin(i, { scroll: true });
  }
});

// Start.
byId("count").textContent = page.responses.length + (page.responses.length === 1 ? " response" : " responses") +
  (page.left_out ? " (" + page.left_out.toLocaleString("en") + " more in the file)" : "");
byId("models").textContent = page.models.map((m) =>
  m.name + " (γ " + Number(m.gamma.toPrecision(6)) + ")").join(" · ");
byId("models").title = page.models.map((m) => m.path).join("\n");
page.models.forEach((m, i) => {
  const option = element("option", "", m.name);
  option.value = i;
  byId("model").append(option);
});
const several = page.models.length > 1;
byId("modelbox").hidden = byId("columnsbox").hidden = !several;
state.columns = several && Math.max(...page.responses.map((one) => one.tokens.length)) <= 5000;
byId("columns").checked = state.columns;
byId("texts").classList.add("whitespace");
document.querySelector(".page").classList.toggle("single", page.responses.length === 1);
for (let step = -LEVELS; step <= LEVELS; step++)
  byId("scale").append(element("i", step > 0 ? "u" + step : step < 0 ? "d" + -step : ""));
byId("low").textContent = signed(-scale.limit, digits);
byId("high").textContent = signed(scale.limit, digits);
const start = Math.max(0.01, scale.usual); // the paper's threshold, or the top 5 % if that is higher
setThreshold(Math.min(start, scale.largest));
byId("threshold").value = Math.round((1000 * Math.log(state.threshold / lowest)) / span);
setView("remaining");
drawList();
openResponse(0);
new ResizeObserver(drawChart).observe(byId("chart"));

// The response as text: one span per token, coloured by its shift.
"use strict";

const CHUNK = 400; // tokens; a chunk ends at the next line break, so that blocks never break lines
let spans = []; // [column][token]
let columnModels = [];

// A column per model while that stays quick; else one, coloured by the chosen model.
function drawTexts() {
  columnModels = state.columns ? page.models.map((_, m) => m) : [state.model];
  const columns = columnModels.map((model) => {
    const column = element("div", "column");
    if (columnModels.length > 1) column.append(element("h2", "", page.models[model].name));
    const text = element("div", "text");
    text.dir = "auto";
    column.append(text);
    const made = fillText(text);
    return { column, made };
  });
  byId("texts").replaceChildren(...columns.map((c) => c.column));
  spans = columns.map((c) => c.made);
  colourTexts();
}

function fillText(text) {
  const { tokens: pieces, special } = response();
  const specials = new Set(special);
  const made = [];
  let chunk = element("div", "chunk");
  let inChunk = 0;
  for (let i = 0; i < pieces.length; i++) {
    const span = element("span", "t");
    fillToken(span, pieces[i]);
    span.index = i;
    span.base = "t" + (specials.has(i) ? " special" : "") + (pieces[i] === "" ? " part" : "");
    chunk.append(span);
    made.push(span);
    if (++inChunk >= CHUNK && pieces[i].endsWith("\n")) {
      text.append(chunk);
      chunk = element("div", "chunk");
      inChunk = 0;
    }
  }
  text.append(chunk);
  return made;
}

// Whitespace keeps its effect; its signs are drawn over it (CSS) and are not part of the text.
function fillToken(span, piece) {
  const wants = /[\n\t]| {2,}|^ $| $/;
  if (!wants.test(piece)) {
    span.textContent = piece;
    return;
  }
  const only = piece.trim() === "";
  for (const part of piece.split(/(\n|\t| +)/)) {
    if (part === "") continue;
    if (part === "\n") span.append(element("i", "n"));
    else if (part === "\t") span.append(element("i", "b"));
    else if (part[0] === " " && (only || part.length > 1 || piece.endsWith(part))) {
      for (const space of part) span.append(element("i", "s"), space);
      continue;
    }
    span.append(part);
  }
}

function classOf(model, i) {
  const score = series(model).score[i];
  const step = level(score);
  let name = step > 0 ? " u" + step : step < 0 ? " d" + -step : "";
  if (score !== null && Math.abs(score) >= state.threshold) name += score > 0 ? " up" : " down";
  return name;
}

function colourTexts() {
  columnModels.forEach((model, c) => {
    spans[c].forEach((span, i) => {
      const wanted = span.base + classOf(model, i) + (i === focused() ? " hot" : "");
      if (span.className !== wanted) span.className = wanted;
    });
  });
  const scores = series().score;
  const marked = scores.filter((s) => s !== null && Math.abs(s) >= state.threshold).length;
  const share = ((100 * marked) / scores.length).toFixed(1);
  byId("marked").textContent = marked.toLocaleString("en") + " marked (" + share + " %)";
}

let hot = -1;
function focusText() {
  const i = focused();
  if (i === hot) return;
  for (const column of spans) {
    column[hot]?.classList.remove("hot");
    column[i]?.classList.add("hot");
  }
  hot = i;
}

function showToken(i) {
  spans[0][i]?.scrollIntoView({ block: "center" });
}

// The list of responses, the numbers at one token, and the largest shifts.
"use strict";

const first = (one) => one.series[0].length[0];
const miss = (one) => Math.abs(first(one) - one.tokens.length) / one.tokens.length;

function drawList() {
  const order = page.responses.map((_, r) => r);
  const keys = {
    longest: (r) => -page.responses[r].tokens.length,
    error: (r) => -miss(page.responses[r]),
  };
  const key = keys[byId("order").value];
  if (key) order.sort((a, b) => key(a) - key(b));
  byId("list").replaceChildren(...order.map((r) => {
    const one = page.responses[r];
    const entry = element("button");
    entry.type = "button";
    entry.value = r;
    entry.append(element("span", "name", one.id + " #" + one.sample));
    const facts = one.tokens.length.toLocaleString("en") +
      (one.ended ? " tokens" : "+ tokens, truncated") + ", guessed " + tokens(first(one));
    entry.append(element("span", "facts soft number", facts));
    return entry;
  }));
  markCurrent();
}

function markCurrent() {
  for (const entry of byId("list").children) {
    const current = Number(entry.value) === state.response;
    entry.setAttribute("aria-current", String(current));
    if (current) entry.scrollIntoView({ block: "nearest" });
  }
}

function nextResponse(step) {
  const entries = [...byId("list").children];
  const at = entries.findIndex((entry) => Number(entry.value) === state.response) + step;
  if (entries[at]) openResponse(Number(entries[at].value));
}

function drawPrompt() {
  const one = response();
  const truthText = one.truth === null ? "" : " · answer: " + one.truth;
  const line = one.prompt.replace(/\s+/g, " ").slice(0, 240);
  byId("prompt").firstElementChild.textContent =
    "Prompt (" + one.prompt_tokens + " tokens): " + line + truthText;
  byId("prompt").lastElementChild.textContent = one.prompt;
  const truncated = one.ended ? [] : ["Truncated by the token limit: how much would have " +
    "followed is not known, and the last token has no shift."];
  byId("notes").textContent = [...truncated, ...one.notes].join(" ");
}

// Rows of the readout: what each model said before the token and after it.
function drawReadout() {
  const i = focused();
  const spread = response().series.some((one) => one.fan);
  const rows = [["", "left before", ...(spread ? ["90 % within"] : []), "left after", "shift s",
    "in tokens", "u before"]];
  const count = response().tokens.length;
  const within = (fan, j) => !spread ? [] :
    [fan ? [fan[0], fan[fan.length - 1]].map((x) => x[j].toLocaleString("en")).join(" – ") : ""];
  page.models.forEach((model, m) => {
    const { length, u, score, fan } = series(m);
    if (i < 0) {
      rows.push([model.name, tokens(length[0]), ...within(fan, 0), "", "", "", u[0].toFixed(3)]);
      return;
    }
    const after = i + 1 < count ? length[i + 1] : response().ended ? 0 : null;
    const shift = after === null ? null : after - (length[i] - 1);
    rows.push([model.name, tokens(length[i]), ...within(fan, i), tokens(after), signed(score[i], digits),
      signed(shift, 1), u[i].toFixed(3)]);
  });
  const left = count - Math.max(i, 0);
  const atLeast = response().ended ? "" : "≥ ";
  rows.push([response().ended ? "true" : "seen", atLeast + tokens(left), ...within(null, 0),
    i < 0 ? "" : atLeast + tokens(left - 1), "", "", ""]);
  byId("numbers").replaceChildren(...rows.map((row, r) => {
    const line = element("tr");
    line.append(...row.map((cell) => element(r ? "td" : "th", "", cell)));
    if (r >= 1 && r <= page.models.length) line.firstChild.style.color = ink("--model-" + ((r - 1) % 4));
    return line;
  }));
  drawContext(i);
}

// The token between its neighbours, on one line, wherever the text is scrolled to.
function drawContext(i) {
  const box = byId("context");
  const pieces = response().tokens;
  if (i < 0) {
    box.replaceChildren(element("div", "soft", "before the first token"));
    return;
  }
  const line = element("div");
  const join = (from, to) =>
    pieces.slice(Math.max(0, from), to).map((piece) => written(piece, " ")).join("");
  line.append(join(i - 7, i), element("b", "", written(pieces[i])), join(i + 1, i + 8));
  const where = "token " + i.toLocaleString("en") + " of 0 to " + (pieces.length - 1).toLocaleString("en");
  box.replaceChildren(line, element("div", "soft", where));
}

function drawShifts() {
  const scores = series().score;
  const ranked = scores.map((s, i) => [s, i]).filter(([s]) => s !== null);
  ranked.sort((a, b) => b[0] - a[0]);
  const rows = [
    ["longer ▲", ranked.slice(0, 8).filter(([s]) => s > 0)],
    ["shorter ▼", ranked.slice(-8).reverse().filter(([s]) => s < 0)],
  ];
  byId("shifts").replaceChildren(...rows.map(([name, found]) => {
    const row = element("div", "row");
    row.append(element("h2", "soft", name));
    for (const [score, i] of found) {
      const step = level(score);
      const entry = element("button", "number " + (step > 0 ? "u" + step : step < 0 ? "d" + -step : ""));
      entry.type = "button";
      entry.value = i;
      entry.append(element("span", "mono", written(response().tokens[i])), " " + signed(score, digits));
      row.append(entry);
    }
    return row;
  }));
}

"use strict";
// Without this script the page is complete; with it, tables sort and filter and the diagram answers.

// Order of a cell: numbers by value, then words, then what is missing.
function keyOf(text) {
  const word = text.trim();
  if (word === "–" || word === "" || word === "nan") return [2, 0, ""];
  const number = word.replace("∞", "Infinity").replace(/%$/, "");
  const value = Number(number.split(/ ± | \[/)[0]);
  return Number.isNaN(value) ? [1, 0, word] : [0, value, ""];
}

function compare(a, b) {
  if (a[0] !== b[0]) return a[0] - b[0];
  if (a[0] === 0) return a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : 0;
  return a[2].localeCompare(b[2]);
}

function sortBy(table, column, sign) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row, i) => [keyOf(row.cells[column].textContent), i, row]);
  rows.sort((p, q) =>  // what is missing stays at the end in both directions
    (p[0][0] === 2 || q[0][0] === 2 ? compare(p[0], q[0]) : sign * compare(p[0], q[0])) || p[1] - q[1]);
  body.append(...rows.map((row) => row[2]));
}

function makeSortable(table) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      sortBy(table, column, up ? 1 : -1);
    });
  });
}

function makeFilterable(table, frame) {
  const rows = Array.from(table.tBodies[0].rows);
  if (rows.length < 5) return;
  const line = document.createElement("p"), input = document.createElement("input");
  const count = document.createElement("span");
  line.className = "filter";
  input.type = "search";
  input.placeholder = "words that a row must hold";
  input.setAttribute("aria-label", "filter rows");
  const show = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const cells = Array.from(row.cells, (cell) => cell.textContent.trim().toLowerCase());
      row.hidden = !words.every((word) => cells.some((cell) => cell.includes(word)));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = ` ${shown} of ${rows.length} rows`;
  };
  input.addEventListener("input", show);
  line.append(input, count);
  frame.before(line);
  show();
}

for (const table of document.querySelectorAll(".wide > table")) {
  if (!table.tHead) continue;
  makeSortable(table);
  makeFilterable(table, table.parentElement);
}

// Eq. 9 as in jaxstab.stability: box() and margins(), in the same order of operations.
function bounds(eta, batch, n) {
  const size = Math.min(batch, n);
  const pi = size === n ? 0 : (n - size) / (size * (n - 1));
  return [2 / eta, pi ? 1 / (eta * Math.sqrt(pi)) : Infinity];
}

// The side that the certified interval [lower, upper] tells; see `jaxstab.experiments.minima`.
function side(data, i, eta, batch) {
  const box = bounds(eta, batch, data.n[i]);
  const sides = ["sharpness", "nonuniformity"].map((name, q) => {
    if (1 - data[name + "_lower"][i] / box[q] < 0) return "outside";
    const certain = 1 - data[name + "_upper"][i] / box[q] >= 0 && data[name + "_converged"][i];
    return certain ? "inside" : "undecided";
  });
  return ["outside", "undecided", "inside"].find((word) => sides.includes(word));
}

function percent(x) {
  return (x < 0 ? "-" : "+") + Math.abs(100 * x).toFixed(1) + "%";
}

async function startDiagram() {
  const given = document.getElementById("diagram-data");
  if (!given) return;
  const { plot, n, fills } = JSON.parse(given.textContent);
  document.getElementById("interactive").hidden = false;
  const views = await Bokeh.embed.embed_item(plot, "diagram");
  const model = Array.from(views)[0].model;
  const named = (prefix) => model.renderers.filter((one) => one.name.startsWith(prefix));
  const groups = named("group"), ownBounds = named("bounds"), chosen = named("chosen")[0];
  const element = (id) => document.getElementById(id);
  const eta = element("eta"), batch = element("batch");
  let asRun = true;

  function judge() {
    const values = [Number(eta.value), Math.round(Number(batch.value))];
    if (!(values[0] > 0 && values[1] >= 1 && values[1] <= n)) return;
    const counts = { inside: 0, undecided: 0, outside: 0 };
    groups.forEach((group) => {
      const old = group.data_source.data, data = { ...old };
      const pairs = Array.from(old.n, (_, i) =>
        asRun ? [old.learning_rate[i], old.batch_size[i]] : values);
      data.side = pairs.map((pair, i) => asRun ? old.as_run[i] : side(old, i, ...pair));
      data.fill = data.side.map((word) => fills[word]);
      ["sharpness", "nonuniformity"].forEach((name, q) => {
        data[name + "_margin_shown"] = pairs.map((pair, i) =>
          percent(1 - old[name][i] / bounds(...pair, old.n[i])[q]));
      });
      group.data_source.data = data;
      if (group.visible) data.side.forEach((word) => { counts[word] += 1; });
    });
    for (const one of ownBounds) one.glyph.line_alpha = asRun ? 1 : 0;
    const box = bounds(...values, n), far = 10 * Math.max(model.x_range.end, model.y_range.end);
    const [a, s] = box.map((x) => Math.min(x, far));
    chosen.data_source.data = asRun ? { x: [], y: [] } : { x: [[0, a, a]], y: [[s, s, 0]] };
    const shown = counts.inside + counts.undecided + counts.outside;
    element("counts").textContent =
      `${counts.inside} inside, ${counts.undecided} undecided, ${counts.outside} outside of ${shown}`;
    element("bounds").textContent = asRun
      ? "each at the η and B that it was trained with"
      : `every minimum at η = ${values[0]}, B = ${values[1]}: a ≤ ${a === far ? "∞" : box[0].toPrecision(4)}, ` +
        `s ≤ ${box[1] === Infinity ? "∞" : box[1].toPrecision(4)}`;
  }

  function choose(from, to, value) {
    from.addEventListener("input", () => {
      asRun = false;
      to.value = value(Number(from.value));
      judge();
    });
  }
  const log = (x) => Math.log10(x), rounded = (x) => Number((10 ** x).toPrecision(3));
  choose(element("eta-slider"), eta, rounded);
  choose(element("batch-slider"), batch, (x) => Math.min(n, Math.round(10 ** x)));
  choose(eta, element("eta-slider"), log);
  choose(batch, element("batch-slider"), log);
  element("eta-slider").value = log(Number(eta.value));
  element("batch-slider").value = log(Number(batch.value));
  element("as-run").addEventListener("click", () => { asRun = true; judge(); });
  for (const group of groups) group.properties.visible.change.connect(judge);
  judge();
  document.documentElement.dataset.ready = "true";
}

startDiagram();

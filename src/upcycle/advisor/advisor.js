// The page: sliders in, numbers, sentences and charts out. Numbers are laws.js's, words are words.js's.
"use strict";
const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);
const { words: WORDS, looks: LOOKS, limits: LIMITS } = DATA;
const OPTIONS = ["upcycle", "scratch", "dense"];
const NAMES = { dense: "dense", moe: "from scratch", upcycled: "upcycled" }; // of laws
const UNITS = { tokens: "tokens", flops: "FLOPs", hours: "GPU-hours" };
const SHARES = 33; // cells of the map, each way
let models = {}; // Bokeh's models by name, once the charts are there
let source, laws, drawn, later, frameAsked;
const advisor = { answer: null }; // what tests read

DATA.sources.forEach((each) => (each.columns = each.columns.map(Laws.numbers)));

// ---- the setting

const state = { source: DATA.sources.length > 1 ? 1 : 0, unit: "tokens", rate: Number($("rate").value) * 1e12 };

const leftAt = {}; // the setting that each source was left at

// A source, at the setting it was left at; at first, the present one as far as it lies within the source's data.
function chooseSource(index) {
  const before = { ...state, d2: laws && tokensOf(state.budget, state.unit) };
  if (laws) leftAt[state.source] = before;
  state.source = index;
  source = DATA.sources[index];
  const back = leftAt[index] ?? source.mixtures[0];
  chooseMixture(back.n_expert ?? back.experts, back.top_k ?? back.topK);
  const { N1, D1, D2 } = laws.upcycled.box;
  const kept = (value, box, start) => (box && value >= box[0] && value <= box[1] ? value : start);
  state.n1 = leftAt[index]?.n1 ?? kept(before.n1, N1, source.start.n1);
  state.d1 = leftAt[index]?.d1 ?? kept(before.d1, D1, source.start.d1);
  if (source.fixed.n1) state.n1 = source.fixed.n1.value;
  if (source.fixed.d1) state.d1 = source.fixed.d1.value;
  state.budget = costOf(leftAt[index]?.d2 ?? kept(before.d2, D2, source.start.d2), state.unit);
}

// The laws of a mixture; of one that the source lacks, those of the same E with the nearest K.
function chooseMixture(experts, topK) {
  const away = (each) => 1000 * Math.abs(each.n_expert - experts) + Math.abs(each.top_k - topK);
  const data = source.mixtures.reduce((a, b) => (away(b) < away(a) ? b : a));
  Object.assign(state, { experts: data.n_expert, topK: data.top_k });
  laws = Laws.mixture(source, data);
  laws.few = Laws.mixture(source, data, DATA.map_draws);
}

const flopsPerToken = () => 6 * laws.active_ratio * state.n1;

// Tokens of the mixture that the budget buys.
function tokensOf(budget, unit) {
  if (unit === "tokens") return budget;
  return (unit === "hours" ? budget * 3600 * state.rate : budget) / flopsPerToken();
}

// What a number of tokens costs in the unit of the page.
function costOf(tokens, unit) {
  if (unit === "tokens") return tokens;
  return (tokens * flopsPerToken()) / (unit === "hours" ? 3600 * state.rate : 1);
}

function readHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  const index = DATA.sources.findIndex((each) => each.name === given.get("source"));
  chooseSource(index >= 0 ? index : state.source);
  const number = (name) => Words.quantity(given.get(name) ?? "");
  if (given.has("e") || given.has("k")) chooseMixture(number("e") || state.experts, number("k") || state.topK);
  if (!source.fixed.n1 && number("n1")) state.n1 = number("n1");
  if (!source.fixed.d1 && number("d1")) state.d1 = number("d1");
  if (number("rate")) state.rate = number("rate");
  if (Object.hasOwn(UNITS, given.get("unit") ?? "")) state.unit = given.get("unit");
  if (number("budget")) state.budget = number("budget");
}

function writeHash() {
  const { n1, d1, unit, budget, experts, topK, rate } = state;
  const given = new URLSearchParams({ source: source.name, n1, d1, unit, budget, e: experts, k: topK, rate });
  history.replaceState(null, "", `#${given}`);
}

// ---- controls

// From a factor of 300 below the data to one of 300 above, in whole decades, and whatever is set now.
function range(box, now, cost = (value) => value) {
  const low = Math.floor(Math.log10(Math.min(cost(box[0] / 300), now)));
  return [low, Math.ceil(Math.log10(Math.max(cost(box[1] * 300), now)))];
}

function place(id, value, box, cost) {
  const slider = $(id);
  [slider.min, slider.max] = range(box, value, cost);
  slider.value = Math.log10(value);
  slider.setAttribute("aria-valuetext", Words.count(value));
  const field = $(`${id}-value`);
  if (document.activeElement !== field) field.value = Words.count(value);
}

function placeChoice(id, values, value) {
  const slider = $(id);
  slider.max = Math.max(values.length - 1, 1);
  slider.value = values.indexOf(value);
  slider.setAttribute("aria-valuetext", value);
  $(`${id}-value`).textContent = value;
}

const choices = (name) => [...new Set(source.mixtures.map((each) => each[name]))].sort((a, b) => a - b);

function placeControls() {
  const { upcycled } = laws;
  place("n1", state.n1, upcycled.box.N1 ?? [state.n1, state.n1]);
  place("d1", state.d1, upcycled.box.D1);
  place("budget", state.budget, upcycled.box.D2, (tokens) => costOf(tokens, state.unit));
  placeChoice("experts", choices("n_expert"), state.experts);
  placeChoice("top_k", choices("top_k"), state.topK);
  for (const id of ["n1", "d1", "experts", "top_k"]) {
    const why = source.fixed[id]?.why ?? "";
    $(id).disabled = Boolean(why);
    if ($(`${id}-value`).matches("input")) $(`${id}-value`).disabled = Boolean(why);
    $(`${id}-why`).textContent = why;
  }
  $("source").value = state.source;
  $("unit").value = state.unit;
  if (document.activeElement !== $("rate")) $("rate").value = Words.general(state.rate / 1e12, 6);
}

function listen() {
  const changed = (change) => (event) => {
    change(event.target);
    ask();
  };
  for (const id of ["n1", "d1", "budget"]) {
    $(id).addEventListener("input", changed((slider) => (state[id] = 10 ** Number(slider.value))));
    $(`${id}-value`).addEventListener("change", (event) => {
      const value = Words.quantity(event.target.value);
      $(`${id}-wrong`).textContent = value ? "" : `“${event.target.value}” is not a number above 0: write 7e9 or 7B.`;
      if (value) state[id] = value;
      if (value) ask();
    });
    $(`${id}-value`).addEventListener("blur", () => placeControls());
  }
  $("experts").addEventListener("input", changed((slider) => chooseMixture(choices("n_expert")[slider.value], state.topK)));
  $("top_k").addEventListener("input", changed((slider) => {
    const wanted = choices("top_k")[slider.value];
    const having = source.mixtures.filter((each) => each.top_k === wanted);
    const near = having.reduce((a, b) => (Math.abs(b.n_expert - state.experts) < Math.abs(a.n_expert - state.experts) ? b : a));
    chooseMixture(near.n_expert, near.top_k);
  }));
  $("source").addEventListener("change", changed((list) => chooseSource(Number(list.value))));
  $("unit").addEventListener("change", changed((list) => {
    const tokens = tokensOf(state.budget, state.unit);
    state.unit = list.value;
    state.budget = costOf(tokens, state.unit);
  }));
  $("rate").addEventListener("change", changed((field) => (state.rate = Words.quantity(field.value) * 1e12 || state.rate)));
  $("run").addEventListener("change", (event) => choosePoint(Number(event.target.value)));
  window.addEventListener("hashchange", () => (readHash(), ask()));
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));
}

// ---- the answer

// At once: what one setting takes. A moment after the last change: what takes all draws at many settings.
function ask() {
  document.body.dataset.settled = "false";
  clearTimeout(later);
  frameAsked ??= requestAnimationFrame(() => {
    frameAsked = undefined;
    placeControls();
    if (answerNow()) later = setTimeout(answerInFull, 120);
    else settle();
  });
}

function settle() {
  if (drawn === undefined) return; // the charts, once there, ask again
  writeHash();
  document.body.dataset.settled = "true";
}

function answerNow() {
  const { n1, d1 } = state;
  const d2 = tokensOf(state.budget, state.unit);
  const asked = [["n1", "N1", n1], ["d1", "D1", d1], ["budget", "The budget in tokens", d2]];
  const wrong = asked.filter(([id, name, value]) => {
    const inside = value >= LIMITS.least && value <= LIMITS.high;
    const ends = `${LIMITS.least} to ${Words.general(LIMITS.high)}`;
    $(`${id}-wrong`).textContent = inside ? "" : `${name} is ${Words.general(value)}; the laws are evaluated from ${ends}.`;
    return !inside;
  });
  if (wrong.length) return unanswered(wrong.map(([, name]) => name));
  const flops = flopsPerToken() * d2;
  const answer = { source: source.name, n1, d1, d2, flops, gpu_hours: flops / state.rate / 3600 };
  Object.assign(answer, { n_expert: state.experts, top_k: state.topK, ...Laws.recommend(laws, n1, d1, d2) });
  answer.losses = {};
  for (const [option, inputs] of Object.entries(Laws.optionInputs(laws, n1, d1, d2))) {
    const rows = answer.rows[option];
    answer.losses[option] = { loss: rows[0], band: Laws.bandOf(rows), tokens: inputs.D ?? inputs.D2 };
  }
  delete answer.rows;
  answer.stretches = Laws.stretches(laws, n1, d1, LIMITS);
  answer.distances = Laws.distances(laws, n1, d1, d2, DATA.tokens_per_parameter);
  answer.threshold = Laws.threshold(laws, n1, d1, LIMITS, true);
  answer.overtakes_dense = laws.dense ? Laws.overtakesDense(laws, n1, d1) : null;
  answer.sentence = Words.sentence(answer, laws, WORDS);
  advisor.answer = answer;
  showNow(answer);
  if (drawn) drawCurves(answer, false);
  return true;
}

function answerInFull() {
  const { answer } = advisor;
  answer.threshold = Laws.threshold(laws, answer.n1, answer.d1, LIMITS, false);
  answer.d_star = Laws.threshold(laws, answer.n1, null, LIMITS, false);
  const { root } = answer.d_star;
  answer.at_d_star = root && Laws.recommend(laws, answer.n1, root, root).option;
  answer.points = laws.points.map((point) => ({ ...point, law: point.law_of && laws[point.law_of].loss(point.inputs) }));
  answer.map = winnersOver(answer);
  showInFull(answer);
  if (drawn) {
    drawCurves(answer, true);
    drawMap(answer);
    drawResiduals(answer);
    later = setTimeout(() => (copyForPrint(), settle()), 50);
  } else settle();
}

// The best option, its lead and share over (D1, D2): the data and a factor of 10 about, and the setting.
function winnersOver({ n1, d1, d2 }) {
  const { box } = laws.upcycled;
  const edges = ([low, high], value) =>
    Laws.linspace(Math.log(Math.min(low / 10, value / 2)), Math.log(Math.max(high * 10, value * 2)), SHARES + 1);
  const [x, y] = [edges(box.D1, d1), edges(box.D2, d2)];
  const cells = [];
  for (let i = 0; i < SHARES; i++)
    for (let j = 0; j < SHARES; j++) {
      const at = { d1: Math.exp((x[i] + x[i + 1]) / 2), d2: Math.exp((y[j] + y[j + 1]) / 2) };
      const { option, lead, share, sure } = Laws.recommend(laws.few, n1, at.d1, at.d2);
      cells.push({ ...at, option, lead, share, sure, left: x[i], right: x[i + 1], bottom: y[j], top: y[j + 1] });
    }
  return cells;
}

// ---- words and tables

const dataFrame = () => Laws.frameOf(laws.data_tokens, LIMITS);

// An input that the laws are not evaluated at: its field tells why.
function unanswered(names) {
  $("sentence").textContent = `No answer: ${names.join(" and ")} ${names.length > 1 ? "are" : "is"} out of range. All below is of the setting before.`;
  $("verdict").textContent = $("sentence").textContent;
  $("sentence").dataset.option = $("verdict").dataset.option = "open";
  return false;
}

function showNow(answer) {
  $("sentence").textContent = answer.sentence;
  $("sentence").dataset.option = answer.sure ? answer.option : "open";
  $("flips").textContent = `Over the budget: ${Words.flips(answer.stretches, dataFrame(), WORDS)}.`;
  const { level, text, length } = Words.warning(answer.distances, Words.errors(laws, NAMES));
  $("verdict").textContent = Words.verdict(answer, level, WORDS);
  $("verdict").dataset.option = $("sentence").dataset.option;
  $("warning").dataset.level = level;
  $("warning-text").textContent = text;
  $("warning-bar").style.width = `${100 * length}%`;
  $("cost").textContent =
    `The budget is D2 = ${Words.count(answer.d2)} tokens of the mixture = ${Words.general(answer.flops)} FLOPs = ` +
    `${Words.hours(answer.gpu_hours)}. N2 = ${Words.count(laws.active_ratio * answer.n1)} active parameters.`;
  const rows = OPTIONS.map((option) => {
    const found = answer.losses[option];
    if (!found) return [WORDS.results[option], "no law in this source", "", "", option];
    const band = found.band ? found.band.map((end) => Words.fixed(end, 3)).join(" to ") : "not known";
    return [WORDS.results[option], Words.fixed(found.loss, 3), band, Words.count(found.tokens), option];
  });
  fill("losses", rows.map(([name, loss, band, tokens, option]) => [[name, option], loss, band, tokens]));
  fill("decisive", decisive(answer).map((note) => [note]), "li");
  fill("notes", laws.notes.map((note) => [note]), "li");
}

// Caveats that may turn the recommendation at this setting.
function decisive(answer) {
  const found = [];
  if (laws.dense && (answer.overtakes_dense ?? Infinity) > answer.d2) {
    const near = answer.overtakes_dense && dataFrame().counted([answer.overtakes_dense]).length;
    const where = near ? `Below D2 = ${Words.count(answer.overtakes_dense)}` : "At every D2 near the data";
    found.push(`${where} the upcycled law lies above the dense loss it starts from: upcycling may do better.`);
  }
  if (!laws.dense) found.push("This source has no law of dense models: training the dense model on is not compared.");
  return found;
}

function showInFull(answer) {
  const frame = dataFrame();
  $("flip").textContent = Words.crossing(answer.threshold, "At this N1 and D1", "D2", frame);
  const beaten = answer.at_d_star === "dense" ? " At D* the dense model trained on beats both." : "";
  $("dstar").textContent = Words.crossing(answer.d_star, "At this N1, with as many tokens D1 as D2", "D*", frame) + beaten;
  if (advisor.shown === laws) return;
  advisor.shown = laws;
  const boxes = Object.entries({ ...laws.moe.box, ...laws.upcycled.box });
  const ranges = boxes.map(([name, [low, high]]) => `${name} ${Words.count(low)}${low < high ? ` to ${Words.count(high)}` : ""}`);
  $("statement").textContent = `${source.statement} Mixture: ${laws.n_expert} experts, top-${laws.top_k}. Data: ${ranges.join(", ")}.`;
  $("mark").textContent = source.mark;
  const rows = Object.entries(laws.curves).flatMap(([name, law]) =>
    Object.entries(law.values).map(([parameter, value]) => [NAMES[name], parameter, String(value), law.units[parameter], law.formula]),
  );
  fill("constants", rows);
  $("no-points").textContent = answer.points.length ? "" : source.no_points;
  $("measured").hidden = !answer.points.length;
  fill("points", answer.points.map((point) => [
    point.run, NAMES[point.kind], Words.count(point.inputs.N1), point.inputs.D1 ? Words.count(point.inputs.D1) : "",
    Words.count(point.inputs.D2 ?? point.inputs.D), Words.fixed(point.loss, 4),
    point.why || Words.fixed(point.law, 4), point.fitted ? "yes" : "no",
  ]));
  $("run").replaceChildren(new Option("choose a run", -1), ...answer.points.map((point, i) => new Option(point.run, i)));
  $("run-text").textContent = "";
}

// Rows of a table or list; a cell that is a pair has a mark of an option.
function fill(id, rows, tag) {
  $(id).replaceChildren(...rows.map((cells) => {
    const row = document.createElement(tag ?? "tr");
    if (tag) row.append(...cells[0].split("`").map((text, i) => (i % 2 ? code(text) : text)));
    else for (const cell of cells) {
      const td = row.insertCell();
      td.textContent = Array.isArray(cell) ? cell[0] : cell;
      if (Array.isArray(cell)) td.dataset.option = cell[1];
    }
    return row;
  }));
}

function code(text) {
  const found = document.createElement("code");
  found.textContent = text;
  return found;
}

function choosePoint(index) {
  const point = advisor.answer.points[index];
  $("run").value = index;
  const law = point && (point.why ? `, ${point.why}` : `, ${Words.fixed(point.law, 4)} by the law`);
  $("run-text").textContent = point
    ? `${Words.fixed(point.loss, 4)} nats${law}, ${Object.entries(point.inputs).map(([name, value]) => `${name} ${Words.count(value)}`).join(", ")}`
    : "";
  for (const [, data] of Object.entries(models).filter(([name]) => name.endsWith("-points"))) {
    const at = data.data.at?.indexOf(index) ?? -1;
    if (data.selected.indices[0] !== at) data.selected.indices = at >= 0 ? [at] : [];
  }
}

// ---- the start

// The verdict stays on the screen where the sentence has left it.
new IntersectionObserver(([{ isIntersecting }]) => ($("verdict").hidden = isIntersecting)).observe($("sentence"));

readHash();
listen();
ask();
drawCharts()
  .catch((error) => {
    drawn = null;
    $("no-charts").textContent = `The charts cannot be drawn: ${error.message}. The numbers are right without them.`;
  })
  .finally(ask);

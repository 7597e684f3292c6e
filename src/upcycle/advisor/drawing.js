// The charts' columns, ranges and marks, from an answer: Bokeh draws them.
"use strict";

function drawCurves(answer, bands) {
  const { box } = laws.upcycled;
  const flip = dataFrame().counted([answer.threshold.root ?? NaN]);
  const low = Math.min(box.D2[0] / 3, answer.d2 / 2, ...flip.map((d2) => d2 / 2));
  const high = Math.max(box.D2[1] * 3, answer.d2 * 2, ...flip.map((d2) => d2 * 2));
  const tokens = Array.from(Laws.linspace(Math.log(low), Math.log(high), 61), Math.exp);
  const lines = { x: tokens.map((d2) => costOf(d2, state.unit)) };
  for (const option of OPTIONS) {
    const curve = Laws.curveOf(laws, option);
    const inputs = (d2) => Laws.optionInputs(laws, answer.n1, answer.d1, d2)[option];
    lines[option] = tokens.map((d2) => (curve ? curve.loss(inputs(d2)) : NaN));
    const ends = tokens.map((d2) => (curve && bands ? Laws.bandOf(curve.rows(inputs(d2))) : null) ?? [NaN, NaN]);
    lines[`${option}_low`] = ends.map(([end]) => end);
    lines[`${option}_high`] = ends.map(([, end]) => end);
  }
  models["curves-lines"].data = lines;
  const points = (answer.points ?? []).flatMap((point, at) => {
    const { D, D1, D2 } = point.inputs;
    const d2 = point.kind === "dense" ? (D - answer.d1) / laws.active_ratio : (D2 ?? D);
    if (point.law === null || d2 <= 0) return [];
    const beside = point.kind === "upcycled" && Math.abs(Math.log(D1 / answer.d1)) > 0.2;
    return [{ ...point, at, x: costOf(d2, state.unit), y: point.loss, alpha: beside ? 0.25 : 1 }];
  });
  setPoints("curves-points", points);
  const heights = [...OPTIONS.flatMap((option) => [...lines[option], ...lines[`${option}_low`], ...lines[`${option}_high`]])];
  const seen = [...heights, ...points.map((point) => point.y)].filter(Number.isFinite);
  const [least, most] = [Math.min(...seen), Math.max(...seen)];
  setRange("curves-x", [lines.x[0], lines.x.at(-1)]);
  setRange("curves-y", [least - 0.05 * (most - least), most + 0.05 * (most - least)]);
  models["curves-budget"].location = costOf(answer.d2, state.unit);
  models["curves-flip"].location = answer.threshold.root === null ? null : costOf(answer.threshold.root, state.unit);
  const [left, right] = box.D2.map((d2) => costOf(d2, state.unit));
  Object.assign(models["curves-frame"], { left, right });
  models.curves.below[0].axis_label = `budget (${UNITS[state.unit]}), D1 = ${Words.count(answer.d1)}`;
}

function drawMap(answer) {
  const column = (read) => answer.map.map(read);
  models["map-cells"].data = {
    ...Object.fromEntries(["left", "right", "bottom", "top"].map((side) => [side, column((cell) => Math.exp(cell[side]))])),
    color: column((cell) => LOOKS[cell.sure ? "full" : "pale"][cell.option]),
    who: column((cell) => WORDS.doings[cell.option]),
    lead: column((cell) => `${Words.fixed(cell.lead, 3)} nats`),
    share: column((cell) => (laws.size ? Words.percent(cell.share) : "not known")),
    D1: column((cell) => Words.count(cell.d1)),
    D2: column((cell) => Words.count(cell.d2)),
  };
  const [first, last] = [answer.map[0], answer.map.at(-1)];
  setRange("map-x", [Math.exp(first.left), Math.exp(last.right)]);
  setRange("map-y", [Math.exp(first.bottom), Math.exp(last.top)]);
  const { D1, D2 } = laws.upcycled.box;
  Object.assign(models["map-frame"], { left: D1[0], right: D1[1], bottom: D2[0], top: D2[1] });
  models["map-setting"].data = { x: [answer.d1], y: [answer.d2] };
  const star = answer.d_star.root === null ? [] : [answer.d_star.root];
  models["map-dstar"].data = { x: star, y: star };
  const alpha = answer.at_d_star === "dense" ? 0.35 : 1;
  Object.assign(models["map-dstar-look"], { line_alpha: alpha, fill_alpha: alpha });
  setPoints("map-points", answer.points.flatMap((point, at) =>
    point.kind === "upcycled" && point.law !== null ? [{ ...point, at, x: point.inputs.D1, y: point.inputs.D2, alpha: 1, color: "#222222" }] : [],
  ));
}

function drawResiduals(answer) {
  const points = answer.points.flatMap((point, at) =>
    point.law === null ? [] : [{ ...point, at, x: point.law, y: point.loss - point.law, alpha: 0.9 }],
  );
  setPoints("residuals-points", points);
  if (!points.length) return;
  for (const side of ["x", "y"]) {
    const values = points.map((point) => point[side]);
    const [low, high] = [Math.min(...values, ...(side === "y" ? [0] : [])), Math.max(...values)];
    setRange(`residuals-${side}`, [low - 0.06 * (high - low), high + 0.06 * (high - low)]);
  }
}

function setRange(name, [start, end]) {
  models[name].setv({ start, end });
}

function setPoints(name, points) {
  const option = { upcycled: "upcycle", moe: "scratch", dense: "dense" };
  const column = (read) => points.map(read);
  models[name].selected.indices = [];
  models[name].data = {
    ...Object.fromEntries(["x", "y", "run", "loss", "alpha", "at"].map((key) => [key, column((point) => point[key])])),
    marker: column((point) => LOOKS.markers[point.kind]),
    color: column((point) => point.color ?? LOOKS.colors[option[point.kind]]),
    fill: column((point) => (point.fitted ? (point.color ?? LOOKS.colors[option[point.kind]]) : "white")),
    law: column((point) => Words.fixed(point.law, 4)),
    budget: column((point) => Words.count(point.inputs.D2 ?? point.inputs.D)),
    D1: column((point) => Words.count(point.inputs.D1 ?? 0)),
    D2: column((point) => Words.count(point.inputs.D2 ?? 0)),
  };
}

// A copy of each chart for paper, where the width differs and nothing is redrawn.
function copyForPrint() {
  for (const [id, view] of Object.entries(drawn)) {
    const from = view.export("png", true).canvas;
    const copy = $(`${id}-print`);
    [copy.width, copy.height] = [from.width, from.height];
    if (from.width && from.height) copy.getContext("2d").drawImage(from, 0, 0);
  }
}

async function drawCharts() {
  const items = JSON.parse($("charts").textContent);
  const views = {};
  for (const [id, item] of Object.entries(items)) {
    const manager = await Bokeh.embed.embed_item(item, id);
    views[id] = [...manager][0];
    for (const model of views[id].model.document._all_models.values()) if (model.name) models[model.name] = model;
  }
  for (const [name, data] of Object.entries(models).filter(([name]) => name.endsWith("-points")))
    data.selected.properties.indices.change.connect(() => {
      const [at] = data.selected.indices;
      if (at !== undefined) choosePoint(data.data.at[at]);
    });
  drawn = views;
}

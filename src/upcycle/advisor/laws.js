// The laws and what decisions make of them: the arithmetic of upcycle.decisions in the browser, without a page.
// Tokens D, D1, D2, parameters N1, losses in nats. "Rows" are arrays [1 + B]: the central estimate, then every draw.
// tests/advisor compares its numbers with Python's.
"use strict";
const Laws = (() => {
  const GOLDEN = (Math.sqrt(5) - 1) / 2;
  const OTHER = { upcycle: "scratch", scratch: "upcycle" };

  // Eight bytes a number, little-endian, in base64: every bit of Python's.
  function numbers(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    return new Float64Array(bytes.buffer);
  }

  // A law: a sum of terms, each a floor or exp(a linear combination of internal parameters).
  class Curve {
    constructor(data, draws) {
      Object.assign(this, { box: data.box, sized: data.sized, label: data.label });
      this.size = 1 + draws.size;
      this.theta = {};
      for (const [name, kind] of Object.entries(data.kinds)) {
        const column = Float64Array.of(data.values[name], ...(draws.size ? draws.column(data.draws[name]) : []));
        const logarithm = kind === "scale" || kind === "offset";
        this.theta[name] = logarithm ? column.map((value) => Math.max(Math.log(value), -1e4)) : column;
      }
      this.terms = data.terms.map((factors) => ({
        factors,
        floor: factors.length === 1 && data.kinds[factors[0].parameter] === "floor",
        inputs: factors.filter((factor) => factor.base).map((factor) => factor.base.input),
      }));
    }

    // Losses of all rows; a term is kept while its inputs are the same.
    rows(inputs) {
      const total = new Float64Array(this.size);
      for (const term of this.terms) {
        const key = term.inputs.map((name) => inputs[name]).join();
        if (term.key !== key) Object.assign(term, { key, rows: this.termRows(term, inputs) });
        for (let b = 0; b < this.size; b++) total[b] += term.rows[b];
      }
      return total;
    }

    termRows(term, inputs) {
      if (term.floor) return this.theta[term.factors[0].parameter];
      const sum = new Float64Array(this.size);
      for (const { parameter, base, slope, of } of term.factors) {
        const main = this.theta[parameter];
        if (!base) {
          for (let b = 0; b < this.size; b++) sum[b] += main[b];
          continue;
        }
        const log = base.offset ? null : plainLog(base, inputs);
        const by = slope ? plainLog(of, inputs) : 0;
        const bend = slope ? this.theta[slope] : null;
        const offset = base.offset ? this.theta[base.offset] : null;
        for (let b = 0; b < this.size; b++) {
          const power = -main[b] + (bend ? bend[b] * by : 0);
          sum[b] += power * (offset ? Math.log1p(inputs[base.input] * Math.exp(-offset[b])) : log);
        }
      }
      return sum.map(Math.exp);
    }

    // Loss of one row: what solving for each draw needs.
    at(row, inputs) {
      let total = 0;
      for (const { factors, floor } of this.terms) {
        let sum = 0;
        for (const { parameter, base, slope, of } of factors) {
          const main = this.theta[parameter][row];
          if (!base) {
            sum += main;
            continue;
          }
          const offset = base.offset && this.theta[base.offset][row];
          const log = base.offset ? Math.log1p(inputs[base.input] * Math.exp(-offset)) : plainLog(base, inputs);
          sum += (-main + (slope ? this.theta[slope][row] * plainLog(of, inputs) : 0)) * log;
        }
        total += floor ? sum : Math.exp(sum);
      }
      return total;
    }

    loss(inputs) {
      return this.at(0, inputs);
    }
  }

  function plainLog(base, inputs) {
    return base.one_plus ? Math.log1p(inputs[base.input]) : Math.log(inputs[base.input]);
  }

  // Measured minus law in nats, of each law over the losses that it was fitted to: root mean square and largest size.
  function residuals(points, curves) {
    const found = {};
    for (const name of Object.keys(curves)) {
      const own = points.filter((point) => point.fitted && point.law_of === name);
      const sizes = own.map((point) => Math.abs(point.loss - curves[name].loss(point.inputs)));
      const rms = Math.hypot(...sizes) / Math.sqrt(own.length);
      if (own.length) found[name] = { rms, most: Math.max(...sizes) };
    }
    return found;
  }

  // The laws of one mixture, with at most `most` draws of each.
  function mixture(source, data, most = Infinity) {
    const size = Math.min(data.draws, most);
    const draws = { size, column: (at) => source.columns[at].subarray(0, size) };
    const curves = Object.fromEntries(Object.entries(data.curves).map(([name, law]) => [name, new Curve(law, draws)]));
    return { ...data, ...curves, source, size, residuals: residuals(data.points, curves) };
  }

  // numpy.quantile of sorted numbers, its default method.
  function quantile(sorted, share) {
    const place = share * (sorted.length - 1);
    const low = Math.floor(place);
    const a = sorted[low], b = sorted[Math.min(low + 1, sorted.length - 1)];
    const t = place - low;
    return t >= 0.5 ? b - (b - a) * (1 - t) : a + (b - a) * t;
  }

  function central95(values) {
    const sorted = Float64Array.from(values).sort();
    return [quantile(sorted, 0.025), quantile(sorted, 0.975)];
  }

  const bandOf = (rows) => (rows.length > 1 ? central95(rows.subarray(1)) : null);

  // Distribution function of the standard normal, by a series near 0 and a continued fraction far from it.
  function normal(z) {
    const x = Math.abs(z) / Math.SQRT2;
    let upper;
    if (x < 2.5) {
      let term = x, sum = x;
      for (let n = 1; term > 1e-17 * sum; n++) sum += term *= (2 * x * x) / (2 * n + 1);
      upper = 0.5 - (sum * Math.exp(-x * x)) / Math.sqrt(Math.PI);
    } else {
      let fraction = 0;
      for (let n = 60; n > 0; n--) fraction = n / 2 / (x + fraction);
      upper = Math.exp(-x * x) / Math.sqrt(Math.PI) / (x + fraction) / 2;
    }
    return z > 0 ? 1 - upper : upper;
  }

  // Share of the draws in which the first is below the second, the laws' own error included.
  function shareBelow(first, second, error) {
    const from = first.length > 1 ? 1 : 0;
    let sum = 0;
    for (let b = from; b < first.length; b++) {
      const gap = first[b] - second[b];
      sum += error ? normal(-gap / (Math.SQRT2 * error)) : Number(gap < 0);
    }
    return sum / (first.length - from);
  }

  // Inputs of the three options that cost the same FLOPs.
  function optionInputs(laws, n1, d1, d2) {
    const found = { upcycle: { D1: d1, D2: d2, N1: n1 }, scratch: { D: d2, N1: n1 } };
    if (laws.dense) found.dense = { D: d1 + laws.active_ratio * d2, N1: n1 };
    return found;
  }

  const curveOf = (laws, option) => laws[{ upcycle: "upcycled", scratch: "moe", dense: "dense" }[option]];

  // The option of least expected loss, its lead and the least share of draws in which it beats another.
  function recommend(laws, n1, d1, d2) {
    const inputs = optionInputs(laws, n1, d1, d2);
    const rows = {};
    for (const option of Object.keys(inputs)) rows[option] = curveOf(laws, option).rows(inputs[option]);
    const [option, over, ...rest] = Object.keys(rows).sort((a, b) => rows[a][0] - rows[b][0]);
    const others = [over, ...rest];
    const share = Math.min(...others.map((other) => shareBelow(rows[option], rows[other], laws.law_error)));
    return { option, over, lead: rows[over][0] - rows[option][0], share, sure: share >= laws.source.sure, rows };
  }

  function linspace(low, high, count) {
    const step = (high - low) / (count - 1);
    return Float64Array.from({ length: count }, (_, i) => (i === count - 1 ? high : low + i * step));
  }

  // Which option has the least expected loss at which D2.
  function stretches(laws, n1, d1, { low, high }) {
    const best = (logD2) => {
      const inputs = optionInputs(laws, n1, d1, Math.exp(logD2));
      const losses = Object.keys(inputs).map((option) => curveOf(laws, option).loss(inputs[option]));
      return losses.indexOf(Math.min(...losses));
    };
    const names = Object.keys(optionInputs(laws, n1, d1, 1));
    const grid = linspace(Math.log(low), Math.log(high), 646);
    const at = Array.from(grid, best);
    const found = [{ option: names[at[0]], low, high }];
    for (let i = 1; i < grid.length; i++) {
      if (at[i] === at[i - 1]) continue;
      let [left, right] = [grid[i - 1], grid[i]];
      for (let n = 0; n < 45; n++) {
        const middle = (left + right) / 2;
        if (best(middle) === at[i - 1]) left = middle;
        else right = middle;
      }
      found[found.length - 1].high = Math.exp(right);
      found.push({ option: names[at[i]], low: Math.exp(right), high });
    }
    return found;
  }

  // All roots of each row's function in [low, high], as upcycle.decisions.roots finds them.
  function allRoots(rowsAt, valueAt, size, low, high) {
    const x = linspace(low, high, 1 + Math.ceil((high - low) / 0.05));
    const values = Array.from(x, rowsAt);
    // Regula falsi (Illinois): a tenth of the evaluations of Python's halvings, the same root to 1e-13 of x.
    const solve = (row, left, right) => {
      let [atLeft, atRight, last] = [valueAt(row, left), valueAt(row, right), NaN];
      for (let n = 0; n < 60 && atLeft !== atRight; n++) {
        const middle = (left * atRight - right * atLeft) / (atRight - atLeft);
        const here = valueAt(row, middle);
        if (here === 0 || Math.abs(middle - last) < 1e-14 * Math.abs(middle)) return middle;
        if (here > 0 === atRight > 0) {
          if (last === right) atLeft /= 2;
          [right, atRight, last] = [middle, here, middle];
        } else {
          if (last === left) atRight /= 2;
          [left, atLeft, last] = [middle, here, middle];
        }
      }
      return (left + right) / 2;
    };
    const turned = (row, left, right, above) => {
      const sign = above ? 1 : -1;
      let [a, b] = [left, right];
      let inner = b - GOLDEN * (b - a), outer = a + GOLDEN * (b - a);
      for (let n = 0; n < 40; n++) {
        if (sign * valueAt(row, inner) < sign * valueAt(row, outer)) b = outer;
        else a = inner;
        inner = b - GOLDEN * (b - a);
        outer = a + GOLDEN * (b - a);
      }
      const middle = (a + b) / 2;
      if (valueAt(row, middle) >= 0 === above) return [];
      return [solve(row, left, middle), solve(row, middle, right)];
    };
    return Array.from({ length: size }, (_, row) => {
      const found = [];
      for (let g = 0; g + 1 < x.length; g++) {
        const [here, next] = [values[g][row], values[g + 1][row]];
        if (here >= 0 !== next >= 0) found.push(solve(row, x[g], x[g + 1]));
        if (g + 2 >= x.length) continue;
        const after = values[g + 2][row];
        const turns = Math.abs(next) <= Math.abs(here) && Math.abs(next) <= Math.abs(after);
        const oneSide = next >= 0 === here >= 0 && next >= 0 === after >= 0;
        // The extremum of the parabola through the three: laws bend over whole units, so one far from 0 crosses nothing.
        const bend = here - 2 * next + after;
        const extremum = next - (bend ? (after - here) ** 2 / (8 * bend) : 0);
        if (turns && oneSide && Math.abs(extremum - next) > Math.abs(next) / 2) found.push(...turned(row, x[g], x[g + 2], next >= 0));
      }
      return found.sort((a, b) => a - b);
    });
  }

  // Where roots count, and which of them is reported (upcycle.decisions.thresholds.Window).
  function frameOf(tokens, { low, high, near }) {
    const least = tokens ? Math.max(tokens[0] / near, low) : low;
    const most = tokens ? Math.min(tokens[1] * near, high) : high;
    const distance = (root) => Math.max(tokens[0] / root, root / tokens[1], 1);
    const counted = (roots) => roots.filter((root) => least <= root && root <= most);
    const reported = (roots) =>
      roots.length && tokens ? roots.reduce((a, b) => (distance(b) < distance(a) ? b : a)) : (roots[0] ?? null);
    return { least, most, counted, reported };
  }

  // Where upcycling and training from scratch give the same loss. d1 is null: D*, with D1 = D2 = D. The draws are left
  // out where `central` is true.
  function threshold(laws, n1, d1, limits, central) {
    const scratch = (tokens) => ({ D: tokens, N1: n1 });
    const upcycled = (tokens) => ({ D1: d1 ?? tokens, D2: tokens, N1: n1 });
    const valueAt = (row, log) => {
      const tokens = Math.exp(log);
      return laws.moe.at(row, scratch(tokens)) - laws.upcycled.at(row, upcycled(tokens));
    };
    const rowsAt = (log) => {
      if (central) return [valueAt(0, log)];
      const tokens = Math.exp(log);
      const moe = laws.moe.rows(scratch(tokens)), up = laws.upcycled.rows(upcycled(tokens));
      return moe.map((value, b) => value - up[b]);
    };
    const size = central ? 1 : 1 + laws.size;
    const found = allRoots(rowsAt, valueAt, size, Math.log(limits.low), Math.log(limits.high));
    const [everywhere, ...draws] = found.map((roots) => roots.map(Math.exp));
    const frame = frameOf(laws.source.rounded ? null : laws.data_tokens, limits);
    const roots = frame.counted(everywhere);
    const ahead = (tokens) => {
      const passed = everywhere.filter((root) => root < tokens).length;
      const first = valueAt(0, Math.log(limits.low)) > 0 ? "upcycle" : "scratch";
      return passed % 2 ? OTHER[first] : first;
    };
    const inDraws = draws.map((each) => frame.counted(each));
    const of = inDraws.map((each) => frame.reported(each)).filter((root) => root !== null);
    const share = (test) => inDraws.filter((each) => test(each.length)).length / inDraws.length;
    const shares = inDraws.length
      ? { none: share((n) => n === 0), one: share((n) => n === 1), "two or more": share((n) => n > 1) }
      : {};
    return { roots, root: frame.reported(roots), band: of.length > 1 ? central95(of) : null, shares, ahead };
  }

  // D2 at which the upcycled loss has come down to that of the dense model as it is; null: never.
  function overtakesDense(laws, n1, d1) {
    const target = laws.dense.loss({ D: d1, N1: n1 });
    let [low, high] = [0, Math.log(1e21)];
    const above = (log) => laws.upcycled.loss({ D1: d1, D2: Math.exp(log), N1: n1 }) > target;
    if (above(high)) return null;
    for (let n = 0; n < 60; n++) {
      const middle = (low + high) / 2;
      if (above(middle)) low = middle;
      else high = middle;
    }
    return Math.exp(high);
  }

  // How far each input lies outside the data: factor above 1 beyond the largest, below 1 under the smallest.
  function distances(laws, n1, d1, d2, tokensPerParameter) {
    const [up, moe] = [laws.upcycled.box, laws.moe.box];
    const boxes = [["N1", n1, up.N1], ["D1", d1, up.D1], ["D2", d2, up.D2]];
    if (String(moe.D) !== String(up.D2)) boxes.push(["D2 from scratch", d2, moe.D]);
    if (laws.source.rounded) boxes.push(["D1 / N1", d1 / n1, tokensPerParameter]);
    return boxes.filter(([, , box]) => box).map(([input, value, [low, high]]) => {
      const factor = value > high * (1 + 1e-9) ? value / high : value < low * (1 - 1e-9) ? value / low : 1;
      return { input, value, low, high, factor };
    });
  }

  return {
    numbers, mixture, recommend, optionInputs, curveOf, bandOf, central95, stretches, frameOf, threshold,
    overtakesDense, distances, linspace,
  };
})();

// Numbers and answers in words, as upcycle.decisions.advice.words writes them.
"use strict";
const Words = (() => {
  const LETTERS = { "": 1, k: 1e3, m: 1e6, b: 1e9, t: 1e12 };

  // A fixed number of decimals; of two equally near numbers the even one, as in Python.
  function fixed(value, decimals) {
    const scaled = value * 10 ** decimals;
    if (Math.abs(scaled % 1) !== 0.5) return value.toFixed(decimals);
    return ((2 * Math.round(scaled / 2)) / 10 ** decimals).toFixed(decimals);
  }

  // Python's format(value, ".3g") and the like.
  function general(value, digits = 3) {
    if (value === 0) return "0";
    const [mantissa, power] = value.toExponential(digits - 1).split("e");
    if (power < -4 || power >= digits) {
      const short = mantissa.includes(".") ? mantissa.replace(/\.?0+$/, "") : mantissa;
      return `${short}e${power[0]}${power.slice(1).padStart(2, "0")}`;
    }
    const text = fixed(value, Math.max(0, digits - 1 - power));
    return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
  }

  // 7B, 1.5M: three digits and a letter.
  function count(value) {
    for (const [scale, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (Math.abs(value) >= scale * 0.9995) return general(value / scale) + letter;
    return general(value);
  }

  // The number that somebody typed: 7e9, 7B, 1.5 M; NaN if it is none above 0.
  function quantity(text) {
    const match = /^(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)? ?([kmbt]?)$/.exec(text.trim().toLowerCase());
    const value = match ? Number(match[1].replaceAll("_", "") + (match[2] ?? "")) * LETTERS[match[3]] : NaN;
    return value > 0 && Number.isFinite(value) ? value : NaN;
  }

  const percent = (share, digits = 0) => `${fixed(100 * share, digits)} %`;
  const capital = (text) => text[0].toUpperCase() + text.slice(1);

  function times(factor) {
    return factor < 100 ? `${general(factor, 2)} times` : `${Math.round(factor).toLocaleString("en-US")} times`;
  }

  function hours(value) {
    if (value < 0.01) return value < 1e-5 / 3.6 ? "less than 0.01 GPU-seconds" : `${general(3600 * value)} GPU-seconds`;
    return `${value >= 100 ? Math.round(value).toLocaleString("en-US") : general(value)} GPU-hours`;
  }

  // What to do in a line, while the sentence is off the screen.
  function verdict(answer, level, words) {
    const far = level === "inside" ? "" : `; ${SURE.find(([, name]) => name === level)[2].toLowerCase()}`;
    const opening = answer.sure ? "Best" : "Too close to call";
    return `${opening}: ${words.results[answer.option]}, by ${fixed(answer.lead, 3)} nats${far}`;
  }

  function whatToDo(found, words) {
    const lead = `(${fixed(found.lead, 3)} nats below ${words.doings[found.over]})`;
    if (!found.sure) return `too close to call, leaning to ${words.doings[found.option]} ${lead}`;
    const action = found.option === "scratch" ? "train from scratch" : words.actions[found.option];
    return `${action}${found.option === "dense" ? ", not a mixture" : ""} ${lead}`;
  }

  function confidence(share, laws) {
    if (!laws.size) return "how sure is not known, as the fits have no draws";
    const error = laws.law_error ? `, laws' error of ${general(laws.law_error, 2)} nats included` : "";
    return `best in ${percent(share, share > 0.99 ? 1 : 0)} of draws${error}`;
  }

  // The answer in one sentence.
  function sentence(answer, laws, words) {
    const model = `a dense model of N1 = ${count(answer.n1)} and D1 = ${count(answer.d1)} tokens`;
    const known = confidence(answer.share, laws);
    return `${capital(whatToDo(answer, words))}, for ${model} and D2 = ${count(answer.d2)}; ${known}.`;
  }

  function nearOrWords(tokens, frame) {
    if (frame.least <= tokens && tokens <= frame.most) return count(tokens);
    return `far ${tokens < frame.least ? "below" : "above"} the data`;
  }

  const bandInWords = (band, frame) => [...new Set(band.map((end) => nearOrWords(end, frame)))].join(" to ");

  // The best option at each budget near the data.
  function flips(stretches, frame, words) {
    const near = stretches.filter((each) => each.low < frame.most && each.high > frame.least);
    const sides = [["below", near[0] !== stretches[0]], ["above", near.at(-1) !== stretches.at(-1)]];
    const far = sides.filter(([, more]) => more).map(([side]) => side);
    const again = far.length ? `; the best option changes again far ${far.join(" and ")} the data` : "";
    if (near.length === 1) {
      const range = `D2 = ${count(frame.least)} to ${count(frame.most)}`;
      return `${words.actions[near[0].option]} at every budget near the data (${range})${again}`;
    }
    const [first, last] = [near[0], near.at(-1)];
    const parts = [`${words.actions[first.option]} below D2 = ${count(first.high)}`];
    for (const each of near.slice(1, -1)) parts.push(`${words.actions[each.option]} to ${count(each.high)}`);
    return `${parts.join(", ")}, ${words.actions[last.option]} above${again}`;
  }

  // Where upcycling and training from scratch change places; `frame` is that of the data.
  function crossing(found, where, symbol, frame) {
    const sides = { upcycle: "upcycling", scratch: "training from scratch" };
    const other = { upcycle: "scratch", scratch: "upcycle" };
    const near = frame.counted(found.roots);
    const draws = found.shares.none > 0 ? `; ${percent(found.shares.none)} of the draws have no such point` : "";
    if (!near.length) {
      const ahead = found.ahead(Math.sqrt(frame.least * frame.most));
      return `${where}, ${sides[ahead]} is ahead of ${sides[other[ahead]]} at every ${symbol} near the data${draws}.`;
    }
    const root = near.includes(found.root) ? found.root : near[0];
    const band = found.band && root === found.root ? ` (95 % of draws: ${bandInWords(found.band, frame)})` : "";
    const ahead = found.ahead(root * 1.001);
    return `${where}, ${sides[ahead]} overtakes ${sides[other[ahead]]} at ${symbol} = ${count(root)} tokens${band}${draws}.`;
  }

  const SURE = [
    [1, "inside", "All inputs lie within the data"],
    [3, "edge", "Just outside the data"],
    [10, "outside", "Outside the data"],
    [100, "far", "Far outside the data"],
    [Infinity, "beyond", "Beyond anything measured"],
  ];
  const SUPPORT = {
    edge: "The answer leans on the form of the laws.",
    outside: "The answer rests on the form of the laws more than on losses; bands do not cover that.",
    far: "No loss supports this answer: it rests on the form of the laws alone. Bands do not cover that.",
    beyond: "Take nothing from this answer: laws of this kind are not known to hold over such distances.",
  };

  // How far the laws are from the losses that they were fitted to; from losses held out where there are no points.
  function errors(laws, names) {
    const known = Object.entries(laws.residuals);
    if (known.length) {
      const each = known.map(([name, { rms, most }]) => `${names[name]} ${fixed(rms, 3)} (at most ${fixed(most, 3)})`);
      return `There the RMS error of the laws on their own losses is, in nats: ${each.join(", ")}.`;
    }
    return laws.law_error ? `There the laws miss losses held out by ${general(laws.law_error, 2)} nats (RMS).` : "";
  }

  // A warning that grows with the distance: its level, words and a length from 0 to 1.
  function warning(distances, error) {
    const outside = distances.filter((each) => each.factor !== 1);
    const size = (each) => Math.max(each.factor, 1 / each.factor);
    const most = outside.reduce((far, each) => Math.max(far, size(each)), 1);
    const [, level, opening] = SURE.find(([upTo]) => most <= upTo);
    if (level === "inside") return { level, text: `${opening}. ${error}`, length: 0 };
    const sorted = outside.sort((a, b) => size(b) - size(a));
    const parts = sorted.map((each) => `${each.input} ${times(size(each))} ${each.factor > 1 ? "above" : "below"}`);
    return { level, text: `${opening}: ${parts.join(", ")}. ${SUPPORT[level]}`, length: Math.min(1, Math.log10(most) / 3) };
  }

  return { fixed, general, count, quantity, percent, hours, sentence, verdict, flips, crossing, errors, warning };
})();

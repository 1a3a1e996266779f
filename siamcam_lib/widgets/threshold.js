/* Scores on both sides of a threshold: as siamcam_lib/evaluation/metrics.py, whose names these are. */

// --- arithmetic ---------------------------------------------------------------------------------

/** Counts: row is the truth, column the judgement; 0 similar, 1 dissimilar. */
function confusion(score, label, threshold) {
  const counts = [[0, 0], [0, 0]];
  score.forEach((y, i) => counts[label[i]][y >= threshold ? 1 : 0]++);
  return counts;
}

/** Precision and recall are means over both kinds of pair; what was never judged so, is 0. */
function rates([[tn, fp], [fn, tp]]) {
  const share = (right, all) => (all ? right / all : 0);
  return {
    accuracy: (tn + tp) / (tn + fp + fn + tp),
    precision: (share(tn, tn + fn) + share(tp, tp + fp)) / 2,
    recall: (share(tn, tn + fp) + share(tp, tp + fn)) / 2,
  };
}

/** False and true positive rate for a threshold at each score, from the highest on. */
function roc(score, label) {
  const order = Array.from(score.keys()).sort((i, j) => score[j] - score[i]);
  const all = [0, 0], counts = [0, 0], points = [[0, 0]];
  label.forEach((l) => all[l]++);
  order.forEach((i, k) => {
    counts[label[i]]++;
    if (score[i] !== score[order[k + 1]]) points.push([counts[0] / all[0], counts[1] / all[1]]);
  });
  return points;
}

/** Those points of a staircase where it turns. */
const corners = (points) => points.filter(([x, y], k) => {
  const before = points[k - 1], after = points[k + 1];
  return !before || !after || [before, after].some(([i]) => i !== x) &&
    [before, after].some(([, j]) => j !== y);
});

/** Area under a curve of points. */
const area = (points) => points.slice(1).reduce((sum, [x, y], k) =>
  sum + ((x - points[k][0]) * (y + points[k][1])) / 2, 0);

/** The candidates nearest to the threshold, in order of score. */
const nearestTo = (threshold, candidates, count) =>
  candidates.map((pair) => ({ ...pair, judged: pair.score >= threshold ? 1 : 0 }))
    .sort((p, q) => Math.abs(p.score - threshold) - Math.abs(q.score - threshold) || p.pair - q.pair)
    .slice(0, count)
    .sort((p, q) => p.score - q.score || p.pair - q.pair);

// --- charts -------------------------------------------------------------------------------------

const KIND = ["similar", "dissimilar"];
const colour = (label) => `var(--siamcam-${KIND[label]})`;
const across = (y) => 20 + 300 * y; // of the histogram

/** Similar pairs upwards, dissimilar pairs downwards; solid where the judgement is right. */
function histogram(bars) {
  const most = Math.max(...bars.flat());
  const path = (label) => bars[label].map((n, k) => {
    const height = (label ? 1 : -1) * (78 * n) / most;
    return n ? `M${across(k / 40) + 0.5} 100v${height}h6.5v${-height}z` : "";
  }).join("");
  const side = (label) => `<path d="${path(label)}" fill="${colour(label)}" fill-opacity=".3"/>
    <svg y="0" height="200"><path d="${path(label)}" fill="${colour(label)}"/></svg>`;
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((y) =>
    `<path class="axis" d="M${across(y)} 204v4"/><text x="${across(y)}" y="220"
      text-anchor="middle">${y}</text>`);
  const element = make("div");
  element.innerHTML = `<svg viewBox="0 0 340 240" role="img">
    ${side(0)}${side(1)}
    <path class="axis" d="M20 100H320M20 204H320"/>${ticks.join("")}
    <path class="threshold" d="M0 18V182" stroke="var(--siamcam-text)" stroke-width="2"/>
    <text x="170" y="234" text-anchor="middle">dissimilarity y</text>
    <text x="320" y="12" text-anchor="end" style="fill:${colour(0)}">similar pairs (at most
      ${Math.max(...bars[0])})</text>
    <text x="20" y="196" style="fill:${colour(1)}">dissimilar pairs (at most
      ${Math.max(...bars[1])})</text></svg>`;
  const [svg, similar, dissimilar] = element.querySelectorAll("svg");
  const show = (t, words) => {
    const x = across(t);
    const clip = (part, from, to) => {
      part.setAttribute("x", from);
      part.setAttribute("width", to - from);
      part.setAttribute("viewBox", `${from} 0 ${to - from} 200`);
    };
    clip(similar, 0, x);
    clip(dissimilar, x, 340);
    element.querySelector(".threshold").setAttribute("transform", `translate(${x})`);
    svg.setAttribute("aria-label", words);
  };
  return { element, show };
}

/** The curve, and the point where the threshold is. */
function curve(points, auc) {
  const x = (f) => 60 + 160 * f, y = (t) => 176 - 160 * t;
  const element = make("div");
  element.innerHTML = `<svg viewBox="0 0 340 216" role="img">
    <path class="grid" d="M60 176L220 16"/><path class="axis" d="M60 16V176H220"/>
    <path d="M${corners(points).map(([f, t]) => `${x(f)} ${y(t)}`).join("L")}" fill="none"
      stroke="var(--siamcam-text)" stroke-width="1.5"/>
    <path class="lines" stroke="var(--siamcam-focus)" stroke-dasharray="2 3" fill="none"/>
    <circle r="6" fill="var(--siamcam-focus)" stroke="var(--siamcam-ground)" stroke-width="2"/>
    <text x="60" y="192" text-anchor="middle">0</text><text x="220" y="192" text-anchor="middle">1</text>
    <text x="52" y="20" text-anchor="end">1</text><text x="52" y="180" text-anchor="end">0</text>
    <text x="140" y="210" text-anchor="middle">similar, judged dissimilar</text>
    <text transform="translate(30 96) rotate(-90)" text-anchor="middle">dissimilar, recognised</text>
    <text x="236" y="30">area under</text><text x="236" y="46">the curve</text>
    <text x="236" y="62" font-weight="700">${auc.toFixed(3)}</text></svg>`;
  const show = ([f, t]) => {
    element.querySelector("circle").setAttribute("transform", `translate(${x(f)} ${y(t)})`);
    element.querySelector(".lines").setAttribute("d", `M60 ${y(t)}H${x(f)}V176`);
    element.firstChild.setAttribute("aria-label", `ROC curve, area ${auc.toFixed(3)}; at the ` +
      `threshold ${t.toFixed(3)} of dissimilar pairs are recognised, ${f.toFixed(3)} of similar ` +
      "pairs judged dissimilar");
  };
  return { element, show };
}

/** Counts as a table; the judgements that are right stand out. */
function table() {
  const cells = [0, 1].map((truth) => [0, 1].map((judged) =>
    make("td", truth === judged ? { class: "right" } : {})));
  const element = make("table", { class: "siamcam-table siamcam-counts", "aria-label": "confusion counts" },
    make("thead", {}, make("tr", {}, make("td"), ...KIND.map((name) =>
      make("th", { scope: "col" }, `judged ${name}`)))),
    make("tbody", {}, ...KIND.map((name, truth) => make("tr", {},
      make("th", { scope: "row" }, `${name} pairs`), ...cells[truth]))));
  return { element, show: (counts) => counts.forEach((row, i) =>
    row.forEach((n, j) => say(cells[i][j], String(n)))) };
}

/** A pair of pictures, what it is, and where it lies. Not in <img> and <figure>, which the book's
    theme frames and pads in the dark. */
function card({ a, b, score, label }, pictures) {
  const image = (k) => make("div", { role: "img", "aria-label": pictures[k].name,
    style: `background-image: url(${pictures[k].url})` });
  const verdict = make("span");
  const element = make("div", { class: "siamcam-pair" }, make("div", {}, image(a), image(b)),
    `y = ${score.toFixed(3)}`, make("br"), `${KIND[label]}: `, verdict);
  return { element, show: (judged) => {
    say(verdict, judged === label ? "right" : "wrong");
    verdict.style.fontWeight = judged === label ? "" : "700";
  } };
}

// --- the view -----------------------------------------------------------------------------------

function render({ model, el }) {
  const data = model.get("data");
  const score = unpack(data.score), label = unpack(data.label);
  const points = roc(score, label), auc = area(points);
  const bars = histogram(data.bars), point = curve(points, auc), counted = table();
  const verdict = make("output", { class: "siamcam-verdict" });
  const words = make("p", { class: "siamcam-words" });
  const cards = new Map(data.candidates.map((pair) => [pair.pair, card(pair, data.pictures)]));
  const columns = KIND.map(() => make("div"));
  const strip = make("div", { class: "siamcam-judged", role: "group",
    "aria-label": "pairs nearest to the threshold" }, ...KIND.map((name, k) =>
    make("div", { style: `border-color:${colour(k)}` }, `judged ${name}`, columns[k])));
  const shown = data.candidates.length;
  el.classList.add("siamcam");
  el.replaceChildren(verdict, words,
    make("div", { class: "siamcam-charts" }, bars.element, point.element), counted.element,
    ...(shown ? [make("p", { class: "siamcam-note" },
      `The ${Math.min(data.nearest, shown)} pairs nearest to the threshold, of ${shown} that are ` +
      `spread over the scores of all ${score.length}:`), strip] : []),
    make("p", { class: "siamcam-note" }, "Solid bars: pairs judged rightly. Precision and recall " +
      "are means over similar and dissimilar pairs. The network’s own threshold is " +
      `${data.own.toFixed(2)}.`));

  const draw = () => {
    const threshold = model.get("threshold");
    const counts = confusion(score, label, threshold), metrics = rates(counts);
    const [[tn, fp], [fn, tp]] = counts;
    const place = [fp / (tn + fp), tp / (fn + tp)];
    const nearest = nearestTo(threshold, data.candidates, data.nearest);
    const right = `${tn} of ${tn + fp} similar and ${tp} of ${fn + tp} dissimilar pairs judged rightly`;
    say(verdict, `threshold ${threshold.toFixed(2)}: accuracy ${metrics.accuracy.toFixed(3)}, ` +
      `precision ${metrics.precision.toFixed(3)}, recall ${metrics.recall.toFixed(3)}`);
    say(words, right);
    bars.show(threshold, `histogram of scores; threshold ${threshold.toFixed(2)}, ${right}`);
    point.show(place);
    counted.show(counts);
    columns.forEach((column, judged) => {
      const here = nearest.filter((pair) => pair.judged === judged).map(({ pair }) => cards.get(pair));
      here.forEach(({ show }) => show(judged));
      column.replaceChildren(...here.map(({ element }) => element));
    });
    done(el, { threshold, counts, ...metrics, place, auc, nearest });
  };
  const forget = follow(model, ["threshold"], draw), unname = nameControls(el);
  return () => { forget(); unname(); };
}

export default { render };

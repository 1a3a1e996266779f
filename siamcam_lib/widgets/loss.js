/* The contrastive loss of pairs, on the distance and on the bounded output: as
   siamcam_lib/losses.py, whose names these are. */

// --- arithmetic ---------------------------------------------------------------------------------

/** Loss of a pair at D. */
const contrastive = (D, label, margin) =>
  (label ? Math.max(0, margin - D) ** 2 : D ** 2) / 2;

/** dL/dD. */
const slopeAt = (D, label, margin) => (label ? -Math.max(0, margin - D) : D);

const sigmoid = (z) => 1 / (1 + Math.exp(-z));
const logit = (y) => Math.log(y / (1 - y));
const clip = (x, least, most) => Math.min(most, Math.max(least, x));

/** All that is shown of a pair at distance d, for both meanings of D. */
function judge([d, label], margin, { slope, offset }) {
  const y = sigmoid(slope * d + offset);
  const at = (D) => ({ D, loss: contrastive(D, label, margin), gradient: slopeAt(D, label, margin) });
  // what of the paper's gradient reaches the distance
  return { label, d, y, margin: at(d),
    paper: { ...at(y), reaches: slopeAt(y, label, margin) * slope * y * (1 - y) } };
}

// --- a chart ------------------------------------------------------------------------------------

const KIND = ["similar", "dissimilar"];
const colour = (label) => `var(--siamcam-${KIND[label]})`;

/** Both curves over D in [0, end], and a handle for each pair; `focusable` ones take the keyboard. */
function chart({ title, name, end, labels, band, focusable }, act) {
  const top = end ** 2 / 2;
  const x = (D) => 36 + (294 * D) / end, y = (loss) => 196 - (164 * loss) / top;
  const ticks = [0, 0.5, 1, 1.5, 2, 2.5].filter((D) => D <= end);
  const element = make("div", OWN_KEYS);
  element.innerHTML = `<svg viewBox="0 0 340 236">
    <text x="36" y="14" font-weight="600">${title}</text>
    ${band ? `<rect x="${x(0)}" y="32" width="${x(1) - x(0)}" height="164"
      fill="var(--siamcam-rule)" fill-opacity=".28"/>
      <text x="${x(1) + 5}" y="44">y stays below 1</text>` : ""}
    <path class="grid" d="M36 ${y(0.5)}H330"/><text x="32" y="${y(0.5) + 4}" text-anchor="end">½</text>
    <path class="axis" d="M36 32V196H330"/>
    ${[0, 1, 2, 3].filter((l) => l <= top).map((l) =>
      `<text x="32" y="${y(l) + 4}" text-anchor="end">${l}</text>`).join("")}
    ${ticks.map((D) => `<path class="axis" d="M${x(D)} 196v4"/><text x="${x(D)}" y="213"
      text-anchor="middle">${D}</text>`).join("")}
    <text x="183" y="231" text-anchor="middle">${name}</text>
    <path class="hinge" stroke="var(--siamcam-text)" stroke-dasharray="4 3"/>
    <text class="m" y="28" text-anchor="middle">m</text>
    ${KIND.map((_, k) => `<path class="curve" fill="none" stroke="${colour(k)}" stroke-width="2"
      ${k ? 'stroke-dasharray="7 3"' : ""}/>`).join("")}
    ${labels.map((label, k) => `<g class="handle" ${focusable
      ? `tabindex="0" role="slider" aria-label="${KIND[label]} pair ${k + 1}, distance"
      aria-valuemin="0" aria-valuemax="${end}"` : 'aria-hidden="true"'}>
      <circle r="14" fill="transparent"/>
      <path class="pull" stroke="var(--siamcam-text)" stroke-width="2" fill="none"/>
      ${label ? '<rect class="dot" x="-7" y="-7" width="14" height="14"' : '<circle class="dot" r="8"'}
      fill="${colour(label)}" stroke="var(--siamcam-ground)" stroke-width="1.5"/>
      <text y="4" text-anchor="middle" font-size="10" font-weight="700"
        style="fill:var(--siamcam-ground)">${k + 1}</text></g>`).join("")}</svg>`;
  const find = (name) => [...element.querySelectorAll(name)];
  const [svg] = find("svg"), [hinge] = find(".hinge"), [m] = find(".m");
  const handles = find(".handle"), curves = find(".curve");

  handles.forEach((handle, k) => {
    const drag = ({ clientX }) => {
      const { left, width } = svg.getBoundingClientRect();
      act.move(k, clip(((((clientX - left) / width) * 340 - 36) / 294) * end, 0, end));
    };
    const on = (type, listener) => handle.addEventListener(type, listener);
    on("pointerdown", (event) => { handle.setPointerCapture(event.pointerId); drag(event); });
    on("pointermove", (event) => handle.hasPointerCapture(event.pointerId) && drag(event));
    on("keydown", (event) => {
      const step = { ArrowLeft: -0.05, ArrowDown: -0.05, ArrowRight: 0.05, ArrowUp: 0.05,
        PageDown: -0.5, PageUp: 0.5, Home: -end, End: end }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      act.step(k, step);
    });
  });

  const show = (margin, pairs) => {
    hinge.setAttribute("d", `M${x(margin)} 32V196`);
    m.setAttribute("x", x(margin));
    curves.forEach((curve, label) => curve.setAttribute("d", "M" +
      Array.from({ length: 101 }, (_, i) => (i / 100) * end).map((D) =>
        `${x(D).toFixed(2)} ${y(contrastive(D, label, margin)).toFixed(2)}`).join("L")));
    pairs.forEach(({ D, loss, gradient }, k) => {
      handles[k].setAttribute("transform", `translate(${x(D)} ${y(loss)})`);
      handles[k].setAttribute("aria-valuenow", D.toFixed(2));
      handles[k].setAttribute("aria-valuetext",
        `${D.toFixed(2)}, loss ${loss.toFixed(3)}, gradient ${gradient.toFixed(3)}`);
      // against the gradient: where the loss wants the pair to go
      const far = -26 * gradient, head = Math.sign(far) * 5;
      const arrow = Math.abs(far) < 1 ? "" : `M${Math.sign(far) * 8} 0h${far}m${-head} -4l${head} 4l${-head} 4`;
      handles[k].querySelector(".pull").setAttribute("d", arrow);
    });
  };
  return { element, show };
}

// --- the view -----------------------------------------------------------------------------------

function render({ model, el }) {
  const data = model.get("data"), { end } = data;
  const points = data.points.map(([d, label]) => [d, label]); // where the reader has put them
  const labels = points.map(([, label]) => label);
  const put = (k, d) => {
    const to = clip(d, 0, end);
    if (to === points[k][0]) return;
    points[k][0] = to;
    draw();
  };
  const common = { end, labels };
  const step = (k, by) => put(k, Math.round((points[k][0] + by) * 1e6) / 1e6);
  const charts = {
    margin: chart({ ...common, title: "margin loss", name: "D = d, the distance", focusable: true },
      { move: put, step }),
    paper: chart({ ...common, title: "the paper’s loss", name: "D = y, the output", band: true },
      { move: (k, y) => put(k, y <= 0 ? 0 : y >= 1 ? end : (logit(y) - data.offset) / data.slope),
        step }),
  };
  const verdict = make("output", { class: "siamcam-verdict" });
  const cells = points.map(() => Array.from({ length: 6 }, () => make("td")));
  const head = (...names) => make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)));
  const table = make("table", { class: "siamcam-table siamcam-losses", "aria-label": "loss and gradient of each pair" },
    make("thead", {}, head("pair", "d", "L(d)", "dL/dd", "y", "L(y)", "dL/dy")),
    make("tbody", {}, ...points.map(([, label], k) => make("tr", {},
      make("th", { scope: "row", style: `color:${colour(label)}` }, `${k + 1} ${KIND[label]}`),
      ...cells[k]))));
  el.classList.add("siamcam");
  el.replaceChildren(verdict,
    make("div", { class: "siamcam-charts" }, charts.margin.element, charts.paper.element), table,
    make("p", { class: "siamcam-note" }, "Drag a point, or go to it and use the arrow keys. Arrows " +
      "point against the gradient, as long as it is: where the loss pulls the pair. In both charts " +
      `the pairs are the same, y = σ(${[data.slope, "d", data.offset < 0 ? "−" : "+",
        Math.abs(data.offset)].join("\u00a0")}).`));

  const draw = () => {
    const margin = model.get("margin");
    const pairs = points.map((point) => judge(point, margin, data));
    const least = Math.max(0, margin - 1) ** 2 / 2; // of a dissimilar pair whose output nears 1
    charts.margin.show(margin, pairs.map((pair) => pair.margin));
    charts.paper.show(margin, pairs.map((pair) => pair.paper));
    pairs.forEach(({ d, y, margin, paper }, k) =>
      [d, margin.loss, margin.gradient, y, paper.loss, paper.gradient].forEach((value, i) =>
        say(cells[k][i], value.toFixed(2).replace("-", "−"))));
    say(verdict, `m = ${margin.toFixed(2)}: ` + (margin < 1
      ? "the paper’s hinge closes within reach of its output, which is below 1"
      : "the paper’s hinge never closes; a dissimilar pair always costs more than " +
        least.toFixed(3)));
    done(el, { margin, pairs, least });
  };
  const forget = follow(model, ["margin"], draw), unname = nameControls(el);
  return () => { forget(); unname(); };
}

export default { render };

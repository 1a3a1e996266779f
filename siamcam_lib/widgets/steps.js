/* A Grad-CAM map formed channel by channel: M(p) = Σ_k α_k A_k(p), as siamcam_lib/heads.py. */

// --- arithmetic ---------------------------------------------------------------------------------

/** One image's channels: each weighted map α_k A_k, and the sums of the first 0, 1, 2, … of them. */
function unpackSide({ weights, peaks, maps }, places) {
  const units = unpack(maps);
  const terms = weights.map((weight, k) =>
    Float64Array.from(units.subarray(k * places, (k + 1) * places), (v) => v * peaks[k] * weight));
  const sums = [new Float64Array(places)];
  terms.forEach((term, k) => sums.push(sums[k].map((v, p) => v + term[p])));
  return { terms, sums };
}

/** How far a map is from another: the L1 norm of the difference, as a share of the other's. */
function apart(map, other) {
  const total = other.reduce((sum, v) => sum + Math.abs(v), 0);
  return total ? map.reduce((sum, v, p) => sum + Math.abs(v - other[p]), 0) / total : 0;
}

/** What the ReLU leaves of a map that is positive for similarity: the evidence for the decision. */
const rectify = (map, sign) => map.map((v) => Math.max(0, sign * v));

// --- pictures -----------------------------------------------------------------------------------

const SIMILAR = [0, 114, 178], DISSIMILAR = [213, 94, 0]; // as in plots.py

/** A signed map over a grey picture: a colour for what speaks for each side. */
function blendSigned(grey, map, top, opacity, pixels) {
  for (let i = 0, k = 0; i < grey.length; i++, k += 4) {
    const colour = map[i] > 0 ? SIMILAR : DISSIMILAR;
    const alpha = top > 0 ? opacity * Math.min(Math.abs(map[i]) / top, 1) : 0;
    for (let c = 0; c < 3; c++) pixels[k + c] = (1 - alpha) * grey[i] + alpha * colour[c];
    pixels[k + 3] = 255;
  }
}

/** A canvas for maps over one grey picture. */
function sheet(grey, { width, height }) {
  const canvas = make("canvas", { width, height, role: "img" });
  const context = canvas.getContext("2d");
  const draw = (paint, label) => {
    const image = context.createImageData(width, height);
    paint(grey, image.data);
    context.putImageData(image, 0, 0);
    canvas.setAttribute("aria-label", label);
  };
  return { canvas, draw };
}

/** How far the sum is from the final map after each channel: A a line, B dots. */
function course() {
  const element = make("div");
  const show = (curves, at) => {
    const most = Math.max(1, ...curves.flat());
    const longest = Math.max(2, ...curves.map(({ length }) => length));
    const x = (k) => 44 + (286 * k) / (longest - 1), y = (share) => 100 - (84 * share) / most;
    const lines = curves.map((curve, i) => `<path fill="none" stroke="var(--siamcam-text)"
      stroke-width="2" ${i ? 'stroke-dasharray="1 5" stroke-linecap="round"' : ""}
      d="M${curve.map((share, k) => `${x(k)} ${y(share)}`).join("L")}"/>
      <circle r="5" cx="${x(at[i])}" cy="${y(curve[at[i]])}" fill="var(--siamcam-focus)"
      stroke="var(--siamcam-ground)" stroke-width="1.5"/>`);
    element.innerHTML = `<svg viewBox="0 0 340 136" role="img" aria-label="distance of the sum from
      the final map, by number of channels">
      <path class="grid" d="M44 ${y(1)}H330"/><path class="axis" d="M44 12V100H330"/>${lines.join("")}
      <text x="40" y="${y(1) + 4}" text-anchor="end">100%</text>
      <text x="40" y="104" text-anchor="end">0</text>
      <text x="330" y="10" text-anchor="end">distance from the final map: A line, B dots</text>
      <text x="44" y="116" text-anchor="middle">0</text>
      <text x="330" y="116" text-anchor="end">all</text>
      <text x="187" y="130" text-anchor="middle">channels added</text></svg>`;
  };
  return { element, show };
}

// --- the view -----------------------------------------------------------------------------------

const NAMES = ["A", "B"];
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toPrecision(2);
const strongest = (map) => Math.max(...range(map).map(Math.abs));

function render({ model, el }) {
  const data = model.get("data");
  const { sides, shape: [h, w], opacity, decision, count } = data;
  const colours = unpack(data.colours);
  const pair = sides.map((side) => unpackSide(side, h * w));
  const steps = Math.max(...pair.map(({ terms }) => terms.length));
  const rest = sides.map(({ active, channels }) => active - channels.length);
  const relu = (map) => rectify(map, decision === "similar" ? 1 : -1); // raw maps: for similarity
  const courses = [(map) => map, relu].map((seen) => pair.map(({ sums }) =>
    sums.map((sum) => apart(seen(sum), seen(sums.at(-1))))));
  const full = (map, i) => stretch(map, h, w, sides[i].picture.height, sides[i].picture.width);
  // both images on one scale, that of the final maps: a weak sum is seen to be weak
  const top = Math.max(...pair.map(({ sums }, i) => strongest(full(sums.at(-1), i))));

  const verdict = make("output", { class: "siamcam-verdict" });
  const words = make("p", { class: "siamcam-words" });
  const key = make("div", { class: "siamcam-key" });
  const board = make("div", { class: "siamcam-steps" });
  const drawn = course();
  el.classList.add("siamcam");
  el.style.setProperty("--colours", gradient(colours, opacity));
  el.replaceChildren(verdict, words, board, key,
    make("div", { class: "siamcam-charts siamcam-course" }, drawn.element),
    make("p", { class: "siamcam-note" }, `Of ${count} channels ${sides[0].active} are not silent in ` +
      `A, ${sides[1].active} in B. Each image has its own weights; its channels are added in order ` +
      `of |weight|${Math.max(...rest) ? ", the last step adds all that are left" : ""}. Blue speaks ` +
      "for “similar”, orange for “dissimilar”. The sums are on the scale of the final maps, a " +
      "channel is on its own."));

  let panels = null;
  const draw = () => {
    if (!panels) return;
    const wanted = model.get("channels"), rectified = model.get("sum") === 1;
    const course = courses[+rectified];
    const seen = pair.map(({ terms, sums }, i) => {
      const { channels, weights } = sides[i], k = Math.min(wanted, terms.length);
      const raw = full(sums[k], i);
      return {
        k, channel: channels[k - 1] ?? null, weight: weights[k - 1] ?? null,
        term: full(terms[k - 1] ?? sums[0], i), full: rectified ? relu(raw) : raw,
        raw: sums[k], apart: course[i][k], blank: !course[i][0],
      };
    });
    seen.forEach(({ k, channel, weight, term, full, apart, blank }, i) => {
      const { one, sum, which, far } = panels[i];
      const name = channel !== null ? `channel ${channel}, weight ${signed(weight)}`
        : k ? `the ${rest[i]} others together` : "no channel yet";
      const distance = blank ? "the final map is blank: zero everywhere"
        : `${percent(apart)} from the final map`;
      const over = (map, most) => (grey, pixels) => blendSigned(grey, map, most, opacity, pixels);
      one.draw(over(term, strongest(term)), `image ${NAMES[i]}: ${name}`);
      sum.draw(!rectified ? over(full, top) : (grey, pixels) =>
        blend(grey, full, top, opacity, colours, pixels), `image ${NAMES[i]}, sum: ${distance}`);
      say(which, `${NAMES[i]}: ${name}`);
      say(far, `${NAMES[i]}: ${distance}`);
    });
    key.classList.toggle("siamcam-signs", !rectified);
    key.replaceChildren(...(rectified ? ["0", make("i"), `evidence for “${decision}”`]
      : ["dissimilar", make("i"), "similar"]));
    drawn.show(course, seen.map(({ k }) => k));
    say(verdict, `${wanted >= steps ? "all" : wanted} channel${wanted === 1 ? "" : "s"} added: ` +
      seen.map(({ apart }, i) => `${NAMES[i]} ${percent(apart)}`).join(", ") + " from the final map");
    say(words, rectified
      ? `After the ReLU only the evidence for “${decision}” is left, as the pair was judged: ` +
        `dissimilarity ${data.dissimilarity.toFixed(3)}, threshold ${data.threshold.toFixed(2)}.`
      : "Σ αA, signed: what speaks for “similar” less what speaks for “dissimilar”.");
    done(el, { channels: wanted, rectified, top, sides: seen });
  };
  const forget = follow(model, ["channels", "sum"], draw), unname = nameControls(el);
  Promise.all(sides.map(({ picture }) => greyOf(picture))).then((greys) => {
    panels = greys.map((grey, i) => ({ which: make("p"), far: make("p"),
      one: sheet(grey, sides[i].picture), sum: sheet(grey, sides[i].picture) }));
    board.append(...panels.map(({ which, one }) => make("div", {}, which, one.canvas)),
      ...panels.map(({ far, sum }) => make("div", {}, far, sum.canvas)));
    draw();
  });
  return () => { forget(); unname(); };
}

export default { render };

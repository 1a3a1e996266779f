/* Two images of a gallery, how alike they are and why: all from P and e, see maths in chapter 4.
   As siamcam_lib/gradcam.py and embedder.py, to which the names belong. */

// --- arithmetic ---------------------------------------------------------------------------------

const sigmoid = (z) => 1 / (1 + Math.exp(-z));
const dot = (x, y) => x.reduce((sum, v, i) => sum + v * y[i], 0);
const norm = (x) => Math.sqrt(dot(x, x));
const mix = (a, x, b, y) => x.map((v, i) => a * v + b * y[i]);
const SMALLEST_SLOPE = 1e-30;

/** Dissimilarity y of a distance d (or cosine), and its slope dy/dd, for each comparison. */
const COMPARISONS = {
  siamese: (d, cos, { slope, offset }) => {
    const z = slope * d + offset;
    const s = slope * sigmoid(z) * sigmoid(-z);
    const least = Math.sign(slope) * SMALLEST_SLOPE;
    return [sigmoid(z), Math.abs(s) < SMALLEST_SLOPE ? least : s];
  },
  cosine: (d, cos) => [(1 - cos) / 2, d / 2],
  l2: (d) => [d / (1 + d), 1 / (1 + d) ** 2],
  clamped: (d) => [Math.min(d, 1), d <= 1 ? 1 : 0],
};

/** Two embeddings, judged: y, distance d, and how all maps run, two directions for each. */
function compare(e1, e2, how) {
  const n1 = norm(e1) || 1, n2 = norm(e2) || 1; // of nothing nothing is left, whatever divides it
  const u1 = e1.map((v) => v / n1), u2 = e2.map((v) => v / n2);
  const scaled = how.comparison === "cosine" || how.unit;
  const step = scaled ? mix(1, u2, -1, u1) : mix(1, e2, -1, e1);
  const d = norm(step);
  const [y, s] = COMPARISONS[how.comparison](d, dot(u1, u2), how);
  const zero = e1.map(() => 0);
  let gradcam = [zero, zero]; // of equals there is no way to bring them nearer
  if (d > 0 && !scaled) gradcam = [step.map((v) => (s * v) / d), step.map((v) => (-s * v) / d)];
  else if (d > 0 && norm(e1) && norm(e2))
    // û₂ − cos û₁ is the part of û₂ − û₁ across û₁; taken so, nothing cancels as d → 0
    gradcam = [mix(s / (d * n1), step, (-s * dot(u1, step)) / (d * n1), u1),
      mix(-s / (d * n2), step, (s * dot(u2, step)) / (d * n2), u2)];
  const [l1, l2] = how.unit ? [n1, n2] : [1, 1];
  return {
    y, d, gradcam, lengths: l1 * l2,
    shared: [e2.map((v) => v / (l1 * l2)), e1.map((v) => v / (l1 * l2))],
    self: [e1.map((v) => v / l1 ** 2), e2.map((v) => v / l2 ** 2)],
  };
}

/** ⟨P(p), v⟩ at every place p of an image. */
function along({ units, maps }, v) {
  const places = maps.length / units.length || 0;
  const found = new Float64Array(places);
  units.forEach((unit, k) => {
    const weight = v[unit];
    if (weight) for (let p = 0; p < places; p++) found[p] += weight * maps[k * places + p];
  });
  return found;
}

/** P(p), one number a unit: the direction along which another image answers the place p. */
function at({ units, maps, embedding }, p) {
  const v = new Float64Array(embedding.length);
  const places = maps.length / units.length;
  units.forEach((unit, k) => { v[unit] = maps[k * places + p]; });
  return v;
}

/** An image of the gallery, unpacked. */
function unpackImage({ embedding, units, maps, step }, shape) {
  return {
    shape,
    embedding: Float64Array.from(unpack(embedding)),
    units: unpack(units),
    maps: Float32Array.from(unpack(maps), (v) => v * step),
  };
}

// --- what is seen, as numbers -------------------------------------------------------------------

const SIDES = ["A", "B"];
const WORDS = {
  factual: (taken) => `evidence for “${taken}”, the decision taken`,
  counterfactual: (taken, other) => `evidence for “${other}”, the decision not taken`,
  shared: () => "what each image has of what the other is made of",
  self: () => "what each image’s own embedding is made of",
};

/** Everything that is drawn, for a choice of the reader's.
    `pair` unpacked images, `sizes` of their pictures, `how` they are compared, `shape` of a map,
    `kind` of map, `own`: a colour scale for each, `place`: { side, p } pointed at, or null. */
function look({ pair, sizes, how, shape: [h, w], threshold, kind, own, place }) {
  const judged = compare(pair[0].embedding, pair[1].embedding, how);
  const dissimilar = judged.y >= threshold;
  const signed = kind === "factual" || kind === "counterfactual" ? "gradcam" : kind;
  const raw = pair.map((image, i) => along(image, judged[signed][i]));
  // the raw Grad-CAM map speaks for similarity
  const sign = signed === "gradcam" && dissimilar === (kind === "factual") ? -1 : 1;
  const full = raw.map((map, i) =>
    stretch(map.map((v) => sign * v), h, w, sizes[i].height, sizes[i].width));
  const ranges = full.map(range);
  // factual and counterfactual maps share a scale: a weak one is seen to be weak
  const ends = ranges.map(([least, most]) => Math.max(0, most, signed === "gradcam" ? -least : 0));
  const top = own ? ranges.map(([, most]) => Math.max(0, most)) : ends.fill(Math.max(...ends));
  let answer = null;
  if (place) {
    const to = 1 - place.side;
    answer = along(pair[to], at(pair[place.side], place.p).map((v) => v / judged.lengths));
    full[to] = stretch(answer, h, w, sizes[to].height, sizes[to].width);
    ranges[to] = range(full[to]);
    top[to] = Math.max(0, ranges[to][1]);
  }
  return {
    kind, method: signed, threshold, raw, full, top, place, answer,
    dissimilarity: judged.y, similarity: 1 - judged.y, distance: judged.d,
    decision: dissimilar ? "dissimilar" : "similar",
    most: ranges.map(([, most]) => most), blank: ranges.map(([, most]) => !(most > 0)),
  };
}

// --- the view -----------------------------------------------------------------------------------

function render({ model, el }) {
  const data = model.get("data");
  const colours = unpack(data.colours);
  const gallery = data.images.map((image) => ({ ...image, seen: new Map() }));
  // how pairs are judged: as the gallery's own network did, whose maps travelled with the page, or
  // by a model that the page has loaded
  const home = { how: data.how, digest: data.digest, threshold: model.get("threshold") };
  let judge = home, place = null, last = null;
  const chosen = [null, null]; // the reader's own pictures
  const itemOf = (side) => chosen[side] ?? gallery[model.get("ab"[side])];
  const seenOf = (item) => item.seen.get(judge.digest);
  const load = async (item) => {
    item.grey ??= await greyOf(item.picture);
    if (judge.digest === data.digest && item.maps && !seenOf(item))
      item.seen.set(data.digest, unpackImage(item, data.shape));
    if (seenOf(item)) return;
    const by = judge;
    item.seen.set(by.digest, await panel.looker.look(item.file ?? mine.fileOf(item.picture.url), by));
  };

  const verdict = make("output", { class: "siamcam-verdict" });
  const line = make("div", { class: "siamcam-line", "aria-hidden": "true" }, make("i"), make("b"));
  const words = make("p", { class: "siamcam-words", role: "status" });
  /** From now on the reader's own picture is shown, or the gallery's if `own` is null. */
  const take = (side, own) => {
    chosen[side] = own;
    const panel = el.closest(".siamcam-explorer")?.querySelector(".siamcam-controls");
    const menu = panel?.querySelectorAll("select")[side];
    if (!menu) return;
    menu.querySelector(".siamcam-mine")?.remove();
    if (own) {
      menu.append(make("option", { class: "siamcam-mine" }, own.name));
      // a gallery's picture that was chosen before is no change to the model
      menu.addEventListener("change", () => choose(side, menu.selectedIndex), { once: true });
    }
    menu.selectedIndex = own ? menu.length - 1 : model.get("ab"[side]);
  };
  const choose = (side, k) => {
    const own = chosen[side];
    if (own) take(side, null);
    if (own && model.get("ab"[side]) === k) draw();
    else put(model, "ab"[side], k);
  };
  const sides = SIDES.map((name, side) => makeSide(name, gallery, {
    shape: () => seenOf(itemOf(side))?.shape ?? data.shape,
    choose: (k) => choose(side, k),
    point: (p) => {
      const to = p === null ? null : { side, p };
      if (to?.side === place?.side && to?.p === place?.p) return;
      place = to;
      draw();
    },
    place: () => (place?.side === side ? place.p : null),
  }));
  el.classList.add("siamcam");
  // what is chosen with stands above what changes its height
  const strips = make("div", { class: "siamcam-sides" }, ...sides.map(({ strip }) => strip.element));
  const pictures = make("div", { class: "siamcam-sides" }, ...sides.map(({ element }) => element));
  const mine = globalThis.siamcamOwn; // where this page can run models: see own.js
  const panel = mine?.ownPanel(mine.manifest, data.digest, {
    model: (other) => turn(other),
    picture: async (side, { embedding, units, maps, shape, ...item }) => {
      const seen = new Map([[judge.digest, { embedding, units, maps, shape }]]);
      take(side, { ...item, seen });
      place = null;
      await draw();
    },
    save: (kind) => keep(kind),
  });
  el.replaceChildren(strips, verdict, line, words, pictures, ...(panel ? [panel.element] : []),
    make("p", { class: "siamcam-note" },
      "Point at a place, or go to a picture and use the arrow keys: the other picture shows " +
      `where that place is answered. ${data.note}`));
  if (panel) sides.forEach(({ element }, side) => {
    panel.dropOn(element, side);
    panel.dropOn(panel.places[side], side);
  });

  /** Judge by another model from now on. */
  const turn = async (other) => {
    judge = other;
    place = null;
    await Promise.all([0, 1].map((side) => load(itemOf(side))));
    put(model, "threshold", other.threshold);
    await draw();
  };
  const draw = () => {
    const items = [0, 1].map(itemOf);
    if (items.some((item) => !item.grey || !seenOf(item)))
      return Promise.all(items.map(load)).then(draw, (error) => panel?.say(error.message));
    const pair = items.map(seenOf);
    const { shape } = pair[0];
    const seen = look({
      pair, sizes: items.map((item) => item.picture), how: judge.how, shape, place,
      kind: Object.keys(WORDS)[model.get("map")], own: model.get("scale") === 1,
      threshold: model.get("threshold"),
    });
    last = { seen, items, shape };
    el.style.setProperty("--colours", gradient(colours, model.get("opacity")));
    const { kind, decision } = seen;
    const tallest = Math.max(...items.map(({ picture }) => picture.height / picture.width));
    pictures.style.setProperty("--tall", Math.min(tallest, 1.25));
    sides.forEach((side, i) => {
      const { name, picture, grey } = items[i];
      show(side, picture, grey, seen.full[i], seen.top[i], model.get("opacity"), colours);
      side.blank.hidden = !seen.blank[i];
      side.strip.show(chosen[i] ? -1 : model.get("ab"[i]));
      mark(side.cell, place?.side === i ? place.p : null, shape);
      say(side.caption, `${SIDES[i]}: ${name}`);
      say(side.end, brief(seen.top[i]));
      const drawn = place && place.side !== i ? "where the place is answered" : `${kind} map`;
      const most = seen.blank[i] ? "blank" : `at most ${brief(seen.most[i])}`;
      side.canvas.setAttribute("aria-label", `image ${SIDES[i]}, ${name}; ${drawn}, ${most}`);
    });
    const other = decision === "similar" ? "dissimilar" : "similar";
    say(words, place ? answered(seen, shape) : `${kind}: ${WORDS[kind](decision, other)}`);
    say(verdict, `judged ${decision}: dissimilarity ${seen.dissimilarity.toFixed(3)}, ` +
      `similarity ${seen.similarity.toFixed(3)}, threshold ${seen.threshold.toFixed(2)}`);
    verdict.dataset.decision = decision;
    line.style.setProperty("--y", seen.dissimilarity);
    line.style.setProperty("--t", seen.threshold);
    const [a, b] = [0, 1].map((side) => (chosen[side] ? null : model.get("ab"[side])));
    done(el, { ...seen, shape, a, b });
    return undefined;
  };
  /** Save what is seen. */
  const keep = async (kind) => {
    const { seen, items, shape } = last;
    if (kind === "picture") {
      const lines = [verdict.textContent, words.textContent];
      const names = items.map(({ name }) => name);
      return mine.download(await mine.poster(sides.map(({ canvas }) => canvas), names, lines),
        "explanation.png");
    }
    const about = { digest: judge.digest, calibrated: judge.how.comparison === "siamese",
      versions: mine.manifest.versions };
    const text = JSON.stringify(mine.record({ seen, items, shape, ...about }), null, 1);
    return mine.download(new Blob([text], { type: "application/json" }), "explanation.json");
  };

  let open = true;
  for (const side of [0, 1]) model.on(`change:${"ab"[side]}`, () => take(side, null));
  const forget = follow(model, ["a", "b", "map", "scale", "threshold", "opacity"], draw);
  const unname = nameControls(el);
  (async () => { // so that no later choice has to wait
    for (let k = 0; open && judge === home && k < gallery.length; k++) await load(gallery[k]);
  })();
  return () => { open = false; forget(); unname(); panel?.close(); };
}

/** One image's half: thumbnails; name, picture and colour key. */
function makeSide(name, images, act) {
  const caption = make("p", { class: "siamcam-name" });
  const canvas = make("canvas", { tabindex: 0, role: "application",
    "aria-roledescription": "picture with a map", ...OWN_KEYS });
  const cell = make("div", { class: "siamcam-cell", hidden: "" });
  const blank = make("p", { class: "siamcam-blank", hidden: "" }, "blank: zero everywhere");
  const sheet = make("div", { class: "siamcam-sheet" }, canvas, cell, blank);
  const frame = make("div", { class: "siamcam-frame" }, sheet);
  const end = make("span");
  const key = make("div", { class: "siamcam-key" }, "0", make("i"), end);
  const strip = thumbnails(`image ${name}`,
    images.map((image) => ({ name: image.name, url: image.picture.url })), act.choose);

  const clip = (k, cells) => Math.min(cells - 1, Math.max(0, Math.floor(k)));
  const under = ({ clientX, clientY }) => {
    const [h, w] = act.shape();
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return clip(((clientY - top) / height) * h, h) * w + clip(((clientX - left) / width) * w, w);
  };
  const on = (type, listener) => canvas.addEventListener(type, listener);
  on("pointerdown", (event) => act.point(under(event)));
  on("pointermove", (event) => event.pointerType === "mouse" && act.point(under(event)));
  on("pointerleave", (event) => event.pointerType === "mouse" && act.point(null));
  on("blur", () => act.point(null));
  on("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0],
      Escape: [] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [h, w] = act.shape();
    const p = act.place();
    if (event.key === "Escape") act.point(null);
    else if (p === null) act.point((h >> 1) * w + (w >> 1));
    else act.point(clip(Math.floor(p / w) + step[0], h) * w + clip((p % w) + step[1], w));
  });
  return { canvas, cell, blank, sheet, caption, end, strip,
    element: make("div", {}, caption, frame, key) };
}

/** Draw a map over its picture. */
function show({ canvas, sheet }, { width, height }, grey, full, top, opacity, colours) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const ratio = width / height;
  Object.assign(sheet.style, { aspectRatio: ratio, width: `min(100cqw, ${ratio} * 100cqh)` });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  blend(grey, full, top, opacity, colours, image.data);
  context.putImageData(image, 0, 0);
}

/** Frame the place p of a map; none if p is null. */
function mark(cell, p, [h, w]) {
  cell.hidden = p === null;
  if (p === null) return;
  const percent = (share) => `${100 * share}%`;
  Object.assign(cell.style, { left: percent((p % w) / w), top: percent(Math.floor(p / w) / h),
    width: percent(1 / w), height: percent(1 / h) });
}

const brief = (x) => String(Number(x.toPrecision(2)));

function answered({ place: { side, p }, answer }, [, w]) {
  const spell = (q) => `row ${Math.floor(q / w) + 1}, column ${(q % w) + 1}`;
  const [, most] = range(answer);
  const where = most > 0 ? `most at ${spell(answer.indexOf(most))}` : "nowhere";
  return `${spell(p)} of image ${SIDES[side]} is answered ${where} in image ${SIDES[1 - side]}`;
}

export default { render };

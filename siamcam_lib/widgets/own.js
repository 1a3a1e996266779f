/* The reader's own pictures in the pair explorer: a model is loaded when asked for, looks at them
   in a worker, and nothing leaves the browser. Joined after base.js and worker.js into a script that
   announces the models of a page; the explorers of the page find it as `siamcamOwn`. */

// --- models -------------------------------------------------------------------------------------

const SIDES = ["A", "B"];
const KEPT_SIDE = 320; // pixels of the longer side of a reader's picture as it is shown
const LITTLE = 2e6; // bytes that are loaded without asking, once a model was asked for

/** Tell the explorers of this page which models there are, beside this script or in the page. */
function announce(manifest) {
  const folder = document.currentScript.src.replace(/[^/]*$/, "");
  globalThis.siamcamOwn = { manifest: { ...manifest, folder }, ownPanel, fileOf, download, poster,
    record };
}

const megabytes = (bytes) => `${Math.max(1, Math.round(bytes / 1e6))} MB`;

/** An error whose message is meant for the reader. */
const kindly = (told, damaged = false) => Object.assign(new Error(told), { told, damaged });

/** Which of the runtimes suits this browser: a graphics card's, if it has one and there is one. */
async function bestOf(runtimes) {
  const adapter = runtimes.webgpu && await navigator.gpu?.requestAdapter().catch(() => null);
  const real = adapter && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
  return real ? "webgpu" : "wasm";
}

/** A worker that knows models, loading of each what is not loaded yet; `on` what it computes. */
class Looker {
  constructor(manifest, on) {
    Object.assign(this, { manifest, on, loaded: new Set(), waiting: new Map(), count: 0 });
  }

  /** The files a model needs that are not here yet. */
  missing(model) {
    const { script, machine } = this.manifest.runtimes[this.on];
    return [script, machine, this.manifest.backbones[model.backbone], model.head]
      .filter((part) => part && !this.loaded.has(part.file));
  }

  bytes(model) { return this.missing(model).reduce((sum, { bytes }) => sum + bytes, 0); }

  /** Everything `model` needs; `progress` is told bytes as they come. What a file's name says never
      changes, so the browser's copy will do; if it is damaged, the server is asked anew. */
  async load(model, progress, cache = "force-cache") {
    if (typeof WebAssembly === "undefined" || typeof DecompressionStream === "undefined")
      throw kindly("This browser cannot run a model in a page (it has no WebAssembly or no " +
        "DecompressionStream). Every browser of today can: try Firefox, Chrome, Edge or Safari.");
    const parts = this.missing(model);
    const total = parts.reduce((sum, { bytes }) => sum + bytes, 0);
    let come = 0;
    const fetched = await Promise.all(parts.map(async (part) =>
      ({ ...part, bytes: await this.fetch(part, cache, (n) => progress((come += n), total)) })));
    const got = Object.fromEntries(fetched.map((part) => [part.file, part]));
    try {
      await this.hand(model, got);
    } catch (error) {
      if (error.damaged && cache !== "reload") return this.load(model, progress, "reload");
      if (error.damaged || this.on === "wasm") throw error;
      this.stop(); // a graphics card that cannot do it is not needed
      this.on = "wasm";
      this.loaded.clear();
      return this.load(model, progress);
    }
    parts.forEach(({ file }) => this.loaded.add(file));
    return undefined;
  }

  /** Give the worker what was fetched. */
  async hand(model, got) {
    const { runtimes, backbones } = this.manifest;
    const { script, machine } = runtimes[this.on];
    if (got[script.file]) {
      this.start();
      const parts = { script: got[script.file], machine: got[machine.file] };
      await this.ask("start", { ...parts, on: this.on });
    }
    const { backbone, digest, head, units, channels, side } = model;
    const part = got[backbones[backbone].file];
    if (part) await this.ask("backbone", { key: backbone, part, side });
    if (head && got[head.file]) await this.ask("head", { digest, part: got[head.file], units, channels });
  }

  async fetch({ file, bytes }, cache, progress) {
    const inside = document.getElementById(`siamcam-${file}`);
    if (inside) {
      progress(bytes);
      return Uint8Array.from(atob(inside.textContent), (c) => c.charCodeAt(0));
    }
    const where = `${this.manifest.folder}${file}`;
    if (where.startsWith("file:"))
      throw kindly("A page opened from disk may not load files beside it. Let this machine serve " +
        "the book: python -m http.server --directory _build/html 8000, and open " +
        "http://127.0.0.1:8000");
    let answer;
    try {
      answer = await fetch(where, { cache });
    } catch {
      throw kindly("The model could not be loaded: the book's server did not answer. Are you " +
        "still connected to it?");
    }
    if (!answer.ok)
      throw kindly(`The model could not be loaded: the book's server has no file ${file} ` +
        `(${answer.status}). Build the book again.`);
    const pieces = [];
    const reader = answer.body.getReader();
    for (let step = await reader.read(); !step.done; step = await reader.read()) {
      pieces.push(step.value);
      progress(step.value.length);
    }
    return new Uint8Array(await new Blob(pieces).arrayBuffer());
  }

  start() {
    this.stop();
    const url = URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" }));
    this.worker = new Worker(url);
    URL.revokeObjectURL(url);
    this.worker.onmessage = ({ data: { id, found, failed, damaged } }) => {
      const { done, fail } = this.waiting.get(id);
      this.waiting.delete(id);
      if (failed === undefined) done(found);
      else fail(kindly(failed, damaged));
    };
    this.worker.onerror = () => {
      const lost = kindly("The browser ended the model's work, perhaps for want of memory. Load " +
        "the page anew and try smaller pictures.");
      this.waiting.forEach(({ fail }) => fail(lost));
      this.waiting.clear();
    };
  }

  ask(task, given) {
    const id = this.count++;
    return new Promise((done, fail) => {
      this.waiting.set(id, { done, fail });
      this.worker.postMessage({ id, task, ...given });
    });
  }

  look(picture, model) {
    const { backbone, digest, side, relu } = model;
    return this.ask("look", { picture, model: { backbone, digest, side, relu }, keep: KEPT_SIDE });
  }

  stop() { this.worker?.terminate(); }
}

/** The bytes of a data address, as a file. */
function fileOf(url) {
  const [head, data] = url.split(",");
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}

// --- the panel ----------------------------------------------------------------------------------

/** Controls for the reader's own pictures, one for each side, under a button that loads a model.
    `act.picture(side, item)` is told of each picture a model has seen, `act.model(model)` of another
    model, `act.save(kind)` that the reader wants the result. */
function ownPanel(manifest, stored, act) {
  const looker = new Looker(manifest, "wasm");
  bestOf(manifest.runtimes).then((on) => {
    if (!current && !loading) looker.on = on;
    label();
  });
  const { models } = manifest;
  let model = models.find(({ digest }) => digest === stored) ?? models[0];
  let current = null; // the model that looks, if any
  let loading = false, last = 1, busy = Promise.resolve();
  const pending = [null, null];

  const status = make("p", { class: "siamcam-status", role: "status" });
  const bar = make("progress", { "aria-label": "loading the model", max: 1, value: 0, hidden: "" });
  const menu = make("select", { change: () => choose(models[menu.selectedIndex]) },
    ...models.map(({ name }) => make("option", {}, name)));
  menu.selectedIndex = models.indexOf(model);
  const button = make("button", { type: "button", click: () => load() });
  const inputs = SIDES.map((name, side) => make("input", { type: "file", accept: "image/*",
    change: () => { take([...inputs[side].files], side); inputs[side].value = ""; } }));
  const places = SIDES.map((name, side) => make("label", { class: "siamcam-drop" },
    make("span", {}, `your picture as ${name}: choose, drop or paste`), inputs[side]));
  const saves = { picture: "save as picture", numbers: "save as numbers (JSON)" };
  const keep = make("div", { class: "siamcam-save", hidden: "" }, ...Object.entries(saves).map(
    ([kind, text]) => make("button", { type: "button", click: () => act.save(kind) }, text)));
  const inner = make("div", { class: "siamcam-own-inner", hidden: "" }, ...places, keep);
  const element = make("section", { class: "siamcam-own", "aria-label": "your own pictures",
    ...OWN_KEYS },
    make("p", {}, make("b", {}, "Your own pictures"), ": a model runs inside this page; " +
      "what you show it stays in this browser."),
    make("div", { class: "siamcam-load" }, make("label", {}, "model ", menu), button, bar),
    inner, status);

  const label = () => {
    const bytes = looker.bytes(model);
    button.textContent = bytes ? `load this model (${megabytes(bytes)})` : "loaded";
    button.disabled = !bytes;
    button.hidden = !bytes && current === model;
  };
  /** One thing after another; what goes wrong is said. */
  const queue = (work) => (busy = busy.then(work).catch((error) => {
    say(status, error.told ?? `Something went wrong in the page: ${error.message}.`);
    bar.hidden = true;
    loading = false;
    label();
  }));
  const load = () => queue(async () => {
    const wanted = model;
    loading = true;
    button.disabled = true;
    bar.hidden = false;
    say(status, "Loading …");
    await looker.load(wanted, (come, total) => { bar.value = come / total; });
    bar.hidden = true;
    inner.hidden = false;
    current = wanted;
    label();
    await act.model(current);
    say(status, "The model is loaded. Choose, drop or paste one picture or two.");
    const waiting = [0, 1].filter((side) => pending[side]).map((side) => [pending[side], side]);
    pending.fill(null);
    await see(waiting);
  });
  const choose = (other) => {
    model = other;
    label();
    if (current && looker.bytes(model) < LITTLE) load(); // of a known backbone only the head
  };
  const nameOf = (file) => file.name || "pasted picture";
  /** Look at pictures, each for its side, and show each as soon as it was looked at. */
  const see = async (given) => {
    if (given.length) say(status, `Looking at ${given.map(([file]) => nameOf(file)).join(", ")} …`);
    // all are asked for at once: one is decoded while the network looks at another
    const looks = given.map(([file]) =>
      looker.look(file, current).then((seen) => ({ seen }), (error) => ({ error })));
    const wrong = [];
    for (const [k, [file, side]] of given.entries()) {
      const { seen, error } = await looks[k];
      if (error) wrong.push(`${nameOf(file)} ${error.told ?? `could not be read: ${error.message}`}.`);
      else {
        keep.hidden = false;
        await act.picture(side, { name: nameOf(file), file, ...seen });
        say(status, `${SIDES[side]} is now ${nameOf(file)}.`);
      }
    }
    if (wrong.length) throw kindly(wrong.join(" "));
  };
  /** Pictures for a side; a second one for the other. */
  const take = (files, side) => {
    const given = files.slice(0, 2).map((file, k) => [file, (side + k) % 2]);
    if (!given.length) return undefined;
    last = given.at(-1)[1];
    if (current === model) return queue(() => see(given));
    given.forEach(([file, to]) => { pending[to] = file; });
    const names = given.map(([file]) => nameOf(file)).join(" and ");
    return say(status, `${names} waits: load the model and it is looked at.`);
  };
  const paste = (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    const here = element.closest(".siamcam-explorer");
    const alone = document.querySelectorAll(".siamcam-own").length === 1;
    if (!files.length || !(alone || here?.contains(document.activeElement))) return;
    event.preventDefault();
    take(files, 1 - last);
  };
  document.addEventListener("paste", paste);
  label();
  return {
    element, take, looker,
    /** Files dropped on `target` become the picture of `side`. */
    dropOn(target, side) {
      target.addEventListener("dragover", (event) => {
        event.preventDefault();
        target.classList.add("siamcam-over");
      });
      target.addEventListener("dragleave", () => target.classList.remove("siamcam-over"));
      target.addEventListener("drop", (event) => {
        event.preventDefault();
        target.classList.remove("siamcam-over");
        const files = [...event.dataTransfer.files];
        if (files.length) take(files, side);
        else say(status, "What was dropped is no file. Drop a picture from a folder of this machine.");
      });
    },
    places, say: (text) => say(status, text),
    close() { document.removeEventListener("paste", paste); looker.stop(); },
  };
}

// --- the result ---------------------------------------------------------------------------------

/** Offer a file to the reader. */
function download(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Both pictures with their maps, names and the verdict, as one PNG. */
async function poster(canvases, names, lines) {
  const GAP = 16, LINE = 22, WIDE = 480;
  const heights = canvases.map(({ width, height }) => (WIDE * height) / width);
  const canvas = make("canvas", { width: 2 * WIDE + 3 * GAP,
    height: Math.ceil(Math.max(...heights)) + (lines.length + 1) * LINE + 3 * GAP });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#23292e";
  context.font = "15px system-ui, sans-serif";
  canvases.forEach((map, i) => {
    const left = GAP + i * (WIDE + GAP);
    context.fillText(`${SIDES[i]}: ${names[i]}`, left, GAP + 12, WIDE);
    context.drawImage(map, left, GAP + LINE, WIDE, heights[i]);
  });
  const under = Math.max(...heights) + GAP + 2 * LINE;
  lines.forEach((line, k) => context.fillText(line, GAP, under + k * LINE, canvas.width - 2 * GAP));
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

/** Little-endian bytes of numbers as base64. */
function base64(values) {
  const bytes = new Uint8Array(Float32Array.from(values).buffer);
  return btoa(Array.from(bytes, (b) => String.fromCharCode(b)).join(""));
}

/** The explanation as `sc.Explanation.open` reads it; the format is siamcam_lib/record.py's. */
function record({ seen, items, shape, digest, calibrated, versions }) {
  const sides = (of) => Object.fromEntries(["a", "b"].map((side, i) => [side, of(i)]));
  const any = (i, sign) => seen.raw[i].some((v) => sign * v > 0);
  const sign = seen.decision === "similar" ? 1 : -1;
  return {
    format: "siamcam-explanation", version: 1,
    images: sides((i) => ({ file: items[i].name, sha256: items[i].sha256 ?? null,
      width: items[i].width ?? items[i].picture.width,
      height: items[i].height ?? items[i].picture.height })),
    model: { file: null, digest, calibrated },
    dissimilarity: seen.dissimilarity, similarity: seen.similarity, threshold: seen.threshold,
    decision: seen.decision, method: seen.method, polarity: "decision",
    raw: sides((i) => ({ shape, kind: "float32", data: base64(seen.raw[i]) })),
    blank: { factual: sides((i) => !any(i, sign)), counterfactual: sides((i) => !any(i, -sign)) },
    versions,
  };
}

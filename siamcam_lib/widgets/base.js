/* What the explorers share: reading arrays, drawing maps, lists of pictures, listening.
   Joined before each explorer's own file: together they are one module. */

// --- numbers ------------------------------------------------------------------------------------

const KINDS = { uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, float16: Uint16Array,
  float32: Float32Array, float64: Float64Array };

/** The numbers of a `packed` array. */
function unpack({ kind, data }) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const array = new KINDS[kind](bytes.buffer);
  return kind === "float16" ? fromHalf(array) : array;
}

/** Bits of half-precision numbers → Float32Array, exactly. */
function fromHalf(bits) {
  // sign and the other fifteen bits in a single's places; the exponent is then 112 too small
  const moved = Uint32Array.from(bits, (b) => ((b & 0x8000) << 16) | ((b & 0x7fff) << 13));
  return new Float32Array(moved.buffer).map((x) => x * 2 ** 112);
}

/** A map (h, w) at another size (H, W): bilinear, as torch does it with align_corners=False. */
function stretch(map, h, w, H, W) {
  const y = between(h, H), x = between(w, W);
  const full = new Float32Array(H * W);
  const row = new Float64Array(w);
  for (let j = 0, i = 0; j < H; j++) {
    const above = y.low[j] * w, below = y.high[j] * w, t = y.share[j];
    for (let k = 0; k < w; k++) row[k] = (1 - t) * map[above + k] + t * map[below + k];
    for (let k = 0; k < W; k++, i++)
      full[i] = (1 - x.share[k]) * row[x.low[k]] + x.share[k] * row[x.high[k]];
  }
  return full;
}

/** For each of `to` points, the two of `from` points it lies between, and how far from the first. */
function between(from, to) {
  const low = new Uint16Array(to), high = new Uint16Array(to), share = new Float64Array(to);
  for (let i = 0; i < to; i++) {
    const place = Math.max(0, ((i + 0.5) * from) / to - 0.5);
    low[i] = Math.min(place, from - 1);
    high[i] = Math.min(low[i] + 1, from - 1);
    share[i] = place - low[i];
  }
  return { low, high, share };
}

/** The least and the greatest of some numbers. */
function range(values) {
  let least = Infinity, most = -Infinity;
  for (let i = 0; i < values.length; i++) {
    if (values[i] < least) least = values[i];
    if (values[i] > most) most = values[i];
  }
  return [least, most];
}

// --- pictures -----------------------------------------------------------------------------------

/** The grey of a picture, one byte a pixel, weighted as Pillow does. */
async function greyOf({ url, width, height }) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const grey = new Uint8Array(width * height);
  for (let i = 0, k = 0; i < grey.length; i++, k += 4)
    grey[i] = (19595 * data[k] + 38470 * data[k + 1] + 7471 * data[k + 2] + 32768) >> 16;
  return grey;
}

/** A heatmap over a grey picture, RGBA: cool places stay grey; `top` is drawn hottest. */
function blend(grey, heat, top, opacity, colours, pixels) {
  for (let i = 0, k = 0; i < grey.length; i++, k += 4) {
    const share = heat[i] > 0 ? Math.min(heat[i] / top, 1) : 0;
    const alpha = opacity * share, rest = (1 - alpha) * grey[i];
    const colour = 3 * Math.min(255, Math.floor(256 * share));
    pixels[k] = rest + alpha * colours[colour];
    pixels[k + 1] = rest + alpha * colours[colour + 1];
    pixels[k + 2] = rest + alpha * colours[colour + 2];
    pixels[k + 3] = 255;
  }
}

/** What `blend` makes of rising heat on a middle grey, as the stops of a CSS gradient. */
function gradient(colours, opacity) {
  const heat = Array.from({ length: 17 }, (_, k) => k), pixels = new Uint8ClampedArray(4 * heat.length);
  blend(heat.map(() => 128), heat, heat.at(-1), opacity, colours, pixels);
  return heat.map((k) => `rgb(${pixels.slice(4 * k, 4 * k + 3).join(" ")})`).join();
}

// --- the page -----------------------------------------------------------------------------------

/** An element with attributes (functions listen, others are set) and children. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Text that is put in only where it is another, so that it is read out once. */
const say = (element, text) => element.textContent === text || (element.textContent = text);

/** For what uses the arrow keys itself: JupyterLab would move between cells with them. */
const OWN_KEYS = { "data-lm-suppress-shortcuts": "true" };

/** A list of thumbnails to choose one from, with the mouse or the arrow keys.
    `pictures` have a `name` and a `url`; `choose` is told the number. */
function thumbnails(label, pictures, choose) {
  const options = pictures.map(({ name, url }, k) => {
    const option = make("div", { role: "option", "aria-label": name, title: name, click: () => choose(k) });
    option.style.backgroundImage = `url(${url})`;
    return option;
  });
  const element = make("div", { class: "siamcam-strip", role: "listbox", "aria-label": label,
    "aria-orientation": "horizontal", ...OWN_KEYS }, ...options);
  let chosen = -1;
  element.addEventListener("keydown", (event) => {
    const columns = options.filter((o) => o.offsetTop === options[0].offsetTop).length;
    const to = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, ArrowUp: chosen - columns,
      ArrowDown: chosen + columns, Home: 0, End: options.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (!options[to]) return;
    choose(to);
    options[to].focus({ preventScroll: true });
  });
  const show = (k) => {
    if (k === chosen) return;
    chosen = k;
    options.forEach((option, i) => {
      option.setAttribute("aria-selected", i === k);
      option.tabIndex = i === k ? 0 : -1;
    });
    if (k < 0) return void (options[0].tabIndex = 0); // none is chosen
    // never the page, only the list; with room for the ring around the chosen one
    const top = options[k].offsetTop - 6, bottom = top + options[k].offsetHeight + 12;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (bottom > element.scrollTop + element.clientHeight)
      element.scrollTop = bottom - element.clientHeight;
  };
  return { element, show };
}

/** Call `draw` now and after each change of a trait; of many changes in one turn, once. */
function follow(model, traits, draw) {
  let due = false;
  const soon = () => {
    if (due) return;
    due = true;
    queueMicrotask(() => { due = false; draw(); });
  };
  traits.forEach((trait) => model.on(`change:${trait}`, soon));
  draw();
  return () => traits.forEach((trait) => model.off(`change:${trait}`, soon));
}

/** Let tests see what was drawn: the numbers themselves, and how often. */
function done(el, seen) {
  el.__siamcam = seen;
  el.dataset.drawn = Number(el.dataset.drawn ?? 0) + 1;
}

/** Change a trait as a control would. */
function put(model, trait, value) {
  model.set(trait, value);
  model.save_changes();
}

/** ipywidgets names neither its sliders nor its groups of buttons, nor says which is pressed. */
function nameControls(el) {
  const watch = new MutationObserver(() => mend());
  let panel = null;
  const set = (element, name, value) =>
    element.getAttribute(name) === value || element.setAttribute(name, value);
  const mend = () => {
    for (const control of panel.querySelectorAll(".widget-slider, .widget-toggle-buttons")) {
      const name = control.querySelector(".widget-label")?.textContent ?? "";
      const handle = control.querySelector(".noUi-handle");
      if (handle) set(handle, "aria-label", name);
      const buttons = control.querySelectorAll(".widget-toggle-button");
      if (!buttons.length) continue;
      set(control, "role", "group");
      set(control, "aria-label", name);
      buttons.forEach((b) => set(b, "aria-pressed", String(b.classList.contains("mod-active"))));
    }
  };
  let tries = 100; // the view is made before it is put into its box
  const find = () => {
    panel = el.closest(".siamcam-explorer")?.querySelector(".siamcam-controls");
    if (!panel) return tries-- && setTimeout(find, 50);
    set(panel, ...Object.entries(OWN_KEYS)[0]);
    watch.observe(panel, { childList: true, subtree: true, attributeFilter: ["class"] });
    mend();
  };
  find();
  return () => { tries = 0; watch.disconnect(); };
}

/* From a heatmap to the box around its largest region: as siamcam_lib/cropping.py. */

// --- arithmetic ---------------------------------------------------------------------------------

/** Regions that touch at sides or corners: for each pixel its region's number or 0, and their sizes. */
function regionsOf(inside, width, height) {
  const region = new Uint32Array(inside.length), sizes = [0];
  const queue = new Uint32Array(inside.length);
  for (let start = 0; start < inside.length; start++) {
    if (!inside[start] || region[start]) continue;
    let end = 0;
    const reach = (p) => { region[p] = sizes.length; queue[end++] = p; };
    reach(start);
    for (let k = 0; k < end; k++) {
      const x = queue[k] % width, y = (queue[k] - x) / width;
      for (let j = Math.max(0, y - 1); j <= Math.min(height - 1, y + 1); j++)
        for (let i = Math.max(0, x - 1); i <= Math.min(width - 1, x + 1); i++) {
          const p = j * width + i;
          if (inside[p] && !region[p]) reach(p);
        }
    }
    sizes.push(end);
  }
  return { region, sizes };
}

/** As Python rounds: halves to the even number. */
function round(x) {
  const low = Math.floor(x), rest = x - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}

/** [left, top, right, bottom] of the largest region of a heatmap; the whole of a blank one. */
function boxOf(heat, width, height, threshold, margin) {
  const [, most] = range(heat);
  if (!(most > 0)) return { box: [0, 0, width, height], count: 0, blank: true };
  // numpy multiplies a float32 by a Python number in single precision
  const least = Math.fround(Math.fround(threshold) * most);
  const { region, sizes } = regionsOf(heat.map((v) => (v >= least ? 1 : 0)), width, height);
  const largest = sizes.indexOf(Math.max(...sizes)); // of equals the first
  let [left, top, right, bottom] = [width, height, 0, 0];
  region.forEach((r, p) => {
    if (r !== largest) return;
    const x = p % width, y = (p - x) / width;
    left = Math.min(left, x);
    right = Math.max(right, x + 1);
    top = Math.min(top, y);
    bottom = Math.max(bottom, y + 1);
  });
  const across = margin * (right - left), down = margin * (bottom - top);
  return {
    box: [Math.max(0, round(left - across)), Math.max(0, round(top - down)),
      Math.min(width, round(right + across)), Math.min(height, round(bottom + down))],
    region, largest, count: sizes.length - 1, pixels: sizes[largest], blank: false,
  };
}

// --- the view -----------------------------------------------------------------------------------

function render({ model, el }) {
  const { images, colours: packedColours, opacity } = model.get("data");
  const colours = unpack(packedColours), greys = [], pictures = [];
  const load = async (k) => {
    greys[k] ??= await greyOf(images[k].picture);
    pictures[k] = Object.assign(new Image(), { src: images[k].picture.url });
    await pictures[k].decode();
  };
  const verdict = make("output", { class: "siamcam-verdict" });
  const words = make("p", { class: "siamcam-words" });
  const panels = ["heatmap and box", "regions", "cropped"].map((title) => {
    const canvas = make("canvas", { role: "img" });
    return { canvas, title, element: make("div", {}, make("p", {}, title), canvas) };
  });
  const strip = thumbnails("picture", images.map(({ name, picture }) => ({ name, url: picture.url })),
    (k) => put(model, "image", k));
  el.classList.add("siamcam");
  el.replaceChildren(verdict, words,
    make("div", { class: "siamcam-panels" }, ...panels.map(({ element }) => element)),
    ...(images.length > 1 ? [strip.element] : []),
    make("p", { class: "siamcam-note" }, "A region is what reaches the threshold, a share of the " +
      "heatmap’s maximum, and hangs together at sides or corners. The box is drawn around the " +
      "largest, shown white; the margin widens it by a share of its own size. Pixels are those of " +
      "the picture as shown here."));

  const draw = () => {
    const k = model.get("image");
    if (!pictures[k]?.complete || !greys[k]) return load(k).then(draw);
    const { name, picture: { width, height }, shape: [h, w], map } = images[k];
    const threshold = model.get("threshold"), margin = model.get("margin");
    const heat = stretch(unpack(map), h, w, height, width).map((v) => Math.max(0, v));
    const found = boxOf(heat, width, height, threshold, margin);
    const { box: [left, top, right, bottom], region, largest, count, pixels, blank } = found;
    const share = ((right - left) * (bottom - top)) / (width * height);
    const frame = (context) => {
      for (const [style, line] of [["#000", 5], ["#fff", 2]]) {
        Object.assign(context, { strokeStyle: style, lineWidth: line });
        context.strokeRect(left + 1, top + 1, right - left - 2, bottom - top - 2);
      }
    };
    const paint = ({ canvas }, label, fill) => {
      Object.assign(canvas, { width, height });
      canvas.setAttribute("aria-label", label);
      const context = canvas.getContext("2d"), image = context.createImageData(width, height);
      fill(image.data);
      context.putImageData(image, 0, 0);
      frame(context);
    };
    paint(panels[0], `heatmap of ${name}, with the box`, (data) =>
      blend(greys[k], heat, range(heat)[1] || 1, opacity, colours, data));
    const counted = blank ? "no region" : `${count} region${count > 1 ? "s" : ""}`;
    const largestOf = blank ? counted : `${counted}, the largest of ${pixels} pixels`;
    paint(panels[1], largestOf, (data) => greys[k].forEach((grey, p) => {
      const shade = blank || !region[p] ? grey / 3 : region[p] === largest ? 255 : 150;
      data.set([shade, shade, shade, 255], 4 * p);
    }));
    const { canvas } = panels[2], size = [right - left, bottom - top];
    Object.assign(canvas, { width: size[0], height: size[1] });
    canvas.style.aspectRatio = width / height; // so that nothing below it moves
    canvas.setAttribute("aria-label", `${name}, cropped`);
    canvas.getContext("2d").drawImage(pictures[k], left, top, ...size, 0, 0, ...size);
    strip.show(k);
    say(verdict, `box ${size[0]} × ${size[1]} of ${width} × ${height} pixels, ` +
      `${(100 * share).toFixed(0)}% of the picture`);
    say(words, blank ? "The heatmap is blank: zero everywhere. The whole picture is kept."
      : `${name}: ${counted}; the largest has ${pixels} pixels, its box begins ` +
        ` ${left} from the left and ${top} from the top`);
    done(el, { image: k, threshold, margin, heat, share, count, blank, box: found.box,
      pixels: pixels ?? 0 });
  };
  const forget = follow(model, ["image", "threshold", "margin"], draw), unname = nameControls(el);
  return () => { forget(); unname(); };
}

export default { render };

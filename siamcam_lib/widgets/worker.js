/* What looks at the reader's own pictures, in a thread of its own: decoded, upright, resized as in
   Python, run through a backbone and projected. These functions travel as text into a worker, so
   they know only each other and `fromHalf`. */

/** The worker: answers each message { id, task, ... } with { id, found } or { id, failed }. */
function work() {
  const backbones = {}, heads = {};
  let runtime = null, kind = null, turn = Promise.resolve();
  const run = (session, pixels, side) => { // one at a time, as a session wants it
    const given = new runtime.Tensor("float32", pixels, [1, 3, side, side]);
    return (turn = turn.catch(() => {}).then(() => session.run({ pixels: given })));
  };
  const tasks = {
    /** ONNX Runtime, from its script and its machine code; `on` what it computes. */
    async start({ script, machine, on }) {
      kind = on;
      const url = URL.createObjectURL(new Blob([await unzip(script)], { type: "text/javascript" }));
      runtime = await import(url);
      URL.revokeObjectURL(url);
      runtime.env.wasm.numThreads = 1;
      runtime.env.wasm.wasmBinary = await unzip(machine);
      runtime.env.logLevel = "error";
    },
    async backbone({ key, part, side }) {
      const options = { executionProviders: [kind] };
      const session = await runtime.InferenceSession.create(await unzip(part), options);
      await run(session, new Float32Array(3 * side * side), side); // what fails, fails here
      backbones[key] = session;
    },
    async head({ digest, part, units, channels }) {
      const bytes = (await unzip(part)).buffer;
      const weights = new Uint16Array(bytes, 0, units * channels);
      heads[digest] = { weight: fromHalf(weights), bias: new Float32Array(bytes, 2 * units * channels) };
    },
    /** A picture as a model sees it: what the explorer knows of its own images. */
    async look({ picture, model: { backbone, digest, side, relu }, keep }) {
      const { pixels, ...about } = await squared(picture, side, keep);
      const { maps } = await run(backbones[backbone], pixels, side);
      const [, channels, h, w] = maps.dims;
      const seen = project(maps.data, channels, h * w, heads[digest], relu);
      return { ...about, ...seen, shape: [h, w] };
    },
  };
  onmessage = async ({ data: { id, task, ...given } }) => {
    try {
      postMessage({ id, found: await tasks[task](given) });
    } catch (error) {
      const { damaged } = error;
      postMessage({ id, failed: error.told ?? `${error.message ?? error}`, damaged });
    }
  };
}

/** The content of a packed file whose digest is known. */
async function unzip({ bytes, sha256 }) {
  const broken = () => Object.assign(new Error(), { damaged: true,
    told: "A file of the model is damaged or altered, also when asked for anew, so it is not used. " +
      "Whoever made this page has to make it again." });
  if (globalThis.crypto?.subtle) { // browsers offer it to pages from https, this machine or a file
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const hex = Array.from(digest, (b) => b.toString(16).padStart(2, "0")).join("");
    if (hex !== sha256) throw broken();
  }
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  try {
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch { // its checksum
    throw broken();
  }
}

/** A file as numbers (3, side, side) in [0, 1], its size, and for display a small picture of it. */
async function squared(picture, side, keep) {
  const MOST = 100e6, STRIP = 256;
  const kind = (told) => Object.assign(new Error(), { told });
  let bitmap;
  try {
    bitmap = await createImageBitmap(picture,
      { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" });
  } catch {
    throw kind(picture.size ? "is no picture that this browser can read: perhaps it is damaged, or " +
      "of a kind such as HEIC that few browsers know. Save it as JPEG or PNG and try again" :
      "is empty");
  }
  const { width, height } = bitmap;
  try {
    if (width * height > MOST)
      throw kind(`has ${Math.round((width * height) / 1e6)} megapixels, more than the ${MOST / 1e6} ` +
        "that fit into a page. Make it smaller and try again");
    const sheet = (w, h) => {
      const context = new OffscreenCanvas(w, h).getContext("2d", { willReadFrequently: true });
      context.fillStyle = "white"; // transparent parts are laid over white
      return context;
    };
    // Pillow begins with the columns of a picture that shrinks far more in height than in width
    const tall = height > side && height - side > 2 * (width - side);
    const [long, short] = tall ? [height, width] : [width, height];
    const across = weightsOf(long, side), down = weightsOf(short, side);
    const narrow = new Uint8Array(short * side * 3);
    const strip = sheet(long, Math.min(STRIP, short));
    strip.imageSmoothingEnabled = false;
    for (let top = 0; top < short; top += STRIP) { // so that memory stays small
      const rows = Math.min(STRIP, short - top);
      strip.resetTransform();
      strip.fillRect(0, 0, long, rows);
      strip.setTransform(...(tall ? [0, 1, 1, 0] : [1, 0, 0, 1]), 0, -top);
      strip.drawImage(bitmap, 0, 0);
      squeeze(strip.getImageData(0, 0, long, rows).data, long, rows, across,
        narrow.subarray(top * side * 3, (top + rows) * side * 3));
    }
    const share = Math.min(1, keep / Math.max(width, height));
    const [w, h] = [width, height].map((n) => Math.max(1, Math.round(n * share)));
    const small = sheet(w, h);
    small.imageSmoothingQuality = "high";
    small.fillRect(0, 0, w, h);
    small.drawImage(bitmap, 0, 0, w, h);
    const shown = await small.canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 });
    const url = new FileReaderSync().readAsDataURL(shown);
    const digest = globalThis.crypto?.subtle &&
      new Uint8Array(await crypto.subtle.digest("SHA-256", await picture.arrayBuffer()));
    return {
      pixels: squash(narrow, side, down, tall), picture: { width: w, height: h, url }, width, height,
      sha256: digest ? Array.from(digest, (b) => b.toString(16).padStart(2, "0")).join("") : null,
    };
  } catch (error) {
    throw error.told ? error : kind("needs more memory than this browser gives a page. Make it " +
      "smaller and try again");
  } finally {
    bitmap.close();
  }
}

/** For each of `to` points, where its share of `from` points begins, and their whole-number weights:
    Pillow's bicubic filter, which widens as a picture shrinks. */
function weightsOf(from, to) {
  const ONE = 2 ** 22, A = -0.5;
  const cubic = (x) => x < 1 ? ((A + 2) * x - (A + 3)) * x * x + 1
    : x < 2 ? (((x - 5) * x + 8) * x - 4) * A : 0;
  const scale = from / to, wide = Math.max(1, scale), support = 2 * wide;
  return Array.from({ length: to }, (_, k) => {
    const centre = (k + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(from, Math.trunc(centre + support + 0.5));
    const shares = Array.from({ length: last - first }, (_, i) =>
      cubic(Math.abs((i + first - centre + 0.5) / wide)));
    const sum = shares.reduce((a, b) => a + b, 0);
    const whole = shares.map((v) => Math.trunc((v / sum) * ONE + (v < 0 ? -0.5 : 0.5)));
    return { first, weights: Int32Array.from(whole) };
  });
}

/** Rows of RGBA pixels, each squeezed to as many RGB pixels as there are weights. */
function squeeze(pixels, width, rows, across, narrow) {
  const HALF = 2 ** 21, side = across.length;
  for (let y = 0; y < rows; y++)
    for (let x = 0; x < side; x++) {
      const { first, weights } = across[x];
      let r = HALF, g = HALF, b = HALF;
      for (let i = 0, at = 4 * (y * width + first); i < weights.length; i++, at += 4) {
        const weight = weights[i];
        r += weight * pixels[at];
        g += weight * pixels[at + 1];
        b += weight * pixels[at + 2];
      }
      const to = 3 * (y * side + x);
      narrow[to] = Math.min(255, Math.max(0, r >> 22));
      narrow[to + 1] = Math.min(255, Math.max(0, g >> 22));
      narrow[to + 2] = Math.min(255, Math.max(0, b >> 22));
    }
}

/** The rows squashed to a square too, and its bytes as numbers (3, side, side) in [0, 1]; `tall`:
    they are the picture's columns. */
function squash(narrow, side, down, tall) {
  const HALF = 2 ** 21, length = side * 3, area = side * side;
  const found = new Float32Array(3 * area);
  const sums = new Float64Array(length);
  down.forEach(({ first, weights }, y) => {
    sums.fill(HALF);
    weights.forEach((weight, i) => {
      const from = (first + i) * length;
      for (let x = 0; x < length; x++) sums[x] += weight * narrow[from + x];
    });
    for (let x = 0; x < side; x++)
      for (let c = 0; c < 3; c++)
        found[c * area + (tall ? x * side + y : y * side + x)] =
          Math.min(255, Math.max(0, sums[3 * x + c] >> 22)) / 255;
  });
  return found;
}

/** Feature maps A (K, Z) → embedding e = ReLU(W g + b) and P of the units that answer; without a
    head the features are the embedding. As siamcam_lib/heads.py. */
function project(A, K, Z, head, relu) {
  const pooled = new Float64Array(K);
  for (let k = 0; k < K; k++) {
    for (let p = k * Z; p < (k + 1) * Z; p++) pooled[k] += A[p];
    pooled[k] /= Z;
  }
  const E = head ? head.bias.length : K;
  const embedding = new Float64Array(E);
  for (let u = 0; u < E; u++) {
    if (!head) embedding[u] = pooled[u];
    else {
      embedding[u] = head.bias[u];
      for (let k = 0; k < K; k++) embedding[u] += head.weight[u * K + k] * pooled[k];
    }
    if (relu) embedding[u] = Math.max(0, embedding[u]);
  }
  const units = Uint16Array.from(embedding.keys()).filter((u) => !relu || embedding[u] > 0);
  const maps = new Float32Array(units.length * Z);
  const row = new Float64Array(Z);
  units.forEach((unit, i) => {
    if (!head) row.set(A.subarray(unit * Z, (unit + 1) * Z));
    else {
      row.fill(0);
      for (let k = 0; k < K; k++) {
        const weight = head.weight[unit * K + k];
        for (let p = 0; p < Z; p++) row[p] += weight * A[k * Z + p];
      }
    }
    for (let p = 0; p < Z; p++) maps[i * Z + p] = row[p] / Z;
  });
  return { embedding, units, maps };
}

const WORKER = [fromHalf, work, unzip, squared, weightsOf, squeeze, squash, project]
  .map(String).concat("work();").join("\n");

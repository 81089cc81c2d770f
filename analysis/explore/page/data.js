// The payload, and what follows from it. Nothing in this file touches the page.

const ARRAY_TYPES = { float32: Float32Array, int16: Int16Array, int32: Int32Array };
const METHOD_NAMES = { tsne: "t-SNE", umap: "UMAP", pca: "PCA" };
const KINDS = ["clean", "adversarial"];
const OUTCOMES = ["withstood", "fooled", "wrong before"];

function readPayload(view) {
  let bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  if (bytes.byteOffset % 8) bytes = bytes.slice();
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  const start = bytes.byteOffset + 4 + length;
  const read = (value) => {
    if (value === null || typeof value !== "object") return value;
    if (Array.isArray(value)) return value.map(read);
    if ("dtype" in value) {
      const Type = ARRAY_TYPES[value.dtype];
      return new Type(bytes.buffer, start + value.offset, value.length / Type.BYTES_PER_ELEMENT);
    }
    if ("offset" in value) return { ...value, png: new Uint8Array(bytes.buffer, start + value.offset, value.length) };
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, read(inner)]));
  };
  const data = read(header);
  data.n = data.indices.length;
  data.rowOf = new Map(Array.from(data.indices, (index, row) => [index, row]));
  data.stored = data.n ? data.models[0].neighbours.length / data.n : 0;
  return data;
}

const className = (data, k) => data.class_names[k];

// 0 withstood, 1 fooled, 2 wrong before the attack, -1 not known.
function outcome(data, model, i) {
  if (!model.predictions || !model.adv_predictions) return -1;
  if (model.predictions[i] !== data.labels[i]) return 2;
  return model.adv_predictions[i] === data.labels[i] ? 0 : 1;
}

function neighboursOf(data, model, adversarial, i, k) {
  const all = adversarial ? model.adv_neighbours : model.neighbours;
  return all ? all.subarray(i * data.stored, i * data.stored + k) : null;
}

// Accuracies, and r': over classes, the mean of (mean class distance of their adversaries) / (their inner distance).
function measureRows(data, model, rows) {
  let clean = 0;
  let robust = 0;
  const sums = new Map();
  for (const i of rows) {
    const label = data.labels[i];
    if (model.predictions) clean += model.predictions[i] === label;
    robust += outcome(data, model, i) === 0;
    if (!model.adv_class_distance || !(model.inner[label] > 0)) continue;
    const sum = sums.get(label) ?? { total: 0, count: 0 };
    sum.total += model.adv_class_distance[i];
    sum.count += 1;
    sums.set(label, sum);
  }
  const ratios = [...sums].map(([label, sum]) => sum.total / sum.count / model.inner[label]);
  const n = rows.length;
  return {
    clean: model.predictions && n ? clean / n : null,
    robust: model.predictions && model.adv_predictions && n ? robust / n : null,
    rPrime: ratios.length ? ratios.reduce((a, b) => a + b) / ratios.length : null,
  };
}

// 1 - Jaccard index of two models' sets of neighbours: 0 the same images, 1 none in common.
function neighbourhoodDifference(data, a, b, adversarial, i) {
  const first = neighboursOf(data, a, adversarial, i, data.stored);
  const second = neighboursOf(data, b, adversarial, i, data.stored);
  if (!first || !second || !data.stored) return null;
  const known = new Set(first);
  let common = 0;
  for (const row of second) common += known.has(row);
  return 1 - common / (2 * data.stored - common);
}

function passesFilter(data, filter, i) {
  const label = data.labels[i];
  const pair = [filter.classA, filter.classB].filter((k) => k >= 0);
  if (pair.length && !pair.includes(label)) return false;
  const model = data.models[filter.model];
  if (filter.outcome >= 0 && outcome(data, model, i) !== filter.outcome) return false;
  if (filter.falseClass < 0) return true;
  return !!model.adv_predictions && model.adv_predictions[i] === filter.falseClass && label !== filter.falseClass;
}

// Whether points of a map (x, y, x, y, ...) lie in a polygon, by the even-odd rule.
function inPolygon(x, y, px, py) {
  let inside = false;
  for (let a = 0, b = px.length - 1; a < px.length; b = a++) {
    if (py[a] > y !== py[b] > y && x < ((px[b] - px[a]) * (y - py[a])) / (py[b] - py[a]) + px[a]) inside = !inside;
  }
  return inside;
}

function csvOf(data, rows) {
  const quoted = (value) => `"${String(value).replaceAll('"', '""')}"`;
  const names = data.models.flatMap((m) =>
    ["prediction", "adversarial prediction", "distance moved"].map((what) => quoted(`${m.name} ${what}`)));
  const named = (k) => quoted(className(data, k));
  const lines = Array.from(rows, (i) => [
    data.indices[i],
    named(data.labels[i]),
    ...data.models.flatMap((m) => [
      m.predictions ? named(m.predictions[i]) : "",
      m.adv_predictions ? named(m.adv_predictions[i]) : "",
      m.moved ? m.moved[i].toPrecision(6) : "",
    ]),
  ].join(","));
  return [["index", "class", ...names].join(","), ...lines].join("\r\n") + "\r\n";
}

// Colours ------------------------------------------------------------------------------------------------------------

const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const STEPS = 24;
const OUTCOME_COLOURS = ["#3366aa", "#dd6633", "#888888"];
const COLOUR_MODES = {
  label: "true class",
  prediction: "predicted class",
  outcome: "attack outcome",
  confidence: "confidence",
  distance: "distance to the true class",
};

// Dark colours of the palette would vanish on a dark ground: these are mixed with white.
function onGround(hex, dark) {
  const rgb = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const luminance = (0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]) / 255;
  const share = dark ? Math.max(0, 0.62 - luminance) : 0;
  return `rgb(${rgb.map((v) => Math.round(v + (255 - v) * share * 1.25)).join(",")})`;
}

function rampColour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const mixed = VIRIDIS[low].map((v, c) => Math.round(v + (VIRIDIS[low + 1][c] - v) * (at - low)));
  return `rgb(${mixed.join(",")})`;
}

// The palette of a mode, and for each model and kind the place in it of every point; -1 is unknown, drawn in grey.
function colouring(data, mode, dark) {
  const bins = data.models.map((model) => KINDS.map((kind) => binsOf(data, model, mode, kind === "adversarial")));
  if (mode === "label" || mode === "prediction") {
    return { bins, palette: data.colours.map((c) => onGround(c, dark)), labels: data.class_names };
  }
  if (mode === "outcome") return { bins, palette: OUTCOME_COLOURS.map((c) => onGround(c, dark)), labels: OUTCOMES };
  const palette = Array.from({ length: STEPS }, (_, step) => rampColour(step / (STEPS - 1)));
  return { bins, palette, range: mode === "confidence" ? ["0", "1"] : ["0", `${DISTANCE_SPAN} inner distances`] };
}

// In units of the class's own inner distance: 1 is where its clean images are, on the average.
const DISTANCE_SPAN = 4;

function binsOf(data, model, mode, adversarial) {
  const predictions = adversarial ? model.adv_predictions : model.predictions;
  const distances = adversarial ? model.adv_class_distance : model.class_distance;
  const confidences = adversarial ? model.adv_confidence : model.confidence;
  const step = (share) => (share >= 0 ? Math.round(Math.min(share, 1) * (STEPS - 1)) : -1);
  return Int16Array.from({ length: data.n }, (_, i) => {
    if (mode === "label") return data.labels[i];
    if (mode === "prediction") return predictions ? predictions[i] : -1;
    if (mode === "outcome") return outcome(data, model, i);
    if (mode === "confidence") return confidences ? step(confidences[i]) : -1;
    return distances ? step(distances[i] / model.inner[data.labels[i]] / DISTANCE_SPAN) : -1;
  });
}

// The payload, and what follows from it. Nothing in this file touches the page.

const ARRAY_TYPES = { float32: Float32Array, float64: Float64Array, int16: Int16Array, int32: Int32Array };
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
    if ("offset" in value) {
      const inner = Object.fromEntries(Object.entries(value).map(([key, each]) => [key, read(each)]));
      return { ...inner, bytes: new Uint8Array(bytes.buffer, start + value.offset, value.length) };
    }
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, read(inner)]));
  };
  const data = read(header);
  data.mapTexts = data.methods;
  data.methods = Object.keys(data.methods);
  data.n = data.indices.length;
  data.rowOf = new Map(Array.from(data.indices, (index, row) => [index, row]));
  data.stored = data.n ? data.models[0].neighbours.length / data.n : 0;
  data.columnOf = new Map(data.columns.map((column) => [column.name, column]));
  data.mark = markOf(data);
  return data;
}

// Names the data in a link, so that a selection of rows is not shown of other ones (FNV-1a).
function markOf(data) {
  let hash = 0x811c9dc5;
  const add = (value) => {
    hash = Math.imul(hash ^ value, 0x01000193) >>> 0;
  };
  data.indices.forEach(add);
  for (const model of data.models) Array.from(model.name, (letter) => add(letter.codePointAt(0)));
  return hash.toString(36);
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

// The share of its stored nearest images that an image has in common in two models: 1 the same images, 0 no common one.
function commonNeighbours(data, a, b, adversarial, i) {
  const first = neighboursOf(data, a, adversarial, i, data.stored);
  const second = neighboursOf(data, b, adversarial, i, data.stored);
  if (!first || !second || !data.stored) return null;
  let common = 0;
  for (const row of second) common += first.includes(row);
  return common / data.stored;
}

function passesFilter(data, filter, i) {
  const label = data.labels[i];
  if ((filter.classA >= 0 || filter.classB >= 0) && label !== filter.classA && label !== filter.classB) return false;
  for (const [name, wanted] of filter.columns) {
    const { categories, values } = data.columnOf.get(name);
    const value = values[i];
    if (categories && categories[value] !== wanted) return false;
    if (!categories && !(value >= (wanted[0] ?? -Infinity) && value <= (wanted[1] ?? Infinity))) return false;
  }
  const model = data.models[filter.model];
  if (filter.outcome >= 0 && outcome(data, model, i) !== filter.outcome) return false;
  if (filter.falseClass < 0) return true;
  return !!model.adv_predictions && model.adv_predictions[i] === filter.falseClass && label !== filter.falseClass;
}

// What a search finds: an index, a part of the name of a class, or a part of a word of an own column.
function matchesSearch(data, text) {
  if (!text) return null;
  const holds = (name) => name.toLowerCase().includes(text);
  const classes = data.class_names.map(holds);
  const words = data.columns.filter((column) => column.categories).map(({ values, categories }) =>
    ({ values, found: categories.map(holds) }));
  return Uint8Array.from({ length: data.n }, (_, i) => classes[data.labels[i]] || String(data.indices[i]) === text
    || words.some(({ values, found }) => values[i] >= 0 && found[values[i]]));
}

function columnText({ categories, values }, i) {
  if (categories) return categories[values[i]] ?? "–";
  if (!Number.isFinite(values[i])) return "–";
  return Number.isInteger(values[i]) ? String(values[i]) : values[i].toPrecision(4);
}

// Whether a point lies in a polygon, by the even-odd rule.
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
  const own = data.columns.map((column) => (i) => (column.categories
    ? (column.values[i] < 0 ? "" : quoted(column.categories[column.values[i]]))
    : Number.isFinite(column.values[i]) ? column.values[i] : ""));
  const lines = Array.from(rows, (i) => [
    data.indices[i],
    named(data.labels[i]),
    ...data.models.flatMap((m) => [
      m.predictions ? named(m.predictions[i]) : "",
      m.adv_predictions ? named(m.adv_predictions[i]) : "",
      m.moved ? m.moved[i].toPrecision(6) : "",
    ]),
    ...own.map((value) => value(i)),
  ].join(","));
  const head = ["index", "class", ...names, ...data.columns.map((column) => quoted(column.name))];
  return [head.join(","), ...lines].join("\r\n") + "\r\n";
}

// Colours: a palette of slots, and for each model and kind the slot of every point. What has a name (classes, outcomes,
// words) has a slot each; what is a number has a slot for each step of a ramp.

const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const VIRIDIS_ON_DARK = [[122, 72, 158], [98, 122, 190], [66, 162, 158], [104, 205, 104], [253, 231, 37]];
const STEPS = 24;
const OUTCOME_COLOURS = ["#3366aa", "#dd6633", "#888888"];
const MORE_COLOURS = ["#ee7733", "#0077bb", "#ff5fa2", "#7fd34e", "#9a6324", "#c9a0ff", "#00d0b6", "#ffe119", "#d62728",
  "#5b7f95"];
const MOST_COLOURS = 20; // more cannot be told apart
const OTHER = "#b4b4b4";
const COLOUR_MODES = {
  label: "true class",
  prediction: "predicted class",
  outcome: "attack outcome",
  confidence: "confidence",
  distance: "distance to the true class",
  common: "common neighbours",
};
// In units of the class's own inner distance: 1 is where its clean images are, on the average.
const DISTANCE_SPAN = 4;

// Dark colours of the palette would vanish on a dark ground: these are mixed with white.
function onGround(hex, dark) {
  const rgb = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const luminance = (0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]) / 255;
  const share = dark ? Math.max(0, 0.62 - luminance) : 0;
  return `rgb(${rgb.map((v) => Math.round(v + (255 - v) * share * 1.25)).join(",")})`;
}

function rampColour(share, dark) {
  const stops = dark ? VIRIDIS_ON_DARK : VIRIDIS;
  const at = clamp(share, 0, 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const mixed = stops[low].map((v, c) => Math.round(v + (stops[low + 1][c] - v) * (at - low)));
  return `rgb(${mixed.join(",")})`;
}

// A ring of hues for more classes than have a colour each: the golden angle apart, in three lightnesses.
const ringColour = (k, dark) => `hsl(${Math.round((k * 137.508) % 360)} 62% ${[42, 56, 30][k % 3] + (dark ? 18 : 0)}%)`;

// {bins, palette, labels, keys, note}, or for numbers {bins, palette, range, title}; a bin of -1 is not known.
function colouring(data, state) {
  const { colour: mode, dark } = state;
  const bins = data.models.map((model) => KINDS.map((kind) => binsOf(data, state, model, kind === "adversarial")));
  if (mode === "label" || mode === "prediction") return namedColours(bins, data.class_names, state, data, state.groups);
  const column = columnOfMode(data, mode);
  if (column?.categories) return namedColours(bins, column.categories, state, data, []);
  if (mode === "outcome") {
    const palette = OUTCOME_COLOURS.map((c) => onGround(c, dark));
    return { bins, palette, labels: OUTCOMES, keys: OUTCOMES, note: "" };
  }
  const palette = Array.from({ length: STEPS }, (_, step) => rampColour(step / (STEPS - 1), dark));
  return { bins, palette, ...rangeOf(data, state, column) };
}

function rangeOf(data, state, column) {
  if (column) return { range: column.span.map((value) => String(Number(value.toPrecision(4)))), title: column.name };
  if (state.colour === "confidence") return { range: ["0", "1"], title: "confidence" };
  if (state.colour === "distance") return { range: ["0", `${DISTANCE_SPAN} inner distances`], title: COLOUR_MODES.distance };
  const [a, b] = state.pair.map((m) => data.models[m].name);
  return { range: ["0", "1"], title: `share of ${data.stored} neighbours in common, ${a} and ${b}` };
}

const columnOfMode = (data, mode) => (mode.startsWith("column:") ? data.columnOf.get(mode.slice(7)) : undefined);

// Lowest and highest of a column of numbers.
function spanOf(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 1];
}

function binsOf(data, state, model, adversarial) {
  const { colour: mode } = state;
  const predictions = adversarial ? model.adv_predictions : model.predictions;
  const distances = adversarial ? model.adv_class_distance : model.class_distance;
  const confidences = adversarial ? model.adv_confidence : model.confidence;
  const step = (share) => (share >= 0 ? Math.round(Math.min(share, 1) * (STEPS - 1)) : -1);
  const each = (value) => Int16Array.from({ length: data.n }, (_, i) => value(i));
  const column = columnOfMode(data, mode);
  if (column?.categories) return column.values;
  if (column) {
    column.span ??= spanOf(column.values);
    const [low, high] = column.span;
    return each((i) => step((column.values[i] - low) / (high - low || 1)));
  }
  if (mode === "label") return data.labels;
  if (mode === "prediction") return predictions ?? each(() => -1);
  if (mode === "outcome") return each((i) => outcome(data, model, i));
  if (mode === "confidence") return each((i) => (confidences ? step(confidences[i]) : -1));
  if (mode === "common") {
    const [a, b] = state.pair.map((m) => data.models[m]);
    return each((i) => step(commonNeighbours(data, a, b, adversarial, i) ?? -1));
  }
  return each((i) => (distances ? step(distances[i] / model.inner[data.labels[i]] / DISTANCE_SPAN) : -1));
}

// Names get a colour each while there are colours. Of more, groups picked by hand do; or those in the selection; or, with
// a word about it, they share a ring of hues.
function namedColours(bins, names, state, data, groups) {
  const { dark } = state;
  const colours = [...data.colours, ...MORE_COLOURS].map((c) => onGround(c, dark));
  const grey = onGround(OTHER, false);
  const gathered = (slotOf, slots, note) => ({
    bins: bins.map((kinds) => kinds.map((bin) => bin.map((k) => (k < 0 ? -1 : slotOf[k])))),
    palette: [...slots.map((_, at) => colours[at % colours.length]), grey],
    labels: [...slots.map((slot) => slot[0]), "all others"], keys: [...slots.map((slot) => slot[1]), "others"], note,
  });
  if (groups.length) {
    const slotOf = new Int16Array(names.length).fill(groups.length);
    groups.forEach(([, classes], at) => classes.forEach((k) => (slotOf[k] = at)));
    const repeated = groups.length > colours.length ? `${groups.length} groups share ${colours.length} colours.` : "";
    return gathered(slotOf, groups.map(([name], at) => [name, `group ${at}`]), repeated);
  }
  const keys = names.map((_, k) => String(k));
  if (names.length <= MOST_COLOURS) {
    return { bins, palette: colours.slice(0, names.length), labels: names, keys, note: "" };
  }
  const chosen = state.count ? inSelection(bins, state, names.length) : [];
  if (chosen.length) {
    const coloured = chosen.slice(0, MOST_COLOURS);
    const slotOf = new Int16Array(names.length).fill(coloured.length);
    coloured.forEach((k, at) => (slotOf[k] = at));
    const all = `A colour each for the ${coloured.length} in the selection; the others are grey.`;
    const some = `A colour each for the ${MOST_COLOURS} most frequent of ${chosen.length} in the selection; the others are grey.`;
    return gathered(slotOf, coloured.map((k) => [names[k], String(k)]), chosen.length > MOST_COLOURS ? some : all);
  }
  const note = `${names.length} names: many colours look alike. Select points${
    names === data.class_names ? ", or make groups of classes," : ""} to tell them apart.`;
  return { bins, palette: names.map((_, k) => ringColour(k, dark)), labels: names, keys, note };
}

// What the selected points are, the most frequent first.
function inSelection(bins, state, size) {
  const counts = new Int32Array(size);
  for (const kinds of bins) {
    for (const bin of kinds) {
      for (let i = 0; i < bin.length; i++) if (state.selected[i] && bin[i] >= 0) counts[bin[i]] += 1;
    }
  }
  return [...counts.keys()].filter((k) => counts[k]).sort((a, b) => counts[b] - counts[a] || a - b);
}

// A view: what is shown of the data, as JSON by names that a person can read, for links, for Python and for files. Only
// what differs from the start is in it. A view may come from anywhere: what the data cannot show is passed over.

const POINTS = { both: [true, true], clean: [true, false], adversarial: [false, true] };
const VIEW_TEXTS = ["map", "colour", "points", "search", "outcome", "model", "panel", "step", "tab", "theme"];

// The state of a view with nothing in it.
function startState(data) {
  return {
    method: data.methods[0], colour: "label", kinds: POINTS.both, k: data.k, search: "", themeChosen: false,
    filter: { model: 0, classA: -1, classB: -1, outcome: -1, falseClass: -1, columns: new Map() },
    hidden: new Set(), groups: [], pinned: null, panel: null, step: 0,
    pair: [0, Math.min(1, data.models.length - 1)], tab: "items",
  };
}

function viewOf(data, state, panels) {
  const start = startState(data);
  const { filter } = state;
  const name = (m) => data.models[m].name;
  const classes = [filter.classA, filter.classB].filter((k) => k >= 0);
  const zooms = panels.filter((panel) => panel.isZoomed).map(({ at, zoom }) => [name(at), [zoom.x, zoom.y, zoom.factor]]);
  const when = (condition, value) => (condition ? value : undefined);
  const view = {
    map: when(state.method !== start.method, state.method),
    colour: when(state.colour !== start.colour, state.colour),
    points: Object.keys(POINTS).find((key) => key !== "both" && String(POINTS[key]) === String(state.kinds)),
    neighbours: when(state.k !== start.k, state.k),
    search: state.search || undefined,
    classes: when(classes.length, classes),
    outcome: OUTCOMES[filter.outcome],
    false_class: when(filter.falseClass >= 0, filter.falseClass),
    model: when(filter.model, name(filter.model)),
    columns: when(filter.columns.size, Object.fromEntries(filter.columns)),
    hidden: when(state.hidden.size, [...state.hidden]),
    groups: when(state.groups.length, state.groups),
    pinned: when(state.pinned !== null, data.indices[state.pinned]),
    zoom: when(zooms.length, Object.fromEntries(zooms)),
    panel: when(state.panel !== null, data.models[state.panel ?? 0].name),
    step: when(state.step, name(state.step)),
    compare: when(String(state.pair) !== String(start.pair), state.pair.map(name)),
    tab: when(state.tab !== start.tab, state.tab),
    theme: when(state.themeChosen, state.dark ? "dark" : "light"),
  };
  return Object.fromEntries(Object.entries(view).filter(([, value]) => value !== undefined));
}

// The state that a view says, and the zooms of the panels by model.
function stateOf(data, view) {
  const state = startState(data);
  const get = (key) => (Object.hasOwn(view, key) ? view[key] : undefined);
  const modelOf = (name) => data.models.findIndex((model) => model.name === name);
  const isClass = (k) => Number.isInteger(k) && k >= 0 && k < data.class_names.length;
  const list = (value) => (Array.isArray(value) ? value : []);
  const colours = [...Object.keys(COLOUR_MODES), ...data.columns.map((column) => `column:${column.name}`)];
  const { filter } = state;
  if (data.methods.includes(get("map"))) state.method = get("map");
  if (colours.includes(get("colour"))) state.colour = get("colour");
  if (Object.hasOwn(POINTS, get("points"))) state.kinds = POINTS[get("points")];
  if (Number.isInteger(get("neighbours")) && get("neighbours") > 0) state.k = Math.min(get("neighbours"), data.stored);
  if (typeof get("search") === "string") state.search = get("search");
  [filter.classA = -1, filter.classB = -1] = list(get("classes")).filter(isClass);
  filter.outcome = OUTCOMES.indexOf(get("outcome"));
  if (isClass(get("false_class"))) filter.falseClass = get("false_class");
  filter.model = Math.max(0, modelOf(get("model")));
  for (const [name, wanted] of Object.entries(get("columns") ?? {})) {
    const column = data.columnOf.get(name);
    const numbers = Array.isArray(wanted) && wanted.length === 2 && wanted.every((v) => v === null || Number.isFinite(v));
    if (column?.categories ? column.categories.includes(wanted) : column && numbers) filter.columns.set(name, wanted);
  }
  state.hidden = new Set(list(get("hidden")).map(String));
  state.groups = list(get("groups")).filter((group) => Array.isArray(group) && Array.isArray(group[1]))
    .map(([name, classes]) => [String(name), classes.filter(isClass)]).filter(([, classes]) => classes.length);
  state.pinned = data.rowOf.get(get("pinned")) ?? null;
  if (!data.steps && modelOf(get("panel")) >= 0) state.panel = modelOf(get("panel"));
  if (data.steps) state.step = Math.max(0, modelOf(get("step")));
  const pair = list(get("compare")).map(modelOf);
  if (pair.length === 2 && Math.min(...pair) >= 0) state.pair = pair;
  if (Object.hasOwn(TABS, get("tab"))) state.tab = get("tab");
  if (["light", "dark"].includes(get("theme"))) Object.assign(state, { themeChosen: true, dark: get("theme") === "dark" });
  const zooms = new Map(Object.entries(get("zoom") ?? {}).filter(([, place]) =>
    Array.isArray(place) && place.length === 3 && place.every(Number.isFinite) && place[2] > 0));
  return { state, zooms };
}

// Links --------------------------------------------------------------------------------------------------------------

function fragmentOf(data, view, selected) {
  const parts = new URLSearchParams();
  for (const [key, value] of Object.entries(view)) {
    parts.set(key, VIEW_TEXTS.includes(key) ? value : JSON.stringify(value));
  }
  const rows = packRows(selected);
  if (rows) parts.set("selection", rows);
  if (!parts.size) return "";
  parts.set("data", data.mark);
  return parts.toString();
}

// {view, selected}, or null where there is nothing, or what is there is a link to other data.
function readFragment(data, fragment) {
  const parts = new URLSearchParams(fragment);
  if (parts.get("data") !== data.mark) return null;
  const view = {};
  for (const [key, text] of parts) {
    if (VIEW_TEXTS.includes(key)) view[key] = text;
    else if (key !== "selection" && key !== "data") {
      try {
        view[key] = JSON.parse(text);
      } catch {
        // A link that was cut off keeps the rest.
      }
    }
  }
  return { view, selected: unpackRows(parts.get("selection") ?? "", data.n) };
}

// Rows as text: a bit for each of all rows, or the steps from one to the next where these are shorter.
function packRows(selected) {
  const bits = new Uint8Array(Math.ceil(selected.length / 8));
  const steps = [];
  let last = -1;
  for (let i = 0; i < selected.length; i++) {
    if (!selected[i]) continue;
    bits[i >> 3] |= 1 << (i & 7);
    let step = i - last - 1;
    last = i;
    for (; step > 127; step >>= 7) steps.push((step & 127) | 128);
    steps.push(step);
  }
  if (last < 0) return "";
  return steps.length < bits.length ? `s${base64url(steps)}` : `b${base64url(bits)}`;
}

function unpackRows(text, n) {
  const selected = new Uint8Array(n);
  let bytes;
  try {
    bytes = Uint8Array.from(atob(text.slice(1).replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
  } catch {
    return selected;
  }
  if (text[0] === "b") {
    for (let i = 0; i < n; i++) selected[i] = (bytes[i >> 3] >> (i & 7)) & 1;
    return selected;
  }
  let [row, step, shift] = [-1, 0, 0];
  for (const byte of bytes) {
    step |= (byte & 127) << shift;
    shift += 7;
    if (byte & 128) continue;
    row += step + 1;
    if (row >= 0 && row < n) selected[row] = 1;
    [step, shift] = [0, 0];
  }
  return selected;
}

function base64url(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

// The explorer in an element, and its two hosts: a page of its own, and a widget of JupyterLab.

const TABS = { neighbours: "Neighbours", selection: "Selection", differences: "Differences", items: "Items" };

class Explorer {
  constructor(root, bytes, { selection = [], dark = null, onSelection = () => {} } = {}) {
    this.data = readPayload(bytes);
    this.onSelection = onSelection;
    const { data } = this;
    this.state = {
      method: data.methods[0], colour: "label", kinds: [true, true], k: data.k, search: "",
      dark: dark ?? matchMedia("(prefers-color-scheme: dark)").matches,
      filter: { model: 0, classA: -1, classB: -1, outcome: -1, falseClass: -1 },
      visible: new Uint8Array(data.n).fill(1), selected: new Set(), current: null, pinned: null,
    };
    this.state.colouring = colouring(data, this.state.colour, this.state.dark);
    const events = {
      hover: (i) => this.focusOn(i),
      focus: (i) => this.focusOn(i, true),
      pin: (i) => this.pin(i),
      select: (rows, adding) => this.select(adding ? [...this.state.selected, ...rows] : rows),
      lassoed: (rows, adding) => this.lassoed(adding ? [...this.state.selected, ...rows] : rows),
      toggle: (i) => this.toggle(i),
      isSelected: (i) => this.state.selected.has(i),
      neighbourCount: (k) => this.neighbourCount(k),
    };
    this.images = new Images(data, () => this.imagesLoaded());
    this.maps = new Maps(data, this.state, events);
    this.details = new Details(data, this.state, this.images, events);
    this.lists = new Lists(data, this.state, this.images, events);
    this.build(root);
    this.setSelection(selection);
    this.ready = this.start();
  }

  build(root) {
    const { data } = this;
    this.legend = element("div", { class: "legend" });
    this.status = element("div", { class: "status", role: "status", "aria-live": "polite" });
    const notes = data.notes.length ? element("details", { class: "notes" },
      element("summary", {}, `${data.notes.length} ${data.notes.length > 1 ? "notes" : "note"} on the data`),
      ...data.notes.map((note) => element("p", {}, note))) : "";
    this.tabs = Object.fromEntries(Object.entries(TABS).map(([key, name]) => [key, this.tab(key, name)]));
    const panes = Object.entries(this.tabs).map(([key, tab]) => {
      tab.pane = element("div", { class: "pane", role: "tabpanel", "aria-label": TABS[key] },
        { neighbours: this.details.neighbours, selection: this.lists.selection, differences: this.lists.differences,
          items: this.lists.items }[key]);
      return tab.pane;
    });
    const tabs = element("div", { class: "tabs", role: "tablist" }, ...Object.values(this.tabs));
    const side = element("aside", {}, this.details.card, tabs, ...panes);
    const main = element("main", {}, this.maps.root, element("div", { class: "foot" }, this.legend, notes));
    this.root = element("div", { class: "tla-explorer" }, element("style", {}, STYLE), this.controls(), main, side,
      this.status);
    // In JupyterLab keys would otherwise move between cells.
    this.root.dataset.lmSuppressShortcuts = "true";
    root.replaceChildren(this.root);
    this.root.dataset.theme = this.state.dark ? "dark" : "light";
    this.root.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.state.pinned !== null) this.pin(null);
    });
    this.openTab("items");
    this.showLegend();
  }

  tab(key, name) {
    const onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const keys = Object.keys(TABS);
      const next = keys[(keys.indexOf(key) + step + keys.length) % keys.length];
      this.openTab(next);
      this.tabs[next].focus();
    };
    return element("button", { type: "button", role: "tab", onclick: () => this.openTab(key), onkeydown }, name);
  }

  openTab(open) {
    const focused = document.activeElement?.closest(".pane");
    for (const [key, tab] of Object.entries(this.tabs)) {
      tab.setAttribute("aria-selected", key === open);
      tab.tabIndex = key === open ? 0 : -1;
      tab.pane.hidden = key !== open;
    }
    this.open = open;
    this.refresh(open);
    // What held the focus is hidden now: without this it would be lost to the page.
    if (this.root?.contains(focused) && focused.hidden) this.tabs[open].focus();
  }

  // A tab that is not seen is not kept up to date.
  refresh(...keys) {
    if (!keys.includes(this.open)) return;
    if (this.open === "neighbours") this.details.showNeighbours();
    else if (this.open === "selection") this.lists.showSelection();
    else if (this.open === "differences") this.lists.showDifferences();
    else this.lists.showItems();
  }

  controls() {
    const { data, state } = this;
    const labelled = (text, control, spoken = text) => {
      control.setAttribute("aria-label", spoken);
      return element("label", {}, `${text} `, control);
    };
    const choice = (entries, value, choose) => {
      const select = element("select", { onchange: (event) => choose(event.target.value) },
        ...entries.map(([key, name]) => element("option", { value: key }, name)));
      select.value = value;
      return select;
    };
    const filter = (key, names, empty) => {
      const set = (value) => this.filter({ [key]: Number(value) });
      const entries = names.map((name, at) => [at, name]);
      return choice(empty === null ? entries : [[-1, empty], ...entries], empty === null ? 0 : -1, set);
    };
    const kinds = { both: [true, true], clean: [true, false], adversarial: [false, true] };
    const named = data.models.map((model) => model.name);
    const find = (event) => {
      if (event.key !== "Enter") return;
      const [first] = this.lists.found();
      if (first !== undefined) this.pin(first);
    };
    const search = element("input", { type: "search", size: 14, placeholder: "index or class", onkeydown: find,
      oninput: (event) => {
        state.search = event.target.value;
        this.openTab("items");
      } });
    const theme = element("button", { type: "button", onclick: () => this.setTheme(!state.dark) }, "Light / dark");
    const map = choice(data.methods.map((m) => [m, METHOD_NAMES[m]]), state.method, (m) => this.setMethod(m));
    const points = choice(Object.keys(kinds).map((key) => [key, key]), "both", (key) => this.setKinds(kinds[key]));
    return element("header", {},
      element("div", { class: "bar" }, labelled("Map", map),
        labelled("Colour", choice(Object.entries(COLOUR_MODES), state.colour, (c) => this.setColour(c))),
        labelled("Points", points), labelled("Find", search), theme),
      element("div", { class: "bar" }, labelled("Classes", filter("classA", data.class_names, "all")),
        labelled("and", filter("classB", data.class_names, "–"), "Second class"),
        labelled("Outcome", filter("outcome", OUTCOMES, "any")),
        labelled("False class", filter("falseClass", data.class_names, "any")),
        labelled("in", filter("model", named, null), "Model of the outcome")));
  }

  async start() {
    await new Promise((resolve) => {
      // In a notebook the element gets its size only once it is in the page.
      this.sizes = new ResizeObserver(() => {
        if (this.maps.root.clientWidth) resolve();
        this.maps.resize();
      });
      this.sizes.observe(this.maps.root);
    });
    await this.maps.draw();
    await this.images.ready;
    this.root.dataset.ready = "true";
  }

  destroy() {
    this.sizes.disconnect();
    this.maps.destroy();
  }

  imagesLoaded() {
    this.details.show();
    this.refresh("neighbours", "selection");
  }

  // What a reader does --------------------------------------------------------------------------------------------------

  focusOn(i, spoken = false) {
    if (i === this.state.current) return;
    this.state.current = i;
    this.details.show();
    this.maps.redrawMarks();
    if (spoken) this.say(this.spoken(i));
  }

  spoken(i) {
    const { data } = this;
    const of = data.models.filter((model) => model.adv_predictions).map((model) =>
      `${model.name}: ${OUTCOMES[outcome(data, model, i)] ?? "not known"}, `
      + `attacked as ${className(data, model.adv_predictions[i])}`);
    return [`Image ${data.indices[i]}, class ${className(data, data.labels[i])}`, ...of].join(". ");
  }

  say(text) {
    this.status.textContent = text;
  }

  pin(i) {
    this.state.pinned = i;
    this.details.show();
    this.maps.redrawMarks();
    if (i !== null) this.openTab("neighbours");
    else this.refresh("neighbours");
  }

  neighbourCount(k) {
    this.state.k = k;
    this.refresh("neighbours");
    this.maps.redrawMarks();
  }

  toggle(i) {
    const rows = new Set(this.state.selected);
    if (!rows.delete(i)) rows.add(i);
    this.select(rows, false);
  }

  select(rows, open = true) {
    this.showSelected(rows);
    this.listSelected(open);
  }

  // Points first: the images of the list come with the next picture.
  lassoed(rows) {
    this.showSelected(rows);
    afterPaint(() => this.listSelected(true));
  }

  showSelected(rows) {
    this.state.selected = new Set(rows);
    if (this.maps.shown) this.maps.redraw();
  }

  listSelected(open) {
    this.lists.mark();
    if (open && this.state.selected.size) this.openTab("selection");
    else this.refresh("selection");
    this.say(`${this.state.selected.size} images selected`);
    this.onSelection(this.selection);
  }

  // Indices of the selected images, ascending.
  get selection() {
    return Array.from(this.state.selected, (i) => this.data.indices[i]).sort((a, b) => a - b);
  }

  setSelection(indices) {
    const rows = indices.map((index) => this.data.rowOf.get(index)).filter((row) => row !== undefined);
    const same = rows.length === this.state.selected.size && rows.every((row) => this.state.selected.has(row));
    if (!same) this.select(rows);
  }

  setMethod(method) {
    this.state.method = method;
    this.maps.showMethod(method, true);
  }

  setKinds(kinds) {
    this.state.kinds = kinds;
    this.maps.redraw();
  }

  setColour(colour) {
    this.state.colour = colour;
    this.recolour();
  }

  setTheme(dark) {
    this.state.dark = dark;
    this.root.dataset.theme = dark ? "dark" : "light";
    this.recolour();
    this.maps.resize();
  }

  recolour() {
    this.state.colouring = colouring(this.data, this.state.colour, this.state.dark);
    this.maps.forgetColours();
    if (this.maps.shown) this.maps.redraw();
    this.showLegend();
  }

  filter(change) {
    Object.assign(this.state.filter, change);
    for (let i = 0; i < this.data.n; i++) this.state.visible[i] = passesFilter(this.data, this.state.filter, i);
    this.maps.redraw();
    this.refresh("items", "differences");
    this.say(`${this.state.visible.reduce((a, b) => a + b, 0)} images pass the filters`);
  }

  showLegend() {
    const { palette, labels, range } = this.state.colouring;
    const chip = (colour, text) => element("span", { class: "chip" },
      element("span", { class: "swatch", style: `background: ${colour}` }), text);
    const scale = range ? [range[0], element("span", {
      class: "ramp", style: `background: linear-gradient(to right, ${palette.join(",")})` }), range[1]]
      : labels.map((label, at) => chip(palette[at % palette.length], label));
    this.legend.replaceChildren(element("span", {}, "● clean  ▲ attacked"), ...scale);
  }
}

function openPage(page) {
  const start = performance.now();
  const text = atob(page.getElementById("payload").textContent);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  const selection = JSON.parse(page.getElementById("selection").textContent);
  const explorer = new Explorer(page.getElementById("explorer"), new DataView(bytes.buffer), { selection });
  window.explorer = explorer;
  return explorer.ready.then(() => performance.measure("explorer ready", { start, end: performance.now() }));
}

function render({ model, el }) {
  const box = element("div", { style: "height: 720px" });
  el.append(box);
  const light = document.body.dataset.jpThemeLight;
  const explorer = new Explorer(box, model.get("payload"), {
    selection: model.get("selection"),
    dark: light === undefined ? null : light === "false",
    onSelection: (indices) => {
      if (JSON.stringify(indices) === JSON.stringify(model.get("selection"))) return;
      model.set("selection", indices);
      model.save_changes();
    },
  });
  const follow = () => explorer.setSelection(model.get("selection"));
  model.on("change:selection", follow);
  return () => {
    model.off("change:selection", follow);
    explorer.destroy();
  };
}

export default { render };

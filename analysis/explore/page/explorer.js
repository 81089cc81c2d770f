// The explorer in an element: the state, and what happens to it.

const TABS = { neighbours: "Neighbours", selection: "Selection", differences: "Differences", items: "Items" };
const WIDE = 880; // pixels of the explorer from which the lists lie beside the maps
const NARROW = 560;
const PLAY_TIME = 1200; // milliseconds of a step

class Explorer {
  // `host` has what differs between a page and a widget: onChange, fetchFull, beside, copyLink.
  constructor(root, bytes, { selection = [], view = {}, dark = null, host = {} } = {}) {
    const data = readPayload(bytes);
    Object.assign(this, { data, host });
    this.state = {
      ...startState(data), dark: dark ?? matchMedia("(prefers-color-scheme: dark)").matches, tool: "lasso", current: null,
      visible: new Uint8Array(data.n).fill(1), matches: null, selected: new Uint8Array(data.n), count: 0,
      strength: new Uint8Array(data.n).fill(STRONG), someAreFaint: false, hiddenSlots: new Uint8Array(0), playing: false,
    };
    this.hostDark = this.state.dark;
    this.state.colouring = colouring(data, this.state);
    const events = this.events();
    this.images = new Images(data, host, () => this.imagesLoaded());
    this.maps = new Maps(data, this.state, events);
    this.legend = new Legend(data, this.state, events);
    this.details = new Details(data, this.state, this.images, events);
    this.lists = new Lists(data, this.state, this.images, events);
    this.controls = new Controls(data, this.state, events);
    this.viewer = new Viewer(data, this.images);
    this.build(root);
    this.apply(view, selection);
    this.ready = this.start();
  }

  events() {
    const { state } = this;
    return {
      hover: (i) => this.focusOn(i),
      focus: (i) => this.focusOn(i, true),
      pin: (i) => this.pin(i),
      select: (rows) => this.select(rows, false),
      lassoed: (inside, adding) => this.lassoed(inside, adding),
      toggle: (i) => this.toggle(i),
      isSelected: (i) => state.selected[i] === 1,
      neighbourCount: (k) => this.change({ k }, "neighbours"),
      enlarge: (at) => this.enlarge(state.panel === null ? at : null),
      enlargeImage: () => this.viewer.show(state.current ?? state.pinned),
      zoomed: () => this.changed(),
      zoomAll: (times) => this.zoomAll(times),
      method: (method) => this.moveTo({ method }),
      step: (step) => this.moveTo({ step }),
      play: () => this.play(!state.playing),
      colour: (colour) => this.recolour({ colour, hidden: new Set() }),
      compare: (pair) => this.recolour({ pair }),
      group: (groups) => this.recolour({ groups, hidden: new Set() }),
      hide: (hidden) => this.recolour({ hidden }),
      kinds: (kinds) => this.change({ kinds }),
      filter: (change) => this.filter(change),
      search: (text) => this.search(text),
      findFirst: () => {
        const [first] = this.lists.found();
        if (first !== undefined) this.pin(first);
      },
      tool: (tool) => {
        state.tool = tool;
        this.controls.sync();
      },
      copyLink: this.host.copyLink && (() => this.copyLink()),
      save: (kind) => (kind === "png" ? savePng(this) : saveSvg(this)),
      theme: () => this.setTheme(!state.dark),
    };
  }

  // The page -----------------------------------------------------------------------------------------------------------

  build(root) {
    const { data } = this;
    this.status = element("div", { class: "status", role: "status", "aria-live": "polite" });
    const notes = data.notes.length ? element("details", { class: "notes" },
      element("summary", {}, `${data.notes.length} ${data.notes.length > 1 ? "notes" : "note"} on the data`),
      ...data.notes.map((note) => element("p", {}, note))) : "";
    this.tabs = Object.fromEntries(Object.entries(TABS).map(([key, name]) => [key, this.tab(key, name)]));
    const { selection, differences, items } = this.lists;
    const contents = { neighbours: this.details.neighbours, selection, differences, items };
    const panes = Object.entries(this.tabs).map(([key, tab]) =>
      (tab.pane = element("div", { class: "pane", role: "tabpanel", "aria-label": TABS[key] }, contents[key])));
    const side = element("aside", {}, this.details.card,
      element("div", { class: "tabs", role: "tablist" }, ...Object.values(this.tabs)), ...panes);
    this.foot = element("div", { class: "foot" }, this.legend.root, notes);
    const main = element("main", {}, this.maps.root, this.foot);
    this.root = element("div", { class: "tla-explorer" }, element("style", {}, STYLE), this.controls.root, main, side,
      this.viewer.root, this.legend.editor.root, this.status);
    // In JupyterLab keys would otherwise move between cells.
    this.root.dataset.lmSuppressShortcuts = "true";
    root.replaceChildren(this.root);
    this.root.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.state.pinned !== null) this.pin(null);
    });
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
    this.state.tab = open;
    this.refresh(open);
    // What held the focus is hidden now: without this it would be lost to the page.
    if (this.root.contains(focused) && focused.hidden) this.tabs[open].focus();
    this.changed();
  }

  // A tab that is not seen is not kept up to date.
  refresh(...keys) {
    const { tab } = this.state;
    if (!keys.includes(tab)) return;
    if (tab === "neighbours") this.details.showNeighbours();
    else if (tab === "selection") this.lists.showSelection();
    else if (tab === "differences") this.lists.showDifferences();
    else this.lists.showItems();
  }

  async start() {
    await new Promise((resolve) => {
      // In a notebook the element gets its size only once it is in the page.
      this.sizes = new ResizeObserver(() => {
        this.arrange();
        if (this.maps.root.clientWidth) resolve();
      });
      [this.root, this.maps.root].forEach((node) => this.sizes.observe(node));
    });
    await new Promise(afterPaint);
    performance.mark("explorer shown");
    await this.images.ready;
    this.root.dataset.ready = "true";
  }

  // Beside each other where there is room, and else one below the other.
  arrange() {
    const { clientWidth: width, clientHeight: height } = this.root;
    if (!width) return;
    const layout = width >= WIDE ? "wide" : width >= NARROW ? "medium" : "narrow";
    if (this.root.dataset.layout !== layout) {
      this.root.dataset.layout = layout;
      this.controls.filters.open = layout === "wide" && height > 600;
    }
    this.maps.started = true;
    const share = this.maps.visible.length > 2 ? 0.7 : 0.58; // of the height, where the lists lie below
    this.root.style.setProperty("--maps", `${Math.round(clamp(share * height, 300, 1.2 * width))}px`);
    this.maps.resize();
  }

  destroy() {
    this.play(false);
    this.sizes.disconnect();
    clearTimeout(this.telling);
  }

  // The first card takes 15 ms longer than later ones: it is filled here, before a reader waits for it.
  imagesLoaded() {
    if (this.data.n) this.details.fill(0);
    this.details.show();
    this.refresh("neighbours", "selection");
  }

  // Views --------------------------------------------------------------------------------------------------------------

  get view() {
    return viewOf(this.data, this.state, this.maps.panels);
  }

  // Indices of the selected images, ascending.
  get selection() {
    return this.selectedRows().map((i) => this.data.indices[i]).sort((a, b) => a - b);
  }

  selectedRows() {
    return [...this.data.indices.keys()].filter((i) => this.state.selected[i]);
  }

  // Shows a view, from its beginning, and a selection of indices.
  apply(view, selection) {
    const { data, state } = this;
    const { count } = state;
    const { state: next, zooms } = stateOf(data, view);
    if (!next.themeChosen) next.dark = this.hostDark;
    Object.assign(state, next);
    this.setSelected(selection.map((index) => data.rowOf.get(index)).filter((row) => row !== undefined));
    for (const panel of this.maps.panels) {
      const [x, y, factor] = zooms.get(data.models[panel.at].name) ?? [0, 0, 1];
      panel.zoomTo({ x, y, factor });
    }
    state.matches = matchesSearch(data, state.search.trim().toLowerCase());
    for (let i = 0; i < data.n; i++) state.visible[i] = passesFilter(data, state.filter, i);
    this.root.dataset.theme = state.dark ? "dark" : "light";
    this.maps.enlarge(state.panel);
    this.maps.show(false);
    this.recolour({});
    this.details.show();
    this.lists.mark();
    this.openTab(state.tab);
    if (state.count !== count) this.say(`${state.count} images selected`);
  }

  // Whoever keeps the view is told, a moment after the last of many changes.
  changed() {
    clearTimeout(this.telling);
    this.telling = setTimeout(() => this.host.onChange?.(this), 200);
  }

  async copyLink() {
    const copied = await this.host.copyLink(this);
    this.say(copied ? "The link is copied" : "The link could not be copied; it is in the address bar");
  }

  // What a reader does -------------------------------------------------------------------------------------------------

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

  // For whoever hears the page, and for whoever sees it.
  say(text) {
    this.status.textContent = text;
  }

  pin(i) {
    this.state.pinned = i;
    this.details.show();
    this.maps.redrawMarks();
    if (i !== null) this.openTab("neighbours");
    else this.refresh("neighbours");
    this.changed();
  }

  toggle(i) {
    const selected = this.state.selected.slice();
    selected[i] ^= 1;
    this.showSelected(selected);
    this.listSelected(false);
  }

  select(rows, open = true) {
    this.setSelected(rows);
    this.afterSelection();
    this.listSelected(open);
  }

  setSelected(rows) {
    const { state } = this;
    state.selected = new Uint8Array(this.data.n);
    for (const i of rows) state.selected[i] = 1;
    state.count = state.selected.reduce((a, b) => a + b, 0);
  }

  // Points first: the images of the list come with the next picture.
  lassoed(inside, adding) {
    if (adding) this.state.selected.forEach((chosen, i) => (inside[i] |= chosen));
    this.showSelected(inside);
    afterPaint(() => this.listSelected(true));
  }

  showSelected(selected) {
    this.state.selected = selected;
    this.state.count = selected.reduce((a, b) => a + b, 0);
    this.afterSelection();
  }

  // With many classes the colours are those of the selection.
  afterSelection() {
    const { state, data } = this;
    const many = Math.max(data.class_names.length, columnOfMode(data, state.colour)?.categories?.length ?? 0) > MOST_COLOURS;
    if (many) this.recolour({});
    else {
      this.restrengthen();
      this.maps.redraw();
    }
  }

  listSelected(open) {
    this.lists.mark();
    if (open && this.state.count) this.openTab("selection");
    else this.refresh("selection");
    this.say(`${this.state.count} images selected`);
    this.changed();
  }

  // How strongly each image is drawn: not at all, as a trace, or fully.
  restrengthen() {
    const { state, data } = this;
    state.someAreFaint = state.count > 0 || state.matches !== null;
    for (let i = 0; i < data.n; i++) {
      const faint = (state.count > 0 && !state.selected[i]) || (state.matches !== null && !state.matches[i]);
      state.strength[i] = state.visible[i] ? (faint ? FAINT : STRONG) : HIDDEN;
    }
  }

  change(change, ...tabs) {
    Object.assign(this.state, change);
    this.controls.sync();
    this.refresh(...tabs);
    this.maps.redraw();
    this.changed();
  }

  moveTo(change) {
    Object.assign(this.state, change);
    this.controls.sync();
    this.maps.show(true);
    this.changed();
  }

  play(on) {
    const { state, data } = this;
    clearInterval(this.playing);
    state.playing = on;
    if (on) {
      const next = () => {
        this.moveTo({ step: (state.step + 1) % data.models.length });
        if (state.step === data.models.length - 1) this.play(false);
      };
      this.playing = setInterval(next, PLAY_TIME);
      next();
    }
    this.controls.sync();
  }

  enlarge(at) {
    this.maps.enlarge(at);
    this.changed();
  }

  zoomAll(times) {
    for (const panel of this.maps.visible) {
      if (times) panel.zoomBy(times);
      else panel.zoomTo(WHOLE);
      this.maps.redrawSoon(panel);
    }
    this.changed();
  }

  setTheme(dark) {
    this.root.dataset.theme = dark ? "dark" : "light";
    this.recolour({ dark, themeChosen: true });
  }

  // Everything that colours depend on, then the points, the legend and the controls.
  recolour(change) {
    const { state } = this;
    Object.assign(state, change);
    state.colouring = colouring(this.data, state);
    const keys = state.colouring.keys ?? [];
    state.hiddenSlots = Uint8Array.from(keys, (key) => state.hidden.has(key));
    this.restrengthen();
    this.maps.forgetColours();
    this.maps.redraw();
    this.legend.show();
    this.controls.sync();
    if ("pair" in change) this.refresh("differences");
    this.changed();
  }

  filter(change) {
    const { state, data } = this;
    Object.assign(state.filter, change);
    for (let i = 0; i < data.n; i++) state.visible[i] = passesFilter(data, state.filter, i);
    this.restrengthen();
    this.change({}, "items", "differences");
    this.say(`${state.visible.reduce((a, b) => a + b, 0)} images pass the filters`);
  }

  search(text) {
    const { state, data } = this;
    state.search = text;
    state.matches = matchesSearch(data, text.trim().toLowerCase());
    this.restrengthen();
    this.maps.redraw();
    this.openTab("items");
    if (state.matches) this.say(`${this.lists.found().length} images found`);
  }
}

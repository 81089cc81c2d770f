// All panels: how they share their room, and what happens to them together.

const TITLE_HEIGHT = 22;
const MOVE_TIME = 700; // milliseconds of the transition between two maps

class Maps {
  constructor(data, state, events) {
    Object.assign(this, { data, state, events, started: false, shown: false, sprites: null });
    const count = data.steps ? 1 : data.models.length;
    const ofPanels = { ...events, zoomed: (panel, change) => this.zoomed(panel, change) };
    this.panels = Array.from({ length: count }, (_, at) => {
      const panel = new Panel(data, state, at, events);
      new Gestures(panel, state, ofPanels);
      return panel;
    });
    this.root = element("div", { class: "maps" }, ...this.panels.map((panel) => panel.root));
    this.enlarge(null);
    this.show(false);
  }

  panelOf(model) {
    return this.data.steps ? this.panels[0] : this.panels[model];
  }

  get visible() {
    return this.state.panel === null ? this.panels : [this.panels[this.state.panel]];
  }

  // One panel alone, or all (null).
  enlarge(at) {
    this.state.panel = at;
    this.panels.forEach((panel) => {
      panel.root.hidden = !this.visible.includes(panel);
      const alone = this.state.panel !== null;
      panel.enlarge.hidden = this.panels.length === 1;
      panel.enlarge.setAttribute("aria-label", alone ? "show all panels" : `show ${panel.name.textContent} alone`);
      panel.enlarge.setAttribute("aria-pressed", alone);
    });
    this.resize();
  }

  // Rows and columns in which the panels become as large as they can.
  arrange(width, height) {
    const count = this.visible.length;
    const sizeIn = (columns) => Math.min(width / columns, height / Math.ceil(count / columns) - TITLE_HEIGHT);
    let best = 1;
    for (let columns = 2; columns <= count; columns++) if (sizeIn(columns) > sizeIn(best) + 4) best = columns;
    return best;
  }

  resize() {
    const { clientWidth, clientHeight } = this.root;
    if (!this.started || !clientWidth || !clientHeight) return;
    const columns = this.arrange(clientWidth, clientHeight);
    const rows = Math.ceil(this.visible.length / columns);
    this.root.style.gridTemplate = `repeat(${rows}, minmax(0, 1fr)) / repeat(${columns}, minmax(0, 1fr))`;
    this.visible.forEach((panel) => panel.resize());
    this.forgetColours(); // another screen may have other pixels
    this.redraw();
  }

  zoomed(panel, change) {
    change();
    this.redrawSoon(panel);
    this.events.zoomed();
  }

  // No more often than there are pictures.
  redrawSoon(panel) {
    this.waiting ??= new Set();
    if (!this.waiting.size) {
      requestAnimationFrame(() => {
        this.waiting.forEach((each) => each.draw(this.spritesNow()));
        this.waiting.clear();
      });
    }
    this.waiting.add(panel);
  }

  forgetColours() {
    this.sprites = null;
  }

  spritesNow() {
    const { state } = this;
    return (this.sprites ??= new Sprites(state.colouring.palette, state.dark, this.panels[0].radius, window.devicePixelRatio));
  }

  redraw() {
    if (!this.started) return;
    this.shown = true;
    this.visible.forEach((panel) => panel.draw(this.spritesNow()));
  }

  redrawMarks() {
    if (this.shown) this.visible.forEach((panel) => panel.drawMarks());
  }

  // The nearest drawn point to a pointer, as a row; null where there is none.
  nearest(event) {
    for (const panel of this.visible) {
      const row = panel.nearest(panel.within(event));
      if (row !== null) return row;
    }
    return null;
  }

  // The map and the step that the state says; points move there.
  show(animated) {
    const { data, state } = this;
    if (data.steps) this.panels[0].model = state.step;
    cancelAnimationFrame(this.moving);
    const target = this.panels.map((panel) => data.models[panel.model].maps[state.method]);
    this.panels.forEach((panel) => panel.describe());
    const jumps = !animated || !this.shown || matchMedia("(prefers-reduced-motion: reduce)").matches
      || this.panels.some((panel, at) => panel.coords.length !== target[at].length);
    if (jumps) {
      this.panels.forEach((panel, at) => (panel.coords = target[at]));
      if (this.shown) this.redraw();
      return;
    }
    const from = this.panels.map((panel) => panel.coords.slice());
    const between = from.map((coords) => new Float32Array(coords.length));
    const start = performance.now();
    const step = (now) => {
      const share = clamp((now - start) / MOVE_TIME, 0, 1);
      const eased = share * share * (3 - 2 * share);
      this.panels.forEach((panel, m) => {
        panel.coords = share === 1 ? target[m] : between[m];
        if (share < 1) for (let at = 0; at < from[m].length; at++) between[m][at] = from[m][at] + eased * (target[m][at] - from[m][at]);
      });
      this.redraw();
      if (share < 1) this.moving = requestAnimationFrame(step);
    };
    this.moving = requestAnimationFrame(step);
  }
}

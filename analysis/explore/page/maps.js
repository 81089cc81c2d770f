// The panels. One plotly figure with a subplot for each model has the axes, zooming, panning, lasso and box; the points
// lie on a canvas below it and what marks single ones on a canvas above. Drawn as plotly's own traces, 8,000 points took
// 0.5 s to show a selection with software rendering (80,000: 2.5 s; plotly.js 4.1, WebGL), and on a canvas a few
// hundredths of that.

const GAP = 0.02;
const TITLE_HEIGHT = 20;
const EDGE = 1.06; // the maps lie in [-1, 1]
const REACH = 14; // pixels from the pointer in which the nearest point is meant
const MOVE_TIME = 700; // milliseconds of the transition between two maps

// Lay a point over an image, inside the edges of its panel. Written out, since the canvas's own drawImage takes ten times
// as long for so many small pictures.
function blend(image, [left, top, right, bottom], sprite, column, row, strength) {
  const { data, width } = image;
  for (let at = 0; at < sprite.length; at += 6) {
    const x = column + sprite[at];
    const y = row + sprite[at + 1];
    if (x < left || x >= right || y < top || y >= bottom) continue;
    const share = sprite[at + 5] * strength;
    const to = 4 * (y * width + x);
    for (let c = 0; c < 3; c++) data[to + c] += share * (sprite[at + 2 + c] - data[to + c]);
  }
}

// What may wait until the next picture is on the screen.
function afterPaint(callback) {
  requestAnimationFrame(() => setTimeout(callback));
}

class Maps {
  constructor(data, state, events) {
    this.data = data;
    this.state = state;
    this.events = events;
    this.columns = data.models.length === 1 ? 1 : data.models.length <= 4 ? 2 : 3;
    this.rows = Math.ceil(data.models.length / this.columns);
    this.points = element("canvas", { class: "layer" });
    this.plot = element("div", { class: "layer" });
    this.marks = element("canvas", { class: "layer marks" });
    this.titles = data.models.map((model) => element("div", { class: "panel-title" }, model.name));
    const names = data.models.map((model) => model.name).join(", ");
    this.root = element(
      "div",
      { class: "maps", role: "img", "aria-label": `Maps of ${names}. The tab Items has the same as text.` },
      this.points, this.plot, this.marks, ...this.titles,
    );
    this.sprites = new Map();
    this.showMethod(state.method, false);
  }

  axis(panel, letter) {
    return `${letter}${panel ? panel + 1 : ""}`;
  }

  layout() {
    const layout = {
      dragmode: this.plot.layout?.dragmode ?? "lasso", hovermode: false, showlegend: false, selections: [],
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 2, r: 2, t: 2, b: 2 },
      width: this.root.clientWidth, height: this.root.clientHeight,
      modebar: { orientation: "v", bgcolor: "rgba(0,0,0,0)", color: this.state.dark ? "#999" : "#777",
        activecolor: this.state.dark ? "#8db8ff" : "#1f5fbf" },
    };
    const colour = this.state.dark ? "#555" : "#bbb";
    const common = { showticklabels: false, showgrid: false, zeroline: false, showline: true, mirror: true,
      linecolor: colour, range: [-EDGE, EDGE] };
    const title = TITLE_HEIGHT / layout.height;
    this.data.models.forEach((_, panel) => {
      const column = panel % this.columns;
      const row = Math.floor(panel / this.columns);
      const width = 1 / this.columns;
      const height = 1 / this.rows;
      const top = 1 - row * height;
      layout[`xaxis${panel ? panel + 1 : ""}`] = { ...common, anchor: this.axis(panel, "y"),
        domain: [column * width + (column ? GAP / 2 : 0), (column + 1) * width - GAP / 2] };
      layout[`yaxis${panel ? panel + 1 : ""}`] = { ...common, anchor: this.axis(panel, "x"),
        scaleanchor: this.axis(panel, "x"), domain: [Math.max(0, top - height + GAP / 2), top - title] };
    });
    return layout;
  }

  // The points at once, in places of our own; then plotly, which a browser takes seconds to compile, with the lasso and
  // the zoom.
  async draw() {
    this.listen();
    this.redraw();
    await new Promise(afterPaint);
    performance.mark("explorer shown");
    Plotly ??= loadPlotly();
    const traces = this.data.models.map((_, panel) => ({
      type: "scatter", mode: "markers", x: [0], y: [0], opacity: 0, hoverinfo: "skip",
      xaxis: this.axis(panel, "x"), yaxis: this.axis(panel, "y"),
    }));
    await Plotly.newPlot(this.plot, traces, this.layout(), {
      showSendToCloud: false, displaylogo: false, scrollZoom: true, displayModeBar: true, doubleClick: "reset",
      modeBarButtons: [["lasso2d", "select2d", "pan2d", "zoom2d", "resetScale2d"]],
    });
    for (const name of ["plotly_relayouting", "plotly_relayout", "plotly_afterplot"]) {
      this.plot.on(name, () => this.redrawSoon());
    }
    this.plot.on("plotly_selected", (event) => this.lassoed(event));
    this.plot.on("plotly_deselect", () => this.events.select([], false));
    this.redraw();
  }

  async resize() {
    if (!this.shown || !this.root.clientWidth) return;
    if (this.plot.layout) await Plotly.relayout(this.plot, this.layout());
    this.redraw();
  }

  listen() {
    let pressed = null;
    this.root.addEventListener("pointermove", (event) => {
      if (event.buttons === 0) this.events.hover(this.nearest(event));
    });
    this.root.addEventListener("pointerleave", () => this.events.hover(null));
    this.root.addEventListener("pointerdown", (event) => {
      pressed = [event.clientX, event.clientY];
      this.adding = event.shiftKey;
    }, true);
    // plotly puts a cover over the page while it drags: a click is known by where the pointer was let go.
    this.release = (event) => {
      if (!pressed || event.button !== 0) return;
      const still = Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) < 4;
      pressed = null;
      const hit = still ? this.nearest(event) : null;
      if (hit !== null) this.events.pin(hit);
    };
    window.addEventListener("pointerup", this.release, true);
  }

  destroy() {
    window.removeEventListener("pointerup", this.release, true);
    Plotly?.purge(this.plot);
  }

  // Where a panel is, in pixels: x = left + across * value. Until plotly is there, where it will put it.
  frame(panel) {
    const full = this.plot._fullLayout;
    if (!full) return this.expectedFrame(panel);
    const x = full[`xaxis${panel ? panel + 1 : ""}`];
    const y = full[`yaxis${panel ? panel + 1 : ""}`];
    const across = x._length / (x.range[1] - x.range[0]);
    const down = y._length / (y.range[1] - y.range[0]);
    return { left: x._offset - x.range[0] * across, across, bottom: y._offset + y._length + y.range[0] * down, down,
      box: [x._offset, y._offset, x._length, y._length] };
  }

  expectedFrame(panel) {
    const { margin, width, height, ...axes } = this.expected;
    const at = panel ? panel + 1 : "";
    const [x, y] = [axes[`xaxis${at}`].domain, axes[`yaxis${at}`].domain];
    const [inner, outer] = [width - margin.l - margin.r, height - margin.t - margin.b];
    const box = [margin.l + x[0] * inner, margin.t + (1 - y[1]) * outer, (x[1] - x[0]) * inner, (y[1] - y[0]) * outer];
    const scale = Math.min(box[2], box[3]) / (2 * EDGE);
    return { left: box[0] + box[2] / 2, across: scale, bottom: box[1] + box[3] / 2, down: scale, box };
  }

  // The nearest drawn point to a pointer, as a row; null where there is none.
  nearest(event) {
    const bounds = this.root.getBoundingClientRect();
    const px = event.clientX - bounds.left;
    const py = event.clientY - bounds.top;
    let best = null;
    let least = REACH * REACH;
    this.data.models.forEach((model, panel) => {
      const { left, across, bottom, down, box } = this.frame(panel);
      if (px < box[0] || px > box[0] + box[2] || py < box[1] || py > box[1] + box[3]) return;
      const x = (px - left) / across;
      const y = (bottom - py) / down;
      this.eachPoint(panel, (i, kind, cx, cy) => {
        const distance = ((cx - x) * across) ** 2 + ((cy - y) * down) ** 2;
        if (distance < least) [best, least] = [i, distance];
      });
    });
    return best;
  }

  // Calls back with row, kind, x and y of every point that the filters and the choice of kinds leave.
  eachPoint(panel, callback) {
    const coords = this.coords[panel];
    const { n } = this.data;
    const kinds = coords.length > 2 * n ? 2 : 1;
    for (let i = 0; i < n; i++) {
      if (!this.state.visible[i]) continue;
      for (let kind = 0; kind < kinds; kind++) {
        if (!this.state.kinds[kind]) continue;
        const at = 2 * (i + kind * n);
        callback(i, kind, coords[at], coords[at + 1]);
      }
    }
  }

  lassoed(event) {
    const shape = event?.lassoPoints ?? event?.range;
    if (!shape) return;
    const panel = this.data.models.findIndex((_, at) => this.axis(at, "x") in shape);
    if (panel < 0) return;
    const [px, py] = [shape[this.axis(panel, "x")], shape[this.axis(panel, "y")]];
    const inside = event.lassoPoints
      ? (x, y) => inPolygon(x, y, px, py)
      : (x, y) => (x - px[0]) * (x - px[1]) <= 0 && (y - py[0]) * (y - py[1]) <= 0;
    const rows = new Set();
    this.eachPoint(panel, (i, _, x, y) => {
      if (inside(x, y)) rows.add(i);
    });
    this.events.lassoed([...rows], this.adding);
    // The outline has done its work, and the next lasso starts anew.
    afterPaint(() => Plotly.relayout(this.plot, { selections: [] }));
  }

  showMethod(method, animated) {
    const target = this.data.models.map((model) => model.maps[method]);
    cancelAnimationFrame(this.moving);
    if (!animated || matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.coords = target;
      if (this.shown) this.redraw();
      return;
    }
    const from = this.coords.map((coords) => coords.slice());
    const start = performance.now();
    const step = (now) => {
      const share = Math.min(Math.max((now - start) / MOVE_TIME, 0), 1);
      const eased = share * share * (3 - 2 * share);
      this.coords = share === 1 ? target : from.map((coords, m) => coords.map((v, at) => v + eased * (target[m][at] - v)));
      this.redraw();
      if (share < 1) this.moving = requestAnimationFrame(step);
    };
    this.moving = requestAnimationFrame(step);
  }

  // Drawing ------------------------------------------------------------------------------------------------------------

  // After plotly has drawn: only where it has moved or resized a panel do the points lie elsewhere now.
  redrawSoon() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      if (this.places() !== this.drawnAt) this.redraw();
    });
  }

  places() {
    const panels = this.data.models.map((_, panel) => Object.values(this.frame(panel)));
    return [this.root.clientWidth, this.root.clientHeight, window.devicePixelRatio, ...panels].join();
  }

  redraw() {
    cancelAnimationFrame(this.pending);
    this.pending = null;
    if (!this.plot._fullLayout) this.expected = this.layout();
    this.shown = true;
    this.drawnAt = this.places();
    const context = this.cleared(this.points);
    const ratio = window.devicePixelRatio;
    const { width, height } = this.points;
    const image = new ImageData(width, height);
    // White or the dark ground of the style sheet, as bytes in the order of memory: alpha, blue, green, red.
    new Uint32Array(image.data.buffer).fill(this.state.dark ? 0xff1c1816 : 0xffffffff);
    const selecting = this.state.selected.size > 0;
    this.data.models.forEach((_, panel) => {
      const { left, across, bottom, down, box } = this.frame(panel);
      Object.assign(this.titles[panel].style, { left: `${box[0]}px`, top: `${box[1] - TITLE_HEIGHT}px` });
      const edges = [box[0], box[1], box[0] + box[2], box[1] + box[3]].map((edge) => Math.round(edge * ratio));
      const bins = this.state.colouring.bins[panel];
      // Points that are not selected lie below the others.
      for (const chosen of selecting ? [false, true] : [true]) {
        this.eachPoint(panel, (i, kind, x, y) => {
          if (selecting && this.state.selected.has(i) !== chosen) return;
          const column = Math.round((left + x * across) * ratio);
          const row = Math.round((bottom - y * down) * ratio);
          blend(image, edges, this.sprite(bins[kind][i], kind), column, row, chosen ? 0.9 : 0.13);
        });
      }
    });
    context.putImageData(image, 0, 0);
    this.redrawMarks();
  }

  cleared(canvas) {
    const ratio = window.devicePixelRatio;
    canvas.width = Math.round(this.root.clientWidth * ratio);
    canvas.height = Math.round(this.root.clientHeight * ratio);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return context;
  }

  forgetColours() {
    this.sprites.clear();
  }

  // The pixels of a point, six numbers each: x and y from its middle, red, green, blue, and how much of it is covered.
  // A clean point is a disc, an adversarial one a triangle.
  sprite(bin, kind) {
    const key = 2 * bin + kind;
    if (this.sprites.has(key)) return this.sprites.get(key);
    const { palette } = this.state.colouring;
    const half = Math.ceil(5 * window.devicePixelRatio);
    const canvas = element("canvas", { width: 2 * half, height: 2 * half });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.scale(half / 5, half / 5);
    context.fillStyle = bin < 0 ? "#999" : palette[bin % palette.length];
    context.strokeStyle = this.state.dark ? "rgba(0,0,0,.55)" : "rgba(255,255,255,.75)";
    context.lineWidth = 0.5;
    context.beginPath();
    if (kind === 0) context.arc(5, 5, 2.6, 0, 2 * Math.PI);
    else [[5, 1.4], [8.4, 7.6], [1.6, 7.6]].forEach(([x, y]) => context.lineTo(x, y));
    context.closePath();
    context.fill();
    context.stroke();
    const { data } = context.getImageData(0, 0, 2 * half, 2 * half);
    const covered = [];
    for (let at = 0; at < data.length; at += 4) {
      const place = at / 4;
      const [x, y] = [(place % (2 * half)) - half, Math.floor(place / (2 * half)) - half];
      if (data[at + 3]) covered.push(x, y, data[at], data[at + 1], data[at + 2], data[at + 3] / 255);
    }
    const sprite = Float32Array.from(covered);
    this.sprites.set(key, sprite);
    return sprite;
  }

  // The pair of the focused image, joined in every panel, and the neighbours of the pinned one, ringed.
  redrawMarks() {
    const context = this.cleared(this.marks);
    const { data, state } = this;
    data.models.forEach((model, panel) => {
      const { left, across, bottom, down, box } = this.frame(panel);
      const at = (i, kind) => {
        const place = 2 * (i + kind * data.n);
        return [left + this.coords[panel][place] * across, bottom - this.coords[panel][place + 1] * down];
      };
      const ring = (i, kind, radius, colour, dashes, width) => {
        context.setLineDash(dashes);
        context.lineWidth = width;
        context.strokeStyle = colour;
        context.beginPath();
        context.arc(...at(i, kind), radius, 0, 2 * Math.PI);
        context.stroke();
      };
      context.save();
      context.beginPath();
      context.rect(...box);
      context.clip();
      if (state.pinned !== null) {
        for (const adversarial of [false, true]) {
          for (const row of neighboursOf(data, model, adversarial, state.pinned, state.k) ?? []) {
            const right = data.labels[row] === data.labels[state.pinned];
            const colour = onGround(right ? "#117733" : "#cc3344", state.dark);
            ring(row, 0, adversarial ? 8.5 : 6, colour, adversarial ? [3, 2] : [], 1.8);
          }
        }
      }
      const ink = state.dark ? "#fff" : "#000";
      for (const i of new Set([state.pinned, state.current].filter((row) => row !== null))) {
        if (model.adversarial) {
          context.setLineDash([]);
          context.lineWidth = 1.4;
          context.strokeStyle = ink;
          context.beginPath();
          context.moveTo(...at(i, 0));
          context.lineTo(...at(i, 1));
          context.stroke();
          ring(i, 1, 4.5, ink, [2, 2], 1.6);
        }
        ring(i, 0, 4.5, ink, [], 1.8);
      }
      context.restore();
    });
  }
}

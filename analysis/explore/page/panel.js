// One panel: a title with what is known of the model, and a plot of two canvases, the points and what marks single ones.

const EDGE = 1.06; // the maps lie in [-1, 1]
const REACH = 14; // pixels from the pointer in which the nearest point is meant
const MANY = 8000; // points of a panel from which they are drawn smaller
const FARTHEST = 400;
const WHOLE = { x: 0, y: 0, factor: 1 };

class Panel {
  constructor(data, state, at, events) {
    Object.assign(this, { data, state, at, model: at, zoom: { ...WHOLE }, width: 0, height: 0, coords: new Float32Array(0) });
    this.name = element("span", { class: "panel-title" });
    this.numbers = element("span", { class: "panel-numbers" });
    this.enlarge = button("⤢", () => events.enlarge(this.model), { class: "enlarge" });
    this.points = element("canvas", { class: "layer" });
    this.marks = element("canvas", { class: "layer marks" });
    this.plot = element("div", { class: "plot", tabIndex: 0, role: "application" }, this.points, this.marks);
    this.root = element("section", { class: "panel" },
      element("div", { class: "panel-top" }, this.name, this.numbers, this.enlarge), this.plot);
    this.outline = null; // of a lasso or a box that is being drawn, in pixels
    this.describe();
  }

  describe() {
    const { name, numbers, about } = this.data.models[this.model];
    const shown = [
      numbers.clean === null ? "" : `clean ${percent(numbers.clean)}`,
      numbers.robust === null ? "" : `robust ${percent(numbers.robust)}`,
      numbers.r_prime === null ? "" : `r′ ${short(numbers.r_prime)}`,
    ].filter(Boolean);
    this.name.textContent = name;
    this.numbers.replaceChildren(...shown.map((text) => element("span", {}, text)));
    const attack = about.attack ? ` Attack: ${about.attack}.` : "";
    this.numbers.title = `Of all ${counted(this.data.total)} images, shown or not: accuracy on clean images, share that is`
      + ` right clean and attacked, and r′ of Table 3.${attack}`;
    this.plot.setAttribute("aria-label", `Map of ${[name, ...shown].join(", ")}. Arrows move it, plus and minus zoom, `
      + "0 shows all, S selects what is in view. The tab Items has the same as text.");
  }

  // Geometry -----------------------------------------------------------------------------------------------------------

  // A point (x, y) of the map lies at (left + x * scale, bottom - y * scale), in pixels from the plot's corner.
  frame() {
    const { width, height, zoom } = this;
    const scale = (Math.min(width, height) / (2 * EDGE)) * zoom.factor;
    return { scale, left: width / 2 - zoom.x * scale, bottom: height / 2 + zoom.y * scale };
  }

  // Pixels of an event, from the plot's corner.
  within(event) {
    const bounds = this.plot.getBoundingClientRect();
    return [event.clientX - bounds.left, event.clientY - bounds.top];
  }

  toMap(px, py) {
    const { scale, left, bottom } = this.frame();
    return [(px - left) / scale, (bottom - py) / scale];
  }

  // What lies at a pixel stays there.
  zoomBy(times, px = this.width / 2, py = this.height / 2) {
    const [x, y] = this.toMap(px, py);
    const factor = clamp(this.zoom.factor * times, 1, FARTHEST);
    const change = this.zoom.factor / factor;
    this.zoomTo({ x: x + (this.zoom.x - x) * change, y: y + (this.zoom.y - y) * change, factor });
  }

  moveBy(dx, dy) {
    const { scale } = this.frame();
    this.zoomTo({ ...this.zoom, x: this.zoom.x - dx / scale, y: this.zoom.y + dy / scale });
  }

  // Rounded, to a hundredth of a pixel at most, so that a link holds exactly what is seen.
  zoomTo({ x, y, factor }) {
    const rounded = (value, low, high) => Number(clamp(value, low, high).toPrecision(7));
    this.zoom = { x: rounded(x, -1.2, 1.2), y: rounded(y, -1.2, 1.2), factor: rounded(factor, 1, FARTHEST) };
  }

  get isZoomed() {
    return this.zoom.factor !== 1 || this.zoom.x !== 0 || this.zoom.y !== 0;
  }

  // Points -------------------------------------------------------------------------------------------------------------

  // Calls back with row, kind, x, y and bin of every point that is shown, or of those of one strength.
  eachPoint(callback, strength = null) {
    const { coords, state } = this;
    const { n } = this.data;
    const kinds = coords.length > 2 * n ? 2 : 1;
    const bins = state.colouring.bins[this.model];
    for (let i = 0; i < n; i++) {
      const mine = state.strength[i];
      if (mine === HIDDEN || (strength !== null && mine !== strength)) continue;
      for (let kind = 0; kind < kinds; kind++) {
        if (!state.kinds[kind]) continue;
        const bin = bins[kind][i];
        if (bin >= 0 && state.hiddenSlots[bin]) continue;
        const at = 2 * (i + kind * n);
        callback(i, kind, coords[at], coords[at + 1], bin);
      }
    }
  }

  someAreFaint() {
    return this.state.someAreFaint;
  }

  // The nearest shown point to a pixel, as a row; null where there is none.
  nearest([px, py]) {
    const { scale, left, bottom } = this.frame();
    const [x, y] = this.toMap(px, py);
    let best = null;
    let least = (REACH / scale) ** 2;
    if (px < 0 || px > this.width || py < 0 || py > this.height) return null;
    this.eachPoint((i, _, cx, cy) => {
      const distance = (cx - x) ** 2 + (cy - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    });
    return best;
  }

  // Rows with a point inside a polygon, given in pixels.
  rowsInside(outline) {
    const places = outline.map(([px, py]) => this.toMap(px, py));
    const px = Float64Array.from(places, (place) => place[0]);
    const py = Float64Array.from(places, (place) => place[1]);
    const [[left, right], [low, high]] = [spanOf(px), spanOf(py)];
    const inside = new Uint8Array(this.data.n);
    this.eachPoint((i, _, x, y) => {
      if (!inside[i] && x >= left && x <= right && y >= low && y <= high) inside[i] = inPolygon(x, y, px, py);
    });
    return inside;
  }

  rowsInView() {
    const { width, height } = this;
    return this.rowsInside([[0, 0], [width, 0], [width, height], [0, height]]);
  }

  // Drawing ------------------------------------------------------------------------------------------------------------

  resize() {
    const { clientWidth: width, clientHeight: height } = this.plot;
    const ratio = window.devicePixelRatio;
    for (const canvas of [this.points, this.marks]) {
      canvas.width = Math.max(1, Math.round(width * ratio));
      canvas.height = Math.max(1, Math.round(height * ratio));
    }
    Object.assign(this, { width, height });
  }

  get radius() {
    return this.coords.length / 2 > MANY ? 1.8 : 2.6;
  }

  draw(sprites) {
    if (!this.width || !this.height) return;
    const { width, height } = this.points;
    const context = this.points.getContext("2d");
    const ratio = window.devicePixelRatio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.putImageData(rasterise(this, width, height, ratio, sprites, this.state.dark), 0, 0);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.paintTicks(context);
    this.drawMarks();
  }

  paintTicks(context) {
    context.fillStyle = context.strokeStyle = this.state.dark ? "#8b9098" : "#888";
    context.font = "10px system-ui, sans-serif";
    context.lineWidth = 1;
    for (const { x, y, dx, dy, text } of this.ticks()) {
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(x + dx, y + dy);
      context.stroke();
      context.textAlign = dx ? "left" : "center";
      if (text) context.fillText(text, x + 1.6 * dx, y + (dx ? 3.5 : 1.9 * dy));
    }
  }

  // Marks along the left and lower edge, in the map's own coordinates, as to_parquet has them.
  ticks() {
    const { width, height } = this;
    const { scale, left, bottom } = this.frame();
    const [x0, y0, half] = this.data.models[this.model].frames[this.state.method];
    const ofAxis = (first, last, length) => niceTicks(first, last, Math.max(1, length / 90));
    const across = ofAxis(x0 - (left / scale) * half, x0 + ((width - left) / scale) * half, width);
    const up = ofAxis(y0 + ((bottom - height) / scale) * half, y0 + (bottom / scale) * half, height);
    const named = width > 150 && height > 110;
    const xs = across.ticks.map((value) => ({ x: left + ((value - x0) / half) * scale, y: height, dx: 0, dy: -4,
      text: named ? value.toFixed(across.digits) : "" })).filter(({ x }) => x > 34 && x < width - 14);
    const ys = up.ticks.map((value) => ({ x: 0, y: bottom - ((value - y0) / half) * scale, dx: 4, dy: 0,
      text: named ? value.toFixed(up.digits) : "" })).filter(({ y }) => y > 12 && y < height - 20);
    return [...xs, ...ys];
  }

  drawMarks() {
    const context = this.marks.getContext("2d");
    const ratio = window.devicePixelRatio;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    this.paintMarks(context);
    if (!this.outline) return;
    const { state } = this;
    context.setLineDash([4, 3]);
    context.lineWidth = 1.4;
    context.strokeStyle = state.dark ? "#8db8ff" : "#1f5fbf";
    context.fillStyle = state.dark ? "rgba(141,184,255,.12)" : "rgba(31,95,191,.1)";
    context.beginPath();
    this.outline.forEach(([x, y]) => context.lineTo(x, y));
    context.closePath();
    context.fill();
    context.stroke();
  }

  // The pair of the focused image, joined, and the neighbours of the pinned one, ringed.
  paintMarks(context) {
    const { data, state, coords } = this;
    for (const mark of marksOf(data, data.models[this.model], state, coords)) {
      const { scale, left, bottom } = this.frame();
      const at = ([x, y]) => [left + x * scale, bottom - y * scale];
      context.setLineDash(mark.dashes);
      context.lineWidth = mark.width;
      context.strokeStyle = mark.colour;
      context.beginPath();
      if (mark.to) {
        context.moveTo(...at(mark.from));
        context.lineTo(...at(mark.to));
      } else context.arc(...at(mark.from), mark.radius, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}

// Rings and lines over the points, in coordinates of the map.
function marksOf(data, model, state, coords) {
  const marks = [];
  const at = (i, kind) => [coords[2 * (i + kind * data.n)], coords[2 * (i + kind * data.n) + 1]];
  const ring = (i, kind, radius, colour, dashes, width) => marks.push({ from: at(i, kind), radius, colour, dashes, width });
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
      marks.push({ from: at(i, 0), to: at(i, 1), colour: ink, dashes: [], width: 1.4 });
      ring(i, 1, 4.5, ink, [2, 2], 1.6);
    }
    ring(i, 0, 4.5, ink, [], 1.8);
  }
  return marks;
}

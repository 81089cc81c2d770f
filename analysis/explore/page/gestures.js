// What a pointer, fingers, the wheel and keys do to a panel.

const TOOLS = { lasso: "Lasso", box: "Box", pan: "Pan" };
const STILL = { mouse: 4, pen: 6, touch: 9 }; // pixels up to which a press is a click or a tap
const STEP = 0.12; // of the panel's size, that an arrow key moves

class Gestures {
  constructor(panel, state, events) {
    Object.assign(this, { panel, state, events, pointers: new Map(), drag: null });
    const { plot } = panel;
    const on = (type, listen, options) => plot.addEventListener(type, listen, options);
    on("pointerdown", (event) => this.down(event));
    on("pointermove", (event) => this.move(event));
    on("pointerup", (event) => this.up(event));
    on("pointercancel", (event) => this.cancel(event));
    on("pointerleave", () => {
      if (!this.pointers.size) events.hover(null);
    });
    on("wheel", (event) => this.wheel(event), { passive: false });
    on("dblclick", () => events.zoomed(panel, () => panel.zoomTo(WHOLE)));
    on("keydown", (event) => this.key(event));
    on("contextmenu", (event) => {
      if (this.pointers.size) event.preventDefault(); // a long press draws on
    });
  }

  down(event) {
    const { panel, pointers } = this;
    if (event.button > 1) return;
    if (event.button === 1) event.preventDefault(); // else the browser would scroll
    panel.plot.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, panel.within(event));
    if (pointers.size > 1) {
      this.drag = { tool: "pinch", held: this.held() };
      panel.outline = null;
      panel.drawMarks();
      return;
    }
    const tool = event.button === 1 ? "pan" : this.state.tool;
    this.drag = { tool, start: panel.within(event), last: panel.within(event), still: true, adding: event.shiftKey };
  }

  // The middle of the first two fingers, and how far apart they are.
  held() {
    const [[ax, ay], [bx, by]] = [...this.pointers.values()];
    return { x: (ax + bx) / 2, y: (ay + by) / 2, apart: Math.max(Math.hypot(ax - bx, ay - by), 1) };
  }

  move(event) {
    const { panel, pointers, drag, events } = this;
    if (!pointers.has(event.pointerId)) {
      if (event.buttons === 0) events.hover(panel.nearest(panel.within(event)));
      return;
    }
    const place = panel.within(event);
    pointers.set(event.pointerId, place);
    if (!drag) return;
    if (drag.tool === "pinch") {
      if (pointers.size > 1) this.pinch(drag);
      return;
    }
    const far = Math.hypot(place[0] - drag.start[0], place[1] - drag.start[1]);
    if (drag.still && far < (STILL[event.pointerType] ?? 4)) return;
    drag.still = false;
    if (drag.tool === "pan") {
      const [dx, dy] = [place[0] - drag.last[0], place[1] - drag.last[1]];
      events.zoomed(panel, () => panel.moveBy(dx, dy));
    } else if (drag.tool === "box") {
      const [[x, y], [u, v]] = [drag.start, place];
      panel.outline = [[x, y], [u, y], [u, v], [x, v]];
      panel.drawMarks();
    } else {
      panel.outline ??= [drag.start];
      panel.outline.push(place);
      panel.drawMarks();
    }
    drag.last = place;
  }

  pinch(drag) {
    const now = this.held();
    const before = drag.held;
    drag.held = now;
    this.events.zoomed(this.panel, () => {
      this.panel.moveBy(now.x - before.x, now.y - before.y);
      this.panel.zoomBy(now.apart / before.apart, now.x, now.y);
    });
  }

  up(event) {
    const { panel, drag, events } = this;
    if (!this.pointers.delete(event.pointerId) || !drag) return;
    if (drag.tool === "pinch") {
      if (!this.pointers.size) this.drag = null;
      return;
    }
    this.drag = null;
    if (drag.still) {
      const hit = event.button === 0 ? panel.nearest(drag.start) : null;
      if (hit !== null) events.pin(hit);
      return;
    }
    const { outline } = panel;
    panel.outline = null;
    if (outline) events.lassoed(panel.rowsInside(outline), drag.adding);
    panel.drawMarks();
  }

  cancel(event) {
    this.pointers.delete(event.pointerId);
    this.drag = null;
    this.panel.outline = null;
    this.panel.drawMarks();
  }

  wheel(event) {
    const { panel } = this;
    // Farther out than the whole map there is nothing: then the page around scrolls on.
    if (event.deltaY > 0 && panel.zoom.factor === 1 && !event.ctrlKey) return;
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 100 : 1);
    const times = Math.exp(-clamp(pixels, -240, 240) * (event.ctrlKey ? 0.01 : 0.002));
    this.events.zoomed(panel, () => panel.zoomBy(times, ...panel.within(event)));
  }

  key(event) {
    const { panel, events } = this;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const [dx, dy] = [panel.width * STEP, panel.height * STEP];
    const moves = { ArrowLeft: [dx, 0], ArrowRight: [-dx, 0], ArrowUp: [0, dy], ArrowDown: [0, -dy] };
    const zooms = { "+": 1.4, "=": 1.4, "-": 1 / 1.4 };
    if (event.key in moves) events.zoomed(panel, () => panel.moveBy(...moves[event.key]));
    else if (event.key in zooms) events.zoomed(panel, () => panel.zoomBy(zooms[event.key]));
    else if (event.key === "0") events.zoomed(panel, () => panel.zoomTo(WHOLE));
    else if (event.key.toLowerCase() === "s") events.lassoed(panel.rowsInView(), event.shiftKey);
    else return;
    event.preventDefault();
  }
}

// The panels with their legend as a picture: laid out once, as shapes, and drawn by a canvas (PNG) or as SVG.

const MARGIN = 14;
const LINE = 18;
const PNG_RATIO = 2;

// {width, height, ground, texts, swatches, ramp, panels} in pixels.
function pictureLayout(explorer) {
  const { data, state, maps } = explorer;
  const panels = maps.visible;
  const texts = [];
  const ink = state.dark ? "#ececec" : "#1a1a1a";
  const faint = state.dark ? "#a5a5a5" : "#5c5c5c";
  const origin = maps.root.getBoundingClientRect();
  const width = maps.root.clientWidth + 2 * MARGIN;
  let y = MARGIN + 12;
  for (const line of wrapped(aboutLines(data, state).join(" · "), width - 2 * MARGIN, 12)) {
    texts.push({ x: MARGIN, y, text: line, size: 12, colour: faint });
    y += LINE;
  }
  const placed = panels.map((panel) => {
    const box = panel.plot.getBoundingClientRect();
    const place = { panel, x: MARGIN + box.left - origin.left, y: y + box.top - origin.top,
      width: panel.width, height: panel.height };
    texts.push({ x: place.x, y: place.y - 6, text: panel.name.textContent, size: 13, colour: ink, bold: true });
    const along = textWidth(panel.name.textContent, 13, true) + 10;
    texts.push({ x: place.x + along, y: place.y - 6, text: [...panel.numbers.children].map((node) => node.textContent).join("  "),
      size: 12, colour: faint });
    return place;
  });
  y += maps.root.clientHeight + 8;
  const legend = legendLayout(state, width, y + 10, ink);
  const note = state.colouring.note ? wrapped(state.colouring.note, width - 2 * MARGIN, 12) : [];
  note.forEach((line, at) => texts.push({ x: MARGIN, y: legend.bottom + at * LINE, text: line, size: 12, colour: faint }));
  const ground = state.dark ? "#16181c" : "#ffffff";
  const height = Math.ceil(legend.bottom + note.length * LINE + MARGIN - LINE / 2);
  const lines = state.dark ? "#474b52" : "#cccccc";
  return { ...legend, width, height, ground, lines, ink: state.dark ? "#8b9098" : "#888888", panels: placed,
    texts: [...texts, ...legend.texts] };
}

function legendLayout(state, width, top, ink) {
  const { palette, labels, keys, range, title } = state.colouring;
  const texts = [];
  const swatches = [];
  let [x, y] = [MARGIN, top];
  const add = (text, colour = null) => {
    const size = textWidth(text, 12) + (colour ? 16 : 0);
    if (x > MARGIN && x + size > width - MARGIN) [x, y] = [MARGIN, y + LINE];
    if (colour) swatches.push({ x, y: y - 9, colour });
    texts.push({ x: x + (colour ? 14 : 0), y, text, size: 12, colour: ink });
    x += size + 12;
  };
  add("● clean  ▲ attacked");
  if (!range) {
    labels.forEach((label, at) => {
      if (!state.hidden.has(keys[at])) add(label, palette[at]);
    });
    return { texts, swatches, ramp: null, bottom: y + LINE };
  }
  add(`${title}: ${range[0]}`);
  const ramp = { x, y: y - 9, width: 140, height: 10, colours: palette };
  x += 152;
  add(range[1]);
  return { texts, swatches, ramp, bottom: y + LINE };
}

function textWidth(text, size, bold = false) {
  const context = (textWidth.context ??= document.createElement("canvas").getContext("2d"));
  context.font = `${bold ? "600 " : ""}${size}px system-ui, sans-serif`;
  return context.measureText(text).width;
}

function wrapped(text, width, size) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
    if (textWidth(longer, size) > width && lines.at(-1)) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines.filter(Boolean);
}

// PNG ----------------------------------------------------------------------------------------------------------------

async function savePng(explorer) {
  const layout = pictureLayout(explorer);
  const canvas = element("canvas", { width: layout.width * PNG_RATIO, height: layout.height * PNG_RATIO });
  const context = canvas.getContext("2d");
  context.fillStyle = layout.ground;
  context.fillRect(0, 0, canvas.width, canvas.height);
  const { palette } = explorer.state.colouring;
  const sprites = new Sprites(palette, explorer.state.dark, layout.panels[0].panel.radius, PNG_RATIO);
  for (const { panel, x, y, width, height } of layout.panels) {
    const image = rasterise(panel, width * PNG_RATIO, height * PNG_RATIO, PNG_RATIO, sprites, explorer.state.dark);
    context.putImageData(image, Math.round(x * PNG_RATIO), Math.round(y * PNG_RATIO));
    context.save();
    context.scale(PNG_RATIO, PNG_RATIO);
    context.translate(x, y);
    context.beginPath();
    context.rect(0, 0, width, height);
    context.clip();
    panel.paintTicks(context);
    panel.paintMarks(context);
    context.restore();
  }
  context.scale(PNG_RATIO, PNG_RATIO);
  context.strokeStyle = layout.lines;
  for (const { x, y, width, height } of layout.panels) context.strokeRect(x, y, width, height);
  for (const { x, y, colour } of layout.swatches) {
    context.fillStyle = colour;
    context.beginPath();
    context.arc(x + 5, y + 5, 5, 0, 2 * Math.PI);
    context.fill();
  }
  if (layout.ramp) {
    const { x, y, width, height, colours } = layout.ramp;
    const gradient = context.createLinearGradient(x, 0, x + width, 0);
    colours.forEach((colour, at) => gradient.addColorStop(at / (colours.length - 1), colour));
    context.fillStyle = gradient;
    context.fillRect(x, y, width, height);
  }
  for (const { x, y, text, size, colour, bold } of layout.texts) {
    context.font = `${bold ? "600 " : ""}${size}px system-ui, sans-serif`;
    context.fillStyle = colour;
    context.fillText(text, x, y);
  }
  downloadBlob("explorer.png", await new Promise((done) => canvas.toBlob(done, "image/png")));
}

// SVG ----------------------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

// As elements, not as text: whatever a name holds stays text.
function shape(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function saveSvg(explorer) {
  const layout = pictureLayout(explorer);
  const { width, height } = layout;
  const root = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-family": "system-ui, sans-serif" },
    shape("rect", { width, height, fill: layout.ground }));
  layout.panels.forEach((place, at) => root.append(...svgPanel(explorer, place, at, layout)));
  for (const { x, y, colour } of layout.swatches) root.append(shape("circle", { cx: x + 5, cy: y + 5, r: 5, fill: colour }));
  if (layout.ramp) {
    const { colours, ...box } = layout.ramp;
    root.append(shape("linearGradient", { id: "ramp" }, ...colours.map((colour, at) =>
      shape("stop", { offset: at / (colours.length - 1), "stop-color": colour }))), shape("rect", { ...box, fill: "url(#ramp)" }));
  }
  for (const { x, y, text, size, colour, bold } of layout.texts) {
    root.append(shape("text", { x, y, "font-size": size, "font-weight": bold ? 600 : 400, fill: colour,
      "xml:space": "preserve" }, text));
  }
  download("explorer.svg", new XMLSerializer().serializeToString(root), "image/svg+xml");
}

function svgPanel(explorer, { panel, x, y, width, height }, at, layout) {
  const { state } = explorer;
  const { scale, left, bottom } = panel.frame();
  const { radius } = panel;
  const places = shape("g", { transform: `translate(${x} ${y})`, "clip-path": `url(#clip${at})` });
  const group = shape("g", { stroke: state.dark ? "#000" : "#fff", "stroke-opacity": 0.7, "stroke-width": 0.5 });
  const corners = TRIANGLE.map(([dx, dy]) => `${(dx * radius).toFixed(2)} ${(dy * radius).toFixed(2)}`).join("L");
  for (const strength of panel.someAreFaint() ? [FAINT, STRONG] : [STRONG]) {
    panel.eachPoint((i, kind, cx, cy, bin) => {
      const [px, py] = [(left + cx * scale).toFixed(1), (bottom - cy * scale).toFixed(1)];
      const fill = bin < 0 ? "#999" : state.colouring.palette[bin % state.colouring.palette.length];
      const look = { fill, "fill-opacity": STRENGTHS[strength] };
      group.append(kind === 0 ? shape("circle", { cx: px, cy: py, r: radius, ...look })
        : shape("path", { d: `M${corners}Z`, transform: `translate(${px} ${py})`, ...look }));
    }, strength);
  }
  const marks = marksOf(explorer.data, explorer.data.models[panel.model], state, panel.coords).map((mark) => {
    const look = { fill: "none", stroke: mark.colour, "stroke-width": mark.width, "stroke-dasharray": mark.dashes.join(" ") };
    const place = ([px, py]) => [left + px * scale, bottom - py * scale];
    const [x1, y1] = place(mark.from);
    if (!mark.to) return shape("circle", { cx: x1, cy: y1, r: mark.radius, ...look });
    const [x2, y2] = place(mark.to);
    return shape("line", { x1, y1, x2, y2, ...look });
  });
  const ticks = panel.ticks().flatMap(({ x: tx, y: ty, dx, dy, text }) => [
    shape("line", { x1: tx, y1: ty, x2: tx + dx, y2: ty + dy, stroke: layout.ink }),
    ...(text ? [shape("text", { x: tx + 1.6 * dx, y: ty + (dx ? 3.5 : 1.9 * dy), "font-size": 10, fill: layout.ink,
      "text-anchor": dx ? "start" : "middle" }, text)] : []),
  ]);
  places.append(group, ...marks, ...ticks);
  return [
    shape("clipPath", { id: `clip${at}` }, shape("rect", { width, height })), places,
    shape("rect", { x, y, width, height, fill: "none", stroke: layout.lines }),
  ];
}

// Thumbnails out of the sprites, and the elements that hold them.

// An element with text as text: nothing in this module writes markup made from data.
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "class") node.className = value;
    else if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

class Images {
  constructor(data, onLoad) {
    this.sheets = [data.images, ...data.models.map((model) => model.images)];
    this.bitmaps = this.sheets.map(() => null);
    this.scratch = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const loaded = this.sheets.map(async (sheet, at) => {
      if (sheet) this.bitmaps[at] = await createImageBitmap(new Blob([sheet.png], { type: "image/png" }));
    });
    this.ready = Promise.all(loaded).then(onLoad);
  }

  // Sheet 0 holds the clean images, sheet m + 1 the adversarial ones of model m.
  has(sheet) {
    return this.bitmaps[sheet] !== null;
  }

  place(sheet, i) {
    const { columns, width, height } = this.sheets[sheet];
    return [(i % columns) * width, Math.floor(i / columns) * height, width, height];
  }

  draw(canvas, sheet, i) {
    canvas.hidden = !this.has(sheet);
    if (canvas.hidden) return;
    const from = this.place(sheet, i);
    [canvas.width, canvas.height] = from.slice(2);
    canvas.getContext("2d").drawImage(this.bitmaps[sheet], ...from, 0, 0, ...from.slice(2));
  }

  pixels(sheet, i) {
    const from = this.place(sheet, i);
    [this.scratch.canvas.width, this.scratch.canvas.height] = from.slice(2);
    this.scratch.drawImage(this.bitmaps[sheet], ...from, 0, 0, ...from.slice(2));
    return this.scratch.getImageData(0, 0, ...from.slice(2));
  }

  // Adversarial minus clean on grey, as strong as fits; returns by how much it was amplified.
  drawPerturbation(canvas, sheet, i) {
    canvas.hidden = !this.has(0) || !this.has(sheet);
    if (canvas.hidden) return null;
    const clean = this.pixels(0, i).data;
    const image = this.pixels(sheet, i);
    let largest = 0;
    for (let at = 0; at < clean.length; at++) largest = Math.max(largest, Math.abs(image.data[at] - clean[at]));
    const gain = largest ? 127 / largest : 1;
    for (let at = 0; at < clean.length; at++) {
      image.data[at] = at % 4 === 3 ? 255 : 128 + gain * (image.data[at] - clean[at]);
    }
    [canvas.width, canvas.height] = [image.width, image.height];
    canvas.getContext("2d").putImageData(image, 0, 0);
    return gain;
  }

  thumbnail(sheet, i, properties = {}) {
    const canvas = element("canvas", { class: "thumb", ...properties });
    this.draw(canvas, sheet, i);
    return canvas;
  }
}

// Thumbnails out of the sprites, full-size images, and what shows one large.

class Images {
  // `fetchFull(sheet, row)` gives the bytes of an image in full size, where the host has them.
  constructor(data, { beside = null, fetchFull = null } = {}, onLoad) {
    Object.assign(this, { data, beside, fetchFull });
    this.sheets = [data.images, ...data.models.map((model) => model.images)];
    this.changes = [null, ...data.models.map((model) => model.changes)];
    this.bitmaps = this.sheets.map(() => null);
    this.changeBitmaps = this.sheets.map(() => null);
    this.scratch = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const load = (sheets, bitmaps) => sheets.map(async (sheet, at) => {
      if (sheet) bitmaps[at] = await createImageBitmap(new Blob([sheet.bytes], { type: sheet.type }));
    });
    this.ready = Promise.all([...load(this.sheets, this.bitmaps), ...load(this.changes, this.changeBitmaps)]).then(onLoad);
  }

  // Sheet 0 holds the clean images, sheet m + 1 the adversarial ones of model m.
  has(sheet) {
    return this.bitmaps[sheet] !== null;
  }

  place({ columns, width, height }, i) {
    return [(i % columns) * width, Math.floor(i / columns) * height, width, height];
  }

  copy(canvas, sheet, bitmap, i) {
    const from = this.place(sheet, i);
    sized(canvas, ...from.slice(2)).drawImage(bitmap, ...from, 0, 0, ...from.slice(2));
  }

  draw(canvas, sheet, i) {
    canvas.hidden = !this.has(sheet);
    if (!canvas.hidden) this.copy(canvas, this.sheets[sheet], this.bitmaps[sheet], i);
  }

  pixels(sheet, i) {
    const from = this.place(this.sheets[sheet], i);
    sized(this.scratch.canvas, ...from.slice(2));
    this.scratch.drawImage(this.bitmaps[sheet], ...from, 0, 0, ...from.slice(2));
    return this.scratch.getImageData(0, 0, ...from.slice(2));
  }

  // Adversarial minus clean on grey, as strong as fits; returns by how much it was amplified. Of thumbnails, averaged
  // and compressed as they are, it would be another one: the payload has that of the images they were made of.
  drawPerturbation(canvas, sheet, i) {
    canvas.hidden = !this.has(0) || !this.has(sheet);
    if (canvas.hidden) return null;
    if (this.changes[sheet]) {
      this.copy(canvas, this.changes[sheet], this.changeBitmaps[sheet], i);
      return this.changes[sheet].gains[i];
    }
    const image = this.pixels(sheet, i);
    const gain = amplify(this.pixels(0, i).data, image.data);
    sized(canvas, image.width, image.height).putImageData(image, 0, 0);
    return gain;
  }

  thumbnail(sheet, i, properties = {}) {
    const canvas = element("canvas", { class: "thumb", ...properties });
    this.draw(canvas, sheet, i);
    return canvas;
  }

  // Something to show in full size: {canvas} or {source}, or null where the page has no more than the thumbnail.
  async full(sheet, i) {
    const { reduced, originals } = this.sheets[sheet];
    if (!reduced) return { canvas: this.thumbnail(sheet, i, { class: "" }) };
    const blob = (bytes) => ({ source: URL.createObjectURL(new Blob([bytes], { type: "image/png" })) });
    if (originals) return blob(originals[i].bytes);
    if (this.beside) return { source: `${this.beside}/${sheet}-${this.data.indices[i]}.png` };
    const bytes = await this.fetchFull?.(sheet, i);
    return bytes ? blob(bytes) : null;
  }
}

// The context of an empty canvas of so many pixels; a canvas of that size already is not made anew.
function sized(canvas, width, height) {
  const context = canvas.getContext("2d");
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  else context.clearRect(0, 0, width, height);
  return context;
}

// Turns `image` into its difference from `clean`, amplified; returns by how much.
function amplify(clean, image) {
  let largest = 0;
  for (let at = 0; at < clean.length; at++) largest = Math.max(largest, Math.abs(image[at] - clean[at]));
  const gain = largest ? 127 / largest : 1;
  for (let at = 0; at < clean.length; at++) image[at] = at % 4 === 3 ? 255 : 128 + gain * (image[at] - clean[at]);
  return gain;
}

// The clean image and every model's attacked one side by side, in full size where there is one.
class Viewer {
  constructor(data, images) {
    Object.assign(this, { data, images });
    this.heading = element("h3");
    this.body = element("div", { class: "viewer-images" });
    this.root = element("dialog", { class: "viewer", "aria-label": "images in full size" },
      element("div", { class: "viewer-top" }, this.heading, button("Close", () => this.root.close())), this.body);
    this.root.addEventListener("click", (event) => {
      if (event.target === this.root) this.root.close();
    });
    this.root.addEventListener("keydown", (event) => event.stopPropagation()); // Escape closes, and unpins nothing
  }

  async show(i) {
    const { data, images } = this;
    this.heading.textContent = `Image ${data.indices[i]}: ${className(data, data.labels[i])}`;
    const sheets = [["clean", 0], ...data.models.map((model, m) => [`${model.name}, attacked`, m + 1])];
    const shown = sheets.filter(([, sheet]) => images.has(sheet));
    this.body.replaceChildren();
    if (!this.root.open) this.root.showModal();
    this.body.replaceChildren(...await Promise.all(shown.map(([name, sheet]) => this.figure(name, sheet, i))));
  }

  async figure(name, sheet, i) {
    const { images } = this;
    const [height, width] = images.sheets[sheet].full;
    const found = await images.full(sheet, i);
    const caption = element("figcaption", {}, `${name}, ${width} × ${height} px`);
    const small = () => {
      caption.textContent = `${name}: a thumbnail of ${width} × ${height} px; full_images= keeps whole images`;
      return images.thumbnail(sheet, i, { class: "" });
    };
    // Small images are enlarged by whole pixels; others are as large as they are.
    const size = `width: ${Math.max(1, Math.round(240 / width)) * width}px`;
    let image = found?.canvas ?? (found ? element("img", { alt: name, src: found.source }) : small());
    const figure = element("figure", {}, image, caption);
    image.style = size;
    image.addEventListener("error", () => {
      image.replaceWith(small());
    });
    return figure;
  }
}

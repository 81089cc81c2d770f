// What is said of one image: in each model its predictions, images, distance moved and neighbours.

class Details {
  constructor(data, state, images, events) {
    Object.assign(this, { data, state, images, events });
    this.heading = element("div", { class: "card-heading" });
    this.cleanImage = element("canvas", { class: "thumb large" });
    const large = (image, of) => element("button", { type: "button", class: "bare", "aria-label": `${of}, in full size`,
      onclick: () => this.events.enlargeImage() }, image);
    this.rows = data.models.map((model) => {
      const row = {
        image: element("canvas", { class: "thumb medium", title: "adversarial image; click for full size" }),
        perturbation: element("canvas", { class: "thumb medium", title: "perturbation, amplified" }),
        gain: element("span", { class: "gain" }),
        clean: element("span"),
        adversarial: element("span"),
        moved: element("span", { class: "faint", title: "angular distance that the attack moved it in the representation" }),
      };
      const perturbation = element("td", { class: "change" }, row.perturbation, row.gain);
      row.root = element(
        "tr", {}, element("th", { scope: "row" }, element("div", {}, model.name), row.moved),
        element("td", {}, large(row.image, `attacked image of ${model.name}`)), perturbation,
        element("td", {}, row.clean, element("br"), row.adversarial),
      );
      return row;
    });
    const head = ["", "attacked", "change", "predicted"].map((text) => element("th", { scope: "col" }, text));
    const table = element("table", { class: "card-table" }, element("thead", {}, element("tr", {}, ...head)),
      element("tbody", {}, ...this.rows.map((row) => row.root)));
    this.card = element("section", { class: "card", "aria-label": "The image in focus" },
      element("div", { class: "card-top" }, large(this.cleanImage, "clean image"), this.heading),
      element("div", { class: "scroll" }, table));
    this.neighbours = element("div");
    this.show();
  }

  show() {
    const { data, state } = this;
    const i = state.current ?? state.pinned;
    this.card.classList.toggle("empty", i === null);
    if (i === null) {
      this.heading.replaceChildren("Point at an image, or choose one in the list of items.");
      return;
    }
    this.fill(i);
  }

  fill(i) {
    const { data, state } = this;
    const label = className(data, data.labels[i]);
    const pinned = i === state.pinned ? "pinned" : "click or Enter: its neighbours";
    const own = data.columns.map((column) => element("div", {}, `${column.name}: ${columnText(column, i)}`));
    this.heading.replaceChildren(element("strong", {}, `Image ${data.indices[i]}`), element("div", {}, `true class: ${label}`),
      ...own, element("span", { class: "faint" }, pinned));
    this.images.draw(this.cleanImage, 0, i);
    data.models.forEach((model, m) => {
      const row = this.rows[m];
      this.images.draw(row.image, m + 1, i);
      this.prediction(row.clean, "clean", model.predictions, model.confidence, i);
      this.prediction(row.adversarial, "attacked", model.adv_predictions, model.adv_confidence, i);
      row.moved.textContent = model.moved ? `moved ${short(model.moved[i])}` : "";
    });
    this.filled = i;
    afterPaint(() => {
      if (this.filled === i) this.fillChanges(i);
    });
  }

  // Reading pixels takes half of what a card does: they come with the next picture.
  fillChanges(i) {
    this.rows.forEach((row, m) => {
      const gain = this.images.drawPerturbation(row.perturbation, m + 1, i);
      row.gain.textContent = gain === null ? "" : `×${gain.toPrecision(2)}`;
    });
  }

  prediction(node, what, predictions, confidences, i) {
    if (!predictions) {
      node.textContent = "";
      return;
    }
    const right = predictions[i] === this.data.labels[i];
    const sure = confidences ? ` (${(100 * confidences[i]).toFixed(0)} %)` : "";
    node.textContent = `${right ? "✓" : "✗"} ${what} ${className(this.data, predictions[i])}${sure}`;
    node.className = right ? "right" : "wrong";
  }

  // The tab of the neighbours, made anew whenever another image is pinned.
  showNeighbours() {
    const { data, state } = this;
    const i = state.pinned;
    if (i === null) {
      const how = "Click a point, or press Enter on an item: its nearest clean images in each representation.";
      this.neighbours.replaceChildren(element("p", {}, how));
      return;
    }
    const counts = Array.from({ length: data.stored }, (_, at) => [at + 1, String(at + 1)]);
    const choose = (value) => this.events.neighbourCount(Number(value));
    const k = choice(counts, state.k, choose, { "aria-label": "number of neighbours" });
    const caption = element("p", {}, "The ", k, ` nearest clean images to image ${data.indices[i]} `
      + `(${className(data, data.labels[i])}), by angular distance in each representation, among those shown. `
      + "Rings: solid for the clean query, dashed for the attacked one.");
    const close = button("Unpin", () => this.events.pin(null));
    const strips = data.models.flatMap((model, m) => [
      element("h4", {}, model.name),
      this.strip(model, "clean", 0, false, i),
      model.adversarial ? this.strip(model, "attacked", m + 1, true, i) : null,
    ]);
    this.neighbours.replaceChildren(caption, close, ...strips.filter(Boolean));
  }

  strip(model, what, sheet, adversarial, i) {
    const { data, state } = this;
    const rows = [...neighboursOf(data, model, adversarial, i, state.k)];
    const right = rows.filter((row) => data.labels[row] === data.labels[i]).length;
    const found = rows.map((row) => this.neighbour(row, data.labels[row] === data.labels[i]));
    return element("div", { class: "strip" }, element("span", { class: "strip-name" }, what),
      this.images.thumbnail(sheet, i), element("span", { class: "faint" }, "→"), ...found,
      element("span", { class: "faint" }, `${right}/${rows.length}`));
  }

  neighbour(row, right) {
    const { data } = this;
    const text = `${data.indices[row]}: ${className(data, data.labels[row])}`;
    return element("button", {
      type: "button", class: `neighbour ${right ? "right" : "wrong"}`, title: text,
      "aria-label": `${text}, ${right ? "the right class" : "another class"}`,
      onclick: () => this.events.pin(row), onpointerenter: () => this.events.hover(row),
    }, this.images.thumbnail(0, row), element("span", {}, `${right ? "✓" : "✗"} ${className(data, data.labels[row])}`));
  }
}

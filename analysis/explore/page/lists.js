// The tabs of many images: the selection, where two models differ, and all items as a table of text.

class Lists {
  constructor(data, state, images, events) {
    Object.assign(this, { data, state, images, events });
    this.selection = element("div");
    const named = (k) => className(data, k);
    this.index = { name: "index", number: true, value: (i) => data.indices[i] };
    this.label = { name: "class", value: (i) => named(data.labels[i]) };
    const predicted = data.models.filter((model) => model.predictions).map((model) => ({
      name: model.name, title: "clean → attacked prediction",
      value: (i) => (model.adv_predictions
        ? `${named(model.predictions[i])} → ${named(model.adv_predictions[i])}` : named(model.predictions[i])),
    }));
    const own = data.columns.map((column) => ({ name: column.name, number: !column.categories, text: (i) => columnText(column, i),
      value: (i) => (column.categories ? column.categories[column.values[i]] : column.values[i]) }));
    this.all = new ItemTable("All items that the filters leave", [this.index, this.label, ...own, ...predicted], events);
    const selectAll = button("Select these", () => events.select(this.found()));
    this.items = element("div", {},
      element("p", { class: "faint" }, "Arrows move, Enter shows neighbours, Space selects. ", selectAll), this.all.root);
    this.differing = new ItemTable("Items whose neighbourhoods differ most", [], events);
    this.differing.sort = { at: 3, down: false };
    this.meaning = element("p", { class: "faint" }, `Share of an image's ${data.stored} nearest clean images that both models `
      + "find: 1 the same neighbours, 0 none in common. The fewest come first.");
    this.pair = [0, 1].map((side) => choice(data.models.map((model, m) => [m, model.name]), 0, (value) => {
      const pair = [...state.pair];
      pair[side] = Number(value);
      events.compare(pair);
    }, { "aria-label": side ? "second model" : "first model" }));
    this.differences = element("div", {}, element("p", {}, this.pair[0], " and ", this.pair[1], " ",
      button("Colour the maps by it", () => events.colour("common"))), this.meaning, this.differing.root);
  }

  // Rows that the filters leave and the search finds.
  found() {
    const { data, state } = this;
    const rows = [];
    for (let i = 0; i < data.n; i++) if (state.visible[i] && (!state.matches || state.matches[i])) rows.push(i);
    return rows;
  }

  showItems() {
    this.all.show(this.found());
  }

  showDifferences() {
    const { data, state } = this;
    this.pair.forEach((select, side) => (select.value = state.pair[side]));
    const [a, b] = state.pair.map((m) => data.models[m]);
    const common = (adversarial) => (i) => commonNeighbours(data, a, b, adversarial, i);
    const column = (name, value) => ({ name, number: true, value, text: (i) => short(value(i) ?? NaN),
      title: "share of common neighbours" });
    const columns = [this.index, this.label, column("clean", common(false)), column("attacked", common(true))];
    if (!a.adversarial || !b.adversarial) {
      columns.pop();
      if (this.differing.sort.at === 3) this.differing.sort.at = 2;
    }
    this.differing.show(this.found(), columns);
  }

  showSelection() {
    const { data, state } = this;
    const rows = [...data.indices.keys()].filter((i) => state.selected[i]);
    if (!rows.length) {
      const how = "Draw around points in any panel (hold Shift to add), or press Space on items.";
      this.selection.replaceChildren(element("p", {}, how));
      return;
    }
    const counts = new Map();
    for (const i of rows) counts.set(data.labels[i], (counts.get(data.labels[i]) ?? 0) + 1);
    const byClass = [...counts].sort((a, b) => b[1] - a[1]).map(([k, count]) => `${className(data, k)}: ${count}`);
    const head = ["", "clean", "robust", "r′"].map((text) => element("th", { scope: "col" }, text));
    const numbers = data.models.map((model) => {
      const measured = measureRows(data, model, rows);
      const cells = [percent(measured.clean), percent(measured.robust), short(measured.rPrime ?? NaN)];
      return element("tr", {}, element("th", { scope: "row" }, model.name),
        ...cells.map((text) => element("td", { class: "number" }, text)));
    });
    const indices = rows.map((i) => data.indices[i]);
    const thumbnails = rows.slice(0, PAGE).map((i) => element("button", {
      type: "button", class: "neighbour", "aria-label": `image ${data.indices[i]}, ${className(data, data.labels[i])}`,
      title: `${data.indices[i]}: ${className(data, data.labels[i])}`,
      onclick: () => this.events.pin(i), onpointerenter: () => this.events.hover(i),
    }, this.images.has(0) ? this.images.thumbnail(0, i) : `${data.indices[i]}`));
    this.selection.replaceChildren(
      element("p", {}, element("strong", {}, `${counted(rows.length)} of ${counted(data.n)} images`)),
      element("p", {}, button("CSV", () => download("selection.csv", csvOf(data, rows), "text/csv")), " ",
        button("Index list", () => download("selection.txt", `${indices.join("\n")}\n`, "text/plain")), " ",
        button("Clear", () => this.events.select([]))),
      element("div", { class: "scroll" }, element("table", { class: "numbers" },
        element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...numbers))),
      element("p", {}, byClass.join(" · ")),
      element("div", { class: "grid" }, ...thumbnails),
      rows.length > PAGE ? element("p", { class: "faint" }, `The first ${PAGE} of ${rows.length} images.`) : "",
    );
  }

  mark() {
    this.all.mark();
    this.differing.mark();
  }
}

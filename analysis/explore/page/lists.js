// The tabs of many images: the selection, where two models differ, and all items as a table of text.

const PAGE = 60;

function download(name, text, type) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function options(names, empty) {
  const all = empty === null ? [] : [element("option", { value: -1 }, empty)];
  return [...all, ...names.map((name, at) => element("option", { value: at }, name))];
}

// A table whose rows take the focus: arrows move it, Enter pins, Space selects. Shown a page at a time.
class ItemTable {
  constructor(name, columns, events) {
    Object.assign(this, { columns, events, rows: [], page: 0, sort: null });
    this.head = element("tr");
    this.body = element("tbody", { onkeydown: (event) => this.key(event) });
    this.where = element("span");
    const turn = (by) => () => this.turn(by);
    this.root = element("div", {}, element("div", { class: "pager" },
      element("button", { type: "button", onclick: turn(-1), "aria-label": "previous page" }, "‹"), this.where,
      element("button", { type: "button", onclick: turn(1), "aria-label": "next page" }, "›")),
    element("table", { class: "items", "aria-label": name }, element("thead", {}, this.head), this.body));
  }

  show(rows, columns = this.columns) {
    Object.assign(this, { rows: [...rows], columns, page: 0 });
    this.fill();
  }

  turn(by) {
    this.page = Math.min(Math.max(this.page + by, 0), Math.max(0, Math.ceil(this.rows.length / PAGE) - 1));
    this.fill();
  }

  sortBy(at) {
    this.sort = { at, down: this.sort?.at === at ? !this.sort.down : true };
    this.page = 0;
    this.fill();
  }

  fill() {
    if (this.sort && this.columns[this.sort.at]) {
      const { at, down } = this.sort;
      const value = this.columns[at].value;
      const keys = new Map(this.rows.map((i) => [i, value(i)]));
      const compared = (a, b) => (typeof a === "string" ? a.localeCompare(b) : (a ?? -1) - (b ?? -1));
      this.rows.sort((a, b) => (down ? -1 : 1) * compared(keys.get(a), keys.get(b)) || a - b);
    }
    this.head.replaceChildren(...this.columns.map((column, at) => {
      const sorted = this.sort?.at === at ? (this.sort.down ? "descending" : "ascending") : "none";
      const arrow = { none: "", ascending: " ↑", descending: " ↓" }[sorted];
      const button = element("button", { type: "button", onclick: () => this.sortBy(at) }, column.name + arrow);
      return element("th", { scope: "col", "aria-sort": sorted, title: column.title ?? "" }, button);
    }));
    const shown = this.rows.slice(this.page * PAGE, (this.page + 1) * PAGE);
    this.where.textContent = this.rows.length
      ? `${this.page * PAGE + 1} to ${this.page * PAGE + shown.length} of ${this.rows.length}` : "none";
    this.body.replaceChildren(...shown.map((i, at) => this.row(i, at)));
  }

  row(i, at) {
    const { events } = this;
    const row = element("tr", { tabIndex: at ? -1 : 0, onclick: () => events.pin(i), onfocus: () => events.focus(i),
      onpointerenter: () => events.hover(i) },
    ...this.columns.map((column) => {
      const text = (column.text ?? column.value)(i);
      return element("td", { class: column.number ? "number" : "" }, String(text ?? "–"));
    }));
    row.item = i;
    row.classList.toggle("selected", events.isSelected(i));
    return row;
  }

  key(event) {
    const row = event.target.closest("tr");
    const moves = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" };
    if (event.key in moves) {
      const next = row[moves[event.key]];
      if (next) {
        row.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      }
    } else if (event.key === "Enter") this.events.pin(row.item);
    else if (event.key === " ") this.events.toggle(row.item);
    else return;
    event.preventDefault();
  }

  mark() {
    for (const row of this.body.children) row.classList.toggle("selected", this.events.isSelected(row.item));
  }
}

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
    this.all = new ItemTable("All items that the filters leave", [this.index, this.label, ...predicted], events);
    const selectAll = element("button", { type: "button", onclick: () => events.select(this.found(), false) },
      "Select these");
    this.items = element("div", {},
      element("p", { class: "faint" }, "Arrows move, Enter shows neighbours, Space selects. ", selectAll), this.all.root);
    this.differing = new ItemTable("Items whose neighbourhoods differ most", [], events);
    this.differing.sort = { at: 3, down: true };
    this.pair = [0, Math.min(1, data.models.length - 1)].map((start, side) => {
      const choose = (event) => {
        this.chosen[side] = Number(event.target.value);
        this.showDifferences();
      };
      const select = element("select", { onchange: choose, "aria-label": side ? "second model" : "first model" },
        ...options(data.models.map((model) => model.name), null));
      select.value = start;
      return select;
    });
    this.chosen = this.pair.map((select) => Number(select.value));
    const meaning = `Share of the images that only one of the two has among its ${data.stored} nearest: `
      + "0 means the same neighbours, 1 none in common.";
    this.differences = element("div", {}, element("p", {}, ...this.pair.flatMap((s, at) => (at ? [" and ", s] : [s]))),
      element("p", { class: "faint" }, meaning), this.differing.root);
  }

  found() {
    const { data, state } = this;
    const text = state.search.trim().toLowerCase();
    const rows = [];
    for (let i = 0; i < data.n; i++) {
      if (!state.visible[i]) continue;
      const named = className(data, data.labels[i]).toLowerCase().includes(text);
      if (!text || String(data.indices[i]) === text || named) rows.push(i);
    }
    return rows;
  }

  showItems() {
    this.all.show(this.found());
  }

  showDifferences() {
    const { data, state } = this;
    const [a, b] = this.chosen.map((m) => data.models[m]);
    const difference = (adversarial) => (i) => neighbourhoodDifference(data, a, b, adversarial, i);
    const column = (name, value) => ({ name, number: true, value, text: (i) => short(value(i) ?? NaN) });
    const columns = [this.index, this.label, column("clean", difference(false)), column("attacked", difference(true))];
    const rows = Array.from({ length: data.n }, (_, i) => i).filter((i) => state.visible[i]);
    this.differing.show(rows, columns);
  }

  showSelection() {
    const { data, state } = this;
    const rows = [...state.selected].sort((a, b) => a - b);
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
    const button = (text, onclick) => element("button", { type: "button", onclick }, text);
    const thumbnails = rows.slice(0, PAGE).map((i) => element("button", {
      type: "button", class: "neighbour", "aria-label": `image ${data.indices[i]}, ${className(data, data.labels[i])}`,
      title: `${data.indices[i]}: ${className(data, data.labels[i])}`,
      onclick: () => this.events.pin(i), onpointerenter: () => this.events.hover(i),
    }, this.images.has(0) ? this.images.thumbnail(0, i) : `${data.indices[i]}`));
    this.selection.replaceChildren(
      element("p", {}, element("strong", {}, `${rows.length} of ${data.n} images`)),
      element("p", {}, button("CSV", () => download("selection.csv", csvOf(data, rows), "text/csv")), " ",
        button("Index list", () => download("selection.txt", `${indices.join("\n")}\n`, "text/plain")), " ",
        button("Clear", () => this.events.select([], false))),
      element("table", { class: "numbers" }, element("thead", {}, element("tr", {}, ...head)),
        element("tbody", {}, ...numbers)),
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

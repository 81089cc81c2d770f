const PAGE = 60;

// A table whose rows take the focus: arrows move it, Enter pins, Space selects. Shown a page at a time.
class ItemTable {
  constructor(name, columns, events) {
    Object.assign(this, { columns, events, rows: [], page: 0, sort: null });
    this.head = element("tr");
    this.body = element("tbody", { onkeydown: (event) => this.key(event) });
    this.where = element("span");
    const turn = (text, by, name) => button(text, () => this.turn(by), { "aria-label": name });
    this.root = element("div", {}, element("div", { class: "pager" },
      turn("‹", -1, "previous page"), this.where, turn("›", 1, "next page")),
    element("div", { class: "scroll" },
      element("table", { class: "items", "aria-label": name }, element("thead", {}, this.head), this.body)));
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
      const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);
      const compared = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
      // What is not known comes last, whichever way.
      this.rows.sort((a, b) => {
        const [x, y] = [keys.get(a), keys.get(b)];
        if (!known(x) || !known(y)) return known(y) - known(x) || a - b;
        return (down ? -1 : 1) * compared(x, y) || a - b;
      });
    }
    this.head.replaceChildren(...this.columns.map((column, at) => {
      const sorted = this.sort?.at === at ? (this.sort.down ? "descending" : "ascending") : "none";
      const arrow = { none: "", ascending: " ↑", descending: " ↓" }[sorted];
      return element("th", { scope: "col", class: column.number ? "number" : "", "aria-sort": sorted, title: column.title ?? "" },
        button(column.name + arrow, () => this.sortBy(at)));
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

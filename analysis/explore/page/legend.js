// What the colours mean; its entries hide and isolate, and groups of classes are made here.

class Legend {
  constructor(data, state, events) {
    Object.assign(this, { data, state, events });
    this.entries = element("div", { class: "legend-entries" });
    this.note = element("span", { class: "faint" });
    this.all = button("Show all", () => events.hide(new Set()), { class: "small" });
    this.groups = button("Groups…", () => this.editor.open(), { class: "small" });
    this.editor = new GroupEditor(data, state, events);
    this.root = element("div", { class: "legend", role: "group", "aria-label": "Legend" },
      element("span", { class: "shapes" }, "● clean  ▲ attacked"), this.groups, this.all, this.note, this.entries);
  }

  show() {
    const { state } = this;
    const { palette, labels, keys, range, title, note } = state.colouring;
    const ofClasses = state.colour === "label" || state.colour === "prediction";
    this.groups.hidden = !ofClasses || this.data.class_names.length < 3;
    this.all.hidden = !state.hidden.size;
    this.note.textContent = note ?? "";
    const focused = [...this.entries.children].indexOf(document.activeElement);
    this.entries.replaceChildren(...(range
      ? [element("span", {}, `${title}: ${range[0]}`), element("span", {
        class: "ramp", style: `background: linear-gradient(to right, ${palette.join(",")})` }), element("span", {}, range[1])]
      : labels.map((label, at) => this.chip(palette[at], label, keys[at]))));
    if (focused >= 0) this.entries.children[Math.min(focused, this.entries.children.length - 1)]?.focus();
  }

  chip(colour, label, key) {
    const { state, events } = this;
    const toggled = () => {
      const hidden = new Set(state.hidden);
      if (!hidden.delete(key)) hidden.add(key);
      events.hide(hidden);
    };
    const isolated = () => {
      const others = state.colouring.keys.filter((each) => each !== key);
      const alone = !state.hidden.has(key) && others.every((each) => state.hidden.has(each));
      events.hide(new Set(alone ? [] : others));
    };
    return element("button", {
      type: "button", class: "chip", "aria-pressed": !state.hidden.has(key), ondblclick: isolated,
      onclick: (event) => (event.shiftKey ? isolated() : toggled()),
      title: `${label}: click to hide or show, double-click (or Shift) to see it alone`,
    }, element("span", { class: "swatch", style: `background: ${colour}` }), element("span", { class: "chip-text" }, label));
  }
}

// Names a group of classes, so that it gets one colour.
class GroupEditor {
  constructor(data, state, events) {
    Object.assign(this, { data, state, events });
    this.name = element("input", { type: "text", size: 16, "aria-label": "name of the group" });
    this.search = element("input", { type: "search", size: 16, "aria-label": "find classes", oninput: () => this.filter() });
    this.boxes = data.class_names.map((_, k) => element("input", { type: "checkbox", value: k }));
    this.rows = this.boxes.map((box, k) => element("label", {}, box, ` ${data.class_names[k]}`));
    this.list = element("div", { class: "classes", role: "group", "aria-label": "classes" }, ...this.rows);
    this.made = element("ul");
    const tick = () => this.rows.forEach((row, k) => {
      if (!row.hidden) this.boxes[k].checked = true;
    });
    this.root = element("dialog", { class: "viewer groups", "aria-label": "groups of classes" },
      element("div", { class: "viewer-top" }, element("h3", {}, "Groups of classes, a colour each"),
        button("Close", () => this.root.close())),
      element("p", {}, element("label", {}, "Find ", this.search), " ", button("Tick all that are found", tick)), this.list,
      element("p", {}, element("label", {}, "Name ", this.name), " ", button("Make a group", () => this.add())), this.made);
    this.root.addEventListener("keydown", (event) => event.stopPropagation());
  }

  open() {
    this.show();
    this.root.showModal();
  }

  filter() {
    const text = this.search.value.trim().toLowerCase();
    this.rows.forEach((row, k) => (row.hidden = !this.data.class_names[k].toLowerCase().includes(text)));
  }

  add() {
    const classes = this.boxes.filter((box) => box.checked).map((box) => Number(box.value));
    if (!classes.length) return;
    const name = this.name.value.trim() || this.data.class_names[classes[0]];
    // A class is in one group.
    const others = this.state.groups.map(([old, of]) => [old, of.filter((k) => !classes.includes(k))]);
    this.events.group([...others.filter(([, of]) => of.length), [name, classes]]);
    this.boxes.forEach((box) => (box.checked = false));
    this.name.value = this.search.value = "";
    this.filter();
    this.show();
  }

  show() {
    this.made.replaceChildren(...this.state.groups.map(([name, classes], at) => element("li", {},
      `${name}: ${classes.map((k) => this.data.class_names[k]).join(", ")} `, button("Remove", () => {
        this.events.group(this.state.groups.filter((_, each) => each !== at));
        this.show();
      }, { "aria-label": `remove ${name}` }))));
  }
}

// The header: what is seen, and what a reader sets. `sync` shows what the state says, whoever changed it.

// Data, attack, layer, map and how many images, each once; where models differ, which has what.
function aboutLines(data, state) {
  const of = (key, name) => {
    const texts = data.models.map((model) => model.about[key]);
    if (data.steps && new Set(texts).size > 1) return texts[state.step] && `${name}${texts[state.step]}`;
    const different = [...new Set(texts)].filter(Boolean);
    if (!different.length) return "";
    if (different.length === 1 && texts.every(Boolean)) return `${name}${different[0]}`;
    return name + different.map((text) => `${text} (${data.models.filter((model) => model.about[key] === text)
      .map((model) => model.name).join(", ")})`).join("; ");
  };
  const made = data.mapTexts[state.method];
  const map = `${METHOD_NAMES[state.method]} map${made ? `: ${made}` : ""}`;
  const shown = data.n === data.total ? `${counted(data.n)} images` : `${counted(data.n)} of ${counted(data.total)} images`;
  return [of("data", ""), of("attack", "attack: "), of("layer", "layer: "), map, shown].filter(Boolean);
}

class Controls {
  constructor(data, state, events) {
    Object.assign(this, { data, state, events, syncs: [] });
    this.about = element("p", { class: "about" });
    const modes = [...Object.entries(COLOUR_MODES).filter(([key]) => key !== "common" || data.models.length > 1),
      ...data.columns.map((column) => [`column:${column.name}`, column.name])];
    this.search = element("input", { type: "search", size: 17, placeholder: "index, class or word",
      oninput: (event) => events.search(event.target.value),
      onkeydown: (event) => (event.key === "Enter" ? events.findFirst() : null) });
    this.syncs.push(() => {
      if (this.search.value !== state.search) this.search.value = state.search;
    });
    const map = this.select(data.methods.map((m) => [m, METHOD_NAMES[m]]), () => state.method, events.method);
    const colour = this.select(modes, () => state.colour, events.colour);
    const points = this.select(Object.keys(POINTS).map((key) => [key, key]),
      () => Object.keys(POINTS).find((key) => String(POINTS[key]) === String(state.kinds)), (key) => events.kinds(POINTS[key]));
    this.filters = element("details", { class: "filters" }, this.summary = element("summary", {}, "Filters"),
      element("div", { class: "bar" }, ...this.filterControls()));
    this.root = element("header", {}, this.about,
      element("div", { class: "bar" }, labelled("Map", map), labelled("Colour", colour), labelled("Points", points),
        labelled("Find", this.search)),
      element("div", { class: "bar tools", role: "toolbar", "aria-label": "tools" }, ...this.tools()), this.filters);
    this.sync();
  }

  // A select that follows what `value` says.
  select(entries, value, choose) {
    const node = choice(entries, value(), choose);
    this.syncs.push(() => (node.value = value()));
    return node;
  }

  filterControls() {
    const { data, state, events } = this;
    const filter = (key, names, empty) => {
      const entries = names.map((name, at) => [at, name]);
      return this.select(empty === null ? entries : [[-1, empty], ...entries], () => state.filter[key],
        (value) => events.filter({ [key]: Number(value) }));
    };
    return [
      labelled("Classes", filter("classA", data.class_names, "all")),
      labelled("and", filter("classB", data.class_names, "–"), "Second class"),
      labelled("Outcome", filter("outcome", OUTCOMES, "any")),
      labelled("False class", filter("falseClass", data.class_names, "any")),
      labelled("in", filter("model", data.models.map((model) => model.name), null), "Model of the outcome"),
      ...data.columns.flatMap((column) => this.columnFilter(column)),
      button("No filters", () => events.filter(startState(data).filter)),
    ];
  }

  columnFilter({ name, categories, values }) {
    const { state, events } = this;
    const set = (wanted) => {
      const columns = new Map(state.filter.columns);
      if (wanted === null) columns.delete(name);
      else columns.set(name, wanted);
      events.filter({ columns });
    };
    if (categories) {
      const entries = [[-1, "any"], ...categories.map((word, at) => [at, word])];
      return [labelled(name, this.select(entries, () => categories.indexOf(state.filter.columns.get(name)),
        (at) => set(Number(at) < 0 ? null : categories[at])))];
    }
    const [low, high] = spanOf(values);
    const ends = ["lowest", "highest"].map((what, end) => {
      const input = element("input", { type: "number", step: "any", placeholder: String(Number([low, high][end].toPrecision(4))),
        "aria-label": `${what} ${name}`, onchange: () => {
          const wanted = ends.map(({ value }) => (value === "" ? null : Number(value)));
          set(wanted.every((value) => value === null) ? null : wanted);
        } });
      this.syncs.push(() => (input.value = state.filter.columns.get(name)?.[end] ?? ""));
      return input;
    });
    return [element("span", { class: "range" }, `${name} `, ends[0], " to ", ends[1])];
  }

  tools() {
    const { data, state, events } = this;
    const tools = Object.entries(TOOLS).map(([key, name]) => {
      const node = button(name, () => events.tool(key));
      this.syncs.push(() => node.setAttribute("aria-pressed", state.tool === key));
      return node;
    });
    return [
      element("span", { class: "joined" }, ...tools),
      element("span", { class: "joined" }, button("+", () => events.zoomAll(1.5), { "aria-label": "zoom in" }),
        button("−", () => events.zoomAll(1 / 1.5), { "aria-label": "zoom out" }), button("All", () => events.zoomAll(0), { "aria-label": "whole map" })),
      ...(data.steps && data.models.length > 1 ? this.slider() : []),
      element("span", { class: "joined" }, ...(events.copyLink ? [button("Copy link", events.copyLink)] : []),
        button("PNG", () => events.save("png"), { title: "save picture", "aria-label": "save picture as PNG" }),
        button("SVG", () => events.save("svg"), { title: "save picture", "aria-label": "save picture as SVG" })),
      button("◐", events.theme, { "aria-label": "light or dark", title: "light or dark" }),
    ];
  }

  slider() {
    const { data, state, events } = this;
    const range = element("input", { type: "range", min: 0, max: data.models.length - 1, step: 1, "aria-label": "step",
      oninput: (event) => events.step(Number(event.target.value)) });
    const name = element("output", { class: "step-name" });
    const play = button("▶", events.play, { "aria-label": "play" });
    this.syncs.push(() => {
      range.value = state.step;
      name.textContent = data.models[state.step].name;
      range.setAttribute("aria-valuetext", name.textContent);
      play.textContent = state.playing ? "❚❚" : "▶";
    });
    return [element("span", { class: "steps" }, play, range, name)];
  }

  sync() {
    const { state } = this;
    this.syncs.forEach((show) => show());
    this.about.textContent = aboutLines(this.data, state).join("  ·  ");
    const { columns, model, ...chosen } = state.filter;
    const active = Object.values(chosen).filter((value) => value >= 0).length + columns.size;
    this.summary.textContent = active ? `Filters (${active})` : "Filters";
  }
}

// The two hosts of the explorer: a page of its own, and a widget of JupyterLab.

function bytesOfPage(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at++) bytes[at] = binary.charCodeAt(at);
  return bytes;
}

function openPage(page) {
  const start = performance.now();
  const payload = page.getElementById("payload");
  const bytes = bytesOfPage(payload.textContent);
  payload.remove();
  const first = JSON.parse(page.getElementById("start").textContent);
  let explorer = null;
  let written = location.hash.slice(1);
  const indicesOf = (selected) => [...selected.keys()].filter((i) => selected[i]).map((i) => explorer.data.indices[i]);
  const write = () => {
    const fragment = fragmentOf(explorer.data, explorer.view, explorer.state.selected);
    if (fragment === written) return;
    written = fragment;
    try {
      history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
    } catch {
      // A page inside another one without an address of its own: there is no link to keep.
    }
  };
  const linked = (hash) => {
    const found = readFragment(explorer.data, hash);
    if (found) explorer.apply(found.view, indicesOf(found.selected));
    else if (new URLSearchParams(hash).has("data")) explorer.say("This link was made for other data");
  };
  const host = {
    beside: first.images,
    onChange: write,
    copyLink: async () => {
      write();
      return copyText(location.href.split("#")[0] + (written ? `#${written}` : ""));
    },
  };
  explorer = new Explorer(page.getElementById("explorer"), new DataView(bytes.buffer), { ...first, host });
  window.explorer = explorer;
  linked(written);
  window.addEventListener("hashchange", () => {
    const hash = location.hash.slice(1);
    if (hash === written) return;
    written = hash;
    linked(hash);
  });
  return explorer.ready.then(() => performance.measure("explorer ready", { start, end: performance.now() }));
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Not in every frame, and not without a secure address: then the old way.
    const area = element("textarea", { value: text });
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}

function render({ model, el }) {
  const box = element("div", { style: "height: 720px" });
  el.append(box);
  const light = document.body.dataset.jpThemeLight;
  const waiting = new Map();
  const answered = (message, buffers) => {
    const key = String(message?.image);
    waiting.get(key)?.(buffers?.[0] ?? null);
    waiting.delete(key);
  };
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  const host = {
    fetchFull: (sheet, i) => new Promise((resolve) => {
      waiting.set(String([sheet, i]), resolve);
      model.send({ image: [sheet, i] });
    }),
    onChange: ({ selection, view }) => {
      if (same(selection, model.get("selection")) && same(view, model.get("view"))) return;
      model.set("selection", selection);
      model.set("view", view);
      model.save_changes();
    },
  };
  const start = { selection: model.get("selection"), view: model.get("view") };
  const dark = light === undefined ? null : light === "false";
  const explorer = new Explorer(box, model.get("payload"), { ...start, dark, host });
  // What the page said itself comes back: only what is new is shown.
  const follow = () => {
    const [selection, view] = [model.get("selection"), model.get("view")];
    if (!same(selection, explorer.selection) || !same(view, explorer.view)) explorer.apply(view, selection);
  };
  const changes = "change:selection change:view";
  model.on(changes, follow);
  model.on("msg:custom", answered);
  return () => {
    model.off(changes, follow);
    model.off("msg:custom", answered);
    explorer.destroy();
  };
}

export default { render };

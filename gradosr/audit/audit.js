// The detail of an image, selection in lists and on the map, names for images, labels.csv.
const of = (id) => document.getElementById(id);
const { token, classes, rows, near, known, heats } = JSON.parse(of("data").textContent);
const byId = new Map(rows.map((row) => [row.id, row]));
const place = `gradosr-audit-${token}`;
let labels = {};
try {
  labels = JSON.parse(localStorage.getItem(place) || "{}");
} catch {
  labels = {};
}
const chosen = new Set();

const made = (tag, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
};
const drawn = (tag, attributes) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
};
// Each picture is in the page once; whoever needs it again takes it from there.
const shown = (id) => document.querySelector(`[data-picture="${id}"]`);
const copyOf = (id) => {
  const there = shown(id);
  if (!there) return made("span", "no picture on this page", "nothing");
  const node = there.cloneNode();
  node.textContent = there.textContent;
  node.removeAttribute("data-picture");
  return node;
};
const labelOf = (id) => (labels[id] ? labels[id].label : "");

// Selection
const marks = () => document.querySelectorAll("[data-id]");
const paint = () => {
  for (const one of marks()) {
    const on = chosen.has(one.dataset.id);
    one.classList.toggle("chosen", on);
    const box = one.querySelector("input.pick");
    if (box) box.checked = on;
    const label = labelOf(one.dataset.id);
    if (label) one.dataset.label = label;
    else delete one.dataset.label;
  }
  const named = Object.keys(labels).length;
  of("naming").hidden = !chosen.size && !named;
  document.body.classList.toggle("naming", !of("naming").hidden);
  const pictures = chosen.size === 1 ? "1 image" : `${chosen.size} images`;
  of("selected").textContent = `${pictures} selected${named ? `, ${named} named` : ""}`;
  of("download").disabled = !named;
  for (const id of ["known", "unknown", "clear"]) of(id).disabled = !chosen.size;
  if (of("chosen")) {
    const some = [...chosen].filter(shown).slice(0, 24);
    of("chosen").replaceChildren(...some.map((id) => tileOf(id)));
  }
};
const choose = (ids, on = true) => {
  for (const id of ids) {
    if (on) chosen.add(id);
    else chosen.delete(id);
  }
  paint();
};
const tileOf = (id) => {
  const link = made("a", undefined, "tile");
  link.href = `#r-${id}`;
  link.dataset.open = id;
  link.append(copyOf(id));
  return link;
};
const remember = () => {
  try {
    localStorage.setItem(place, JSON.stringify(labels));
  } catch {
    // a browser that remembers nothing still downloads
  }
};
const give = (name) => {
  const when = new Date().toISOString();
  for (const id of chosen) labels[id] = { label: name, when };
  chosen.clear();
  remember();
  paint();
  of("selected").textContent = `named ${name}; ${Object.keys(labels).length} named in all`;
};
of("naming").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = spelt(of("typed").value.trim(), classes);
  const fault = chosen.size ? (["known", "unknown", ...classes].includes(name) ? "" : faultOf(name)) : "Select images first.";
  of("fault").textContent = fault;
  if (fault) return of("typed").focus();
  of("typed").value = "";
  give(name);
});
of("typed").addEventListener("input", () => (of("fault").textContent = ""));
of("known").addEventListener("click", () => give("known"));
of("unknown").addEventListener("click", () => give("unknown"));
of("clear").addEventListener("click", () => {
  chosen.clear();
  paint();
});
of("download").addEventListener("click", () => {
  const named = rows.filter((row) => labels[row.id]).map((row) => ({ cell: row.cell ?? row.key, id: row.id, ...labels[row.id] }));
  saveLabels(named);
  of("selected").textContent = `${named.length} labels downloaded`;
});
of("classes").append(...classes.map((name) => Object.assign(document.createElement("option"), { value: name })));
for (const button of document.querySelectorAll("button[data-cluster]")) {
  button.hidden = button.disabled = false;
  const mine = rows.filter((row) => row.cluster === button.dataset.cluster).map((row) => row.id);
  button.addEventListener("click", () => choose(mine, !mine.every((id) => chosen.has(id))));
}
const table = of("flag-table");
if (table) {
  const head = made("th", "Select");
  head.scope = "col";
  head.setAttribute("role", "columnheader");
  table.tHead.rows[0].append(head);
  for (const row of table.tBodies[0].rows) {
    const { id } = row.dataset;
    const cell = row.cells[0];
    if (!cell.querySelector("[data-picture]")) cell.replaceChildren(copyOf(id));
    const link = made("a", undefined, "tile");
    link.href = `#r-${id}`;
    link.dataset.open = id;
    link.append(...cell.childNodes);
    cell.append(link);
    const box = Object.assign(made("input", undefined, "pick"), { type: "checkbox" });
    box.setAttribute("aria-label", `Select ${byId.get(id).shown ?? byId.get(id).key}`);
    box.addEventListener("change", () => choose([id], box.checked));
    const last = made("td");
    last.setAttribute("role", "cell");
    last.append(box);
    row.append(last);
  }
  of("select-shown").addEventListener("click", () => choose([...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.dataset.id)));
}

// The map
const map = of("map-chart");
if (map) {
  for (const one of document.querySelectorAll(".scripted")) one.hidden = false;
  const points = [...map.querySelectorAll("[data-id]")];
  let from = null;
  let frame = null;
  const at = (event) => {
    const to = new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
    return { x: to.x, y: to.y };
  };
  const box = (one, other) => ({ x: Math.min(one.x, other.x), y: Math.min(one.y, other.y), width: Math.abs(one.x - other.x), height: Math.abs(one.y - other.y) });
  map.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    from = at(event);
    map.setPointerCapture(event.pointerId);
    frame = drawn("rect", { class: "frame", ...box(from, from) });
    map.append(frame);
    event.preventDefault();
  });
  map.addEventListener("pointermove", (event) => {
    if (!from) return;
    for (const [name, value] of Object.entries(box(from, at(event)))) frame.setAttribute(name, value);
  });
  const end = (event) => {
    if (!from) return;
    const area = box(from, at(event));
    frame.remove();
    from = frame = null;
    if (event.type !== "pointerup") return;
    const inside = (point) => {
      const x = Number(point.getAttribute("cx")), y = Number(point.getAttribute("cy"));
      return x >= area.x && x <= area.x + area.width && y >= area.y && y <= area.y + area.height;
    };
    if (area.width < 6 && area.height < 6) {
      const near = (point) => Math.hypot(Number(point.getAttribute("cx")) - area.x, Number(point.getAttribute("cy")) - area.y);
      const nearest = points.reduce((best, point) => (near(point) < near(best) ? point : best), points[0]);
      if (nearest && near(nearest) < 14) open(nearest.dataset.id, points.map((point) => point.dataset.id));
      return;
    }
    if (!event.shiftKey) chosen.clear();
    choose(points.filter(inside).map((point) => point.dataset.id));
  };
  map.addEventListener("pointerup", end);
  map.addEventListener("pointercancel", end);
}

// The detail
const detail = of("detail");
let list = [];
let now = "";
const fact = (name, value) => {
  const line = made("div");
  line.append(made("dt", name), made("dd", value));
  return line;
};
const bar = (part, most) => {
  const svg = drawn("svg", { class: "bar-line", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" });
  const width = (48 * Math.min(1, Math.abs(part.value) / most)).toFixed(2);
  svg.append(drawn("line", { class: "grid", x1: 50, x2: 50, y1: 0, y2: 8 }));
  svg.append(drawn("rect", { class: part.loud ? "dot" : "bar", x: part.value < 0 ? 50 - width : 50, y: 1, width, height: 6 }));
  return svg;
};
const why = (row) => {
  if (!row.said) return [];
  const most = Math.max(...row.parts.map((part) => Math.abs(part.value)), 1e-9);
  const said = made("ul", undefined, "said");
  said.append(...row.said.map((text) => made("li", text)));
  const bars = (title, parts, most) => {
    if (!parts.length) return [];
    const lines = made("dl", undefined, "bars");
    for (const part of parts) {
      const value = made("dd", part.shown);
      value.prepend(bar(part, most));
      lines.append(made("dt", part.name), value);
    }
    return [made("h4", title), lines];
  };
  return [made("h3", "Why it has this score"), said, ...bars("What adds to the score", row.parts, most), ...bars("Gradients, beside those of known images", row.layers, 1)];
};
const pictureOf = (row) => {
  const there = shown(row.id);
  if (!there || there.tagName !== "IMG") return [copyOf(row.id)];
  const [width, height] = [there.getAttribute("width"), there.getAttribute("height")];
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": there.alt });
  svg.append(drawn("image", { href: there.src, width, height }));
  if (row.heat) {
    const [left, top, right, bottom] = row.heat.box;
    const over = { href: row.heat.picture, x: left * width, y: top * height, width: (right - left) * width, height: (bottom - top) * height };
    svg.append(drawn("image", { class: "heat", preserveAspectRatio: "none", ...over }));
  }
  return [svg];
};
const show = (id) => {
  const row = byId.get(id);
  now = id;
  of("detail-title").textContent = `Taken for ${row.predicted}`;
  of("large").replaceChildren(...pictureOf(row));
  of("heat-switch").hidden = !row.heat;
  of("heat-of").textContent = row.heat ? row.heat.of : "";
  of("large").classList.toggle("plain", !of("heat").checked);
  const facts = [
    ["Unknown score", row.score], ["p-value", row.p], ["Label in the archive", row.label], ["Cluster", row.cluster],
    ["Pixels", row.size], ["Your name", labelOf(id)],
  ];
  of("facts").replaceChildren(...facts.filter(([, value]) => value).map(([name, value]) => fact(name, value)));
  of("full-key").textContent = row.shown ?? row.key;
  of("copied").textContent = "";
  of("why").replaceChildren(...why(row));
  const alike = (near[id] || []).filter((one) => known[one]);
  of("near").replaceChildren();
  if (alike.length) {
    const strip = made("div", undefined, "strip wrapped");
    for (const one of alike) {
      const cell = made("figure");
      if (known[one].picture) cell.append(Object.assign(made("img"), { src: known[one].picture, alt: "" }));
      cell.append(made("figcaption", known[one].class, "small"));
      strip.append(cell);
    }
    of("near").append(made("h3", "The nearest known images"), strip);
  }
  pressed();
  for (const [button, step] of [["before", -1], ["after", 1]]) of(button).disabled = !list[list.indexOf(id) + step];
};
const pressed = () => {
  of("pick").setAttribute("aria-pressed", String(chosen.has(now)));
  of("pick").textContent = chosen.has(now) ? "Selected" : "Select";
};
const open = (id, of_these) => {
  list = of_these.filter((one) => byId.has(one));
  show(id);
  if (!detail.open) detail.showModal();
};
const step = (by) => {
  const next = list[list.indexOf(now) + by];
  if (next) show(next);
};
document.addEventListener("click", (event) => {
  const link = event.target.closest("a.tile");
  if (!link) return;
  event.preventDefault();
  const id = link.dataset.open || link.dataset.id;
  const whole = link.closest("table, ul, #chosen");
  const ids = [...whole.querySelectorAll("a.tile")].filter((one) => !one.closest("[hidden]")).map((one) => one.dataset.open || one.dataset.id);
  if (event.shiftKey || event.ctrlKey || event.metaKey) choose([id], !chosen.has(id));
  else open(id, ids);
});
of("close").addEventListener("click", () => detail.close());
of("before").addEventListener("click", () => step(-1));
of("after").addEventListener("click", () => step(1));
of("heat").addEventListener("change", () => of("large").classList.toggle("plain", !of("heat").checked));
of("pick").addEventListener("click", () => {
  choose([now], !chosen.has(now));
  pressed();
});
detail.addEventListener("click", (event) => {
  if (event.target === detail) detail.close();
});
detail.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const acts = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), h: () => of("heat").click(), s: () => of("pick").click() };
  if (acts[event.key]) {
    event.preventDefault();
    acts[event.key]();
  }
});
const copied = async (text, said) => {
  try {
    await navigator.clipboard.writeText(text);
    said.textContent = "copied";
  } catch {
    said.textContent = "press Ctrl+C";
    getSelection().selectAllChildren(said.previousElementSibling.previousElementSibling || said.parentNode);
  }
};
of("copy").addEventListener("click", () => copied(byId.get(now).key, of("copied")));
for (const one of document.querySelectorAll(".command")) {
  const button = Object.assign(made("button", "Copy", "more"), { type: "button" });
  const said = made("span", "", "small");
  said.setAttribute("role", "status");
  button.addEventListener("click", () => copied(one.querySelector("code").textContent, said));
  one.append(button, said);
}
paint();

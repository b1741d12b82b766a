// Labels of one round: kept in this browser after every step, and downloaded as labels.csv.
const of = (id) => document.getElementById(id);
const { token, classes, images } = JSON.parse(of("data").textContent);
const place = `gradosr-labels-${token}`;
const fresh = () => ({ labels: {}, skipped: {}, names: [], undo: [], at: 0 });
let state = fresh();
let remembers = true;

const load = (text) => {
  try {
    state = { ...fresh(), ...JSON.parse(text) };
  } catch {
    state = fresh();
  }
};
const save = () => {
  try {
    localStorage.setItem(place, JSON.stringify(state));
  } catch {
    remembers = false;
    of("memory").hidden = false;
  }
};
try {
  load(localStorage.getItem(place) || "{}");
} catch {
  remembers = false;
}
save();

const labelOf = (image) => (state.labels[image.id] ? state.labels[image.id].label : state.skipped[image.id] ? "skipped" : "");
const current = () => images[state.at];
const mates = () => images.filter((image) => image.cluster && image.cluster === current().cluster);
const open = (image) => !labelOf(image);
const finished = () => images.filter((image) => !open(image)).length;

const tile = (image) => {
  const node = document.createElement(image.picture ? "img" : "span");
  if (image.picture) {
    node.src = image.picture;
    node.alt = "";
    node.loading = "lazy";
    node.decoding = "async";
  } else {
    node.className = "nothing";
    node.textContent = image.missing;
  }
  return node;
};

const cells = images.map((image, number) => {
  const button = document.createElement("button");
  const label = document.createElement("span");
  label.className = "label";
  button.type = "button";
  button.append(tile(image), label);
  button.addEventListener("click", () => go(number));
  const item = document.createElement("li");
  item.append(button);
  of("overview").append(item);
  return { button, label };
});

const show = (said) => {
  const image = current(), number = state.at + 1, label = labelOf(image), done = finished();
  of("picture").hidden = !image.picture;
  of("missing").hidden = Boolean(image.picture);
  if (image.picture) {
    of("picture").src = image.picture;
    of("picture").alt = `Image ${number}: ${image.shown}`;
  } else {
    of("missing").textContent = `no picture: ${image.missing}`;
    of("missing").setAttribute("aria-label", `no picture: ${image.missing}`);
  }
  of("place").textContent = `Image ${number}:`;
  of("key").textContent = image.shown;
  of("predicted").textContent = image.predicted;
  of("now").textContent = label || "no label";
  of("bar").value = done;
  of("progress").textContent = `${done} of ${images.length}`;
  of("undo").disabled = !state.undo.length;
  const alike = mates();
  of("together").hidden = alike.length < 2;
  of("alike").textContent = alike.length;
  of("mates").hidden = !of("all").checked || alike.length < 2;
  of("mates").replaceChildren(...(of("mates").hidden ? [] : alike.map(tile)));
  of("names").replaceChildren(...state.names.map((name, index) => {
    const button = document.createElement("button");
    button.type = "button";
    if (index < 9) {
      const key = document.createElement("kbd");
      key.textContent = index + 1;
      button.append(key, " ");
    }
    button.append(name);
    button.addEventListener("click", () => give(name));
    return button;
  }));
  images.forEach((one, index) => {
    const text = labelOf(one);
    cells[index].label.textContent = text;
    cells[index].button.setAttribute("aria-label", `Image ${index + 1}: ${text || "no label"}`);
    cells[index].button.setAttribute("aria-current", String(index === state.at));
  });
  const left = done === images.length ? "All are done: download the labels." : `Image ${number}, ${done} of ${images.length} done.`;
  of("status").textContent = `${said ? `${said}. ` : ""}${left}`;
};

const go = (number) => {
  state.at = Math.min(images.length - 1, Math.max(0, number));
  of("all").checked = false;
  closeNaming();
  save();
  show("");
};

const set = (image, label, skipped) => {
  if (label) state.labels[image.id] = label;
  else delete state.labels[image.id];
  if (skipped) state.skipped[image.id] = true;
  else delete state.skipped[image.id];
};

const give = (name) => {
  const together = of("all").checked;
  const given = together ? mates().filter((image) => image === current() || open(image)) : [current()];
  state.undo.push({ at: state.at, before: given.map((image) => [image.id, state.labels[image.id] || null, Boolean(state.skipped[image.id])]) });
  const when = new Date().toISOString();
  for (const image of given) set(image, name ? { label: name, when } : null, !name);
  const next = [...images.keys()].map((step) => (state.at + 1 + step) % images.length).find((index) => open(images[index]));
  if (next !== undefined) state.at = next;
  of("all").checked = false;
  save();
  show(`${name || "skipped"}${given.length > 1 ? `, ${given.length} images` : ""}`);
};

const undo = () => {
  const last = state.undo.pop();
  if (!last) return;
  for (const [id, label, skipped] of last.before) set({ id }, label, skipped);
  state.at = last.at;
  save();
  show("undone");
};

const closeNaming = () => {
  of("naming").hidden = true;
  of("typed").value = "";
  of("fault").textContent = "";
  of("typed").removeAttribute("aria-invalid");
};

const openNaming = () => {
  of("naming").hidden = false;
  of("typed").focus();
};

of("naming").addEventListener("submit", (event) => {
  event.preventDefault();
  const typed = of("typed").value.trim();
  const name = spelt(typed, classes);
  const fault = ["known", "unknown", ...classes].includes(name) ? "" : faultOf(typed);
  of("fault").textContent = fault;
  if (fault) {
    of("typed").setAttribute("aria-invalid", "true");
    return;
  }
  if (!["known", "unknown"].includes(name) && !state.names.includes(name)) state.names.push(name);
  closeNaming();
  of("name").focus({ preventScroll: true });
  give(name);
});

const download = () => {
  const rows = images.filter((image) => state.labels[image.id]).map((image) => ({ cell: image.key, id: image.id, ...state.labels[image.id] }));
  saveLabels(rows);
  of("saved").textContent = `${rows.length} labels`;
  of("status").textContent = `${rows.length} labels downloaded`;
};

const keys = {
  k: () => give("known"),
  u: () => give("unknown"),
  n: openNaming,
  s: () => give(""),
  z: undo,
  d: download,
  c: () => !of("together").hidden && of("all").click(),
  ArrowLeft: () => go(state.at - 1),
  ArrowRight: () => go(state.at + 1),
};
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target === of("typed")) {
    if (event.key === "Escape") {
      closeNaming();
      of("name").focus();
    }
    return;
  }
  const name = /^[1-9]$/.test(event.key) ? state.names[event.key - 1] : "";
  const act = name ? () => give(name) : keys[event.key] || keys[event.key.toLowerCase()];
  if (act && !event.repeat) {
    event.preventDefault();
    act();
  }
});
for (const [id, act] of [["known", keys.k], ["unknown", keys.u], ["name", openNaming], ["skip", keys.s], ["undo", undo], ["download", download]]) {
  of(id).addEventListener("click", act);
}
of("cancel").addEventListener("click", () => {
  closeNaming();
  of("name").focus();
});
of("all").addEventListener("change", () => show(""));
of("known-classes").textContent = classes.join(", ");
of("classes").append(...classes.map((name) => Object.assign(document.createElement("option"), { value: name })));
addEventListener("storage", (event) => {
  if (event.key === place && event.newValue) {
    load(event.newValue);
    show("");
  }
});
addEventListener("beforeunload", (event) => {
  if (!remembers && Object.keys(state.labels).length) event.preventDefault();
});
if (!(state.at in images)) state.at = 0;
show("");

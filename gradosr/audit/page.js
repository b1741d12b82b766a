"use strict";
// Sorting, filters and "show all", added to tables that are whole without them.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const enough = Number(table.dataset.enough || 0);
  const form = document.querySelector(`form[data-for="${table.id}"]`);
  const said = form && form.querySelector("output");
  let all = !enough || rows.length <= enough;
  let more = null;

  const show = () => {
    const find = form ? form.elements.find.value.trim().toLowerCase() : "";
    const wanted = form ? [...form.querySelectorAll("select")].filter((select) => select.value) : [];
    let matching = 0;
    for (const row of body.rows) {
      const fits = (!find || row.textContent.toLowerCase().includes(find)) && wanted.every((select) => row.dataset[select.name] === select.value);
      matching += fits;
      row.hidden = !fits || (!all && !find && !wanted.length && matching > enough);
    }
    if (said) said.textContent = find || wanted.length ? `${matching} of ${rows.length} match` : "";
    if (more) more.hidden = Boolean(find || wanted.length) || all;
  };

  const value = (row, column, kind) => {
    const cell = row.cells[column];
    if (kind !== "number") return cell.textContent.trim();
    const number = Number.parseFloat(cell.dataset.value ?? cell.textContent);
    return Number.isNaN(number) ? -Infinity : number;
  };
  const names = new Intl.Collator("en", { numeric: true });
  for (const head of table.querySelectorAll("th[data-sort]")) {
    const kind = head.dataset.sort;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const up = now ? now === "descending" : kind !== "number";
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const compare = (a, b) => {
        const one = value(a, head.cellIndex, kind), two = value(b, head.cellIndex, kind);
        return kind === "number" ? (one < two ? -1 : one > two ? 1 : 0) : names.compare(one, two);
      };
      body.append(...[...body.rows].sort((a, b) => (up ? compare(a, b) : compare(b, a))));
      show();
    });
  }
  if (!all) {
    more = document.createElement("button");
    more.type = "button";
    more.className = "more";
    more.textContent = `Show all ${rows.length}`;
    more.addEventListener("click", () => {
      all = true;
      show();
      const next = body.rows[enough];
      next.tabIndex = -1;
      next.focus();
    });
    (table.closest(".scroll") || table).after(more);
  }
  if (form) {
    form.hidden = false;
    form.addEventListener("input", show);
    form.addEventListener("submit", (event) => event.preventDefault());
  }
  show();
}
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
});

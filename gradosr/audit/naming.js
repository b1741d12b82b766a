"use strict";
// Class names and labels.csv, as `gradosr label --import` reads it; the page for labelling and that of an audit share it.
const faultOf = (name) => {
  if (!name) return "Type a name.";
  if ([...name].length > 64) return "At most 64 letters.";
  if (/[\s,]/u.test(name)) return `No space and no comma: ${name.split(/[\s,]+/u).filter(Boolean).join("_") || "red_panda"}`;
  return /[\p{C}\p{Z}]/u.test(name) ? "No control characters." : "";
};
// A name as the run spells it, if it is one of its known classes.
const spelt = (name, classes) => ["known", "unknown", ...classes].find((one) => one.toLowerCase() === name.toLowerCase()) || name;

const guarded = (text) => (/^\s*[=+\-@\uff1d\uff0b\uff0d\uff20]/u.test(text) ? `'${text}` : text); // no cell is a formula
const quoted = (text) => `"${text.replaceAll('"', '""')}"`;

// Rows are {cell, id, label, when}, with the key as a cell.
const saveLabels = (rows) => {
  const lines = rows.map((row) => [row.cell, row.id, guarded(row.label), row.when, "page"].map(quoted).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["\ufeff", ["key,id,label,when,source", ...lines, ""].join("\r\n")], { type: "text/csv" }));
  link.download = "labels.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};

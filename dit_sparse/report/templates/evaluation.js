"use strict";
(() => {
const byId = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
{% include "page.js" %}

// Which score the plot, the intervals and the table of prompts show, and against which cost.
const score = byId("score"), costs = all("[data-cost-button]");
const chosenCost = () => (costs.find((button) => button.getAttribute("aria-pressed") === "true") || { dataset: {} }).dataset.costButton;
const show = () => {
  if (!score) return;
  for (const part of all("[data-score]")) {
    const otherCost = part.dataset.cost && part.dataset.cost !== chosenCost();
    part.hidden = part.dataset.score !== score.value || Boolean(otherCost);
  }
  for (const title of all("[data-score-title]")) title.textContent = score.selectedOptions[0].textContent;
};

// Sorting: numbers by value, text by the alphabet; what has no value stays last either way.
const valueOf = (row, column) => {
  const cell = row.cells[column];
  const given = cell.dataset.v ?? (score && cell.dataset[score.value.replace(/_(.)/g, (_, letter) => letter.toUpperCase())]);
  return given === undefined || given === "" ? null : given;
};
const sortBy = (head, direction) => {
  const table = head.closest("table"), column = head.cellIndex, sign = direction === "ascending" ? 1 : -1;
  for (const other of all("[aria-sort]", table)) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction);
  const rows = [...table.tBodies[0].rows].map((row, i) => ({ row, i, value: valueOf(row, column) }));
  const numbers = rows.every(({ value }) => value === null || !Number.isNaN(Number(value)));
  rows.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.i - b.i;
    const order = numbers ? Number(a.value) - Number(b.value) : a.value.localeCompare(b.value);
    return sign * order || a.i - b.i;
  });
  table.tBodies[0].append(...rows.map(({ row }) => row));
};
for (const button of all(".sort")) button.addEventListener("click", () => {
  const head = button.closest("th"), now = head.getAttribute("aria-sort");
  sortBy(head, now ? (now === "ascending" ? "descending" : "ascending") : button.dataset.first);
});

if (score) score.addEventListener("change", () => {
  show();
  for (const button of all("[data-ranks]")) if (button.dataset.ranks === score.value) sortBy(button.closest("th"), button.dataset.first);
});
for (const button of costs) button.addEventListener("click", () => {
  for (const other of costs) other.setAttribute("aria-pressed", String(other === button));
  show();
});
show();
})();

"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const collator = new Intl.Collator("en", { numeric: true });
  for (const [column, head] of heads.entries()) {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const number = head.classList.contains("number");
      const rows = [...body.rows].map((row) => {
        const text = row.cells[column].textContent.trim();
        return [number ? parseFloat(text.replace("\u2212", "-")) : text, row];
      });
      rows.sort(([x], [y]) => {
        if (!number) return sign * collator.compare(x, y);
        // What has no value comes last either way.
        return Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y) : sign * (x - y);
      });
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      body.append(...rows.map(([, row]) => row));
    });
  }
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("output");
  label.className = "filter";
  input.type = "search";
  label.append("Show rows with ", input, " ", count);
  table.parentElement.before(label);
  const texts = new Map([...body.rows].map((row) => [row, row.textContent.toLowerCase()]));
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    for (const [row, text] of texts) shown += !(row.hidden = !text.includes(wanted));
    count.textContent = wanted ? `${shown} of ${texts.size}` : "";
  });
}
const outlines = document.getElementById("outlines");
if (outlines) {
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input[type=search], textarea");
    if (event.key !== "o" || event.ctrlKey || event.metaKey || event.altKey || typing) return;
    outlines.checked = !outlines.checked;
  });
}
for (const box of document.querySelectorAll("[data-layer]")) {
  box.addEventListener("change", () => {
    for (const path of document.querySelectorAll(`.mip .${box.dataset.layer}`)) path.classList.toggle("off", !box.checked);
  });
}

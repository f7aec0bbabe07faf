// Sorting by a header, and filtering by words, of every table of the page. Without it the page is complete.
for (const box of document.querySelectorAll("[data-table]")) {
  const body = box.querySelector("tbody");
  const heads = [...box.querySelectorAll("th")];
  const rows = [...body.rows];
  const key = (row, column) => row.cells[column].dataset.value;
  const isNumber = (value) => value !== "" && !Number.isNaN(Number(value));

  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const numeric = head.classList.contains("number");
    const before = head.getAttribute("aria-sort");
    const descending = before ? before === "ascending" : numeric;
    heads.forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const sorted = [...rows].sort((one, other) => {
      const [a, b] = [key(one, column), key(other, column)];
      if (numeric && isNumber(a) !== isNumber(b)) return isNumber(a) ? -1 : 1; // what is not known comes last
      const order = numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true });
      return descending ? -order : order;
    });
    body.append(...sorted);
  }));

  const input = box.querySelector("input");
  input?.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    box.querySelector("[role=status]").textContent = words.length ? `${shown} of ${rows.length}` : "";
  });
}

// Draws the pictures that stand as JSON in the page, and lets a reader sort the table of candidates.
"use strict";
(function () {
  const pictures = JSON.parse(document.getElementById("pictures").textContent);
  const drawn = Object.entries(pictures).map(([id, spec]) =>
    vegaEmbed("#" + id, spec, { actions: false, renderer: "svg", tooltip: { theme: "custom" } }).catch((error) => {
      document.getElementById(id).textContent = "This picture can't be drawn here (" + error.message + "); its numbers stand in the table.";
      console.error(error);
    })
  );
  Promise.all(drawn).then((all) => {
    document.documentElement.dataset.drawn = String(all.filter(Boolean).length);
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  });

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    table.querySelectorAll("thead th").forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("thead th").forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        const number = (text) => (text === "" ? Infinity : Number(text));
        const byNumber = (a, b) => number(value(a)) - number(value(b));
        const byText = (a, b) => value(a).localeCompare(value(b));
        const rows = [...body.rows].sort(body.rows[0].cells[column].dataset.value === undefined ? byText : byNumber);
        body.append(...(falling ? rows.reverse() : rows));
      });
    });
  }
})();

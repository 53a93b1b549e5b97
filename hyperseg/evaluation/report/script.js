"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Sort a table by a column; cells without a value come last.
  const sort = (table, column, ascending) => {
    const value = (row) => {
      const text = row.cells[column].dataset.v;
      return text === undefined ? null : Number(text);
    };
    const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : ascending ? a - b : b - a));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    for (const head of heads) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = head.cellIndex === 0 ? "ascending" : "descending";
        const second = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? second : first;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", order);
        sort(table, head.cellIndex, order === "ascending");
      });
    }
  }

  // The confusion matrix: say what the cell under the pointer is, and mark its column.
  const matrix = document.querySelector("table.confusion");
  const readout = document.getElementById("readout");
  matrix.addEventListener("pointerover", ({ target }) => {
    const cell = target.closest("td");
    for (const head of all("th.at", matrix)) head.classList.remove("at");
    if (!cell || !cell.title) return;
    matrix.tHead.rows[0].cells[cell.cellIndex].classList.add("at");
    readout.textContent = cell.title;
  });

  // Enlarged pictures. The four pictures of an image have one place, so that changing between them compares them.
  const zoom = document.getElementById("zoom");
  const picture = document.getElementById("zoom-picture");
  const naming = document.getElementById("zoom-class");
  const kinds = all("#zoom-kinds button");
  const shots = all("figure.shot");
  const classes = JSON.parse(document.getElementById("document").textContent).classes;
  let shot = 0;
  let kind = 0;
  let pixels = [];

  const pixelsOf = (image) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context;
  };
  const classAt = (context, x, y) => {
    const [r, g, b] = context.getImageData(x, y, 1, 1).data;
    const named = classes.filter(({ color }) => color[0] === r && color[1] === g && color[2] === b);
    return named.map(({ name }) => name).join(" or ") || "no class";
  };
  const show = () => {
    const images = all("img", shots[shot]);
    picture.src = images[kind].src;
    picture.alt = images[kind].alt;
    picture.classList.toggle("labels", kind > 0);
    picture.style.setProperty("--ratio", images[0].naturalWidth / images[0].naturalHeight);
    document.getElementById("zoom-name").textContent = shots[shot].querySelector("figcaption").textContent;
    kinds.forEach((button, index) => button.setAttribute("aria-pressed", String(index === kind)));
    naming.textContent = "\u00a0";
    pixels = [images[2], images[1]].map(pixelsOf);
  };
  kinds.forEach((button, index) => button.addEventListener("click", () => { kind = index; show(); }));
  shots.forEach((element, row) => all("button.zoom", element).forEach((button, index) => {
    button.addEventListener("click", () => {
      [shot, kind] = [row, index];
      show();
      zoom.showModal();
      kinds[kind].focus();
    });
  }));
  zoom.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    shot = (shot + step[0] + shots.length) % shots.length;
    kind = (kind + step[1] + kinds.length) % kinds.length;
    show();
  });
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * picture.naturalWidth);
    const y = Math.floor(((event.clientY - box.top) / box.height) * picture.naturalHeight);
    const [truth, prediction] = pixels.map((context) => classAt(context, x, y));
    naming.textContent = `truth: ${truth}, prediction: ${prediction}`;
  });
  document.getElementById("zoom-close").addEventListener("click", () => zoom.close());
  zoom.addEventListener("click", ({ target }) => { if (target === zoom) zoom.close(); });
})();

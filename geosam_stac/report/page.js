"use strict";
// Chips under the pointer and the arrow keys; pages of a long table. Nothing is fetched.
(() => {
  const [ID, ROW_OFF, COL_OFF, HEIGHT, WIDTH, ROW, COL, VALID, BYTES, LON, LAT, REASON] =
    Array.from({ length: 12 }, (_, index) => index);

  const size = (bytes) =>
    bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e3).toFixed(1)} kB`;

  function line(readout, name, parts, reason) {
    const title = document.createElement("b");
    title.textContent = name;
    readout.replaceChildren(title, parts.map((part) => ` · ${part}`).join(""));
    if (reason !== undefined) {
      const why = document.createElement("span");
      why.className = "why";
      why.textContent = ` · skipped: ${reason}`;
      readout.append(why);
    }
  }

  function view(viewer) {
    const scene = viewer.parentElement;
    const readout = scene.querySelector(".readout");
    const hint = readout.textContent;
    const { crs, affine, chips } = JSON.parse(scene.querySelector("script.chips").textContent);
    const places = new Map(chips.map((chip) => [`${chip[ROW]},${chip[COL]}`, chip]));
    const pictures = [...viewer.querySelectorAll("svg.picture")];
    let picked = null;

    function pick(chip) {
      if (chip === picked) return;
      picked = chip;
      for (const box of viewer.querySelectorAll(".picked")) {
        box.setAttribute("x", chip ? chip[COL_OFF] : 0);
        box.setAttribute("y", chip ? chip[ROW_OFF] : 0);
        box.setAttribute("width", chip ? chip[WIDTH] : 0);
        box.setAttribute("height", chip ? chip[HEIGHT] : 0);
      }
      if (!chip) {
        readout.textContent = hint;
        return;
      }
      const [a, b, c, d, e, f] = affine;
      const x = chip[COL_OFF] + chip[WIDTH] / 2;
      const y = chip[ROW_OFF] + chip[HEIGHT] / 2;
      const parts = [`row ${chip[ROW]}, column ${chip[COL]}`, `${chip[VALID]} % valid`];
      if (chip[REASON] === undefined) parts.push(size(chip[BYTES]));
      if (chip[LON] !== null && chip[LAT] !== null) {
        parts.push(`centre ${chip[LON].toFixed(5)},${chip[LAT].toFixed(5)} (longitude,latitude)`);
      }
      const digits = Math.abs(a) + Math.abs(b) < 0.01 ? 6 : 1;
      const east = (a * x + b * y + c).toFixed(digits);
      const north = (d * x + e * y + f).toFixed(digits);
      parts.push(`${east},${north} (${crs})`);
      parts.push(`${chip[WIDTH]} x ${chip[HEIGHT]} px at ${chip[COL_OFF]},${chip[ROW_OFF]}`);
      line(readout, chip[ID], parts, chip[REASON]);
    }

    // Of the chips that cover a point the one whose centre is nearest, as Geo-SAM picks it.
    function under(event) {
      const svg = event.target.closest("svg.picture");
      const matrix = svg && svg.getScreenCTM();
      if (!matrix) return null;
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
      let best = null;
      let least = Infinity;
      for (const chip of chips) {
        const x = at.x - chip[COL_OFF];
        const y = at.y - chip[ROW_OFF];
        if (x < 0 || y < 0 || x > chip[WIDTH] || y > chip[HEIGHT]) continue;
        const off = (x - chip[WIDTH] / 2) ** 2 + (y - chip[HEIGHT] / 2) ** 2;
        if (off < least) [best, least] = [chip, off];
      }
      return best;
    }

    for (const svg of pictures) {
      svg.addEventListener("pointermove", (event) => pick(under(event)));
      svg.addEventListener("pointerdown", (event) => pick(under(event)));
      svg.addEventListener("pointerleave", (event) => {
        if (event.pointerType === "mouse" && document.activeElement !== viewer) pick(null);
      });
    }
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    viewer.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.key === "Escape") {
        pick(null);
      } else if (event.key in steps) {
        event.preventDefault();
        const [down, right] = steps[event.key];
        const next = picked
          ? places.get(`${picked[ROW] + down},${picked[COL] + right}`)
          : places.get("0,0") || chips[0];
        if (next) pick(next);
      }
    });
  }

  function paginate(pager) {
    const rows = [...document.querySelectorAll("table.paged tbody tr")];
    const step = Number(pager.dataset.rows);
    if (rows.length <= step) return;
    const [find, status] = [pager.querySelector("input"), pager.querySelector(".at")];
    const [back, on] = [pager.querySelector(".previous"), pager.querySelector(".next")];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    let first = 0;

    function show() {
      const wanted = find.value.trim().toLowerCase();
      const hits = rows.filter((_, index) => texts[index].includes(wanted));
      first = Math.max(0, Math.min(first, Math.floor((hits.length - 1) / step) * step));
      const page = new Set(hits.slice(first, first + step));
      for (const row of rows) row.hidden = !page.has(row);
      status.textContent = hits.length
        ? `${first + 1} to ${first + page.size} of ${hits.length}`
        : "none";
      back.disabled = first === 0;
      on.disabled = first + step >= hits.length;
    }

    find.addEventListener("input", () => { first = 0; show(); });
    back.addEventListener("click", () => { first -= step; show(); });
    on.addEventListener("click", () => { first += step; show(); });
    pager.hidden = false;
    show();
    return (row) => {
      find.value = "";
      first = Math.floor(Math.max(0, rows.indexOf(row)) / step) * step;
      show();
    };
  }

  for (const viewer of document.querySelectorAll(".viewer")) view(viewer);
  const pager = document.querySelector(".pager");
  const goTo = pager ? paginate(pager) : undefined;

  // A link to a folded scene unfolds it; one to a row of another page turns to it.
  function reveal() {
    const target = document.getElementById(location.hash.slice(1));
    if (!target) return;
    if (target.matches("details")) target.open = true;
    if (target.matches("tr") && goTo) goTo(target);
    target.scrollIntoView();
  }
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();
})();

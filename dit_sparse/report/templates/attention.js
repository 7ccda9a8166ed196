// Browse: one step, layer, head and query point at a time; thumbnails are drawn when they come into sight.
const chance = JSON.parse(byId("chance").textContent);
const grid = byId("grid"), cells = all("button", grid);
const shown = { step: data.steps[0], layer: data.layers[0], head: data.heads[0], point: 0, kept: true };
const indexOf = (step, layer, head) =>
  (data.steps.indexOf(step) * data.layers.length + data.layers.indexOf(layer)) * data.heads.length + data.heads.indexOf(head);
const current = () => indexOf(shown.step, shown.layer, shown.head);
const ofCell = (cell) => indexOf(shown.step, Number(cell.dataset.layer), Number(cell.dataset.head));
let picture = null;

const FIGURES = {
  recall: ["recall", (n) => n.recall, percent], density: ["density", (n) => n.density, percent],
  error: ["output error", (n) => n.error, (x) => x.toFixed(3)],
  effective_keys: ["effective keys", (n) => n.pattern.effective_keys, (x) => x.toFixed(x < 10 ? 1 : 0)],
  same_frame: ["same frame", (n) => n.pattern.same_frame, percent], same_place: ["same place", (n) => n.pattern.same_place, percent],
  neighbours: ["neighbours", (n) => n.pattern.neighbours, percent], first_frame: ["first frame", (n) => n.pattern.first_frame, percent],
  text: ["text", (n) => n.pattern.text, percent],
};

const sight = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) drawThumbnail(entry.target);
}, { rootMargin: "200px" });
const drawThumbnail = async (cell) => {
  const index = ofCell(cell), bytes = await bytesOf(index);
  if (index === ofCell(cell)) drawMap(cell.querySelector("canvas"), bytes.ordered);
  cell.dataset.drawn = index;
};
const drawGrid = () => {
  const [name, figure, format] = FIGURES[byId("number").value];
  for (const cell of cells) {
    const text = format(figure(data.numbers[ofCell(cell)]));
    const chosen = Number(cell.dataset.layer) === shown.layer && Number(cell.dataset.head) === shown.head;
    cell.querySelector("span").textContent = text;
    cell.setAttribute("aria-label", `layer ${cell.dataset.layer}, head ${cell.dataset.head}: ${name} ${text}`);
    cell.parentElement.setAttribute("aria-selected", String(chosen));
    cell.tabIndex = chosen ? 0 : -1;
    sight.unobserve(cell);
    sight.observe(cell);
  }
  for (const button of all("button", byId("steps"))) button.setAttribute("aria-pressed", String(Number(button.dataset.step) === shown.step));
};

const drawNumbers = () => {
  const numbers = data.numbers[current()];
  byId("which").textContent = `Step ${shown.step}, layer ${shown.layer}, head ${shown.head}`;
  byId("dense").hidden = !numbers.dense_reason;
  byId("dense").textContent = `The method would leave this call dense (${(numbers.dense_reason ?? "").replaceAll("_", " ")}); shown is what it would keep.`;
  const wanted = Object.entries(FIGURES).filter(([key]) => key !== "text" || data.text);
  byId("numbers").replaceChildren(...wanted.map(([key, [name, figure, format]]) => {
    const entry = document.createElement("div"), value = document.createElement("dd"), about = document.createElement("dd");
    entry.append(Object.assign(document.createElement("dt"), { textContent: name }), value, about);
    value.textContent = format(figure(numbers));
    about.textContent = key in chance ? `by chance ${format(chance[key])}` : "";
    return entry;
  }));
};

const markText = (square, range) => {
  all("i", square).forEach((mark) => mark.remove());
  if (!range) return;
  const from = `${(100 * range[0]) / data.blocks}%`;
  const width = `${(100 * (range[1] + 1 - range[0])) / data.blocks}%`;
  for (const axis of ["left", "top"]) {
    const mark = document.createElement("i");
    mark.className = `text ${axis}`;
    mark.title = `text: ${axis === "left" ? "keys" : "queries"}`;
    mark.style[axis] = from;
    mark.style[axis === "left" ? "width" : "height"] = width;
    square.append(mark);
  }
};
const drawMaps = async () => {
  const index = current(), bytes = await bytesOf(index);
  if (index !== current()) return;
  for (const figure of all("[data-map]")) {
    const which = figure.dataset.map, last = which === "ordered" || !data.reordered;
    drawMap(figure.querySelector("canvas"), bytes[which], shown.kept && last ? bytes.kept : null);
    figure.querySelector("canvas").setAttribute("aria-label",
      `Attention map of step ${shown.step}, layer ${shown.layer}, head ${shown.head}: ${figure.querySelector("strong").textContent}`);
    figure.querySelector(".last").textContent = data.blocks - 1;
    markText(figure.querySelector(".square"), which === "ordered" && data.numbers[index].sorted ? data.textSorted : data.text);
  }
  await drawFilm(bytes);
  byId("inspector").dataset.shown = `${index}.${shown.point}`;
};

const drawCurves = () => {
  const { curves, density, recall } = data.numbers[current()], plot = byId("recall").querySelector(".plot");
  const line = (name, style) => `<polyline class="${style}" points="${curves[name].density.map((x, i) => `${100 * x},${100 - 100 * curves[name].recall[i]}`).join(" ")}"/>`;
  const levels = [0, 25, 50, 75, 100];
  plot.querySelector("svg").innerHTML = levels.map((y) => `<line class="grid" x1="0" x2="100" y1="${y}" y2="${y}"/><line class="grid" y1="0" y2="100" x1="${y}" x2="${y}"/>`).join("")
    + line("window", "three") + (data.reordered ? line("oracle_raster", "dashed") : "") + line("oracle", "one") + line("method", "two");
  all(".tick, .spot", plot).forEach((old) => old.remove());
  plot.prepend(...levels.map((y) => Object.assign(document.createElement("span"), { className: "tick", textContent: `${100 - y} %`, style: `top:${y}%` })));
  const spot = Object.assign(document.createElement("i"), { className: "spot", title: `kept here: density ${percent(density)}, recall ${percent(recall)}` });
  spot.style.left = `${100 * density}%`;
  spot.style.top = `${100 - 100 * recall}%`;
  plot.querySelector(".area").append(spot);
  plot.querySelector(".area").setAttribute("aria-label", `Recall over density; the method keeps ${percent(density)} of the blocks and ${percent(recall)} of the softmax`);
};

const drawFilm = async (bytes) => {
  const query = data.points[shown.point], row = data.numbers[current()].points[shown.point], film = byId("film");
  if (data.film && !picture) {
    picture = new Image();
    picture.src = data.film.source;
    await picture.decode();
  }
  if (film.childElementCount === 0) film.append(...data.frames.map(() => {
    const figure = document.createElement("figure");
    figure.append(Object.assign(document.createElement("canvas"), { role: "img" }), document.createElement("figcaption"));
    return figure;
  }));
  all("figure", film).forEach((figure, t) => {
    drawFrame(figure.firstChild, picture, t, bytes.heat[shown.point], query);
    const share = percent(row.frames[t]);
    figure.lastChild.textContent = `t ${t}, frame ${data.frames[t]}: ${share}`;
    figure.firstChild.ariaLabel = `Frame ${data.frames[t]}: holds ${share} of the softmax${query[0] === t ? "; the query is here" : ""}`;
    figure.classList.toggle("asks", query[0] === t);
  });
  byId("row").textContent = `Most at t ${row.peak[0]}, h ${row.peak[1]}, w ${row.peak[2]}: ${percent(row.peak_share)}`
    + (data.text ? `; text holds ${percent(row.text)}.` : ".");
  for (const button of all("button", byId("queries"))) button.setAttribute("aria-pressed", String(Number(button.dataset.point) === shown.point));
};

const drawScales = () => {
  const gradient = (list) => `linear-gradient(to right, ${list.join(",")})`;
  for (const [id, scale, list] of [["ramp", data.mass, stops], ["heat", data.numbers[current()].heat, DARK]]) {
    const bar = byId(id);
    bar.style.background = gradient(list);
    bar.previousElementSibling.textContent = percent(10 ** scale.low);
    bar.nextElementSibling.textContent = percent(10 ** scale.high);
  }
};
const draw = () => { drawScales(); drawGrid(); drawNumbers(); drawCurves(); return drawMaps(); };
const show = (change) => {
  Object.assign(shown, change);
  try { history.replaceState(null, "", `#s${shown.step}l${shown.layer}h${shown.head}p${shown.point}`); } catch { /* an embedded page may not */ }
  return draw();
};

const step = (list, value, by) => list[Math.min(Math.max(list.indexOf(value) + by, 0), list.length - 1)];
const MOVES = {
  ArrowLeft: () => ({ head: step(data.heads, shown.head, -1) }), ArrowRight: () => ({ head: step(data.heads, shown.head, 1) }),
  ArrowUp: () => ({ layer: step(data.layers, shown.layer, -1) }), ArrowDown: () => ({ layer: step(data.layers, shown.layer, 1) }),
  Home: () => ({ head: data.heads[0] }), End: () => ({ head: data.heads.at(-1) }),
};
const KEYS = {
  "[": () => ({ step: step(data.steps, shown.step, -1) }), "]": () => ({ step: step(data.steps, shown.step, 1) }),
  ",": () => ({ point: Math.max(shown.point - 1, 0) }), ".": () => ({ point: Math.min(shown.point + 1, data.points.length - 1) }),
};
byId("inspector").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
  const inside = grid.contains(event.target), move = (inside && MOVES[event.key]) || KEYS[event.key];
  if (event.key.toLowerCase() === "k") byId("kept").click();
  else if (move) show(move());
  else return;
  event.preventDefault();
  if (inside && move) cells.find((cell) => cell.tabIndex === 0).focus();
});
grid.addEventListener("click", (event) => {
  const cell = event.target.closest("button");
  if (cell) show({ layer: Number(cell.dataset.layer), head: Number(cell.dataset.head) });
});
byId("steps").addEventListener("click", (event) => { if (event.target.dataset.step) show({ step: Number(event.target.dataset.step) }); });
byId("queries").addEventListener("click", (event) => { if (event.target.dataset.point) show({ point: Number(event.target.dataset.point) }); });
byId("number").addEventListener("change", drawGrid);
byId("kept").addEventListener("click", () => {
  byId("kept").setAttribute("aria-pressed", String((shown.kept = !shown.kept)));
  drawMaps();
});

// What lies under the pointer, in words.
const placeIn = (canvas, event, columns, rows) => {
  const box = canvas.getBoundingClientRect(), at = (part, count) => Math.min(Math.max(Math.floor(part * count), 0), count - 1);
  return [at((event.clientX - box.left) / box.width, columns), at((event.clientY - box.top) / box.height, rows)];
};
for (const figure of all("[data-map]")) figure.querySelector(".square").addEventListener("pointermove", async (event) => {
  const canvas = figure.querySelector("canvas"), [key, query] = placeIn(canvas, event, data.cells, data.cells);
  const bytes = await bytesOf(current()), i = query * data.cells + key, kept = bytes.kept[i] / 255;
  const name = (place) => data.pool === 1 ? `${place}` : `${place * data.pool} to ${Math.min((place + 1) * data.pool, data.blocks) - 1}`;
  const also = figure.dataset.map === "ordered" || !data.reordered ? (kept === 1 ? ", kept" : kept === 0 ? ", skipped" : `, ${Math.round(100 * kept)} % of it kept`) : "";
  figure.querySelector("output").textContent = `query block ${name(query)}, key block ${name(key)}: ${shareAt(bytes[figure.dataset.map][i], data.mass)} of a row${also}`;
});
byId("film").addEventListener("pointermove", async (event) => {
  const t = all("canvas", byId("film")).indexOf(event.target);
  if (t < 0) return;
  const [w, h] = placeIn(event.target, event, data.grid[2], data.grid[1]), bytes = await bytesOf(current());
  const level = bytes.heat[shown.point][(t * tall + Math.floor(h / data.side)) * broad + Math.floor(w / data.side)];
  byId("token").textContent = `t ${t}, h ${h}, w ${w}: ${shareAt(level, data.numbers[current()].heat)}`;
});

const themed = () => { readTheme(); return draw(); };
theme.addEventListener("click", themed);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themed);
const asked = /^#s(\d+)l(\d+)h(\d+)p(\d+)$/.exec(location.hash)?.slice(1).map(Number);
if (asked && data.steps.includes(asked[0]) && data.layers.includes(asked[1]) && data.heads.includes(asked[2]) && asked[3] < data.points.length) {
  Object.assign(shown, { step: asked[0], layer: asked[1], head: asked[2], point: asked[3] });
}
if (typeof DecompressionStream === "undefined") {
  byId("dense").hidden = false;
  byId("dense").textContent = "This browser cannot unpack the maps (DecompressionStream is missing): the pictures beside the page show them.";
} else themed();

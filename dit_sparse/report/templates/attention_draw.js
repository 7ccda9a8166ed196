// Bytes of a head, unpacked when it is first shown, and colours of the theme.
const data = JSON.parse(byId("data").textContent);
const [tall, broad] = data.shown;
const area = data.cells * data.cells;
const unpacked = new Map();
const bytesOf = (index) => {
  if (!unpacked.has(index)) unpacked.set(index, (async () => {
    const packed = Uint8Array.from(atob(data.maps[index]), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    const cut = (from, count) => bytes.subarray(from, from + count);
    const cells = data.grid[0] * tall * broad;
    return {
      raster: cut(0, area), ordered: cut(area, area), kept: cut(2 * area, area),
      heat: data.points.map((_, i) => cut(3 * area + i * cells, cells)),
    };
  })());
  return unpacked.get(index);
};

// More mass is further from the page: dark on light, bright on dark. On frames heat is always bright.
const LIGHT = ["#fbfaf4", "#f8e2a0", "#f0a653", "#d1504c", "#7e2467", "#210a3d"];
const DARK = ["#10151c", "#3a1a66", "#8c2369", "#d9513c", "#f8a41f", "#fdfbb0"];
const table = (stops) => {
  const rgb = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (rgb.length - 1), i = Math.min(Math.floor(place), rgb.length - 2);
    return rgb[i].map((from, c) => Math.round(from + (rgb[i + 1][c] - from) * (place - i)));
  });
};
const HEAT = table(DARK);
let colours, paper, stops;
const readTheme = () => {
  paper = getComputedStyle(byId("heads").closest("section").querySelector(".wide")).backgroundColor.match(/\d+/g).map(Number);
  stops = paper[0] > 128 ? LIGHT : DARK;
  colours = table(stops);
};

const drawMap = (canvas, levels, kept) => {
  canvas.width = canvas.height = data.cells;
  const context = canvas.getContext("2d"), image = context.createImageData(data.cells, data.cells);
  for (let i = 0; i < area; i++) {
    const colour = colours[levels[i]], share = kept ? kept[i] / 255 : 1;
    const grey = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2];
    for (let c = 0; c < 3; c++) {
      image.data[4 * i + c] = share * colour[c] + (1 - share) * (0.55 * grey + 0.45 * paper[c]);
    }
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
};

// One frame in grey, the heat of its tokens over it, the asking token outlined.
const drawFrame = (canvas, picture, t, heat, query) => {
  const film = data.film ?? { width: broad * 16, height: tall * 16 };
  const zoom = Math.max(1, Math.ceil(256 / film.width));
  const [width, height] = [film.width * zoom, film.height * zoom];
  canvas.width = width; canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  if (picture) context.drawImage(picture, 0, t * film.height, film.width, film.height, 0, 0, width, height);
  const image = context.getImageData(0, 0, width, height), pixels = image.data;
  for (let y = 0; y < height; y++) {
    const row = (t * tall + Math.floor(y * data.grid[1] / height / data.side)) * broad;
    for (let x = 0; x < width; x++) {
      const level = heat[row + Math.floor(x * data.grid[2] / width / data.side)], i = 4 * (y * width + x);
      const grey = 0.75 * (0.3 * pixels[i] + 0.59 * pixels[i + 1] + 0.11 * pixels[i + 2]);
      const over = 0.92 * level / 255, colour = HEAT[level];
      for (let c = 0; c < 3; c++) pixels[i + c] = grey * (1 - over) + colour[c] * over;
      pixels[i + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  if (query[0] !== t) return;
  const [cell, across] = [height / data.grid[1], width / data.grid[2]];
  for (const [style, line] of [["#000", 6], ["#4ff", 3]]) {
    context.strokeStyle = style; context.lineWidth = line;
    context.strokeRect(query[2] * across, query[1] * cell, across, cell);
  }
};

const percent = (share) => {
  const value = 100 * share;
  return `${value >= 10 ? value.toFixed(1) : value >= 0.1 ? value.toFixed(2) : value.toPrecision(2)} %`;
};
const shareAt = (level, scale) => {
  const share = 10 ** (scale.low + (level / 255) * (scale.high - scale.low));
  return level === 0 ? `below ${percent(share)}` : `about ${percent(share)}`;
};

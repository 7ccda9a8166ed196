// Curves that follow the frame. Hovering reads a value, a click or drag moves the videos.
const followCurves = (frames, go) => {
  const say = (value, unit) => (value === null ? "–" : `${value.toPrecision(4)}${unit ? ` ${unit}` : ""}`);
  const curves = all("[data-follows]").map((figure) => {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const values = (frame) => data.series.map((series) => say(series[frame], data.series.length > 1 ? "" : data.unit));
    const words = (frame) => values(frame).map((value, i) => (data.series.length > 1 ? `${data.names[i]} ` : "") + value).join(", ");
    const area = figure.querySelector(".area"), tip = figure.querySelector(".tip"), hover = figure.querySelector(".hover");
    const place = (line, frame) => { line.setAttribute("x1", data.x[frame]); line.setAttribute("x2", data.x[frame]); };
    const at = (event) => {
      const box = area.getBoundingClientRect();
      return Math.min(frames - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * frames)));
    };
    const leave = () => { tip.hidden = true; hover.setAttribute("visibility", "hidden"); };
    area.addEventListener("pointerdown", (event) => { area.setPointerCapture(event.pointerId); go(at(event)); });
    area.addEventListener("pointermove", (event) => {
      const frame = at(event);
      if (event.buttons) go(frame);
      place(hover, frame);
      hover.setAttribute("visibility", "visible");
      tip.textContent = `frame ${frame + 1}: ${words(frame)}`;
      tip.style.left = `${Math.min(80, Math.max(20, data.x[frame]))}%`;
      tip.hidden = false;
    });
    area.addEventListener("pointerleave", leave);
    area.addEventListener("pointercancel", leave);
    return { cursor: figure.querySelector(".cursor"), now: all(".now", figure), place, values };
  });
  return (frame) => curves.forEach(({ cursor, now, place, values }) => {
    place(cursor, frame);
    values(frame).forEach((value, i) => { now[i].textContent = value; });
  });
};

// The player: one picture per frame, cut into as many canvases as there are panels.
const setUpPlayer = (media) => {
  const player = byId("player"), screens = byId("screens"), play = byId("play"), scrub = byId("scrub"), wipe = byId("wipe");
  const pens = all("canvas", screens).map((canvas) => canvas.getContext("2d"));
  let shown = -1, aim = 0; // the frame on the canvases, and the one asked for

  const show = (frame, picture, x, y) => {
    pens.forEach((pen, i) => pen.drawImage(
      picture, x + i * media.step[0], y + i * media.step[1], media.width, media.height, 0, 0, media.width, media.height));
    if (frame === shown) return;
    shown = frame;
    if (source.playing()) aim = frame;
    player.dataset.frame = frame;
    if (source.playing() || document.activeElement !== scrub) scrub.value = frame;
    byId("frame").textContent = `frame ${frame + 1} / ${media.frames}`;
    follow(frame);
  };
  const changed = () => {
    play.textContent = source.playing() ? "Pause" : "Play";
    play.setAttribute("aria-label", play.textContent);
  };
  const source = (media.kind === "sheet" ? sheetSource : videoSource)(media, show, changed);
  const go = (frame) => {
    aim = Math.min(media.frames - 1, Math.max(0, frame));
    scrub.value = aim;
    source.seek(aim);
  };
  const follow = followCurves(media.frames, go);
  const toggle = () => (source.playing() ? source.pause() : source.play());

  const setWipe = (percent) => {
    const value = Math.min(100, Math.max(0, percent));
    wipe.value = value;
    screens.style.setProperty("--wipe", `${value}%`);
  };
  const setView = (view) => {
    screens.dataset.view = view;
    wipe.parentElement.hidden = view !== "wipe";
    for (const button of all("[data-view][aria-pressed]")) button.setAttribute("aria-pressed", String(button.dataset.view === view));
  };
  const flip = () => { setView("wipe"); setWipe(Number(wipe.value) > 0 ? 0 : 100); };
  const drag = (event) => {
    if (screens.dataset.view !== "wipe") return;
    const box = screens.getBoundingClientRect();
    setWipe((100 * (event.clientX - box.left)) / box.width);
  };
  if (wipe) {
    for (const button of all("button[data-view]")) button.addEventListener("click", () => setView(button.dataset.view));
    wipe.addEventListener("input", () => setWipe(Number(wipe.value)));
    screens.addEventListener("pointerdown", (event) => { screens.setPointerCapture(event.pointerId); drag(event); });
    screens.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  }

  play.addEventListener("click", toggle);
  byId("back").addEventListener("click", () => go(aim - 1));
  byId("forward").addEventListener("click", () => go(aim + 1));
  scrub.addEventListener("input", () => go(Number(scrub.value)));
  byId("speed").addEventListener("change", (event) => source.speed(Number(event.target.value)));
  const keys = {
    ArrowLeft: () => go(aim - 1), ArrowRight: () => go(aim + 1), Home: () => go(0), End: () => go(media.frames - 1), " ": toggle,
    w: () => wipe && setView(screens.dataset.view === "wipe" ? "side" : "wipe"), x: () => wipe && flip(),
  };
  // Only while the focus is in the player: the keys stay free for the rest of the page and for screen readers.
  player.addEventListener("keydown", (event) => {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.altKey || event.ctrlKey || event.metaKey || !Object.hasOwn(keys, key)) return;
    const letter = key === "w" || key === "x";
    if (event.target.matches("input, select") && !letter) return;
    if (event.target.matches("button") && key === " ") return;
    event.preventDefault();
    keys[key]();
  });

  source.load().then(() => {
    go(0);
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) source.play();
  }).catch((error) => {
    const trouble = byId("trouble");
    trouble.textContent = `The player cannot show ${media.file}. It belongs beside this page: move the folder as a whole. ${error.message}`;
    trouble.hidden = false;
  });
};
if (byId("media")) setUpPlayer(JSON.parse(byId("media").textContent));

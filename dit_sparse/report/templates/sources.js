// Where the player's pictures come from. Both sources know seek(frame), which stops playing, play(), pause(), playing()
// and speed(factor); they call show(frame, picture, x, y) when a frame is ready, (x, y) being its corner in the picture,
// and changed() when they start or stop.

// All frames in one picture: exact, and at once.
const sheetSource = (media, show, changed) => {
  const sheet = new Image();
  let frame = 0, origin = 0, rate = 1, timer = null;
  const draw = (wanted) => {
    frame = wanted;
    const [width, height] = media.cell;
    show(frame, sheet, (frame % media.columns) * width, Math.floor(frame / media.columns) * height);
  };
  const rebase = () => { origin = performance.now() - (1000 * frame) / (media.fps * rate); };
  const tick = (now) => {
    const wanted = Math.floor(((now - origin) * media.fps * rate) / 1000) % media.frames;
    if (wanted >= 0 && wanted !== frame) draw(wanted);
    timer = requestAnimationFrame(tick);
  };
  const pause = () => { if (timer !== null) { cancelAnimationFrame(timer); timer = null; changed(); } };
  return {
    load: async () => { sheet.src = media.source; await sheet.decode(); },
    seek: (wanted) => { pause(); draw(wanted); },
    play: () => { if (timer === null) { rebase(); timer = requestAnimationFrame(tick); changed(); } },
    pause,
    playing: () => timer !== null,
    speed: (factor) => { rate = factor; rebase(); },
  };
};

// One video whose frames hold every panel. The browser says which frame it presents; a seek goes to the middle
// of a frame's time, because its edges may round to a neighbour, and a newer wish replaces one under way.
const videoSource = (media, show, changed) => {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, loop: true, playsInline: true, preload: "auto", className: "source" });
  video.setAttribute("aria-hidden", "true");
  video.tabIndex = -1;
  let wanted = null, pictured = -1, late = 0; // the frame sought, the one the browser presented last, a timer
  const clamp = (frame) => Math.min(media.frames - 1, Math.max(0, frame));
  const draw = (frame) => show(clamp(frame), video, 0, 0);
  const go = () => { video.currentTime = (wanted + 0.5) / media.fps; };
  const exact = "requestVideoFrameCallback" in video;
  const arrive = () => { clearTimeout(late); const frame = wanted; wanted = null; draw(frame); };
  const presented = (_, details) => {
    pictured = clamp(Math.round(details.mediaTime * media.fps));
    if (!video.seeking && wanted === pictured) arrive();
    else if (!video.seeking && wanted === null) draw(pictured);
    video.requestVideoFrameCallback(presented);
  };
  const poll = () => {
    if (!video.paused && !video.seeking) draw(Math.floor(video.currentTime * media.fps + 1e-3));
    requestAnimationFrame(poll);
  };
  // The end of a seek does not mean that the new picture is there to be drawn: that is said by `presented`.
  video.addEventListener("seeked", () => {
    if (wanted === null) return;
    if (Math.floor(video.currentTime * media.fps) !== wanted) { go(); return; }
    clearTimeout(late);
    if (!exact || pictured === wanted) arrive();
    else late = setTimeout(() => { if (wanted !== null && !video.seeking) arrive(); }, 1000); // a hidden page presents nothing
  });
  video.addEventListener("play", changed);
  video.addEventListener("pause", changed);
  const inside = () => {
    const bytes = atob(media.source.slice(media.source.indexOf(",") + 1));
    return URL.createObjectURL(new Blob([Uint8Array.from(bytes, (c) => c.charCodeAt(0))], { type: "video/mp4" }));
  };
  const seek = (frame) => {
    video.pause();
    const busy = video.seeking && wanted !== null;
    wanted = clamp(frame);
    if (!busy) go();
  };
  return {
    load: () => new Promise((resolve, reject) => {
      video.addEventListener("loadeddata", resolve, { once: true });
      video.addEventListener("error", () => reject(new Error(video.error ? video.error.message : "")), { once: true });
      video.src = media.source.startsWith("data:") ? inside() : media.source;
      byId("player").append(video);
      if (exact) video.requestVideoFrameCallback(presented);
      else poll();
    }),
    seek,
    play: () => { wanted = null; video.play().catch(changed); },
    // A picture already on its way is presented after the pause: go back to the one that the page names.
    pause: () => { if (!video.paused && pictured >= 0) seek(pictured); else video.pause(); },
    playing: () => !video.paused,
    speed: (factor) => { video.playbackRate = factor; },
  };
};

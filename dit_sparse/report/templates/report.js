"use strict";
(() => {
  const player = document.getElementById("player");
  const videos = [...player.querySelectorAll("video")];
  const [leader, ...followers] = videos;
  const fps = Number(player.dataset.fps);
  const frames = Number(player.dataset.frames);
  const play = document.getElementById("play");
  const scrub = document.getElementById("scrub");
  const label = document.getElementById("frame");
  const charts = [...document.querySelectorAll("[data-follows]")].map((figure) => ({
    area: figure.querySelector(".area"),
    cursor: figure.querySelector(".cursor"),
    now: figure.querySelector(".now"),
    data: JSON.parse(figure.querySelector("script").textContent),
  }));
  const clamp = (frame) => Math.min(frames - 1, Math.max(0, frame));
  const frameAt = (seconds) => clamp(Math.floor(seconds * fps + 1e-3));
  let shown = -1;
  let wanted = null; // the frame asked for while a seek is under way

  const show = (frame) => {
    if (frame === shown) return;
    shown = frame;
    scrub.value = frame;
    label.textContent = `frame ${frame + 1} / ${frames}`;
    for (const { cursor, now, data } of charts) {
      cursor.setAttribute("x1", data.x[frame]);
      cursor.setAttribute("x2", data.x[frame]);
      const value = data.y[frame];
      now.textContent = value === null ? "identical" : `${value.toPrecision(4)} ${data.unit}`;
    }
  };

  const pauseAll = () => videos.forEach((video) => video.pause());
  const seek = (frame) => {
    pauseAll();
    wanted = clamp(frame);
    // The middle of a frame's time: its edges may round to a neighbour.
    videos.forEach((video) => { video.currentTime = (wanted + 0.5) / fps; });
    show(wanted);
  };
  const start = () => {
    wanted = null;
    videos.forEach((video) => video.play().catch(() => {}));
  };
  const toggle = () => (leader.paused ? start() : pauseAll());

  const follow = () => {
    if (!leader.paused) {
      for (const video of followers) {
        if (Math.abs(video.currentTime - leader.currentTime) > 0.75 / fps) video.currentTime = leader.currentTime;
        if (video.paused) video.play().catch(() => {});
      }
    }
    if (wanted === null) show(frameAt(leader.currentTime));
    requestAnimationFrame(follow);
  };

  const tell = () => {
    play.textContent = leader.paused ? "Play" : "Pause";
    play.setAttribute("aria-pressed", String(!leader.paused));
  };
  leader.addEventListener("play", tell);
  leader.addEventListener("pause", () => { followers.forEach((video) => video.pause()); tell(); });
  play.addEventListener("click", toggle);
  document.getElementById("back").addEventListener("click", () => seek(shown - 1));
  document.getElementById("forward").addEventListener("click", () => seek(shown + 1));
  scrub.addEventListener("input", () => seek(Number(scrub.value)));
  player.addEventListener("keydown", (event) => {
    if (event.target === scrub || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") seek(shown - 1);
    else if (event.key === "ArrowRight") seek(shown + 1);
    else if (event.key === " " && event.target.tagName !== "BUTTON") toggle();
    else return;
    event.preventDefault();
  });
  for (const { area } of charts) {
    const point = (event) => {
      const box = area.getBoundingClientRect();
      seek(Math.floor(((event.clientX - box.left) / box.width) * frames));
    };
    area.addEventListener("pointerdown", (event) => { area.setPointerCapture(event.pointerId); point(event); });
    area.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
  }
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) seek(0);
  tell();
  follow();
})();

"use strict";
// Two to four films at one time: side by side, or two of them under a wipe or as their difference.

/** Frames per second of a film, of a text such as "24/1". */
function rateOf(film) {
  const [frames, seconds] = String(film.fps ?? "").split("/").map(Number);
  return frames > 0 ? frames / (seconds || 1) : 25;
}

/** Plays videos as one. The first is the clock; the others follow it. */
class Player {
  constructor(videos, rate) {
    this.videos = videos;
    this.frame = 1 / rate;
    this.speed = 1;
    this.isPlaying = false;
    this.isClosed = false;
    this.onChange = () => {};
    const follow = () => {
      if (this.isClosed) return;
      if (this.isPlaying) this.follow();
      this.onChange();
      requestAnimationFrame(follow);
    };
    requestAnimationFrame(follow);
  }

  /** The videos that the browser can show. */
  get playable() {
    return this.videos.filter((video) => !video.error);
  }

  get duration() {
    return Math.max(0, ...this.playable.map((video) => video.duration || 0));
  }

  /** The longest film is the clock, so that the time goes on until all have ended. */
  get clock() {
    const videos = this.playable.length ? this.playable : this.videos;
    return videos.reduce((longest, video) => ((video.duration || 0) > (longest.duration || 0) ? video : longest));
  }

  get time() {
    return this.clock.currentTime;
  }

  /** Hold each follower within a part of a frame: by its speed, and by a jump where it is further away. */
  follow() {
    const { clock } = this;
    if (clock.ended) {
      this.seek(0).then(() => this.isPlaying && this.play());
      return;
    }
    for (const video of this.playable) {
      if (video === clock || clock.currentTime >= video.duration) continue;
      const behind = clock.currentTime - video.currentTime;
      if (Math.abs(behind) > 4 * this.frame) video.currentTime = clock.currentTime;
      const isNear = Math.abs(behind) < this.frame / 8;
      const rate = this.speed * (isNear ? 1 : 1 + Math.max(-0.3, Math.min(0.3, behind / (4 * this.frame))));
      if (video.playbackRate !== rate) video.playbackRate = rate;
      if (video.paused) video.play().catch(() => {});
    }
  }

  async play() {
    await this.seek(this.clock.ended ? 0 : this.time);
    this.isPlaying = true;
    await Promise.all(this.playable.map((video) => video.play().catch(() => {})));
  }

  pause() {
    this.isPlaying = false;
    this.videos.forEach((video) => video.pause());
  }

  /** All films at a time, in seconds; resolves when each shows it, or cannot be shown. */
  seek(time) {
    return Promise.all(
      this.playable.map((video) => {
        const target = Math.max(0, Math.min(time, (video.duration || time) - this.frame / 2));
        if (Math.abs(video.currentTime - target) < 1e-4 && !video.seeking) return null;
        return new Promise((done) => {
          for (const end of ["seeked", "error"]) video.addEventListener(end, done, { once: true });
          video.currentTime = target;
        });
      }),
    );
  }

  /** Pause, and go some frames on. The middle of a frame is aimed at, where rounding shows no other one. */
  step(frames) {
    this.pause();
    const frame = Math.floor(this.time / this.frame + 1e-3) + frames;
    const last = Math.max(0, Math.round(this.duration / this.frame) - 1);
    return this.seek((Math.max(0, Math.min(frame, last)) + 0.5) * this.frame);
  }

  setSpeed(speed) {
    this.speed = speed;
    this.videos.forEach((video) => (video.playbackRate = speed));
  }

  /** Stop, and give back the memory of the videos. */
  close() {
    this.isClosed = true;
    this.pause();
    for (const video of this.videos) {
      video.removeAttribute("src");
      video.load();
    }
  }
}

const viewer = {
  player: null,
  films: [],

  open(films) {
    stopVideo();
    this.films = films;
    const videos = films.map((film) =>
      element("video", { src: urlOf(film.run, film.film), muted: true, preload: "auto", playsInline: true, "aria-label": film.label }),
    );
    videos.forEach((video, place) => video.addEventListener("error", () => tellFault(video.parentElement, films[place].label, films[place].film)));
    byId("stage").replaceChildren(
      ...films.map((film, place) => element("figure", {}, videos[place], element("figcaption", {}, film.label))),
    );
    this.player = new Player(videos, Math.max(...films.map(rateOf)));
    this.player.onChange = () => this.update();
    const names = films.map((film, place) => [String(place), film.label]);
    fillSelect(byId("first-of-pair"), names);
    fillSelect(byId("second-of-pair"), names);
    byId("first-of-pair").value = "0";
    byId("second-of-pair").value = "1";
    byId("speed").value = "1";
    byId("differences").replaceChildren(differences(films));
    this.setMode("side");
    byId("viewer").showModal();
    byId("play").focus();
  },

  close() {
    this.player?.close();
    this.player = null;
    byId("stage").replaceChildren();
  },

  setMode(mode) {
    const stage = byId("stage");
    stage.dataset.mode = mode;
    for (const button of document.querySelectorAll("#viewer [data-mode][aria-pressed]")) {
      button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    }
    byId("wipe").hidden = mode !== "wipe";
    byId("amplify").hidden = mode !== "difference";
    byId("pair").hidden = mode === "side" || this.films.length < 3;
    this.arrange();
  },

  /** Which two films lie on one another, how much of the upper one is wiped away, and how bright their difference is. */
  arrange() {
    const isPair = byId("stage").dataset.mode !== "side";
    const pair = [byId("first-of-pair").value, byId("second-of-pair").value].map(Number);
    [...byId("stage").children].forEach((figure, place) => {
      figure.classList.toggle("upper", isPair && place === pair[1]);
      figure.hidden = isPair && !pair.includes(place);
    });
    const [film] = [this.films[pair[0]]];
    byId("stage").style.setProperty("--ratio", film.width ? `${film.width} / ${film.height}` : "16 / 9");
    byId("stage").style.setProperty("--wipe", `${byId("wipe-at").value}%`);
    byId("stage").style.setProperty("--gain", byId("gain").value);
  },

  update() {
    const { player } = this;
    const { duration, time } = player;
    const seek = byId("seek");
    seek.max = duration || 1;
    if (document.activeElement !== seek || player.isPlaying) seek.value = time;
    const frame = Math.floor(time / player.frame + 1e-3);
    byId("time").textContent = `${time.toFixed(2)} s, frame ${frame}`;
    const sign = player.isPlaying ? "❚❚" : "▶";
    if (byId("play").textContent !== sign) {
      byId("play").textContent = sign;
      byId("play").setAttribute("aria-label", player.isPlaying ? "Pause" : "Play");
    }
  },

  togglePlay() {
    if (this.player.isPlaying) this.player.pause();
    else this.player.play();
  },

  start() {
    byId("play").addEventListener("click", () => this.togglePlay());
    byId("back").addEventListener("click", () => this.player.step(-1));
    byId("forward").addEventListener("click", () => this.player.step(1));
    byId("seek").addEventListener("input", (event) => {
      this.player.pause();
      this.player.seek(Number(event.target.value));
    });
    byId("speed").addEventListener("change", (event) => this.player.setSpeed(Number(event.target.value)));
    byId("wipe-at").addEventListener("input", () => this.arrange());
    byId("gain").addEventListener("input", () => this.arrange());
    byId("first-of-pair").addEventListener("change", () => this.arrange());
    byId("second-of-pair").addEventListener("change", () => this.arrange());
    for (const button of document.querySelectorAll("#viewer .modes button")) {
      button.addEventListener("click", () => this.setMode(button.dataset.mode));
    }
    byId("viewer").addEventListener("close", () => this.close());
    byId("viewer").addEventListener("keydown", (event) => this.key(event));
  },

  key(event) {
    if (event.target.matches("select, input:not([type=range])") || event.ctrlKey || event.metaKey || event.altKey) return;
    const modes = { 1: "side", 2: "wipe", 3: "difference" };
    if (event.key === " " && !event.target.matches("button")) this.togglePlay();
    else if (event.key === "ArrowLeft" && !event.target.matches("input")) this.player.step(-1);
    else if (event.key === "ArrowRight" && !event.target.matches("input")) this.player.step(1);
    else if (modes[event.key]) this.setMode(modes[event.key]);
    else return;
    event.preventDefault();
  },
};

/** What films differ in: options, prompt, seed and scores. */
function differences(films) {
  const head = ["", ...films.map((film) => film.label)];
  const options = changedOptions(films).map((name) => [name, ...films.map((film) => shownValue(optionOf(film, name)))]);
  const figures = [...new Set(films.flatMap((film) => film.run.figures))]
    .filter((name) => new Set(films.map((film) => film.score(name))).size > 1)
    .map((name) => [name, ...films.map((film) => shownNumber(film.score(name)))]);
  return element(
    "div",
    { className: "tables" },
    options.length ? tableOf("Options that differ", [head, ...options]) : element("p", {}, "All options are equal."),
    figures.length > 0 && tableOf("Scores that differ", [head, ...figures]),
  );
}

/** An option of a film; of the films' inputs too. */
function optionOf(film, name) {
  if (name === "model") return film.run.model;
  if (name === "prompt") return film.prompts.join(" | ");
  if (name === "video" || name === "image" || name === "seed") return film.own[name];
  return film.run.options[film.options][name];
}

/** The names of the options in which films differ. */
function changedOptions(films) {
  const names = new Set(["model", "prompt", "video", "image", "seed"]);
  for (const film of films) Object.keys(film.run.options[film.options]).forEach((name) => names.add(name));
  return [...names].filter((name) => new Set(films.map((film) => shownValue(optionOf(film, name)))).size > 1);
}

"use strict";
// A film as a row: its source, the film, its texts, scores and work; a chain with its links.

const STATES = { done: "done", failed: "failed", outdated: "outdated", waiting: "not made yet" };
const USUAL = [
  "health.faulty_share", "motion.magnitude", "motion.smoothness", "flicker.temporal", "flicker.warping_error",
  "seams.motion_ratio", "drift.colour", "reference.vmaf",
];

const MOST_DEPARTURE = Math.log(2); // a seam with less than half or more than double the motion before it stalls or jumps

/** The film that plays in the rows, one at a time. */
let playing = null;

/** A button that shows the poster of a video and plays it in its place. */
function posterButton(run, path, poster, label) {
  const image = run.hasPoster.has(poster)
    ? element("img", { src: urlOf(run, `page/posters/${poster}`), loading: "lazy", alt: label, decoding: "async" })
    : element("span", { className: "blank" }, label);
  if (!isHere(run, path)) return element("div", { className: "poster" }, image);
  const button = element("button", { type: "button", className: "poster", "aria-label": `Play ${label}` }, image);
  button.addEventListener("click", () => startVideo(button, run, path, label));
  return button;
}

function startVideo(button, run, path, label) {
  stopVideo();
  const source = urlOf(run, path);
  if (/\.(png|jpe?g|webp|avif|gif|bmp|tiff?)$/i.test(path)) {
    const image = element("img", { src: source, alt: label });
    image.decode().then(() => button.replaceChildren(image), () => {}); // the poster stays where a browser cannot show it
    return;
  }
  const video = element("video", { src: source, controls: true, loop: true, muted: true, preload: "none", "aria-label": label });
  video.className = "poster";
  playing = { video, button };
  video.addEventListener("error", () => {
    if (playing?.video !== video) return;
    stopVideo();
    tellFault(button.parentElement, label, path);
  });
  button.replaceWith(video);
  video.play().catch(() => {});
}

/** Say in the figure of a video that it cannot be played. */
function tellFault(figure, label, path) {
  const text = `${label} cannot be played here: open ${path} in another player`;
  figure.querySelector(".failure")?.remove();
  figure.append(element("p", { className: "failure", role: "alert" }, text));
}

/** Put the poster back in the place of the film that plays. */
function stopVideo() {
  playing?.video.replaceWith(playing.button);
  playing = null;
}

/** The row of a film. `page` offers what its buttons do. */
function rowOf(film, page) {
  const { run } = film;
  const title = element("h2", { id: `film-${film.number}` }, page.runs.length > 1 ? `${run.run}: ` : "", film.name);
  const made = `${film.name}, ${film.width ? `${film.width} by ${film.height} pixels` : STATES[film.state]}`;
  const row = element(
    "article",
    { className: `film ${film.state}`, tabIndex: -1, "aria-labelledby": `film-${film.number}`, "data-number": film.number },
    element(
      "div",
      { className: "pictures" },
      film.source &&
        element(
          "figure",
          {},
          posterButton(run, film.source.file, film.source.poster, `source ${film.source.name.split("/").at(-1)}`),
          element("figcaption", {}, "source"),
        ),
      element("figure", {}, posterButton(run, film.film, film.poster, made), element("figcaption", {}, "film")),
    ),
    element(
      "div",
      { className: "texts" },
      element("div", { className: "head" }, title, element("span", { className: `state ${film.state}` }, STATES[film.state]), facts(film)),
      film.failure && failure(film),
      film.caption && labelled("caption", film.caption),
      film.prompts.map((prompt, place) => labelled(film.prompts.length > 1 ? `prompt ${place + 1}` : "prompt", prompt)),
      marks(film, page),
    ),
    element("div", { className: "numbers" }, scores(film, page), work(film)),
    film.links.length > 0 && strip(film, page),
    details(film),
  );
  return row;
}

const labelled = (label, text) => element("p", { className: "labelled" }, element("span", { className: "label" }, label), " ", text);

function facts(film) {
  const found = [film.run.model];
  if (film.own.seed !== undefined) found.push(`seed ${film.own.seed}`);
  if (film.take > 1 || film.takes > 1) found.push(`take ${film.take}`);
  if (film.width) found.push(`${film.width}×${film.height}`, `${film.num_frames} frames`);
  return element("span", { className: "facts" }, found.join(" · "));
}

function failure(film) {
  const { stage, reason, remedy, log } = film.failure;
  return element(
    "div",
    { className: "failure" },
    element("p", {}, element("b", {}, `${stage}: `), reason),
    remedy && element("p", {}, element("span", { className: "label" }, "remedy"), " ", remedy),
    element("p", {}, element("span", { className: "label" }, "log"), " ", fileLink(film.run, log)),
  );
}

function marks(film, page) {
  const pick = picks.of(film);
  const markButton = (mark, sign, label) => {
    const button = element("button", { type: "button", className: mark, "aria-label": label, title: label, "aria-pressed": String(pick.mark === mark) }, sign);
    button.addEventListener("click", () => page.mark(film, mark));
    return button;
  };
  const note = element("input", { type: "text", className: "note", value: pick.note, placeholder: "note", "aria-label": `Note on ${film.name}` });
  note.addEventListener("change", () => picks.set(film, { note: note.value }));
  const box = element("input", { type: "checkbox", className: "compare", checked: page.chosen.has(film), disabled: !isHere(film.run, film.film) });
  box.addEventListener("change", () => page.choose(film));
  return element(
    "div",
    { className: "marks" },
    markButton("star", "★", "Star"),
    markButton("reject", "✕", "Reject"),
    note,
    element("label", {}, box, "compare"),
  );
}

/** The usual scores of a film, and the one that the page sorts or filters by. */
function scores(film, page) {
  const names = [...new Set([...page.wanted(), ...USUAL])].filter((name) => film.score(name) !== undefined);
  if (!names.length) return null;
  return element(
    "dl",
    { className: "scores" },
    names.slice(0, 8).map((name) => [
      element("dt", { title: page.figures.get(name)?.help ?? "" }, name),
      element("dd", {}, shownNumber(film.score(name))),
    ]),
  );
}

/** Seconds and peak memory of each stage. */
function work(film) {
  const rows = Object.entries(film.work).map(([stage, [seconds, gpu, process]]) => [
    stage,
    shownSeconds(seconds),
    gpu === null ? (process ? shownMemory(process) : "–") : `${shownMemory(gpu)} GPU`,
  ]);
  return rows.length ? tableOf(null, [["stage", "time", "peak memory"], ...rows]) : null;
}

function strip(film, page) {
  // a line that one link has is there in all, so that the posters of the links stand beside each other
  const [hasNames, hasCuts, hasSeams] = ["name", "cut", "seam"].map((key) => film.links.some((link) => link[key]));
  const links = film.links.map(({ link, name, cut, seam, takes }) =>
    element(
      "li",
      {},
      hasNames && element("span", { className: "about name", title: name }, name),
      hasCuts && element("span", { className: "about label", title: cut }, cut && (cut === "text" ? "from its prompt" : `from ${cut}`)),
      hasSeams && (seam ? seamOf(seam) : element("span", { className: "about seam" })),
      takes.map((take) => linkOf(film, link, take, takes.length, page)),
    ),
  );
  return element(
    "div",
    { className: "chain" },
    element("ol", { className: "strip", "aria-label": `Links of ${film.name}` }, links),
    film.drift.length > 1 && driftCurves(film.drift),
  );
}

/** How a link moves on from the one before it. */
function seamOf({ frame, motion_ratio, pixels_ratio }) {
  const jump = pixels_ratio === null ? "" : `; the pixels change ${shownNumber(pixels_ratio)} times as much as around it`;
  const title = `Seam at frame ${frame}: motion after it, divided by the motion before it${jump}`;
  const ratio = motion_ratio === null ? "–" : motion_ratio.toFixed(2);
  const isFaulty = departure(motion_ratio) > MOST_DEPARTURE;
  const word = isFaulty ? (motion_ratio < 1 ? "stalls" : "jumps") : "motion";
  return element("span", { className: `about seam${isFaulty ? " faulty" : ""}`, title }, `${word} × ${ratio}`);
}

/** How far a ratio is from 1: half and double are equally far. 0 without a ratio. */
const departure = (ratio) => (ratio === null ? 0 : Math.abs(Math.log(ratio)));

/** The largest departure of a film's seams, undefined without one: its links have them, or its score if it has no links. */
function worstSeam(film) {
  const ratios = film.links.length ? film.links.map(({ seam }) => seam?.motion_ratio ?? null) : [film.score("seams.motion_ratio") ?? null];
  const known = ratios.filter((ratio) => ratio !== null);
  return known.length ? Math.max(...known.map(departure)) : undefined;
}

function linkOf(film, link, take, count, page) {
  const label = count > 1 ? `link ${link}, take ${take.take}` : `link ${link}`;
  const isStarred = picks.of(film).links[link] === take.take;
  const star = element("button", { type: "button", className: "star", "aria-label": `Star ${label}`, title: `Star ${label}`, "aria-pressed": String(isStarred) }, "★");
  star.addEventListener("click", () => page.markLink(film, link, take.take));
  return element(
    "figure",
    { title: take.prompt, className: take.picked && count > 1 ? "picked" : "" },
    posterButton(film.run, take.film, take.poster, `${label} of ${film.name}`),
    element("figcaption", {}, `${label} · seed ${take.seed}`, star),
  );
}

/** All that is known of a film; filled when it is opened. */
function details(film) {
  const box = element("details", {}, element("summary", {}, "all scores, options, commands"));
  box.addEventListener("toggle", () => {
    if (!box.open || box.children.length > 1) return;
    const { run } = film;
    const all = run.figures.map((name) => [name, film.score(name)]).filter(([, value]) => value !== undefined);
    const options = Object.entries(run.options[film.options]).map(([name, value]) => [name, shownValue(value)]);
    box.append(
      element("h3", {}, "Make it again"),
      element("p", {}, "In the folder in which the run was made: if it is missing or outdated, and once more to compare."),
      ...film.commands.map(command),
      element("h3", {}, "How it was made"),
      element("p", {}, fileLink(run, `${film.name}.json`), ": inputs, seeds, options, models, versions"),
      element(
        "div",
        { className: "tables" },
        all.length > 0 && tableOf("Scores", [["score", "value"], ...all.map(([name, value]) => [name, shownNumber(value)])]),
        tableOf("Options", [["option", "value"], ...options]),
      ),
    );
  });
  return box;
}

function command(text) {
  const button = element("button", { type: "button" }, "Copy");
  button.addEventListener("click", () => {
    navigator.clipboard?.writeText(text).then(() => (button.textContent = "Copied"), () => {});
  });
  return element("div", { className: "command" }, element("code", {}, text), button);
}

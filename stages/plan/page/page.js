"use strict";
// The page: it takes the data of the runs, and joins filters, rows, comparisons and keys.

class Film {
  constructor(run, row, number) {
    Object.assign(this, row);
    this.run = run;
    this.number = number;
  }

  get label() {
    return `${this.run.label}: ${this.name}`;
  }

  /** The value of a score, or undefined. */
  score(name) {
    return this.scores[this.run.places.get(name)];
  }

  /** Seconds of all stages. */
  get seconds() {
    const all = Object.values(this.work);
    return all.length ? all.reduce((sum, [seconds]) => sum + seconds, 0) : undefined;
  }

  /** The highest peak of memory of a stage in MB, on the GPU if there is one. */
  get memory() {
    const all = Object.values(this.work).map(([, gpu, process]) => gpu ?? process);
    return all.length ? Math.max(...all) : undefined;
  }

  get text() {
    return [this.name, this.own.id, this.caption, ...this.prompts, this.source?.name ?? "", this.failure?.reason ?? "", picks.of(this).note].join("\n").toLowerCase();
  }
}

const SORTS = {
  "": ["order of the run", () => undefined],
  clip: ["clip", (film) => film.clip],
  seed: ["seed", (film) => film.own.seed],
  model: ["model", (film) => film.run.model],
  state: ["state", (film) => film.state],
  stage: ["failed stage", (film) => film.failure?.stage],
  mark: ["mark", (film) => picks.of(film).mark],
  seconds: ["seconds", (film) => film.seconds],
  memory: ["peak memory", (film) => film.memory],
  seam: ["worst seam", worstSeam],
};
const FILTERS = {
  run: ["all runs", (film) => film.run.label],
  state: ["all states", (film) => film.state],
  stage: ["all stages", (film) => film.failure?.stage],
  model: ["all models", (film) => film.run.model],
  seed: ["all seeds", (film) => film.own.seed],
  mark: ["all marks", (film) => picks.of(film).mark || "unmarked"],
};
const MOST_COMPARED = 4;
const MOST_CHOICES = 500; // of a filter
const THEME = "kinemake:theme";

const page = {
  runs: [],
  films: [],
  figures: new Map(), // what is known of each score
  chosen: new Set(),
  current: -1,

  start(given) {
    this.runs = given.map(([source, values]) => this.readRun(source, values));
    const names = this.runs.map((run) => run.run);
    this.runs.forEach((run) => (run.label = names.filter((name) => name === run.run).length > 1 ? run.folder : run.run));
    this.films = this.runs.flatMap((run) => run.rows);
    this.table = new Table(byId("rows"), (film) => rowOf(film, this));
    byId("title").textContent = this.runs.map((run) => run.label).join(", ");
    document.title = `${byId("title").textContent} – Kinemake`;
    this.fillFilters();
    this.listen();
    viewer.start();
    twoRuns.start(this);
    this.show();
  },

  readRun(source, values) {
    const run = { ...values, base: source.replace(/page\/data\.js$/, "") };
    run.hasPoster = new Set(run.posters);
    run.figures = values.figures.map(({ name, ...about }) => {
      this.figures.set(name, about);
      return name;
    });
    run.places = new Map(run.figures.map((name, place) => [name, place]));
    const takes = new Map();
    values.rows.forEach((row) => takes.set(row.clip, Math.max(takes.get(row.clip) ?? 1, row.take)));
    run.rows = values.rows.map((row) => new Film(run, { ...row, takes: takes.get(row.clip) }, (this.count = (this.count ?? 0) + 1)));
    picks.load(run);
    return run;
  },

  // ------------------------------------------------------------------------------------------------- sort and filter

  fillFilters() {
    for (const [name, [all, value]] of Object.entries(FILTERS)) {
      const select = byId(`filter-${name}`);
      if (name === "mark") fillSelect(select, [["", all], ["star", "starred"], ["reject", "rejected"], ["unmarked", "unmarked"]]);
      else {
        const values = [...new Set(this.films.map(value))].filter((one) => one !== undefined).map(String);
        values.sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
        fillSelect(select, [["", all], ...values.slice(0, MOST_CHOICES).map((one) => [one, name === "state" ? STATES[one] : one])]);
        select.closest("label").hidden = values.length < (name === "stage" ? 1 : 2);
      }
    }
    const names = [...new Set(this.runs.flatMap((run) => run.figures))];
    const arrow = { higher: " ↑", lower: " ↓" };
    const labelled = names.map((name) => [name, `${name}${arrow[this.figures.get(name).better] ?? ""}`]);
    fillSelect(byId("figure"), [["", "any"], ...labelled]);
    fillSelect(byId("sort"), [...Object.entries(SORTS).map(([name, [label]]) => [name, label]), ...labelled]);
    byId("filters").querySelector("fieldset").hidden = !names.length;
  },

  filters() {
    const found = [];
    for (const [name, [, value]] of Object.entries(FILTERS)) {
      const wanted = byId(`filter-${name}`).value;
      if (wanted) found.push((film) => String(value(film)) === wanted);
    }
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length) found.push((film) => words.every((word) => film.text.includes(word)));
    const figure = byId("figure").value;
    const [least, most] = ["least", "most"].map((id) => byId(id).value);
    if (figure && least !== "") found.push((film) => film.score(figure) >= Number(least));
    if (figure && most !== "") found.push((film) => film.score(figure) <= Number(most));
    return found;
  },

  /** The scores that the page sorts or filters by. */
  wanted() {
    return [byId("sort").value, byId("figure").value].filter((name) => this.figures.has(name));
  },

  show() {
    const key = byId("sort").value;
    const value = this.figures.has(key) ? (film) => film.score(key) : SORTS[key][1];
    const isDescending = byId("direction").value === "descending";
    const films = passing(this.films, this.filters());
    const ordered = key || !isDescending ? sorted(films, value, isDescending) : films.reverse();
    this.table.show(ordered);
    this.current = -1;
    const failed = this.films.filter((film) => film.state === "failed").length;
    const all = this.films.length === 1 ? "1 film" : `${this.films.length} films`;
    const shown = films.length === this.films.length ? all : `${films.length} of ${all}`;
    byId("summary").textContent = failed ? `${shown}, ${failed} failed` : shown;
  },

  /** The better end of a score comes first when it is chosen. */
  sortBy(name) {
    this.setDescending(this.figures.get(name)?.better === "higher");
    this.show();
  },

  setDescending(isDescending) {
    byId("direction").value = isDescending ? "descending" : "ascending";
    byId("direction").setAttribute("aria-label", isDescending ? "Descending" : "Ascending");
    byId("direction").textContent = isDescending ? "↓" : "↑";
  },

  // ----------------------------------------------------------------------------------------------------------- picks

  mark(film, mark) {
    picks.toggle(film, mark);
    this.table.refresh(film);
  },

  markLink(film, link, take) {
    picks.toggleLink(film, link, take);
    this.table.refresh(film);
  },

  choose(film) {
    if (this.chosen.has(film)) this.chosen.delete(film);
    else if (this.chosen.size < MOST_COMPARED) this.chosen.add(film);
    byId("compare").disabled = this.chosen.size < 2;
    byId("compare").textContent = this.chosen.size ? `Compare ${this.chosen.size}` : "Compare";
    this.table.refresh(film);
  },

  compare() {
    if (this.chosen.size > 1) viewer.open([...this.chosen]);
  },

  /** A file per run: a run takes one file as its clips. */
  exportPicks() {
    const wanted = byId("filter-run").value;
    for (const run of this.runs.filter((one) => !wanted || one.label === wanted)) {
      download(`picks-${run.run}.jsonl`, `${picks.lines(run).join("\n")}\n`);
    }
  },

  async importPicks(file) {
    try {
      const found = picks.import(this.runs, await file.text());
      this.show();
      byId("summary").textContent = `picks of ${found} films were read from ${file.name}`;
    } catch (error) {
      byId("summary").textContent = `${file.name} is not a file of picks (${error.message}): give one that this page exported`;
    }
  },

  // ------------------------------------------------------------------------------------------------------------ events

  listen() {
    const form = byId("filters");
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => (event.target.id === "sort" ? this.sortBy(event.target.value) : this.show()));
    form.addEventListener("reset", () => setTimeout(() => (this.setDescending(false), this.show())));
    byId("direction").addEventListener("click", () => {
      this.setDescending(byId("direction").value !== "descending");
      this.show();
    });
    byId("compare").addEventListener("click", () => this.compare());
    byId("export").addEventListener("click", () => this.exportPicks());
    byId("import").addEventListener("click", () => byId("imported").click());
    byId("imported").addEventListener("change", (event) => event.target.files[0] && this.importPicks(event.target.files[0]));
    byId("help").addEventListener("click", () => byId("keys").showModal());
    byId("theme").addEventListener("click", () => switchTheme());
    for (const dialog of document.querySelectorAll("dialog")) {
      dialog.querySelector(".close").addEventListener("click", () => dialog.close());
    }
    document.addEventListener("keydown", (event) => this.key(event));
    byId("rows").addEventListener("focusin", (event) => {
      const row = event.target.closest("article");
      if (row) this.current = this.table.films.findIndex((film) => String(film.number) === row.dataset.number);
    });
  },

  key(event) {
    const isTyping = event.target.matches("input:not([type=checkbox]):not([type=range]), select, textarea");
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const film = this.table.films[this.current];
    const row = film && this.table.rowOf(film);
    const isButton = event.target.matches("button, a, summary, video");
    const actions = {
      j: () => this.table.focus(this.current + 1),
      k: () => this.table.focus(Math.max(0, this.current - 1)),
      s: () => film && this.mark(film, "star"),
      x: () => film && this.mark(film, "reject"),
      n: () => row?.querySelector(".note").focus(),
      c: () => film && isHere(film.run, film.film) && this.choose(film),
      d: () => row && (row.querySelector("details").open = !row.querySelector("details").open),
      "/": () => byId("search").focus(),
      "?": () => byId("keys").showModal(),
    };
    if (!isButton) {
      actions.Enter = () => this.compare();
      actions[" "] = () => row && playRow(row);
    }
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  },
};

/** Play the film of a row, or pause it. */
function playRow(row) {
  const place = row.querySelector(".pictures figure:last-child > :first-child");
  if (place.tagName === "VIDEO") place.paused ? place.play() : place.pause();
  else place.click();
}

// ---------------------------------------------------------------------------------------------------------------- theme

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}

function switchTheme() {
  const { theme } = document.documentElement.dataset;
  const isDark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(isDark ? "light" : "dark");
  try {
    localStorage.setItem(THEME, document.documentElement.dataset.theme);
  } catch {}
}

try {
  setTheme(localStorage.getItem(THEME));
} catch {}
page.start(window.kinemake ?? []);

"use strict";
// Picks: a mark ("star", "reject" or "") and a note of each film, and the starred takes of the links of a chain.

const picks = {
  /** The picks of a film: { mark, note, links: { link number: take number } }. */
  of(film) {
    return film.run.picks.get(film.name) ?? readPick({});
  },

  set(film, change) {
    this.assign(film, change);
    this.save(film.run);
  },

  assign(film, change) {
    const pick = { ...this.of(film), ...change };
    const isEmpty = !pick.mark && !pick.note && !Object.keys(pick.links).length;
    if (isEmpty) film.run.picks.delete(film.name);
    else film.run.picks.set(film.name, pick);
  },

  toggle(film, mark) {
    this.set(film, { mark: this.of(film).mark === mark ? "" : mark });
  },

  toggleLink(film, link, take) {
    const links = { ...this.of(film).links };
    if (links[link] === take) delete links[link];
    else links[link] = take;
    this.set(film, { links });
  },

  /** The name of a run's picks in the browser: its place, so that every page of a run shows the same. */
  place(run) {
    try {
      return `kinemake:${new URL(`./${run.base}`, location.href).pathname}`;
    } catch {
      return `kinemake:${run.folder}`;
    }
  },

  /** Read the picks of a run; a page inside another one may have no storage. */
  load(run) {
    run.picks = new Map(); // by the name of a film
    try {
      const kept = JSON.parse(localStorage.getItem(this.place(run)) ?? "{}");
      run.picks = new Map(Object.entries(kept ?? {}).map(([name, pick]) => [name, readPick(pick)]));
    } catch {}
  },

  save(run) {
    try {
      localStorage.setItem(this.place(run), JSON.stringify(Object.fromEntries(run.picks)));
    } catch {}
  },

  /** The lines of the file of a run's picks: a clip with the options of its own, and what was chosen, per clip and take. */
  lines(run) {
    const byId = new Map();
    for (const film of run.rows) {
      const known = byId.get(film.own.id) ?? [];
      byId.set(film.own.id, [...known, film]);
    }
    return [...byId.values()].map((films) => oneLine(JSON.stringify(this.line(run, films))));
  },

  /** One clip of the file. Of several films of a clip (samples), the starred one counts; it is rejected if all are. */
  line(run, films) {
    const marks = films.map((film) => this.of(film).mark);
    const mark = marks.includes("star") ? "star" : marks.every((one) => one === "reject") ? "reject" : "";
    const film = films[Math.max(0, marks.indexOf(mark))];
    const notes = films.map((one) => this.of(one).note).filter(Boolean);
    const chosen = Object.fromEntries((film.given.picks ?? []).map((text) => text.split(/:\s*/))); // by the run itself
    const links = Object.entries({ ...chosen, ...this.of(film).links }).map(([link, take]) => `${link}: ${take}`);
    return {
      ...film.own,
      ...film.given,
      take_of: film.clip,
      film: film.film ? `${run.folder}/${film.film}` : "",
      mark,
      note: notes.join("; "),
      ...(links.length ? { picks: links } : {}),
    };
  },

  /** Read back a file of picks. Returns the number of films that it has picks of. Throws for a file of another kind. */
  import(runs, text) {
    const all = runs.flatMap((run) => run.rows);
    const byPath = new Map(all.filter((film) => film.film).map((film) => [`${film.run.folder}/${film.film}`, film]));
    const madeFirst = [...all].sort((a, b) => Boolean(b.film) - Boolean(a.film)); // so that a clip without a film is found before
    const byClip = new Map(madeFirst.map((film) => [film.own.id, film])); // for picks that were exported before the film was made
    let found = 0;
    for (const line of text.split("\n").filter((one) => one.trim())) {
      const row = JSON.parse(line);
      const film = row.film ? byPath.get(row.film) : byClip.get(row.id);
      if (!film) continue;
      const links = Object.fromEntries((row.picks ?? []).map((pick) => pick.split(": ")));
      this.assign(film, readPick({ ...row, links }));
      found += 1;
    }
    runs.forEach((run) => this.save(run));
    return found;
  },
};

/** A pick from the browser's storage or from a file, which may hold anything. */
function readPick(given) {
  const { mark, note, links } = given ?? {};
  const numbers = Object.entries(links ?? {}).map((pair) => pair.map(Number));
  return {
    mark: ["star", "reject"].includes(mark) ? mark : "",
    note: typeof note === "string" ? note : "",
    links: Object.fromEntries(numbers.filter((pair) => pair.every((one) => Number.isInteger(one) && one > 0))),
  };
}

/** JSON without the characters that some programs take for the end of a line. */
const oneLine = (json) => json.replace(/[\u0085\u2028\u2029]/g, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** Hand a text to the browser as a file to keep. */
function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

"use strict";
// Two runs against each other: their films of one clip side by side, with the options that were changed.

const MOST_PAIRS = 200;

const twoRuns = {
  start(page) {
    this.page = page;
    const names = page.runs.map((run, place) => [String(place), run.label]);
    for (const id of ["run-a", "run-b"]) {
      fillSelect(byId(id), names);
      byId(id).addEventListener("change", () => this.show());
    }
    byId("runs").hidden = page.runs.length < 2;
    byId("runs").addEventListener("click", () => this.open());
  },

  open() {
    stopVideo();
    if (byId("run-a").value === byId("run-b").value) byId("run-b").value = "1";
    this.show();
    byId("two-runs").showModal();
  },

  show() {
    const runs = ["run-a", "run-b"].map((id) => this.page.runs[Number(byId(id).value)]);
    const others = new Map(runs[1].rows.map((film) => [film.own.id, film])); // a picked take is a clip of that id
    const pairs = runs[0].rows.map((film) => [film, others.get(film.own.id)]).filter(([, other]) => other);
    const changed = new Map(); // an option and its two values -> number of clips
    for (const pair of pairs) {
      for (const name of changedOptions(pair)) {
        const key = JSON.stringify([name, ...pair.map((film) => shownValue(optionOf(film, name)))]);
        changed.set(key, (changed.get(key) ?? 0) + 1);
      }
    }
    const rows = [...changed].sort((a, b) => b[1] - a[1]).slice(0, MOST_PAIRS).map(([key, count]) => [...JSON.parse(key), `${count} of ${pairs.length}`]);
    byId("of-two-runs").replaceChildren(
      element("p", {}, `Clips in both runs: ${pairs.length}. Films: ${runs.map((run) => `${run.label} ${run.rows.length}`).join(", ")}.`),
      rows.length ? tableOf("Changed options", [["option", "A", "B", "clips"], ...rows]) : "",
      pairs.length ? meansTable(runs, pairs) : "",
      element("ol", { className: "pairs" }, pairs.slice(0, MOST_PAIRS).map((pair) => this.pair(pair))),
      pairs.length > MOST_PAIRS ? element("p", {}, `and ${pairs.length - MOST_PAIRS} more`) : "",
    );
  },

  pair(pair) {
    const [film] = pair;
    const changed = changedOptions(pair);
    const button = element("button", { type: "button", disabled: !pair.every((one) => isHere(one.run, one.film)) }, "Compare");
    button.addEventListener("click", () => viewer.open(pair));
    return element(
      "li",
      {},
      element("h3", {}, film.take > 1 ? `${film.clip}, take ${film.take}` : film.clip),
      pair.map((one) => element("figure", {}, posterButton(one.run, one.film, one.poster, one.label), element("figcaption", {}, one.run.label))),
      element(
        "div",
        {},
        changed.map((name) => element("p", { className: "changed" }, element("mark", {}, name), ` ${pair.map((one) => shownValue(optionOf(one, name))).join(" → ")}`)),
        button,
      ),
    );
  },
};

/** Means of the scores over the clips that both runs have; which is better is marked. */
function meansTable(runs, pairs) {
  const names = runs[0].figures.filter((name) => runs[1].figures.includes(name));
  const rows = [];
  for (const name of names) {
    const both = pairs.map((pair) => pair.map((film) => film.score(name))).filter((values) => values.every((value) => value !== undefined));
    if (!both.length) continue;
    const means = [0, 1].map((place) => both.reduce((sum, values) => sum + values[place], 0) / both.length);
    if (means[0] === means[1]) continue;
    const { better } = twoRuns.page.figures.get(name);
    const isBetter = better ? (better === "higher") === means[1] > means[0] : null;
    rows.push([name, ...means.map(shownNumber), isBetter === null ? "" : isBetter ? "B is better" : "A is better", String(both.length)]);
  }
  return rows.length ? tableOf("Means of the scores that differ", [["score", "A", "B", "", "clips"], ...rows]) : "";
}

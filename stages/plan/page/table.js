"use strict";
// The rows that the filters leave, in order. Only those near the window are in the document, so that thousands are no more work.

const CHUNK = 20; // rows that are made together
const ROW_HEIGHT = 240; // pixels, until a chunk was seen

class Table {
  /** `make` turns a film into its row. */
  constructor(place, make) {
    this.place = place;
    this.make = make;
    this.films = [];
    this.watcher = new IntersectionObserver((entries) => entries.forEach((entry) => this.update(entry)), { rootMargin: "800px 0px" });
  }

  /** Show other films. */
  show(films) {
    stopVideo();
    this.watcher.disconnect();
    this.films = films;
    const chunks = [];
    for (let start = 0; start < films.length; start += CHUNK) {
      const chunk = element("div", { className: "chunk", "data-start": start });
      chunk.style.minHeight = `${Math.min(CHUNK, films.length - start) * ROW_HEIGHT}px`;
      chunks.push(chunk);
    }
    this.place.replaceChildren(...chunks);
    if (!films.length) this.place.append(element("p", { className: "nothing" }, "No film is left by these filters."));
    if (chunks.length) this.fill(chunks[0]); // at once; the others when they come near
    chunks.forEach((chunk) => this.watcher.observe(chunk));
  }

  update({ target, isIntersecting }) {
    if (isIntersecting) this.fill(target);
    else if (target.childElementCount && !target.contains(document.activeElement)) this.empty(target);
  }

  fill(chunk) {
    if (chunk.childElementCount) return;
    const start = Number(chunk.dataset.start);
    chunk.append(...this.films.slice(start, start + CHUNK).map(this.make));
    chunk.style.minHeight = "";
  }

  empty(chunk) {
    chunk.style.minHeight = `${chunk.offsetHeight}px`;
    if (playing && chunk.contains(playing.video)) stopVideo();
    chunk.replaceChildren();
  }

  /** The row of a film, if it is in the document. */
  rowOf(film) {
    return this.place.querySelector(`[data-number="${film.number}"]`);
  }

  /** Make the row of a film anew, as after it was marked. */
  refresh(film) {
    const row = this.rowOf(film);
    if (!row) return;
    const hasFocus = row.contains(document.activeElement);
    const label = document.activeElement?.getAttribute("aria-label");
    if (playing && row.contains(playing.video)) stopVideo();
    const isOpen = row.querySelector("details").open;
    const fresh = this.make(film);
    fresh.querySelector("details").open = isOpen;
    row.replaceWith(fresh);
    if (hasFocus) (label && [...fresh.querySelectorAll("[aria-label]")].find((one) => one.getAttribute("aria-label") === label) || fresh).focus({ preventScroll: true });
  }

  /** Move the focus to a film by its place among those shown. */
  focus(place) {
    const film = this.films[place];
    if (!film) return;
    const chunk = this.place.children[Math.floor(place / CHUNK)];
    this.fill(chunk);
    const row = this.rowOf(film);
    row.focus();
    row.scrollIntoView({ block: "nearest" });
  }
}

/** Films that pass all filters; `filters` are tests of a film. */
const passing = (films, filters) => films.filter((film) => filters.every((test) => test(film)));

/** Films in the order of a value, those without one last. Equal ones keep the order of the run. */
function sorted(films, value, isDescending) {
  const keyed = films.map((film, place) => ({ film, place, key: value(film) }));
  const sign = isDescending ? -1 : 1;
  const isMissing = (key) => key === undefined || key === null || key === "";
  keyed.sort((a, b) => {
    if (isMissing(a.key) || isMissing(b.key)) return isMissing(a.key) - isMissing(b.key) || a.place - b.place;
    const order = typeof a.key === "number" ? a.key - b.key : String(a.key).localeCompare(String(b.key), undefined, { numeric: true });
    return sign * order || a.place - b.place;
  });
  return keyed.map(({ film }) => film);
}

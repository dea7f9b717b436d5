"use strict";
// Curves of how the parts of a film drift: docs/scores.md defines the measures.

const DRIFT = ["colour", "luma", "saturation", "contrast", "sharpness"];
const CHART = { width: 120, height: 34, margin: 3 };

/** A curve per measure over the parts of a film, each in its own range. */
function driftCurves(parts) {
  const measures = DRIFT.filter((name) => parts.every((part) => typeof part[name] === "number"));
  return element("div", { className: "curves" }, measures.map((name) => curve(name, parts.map((part) => part[name]))));
}

function curve(name, values) {
  const { width, height, margin } = CHART;
  const least = Math.min(...values);
  const span = Math.max(...values) - least || 1;
  const x = (place) => margin + (place / Math.max(1, values.length - 1)) * (width - 2 * margin);
  const y = (value) => height - margin - ((value - least) / span) * (height - 2 * margin);
  const points = values.map((value, place) => `${x(place).toFixed(1)},${y(value).toFixed(1)}`);
  const text = `${shownNumber(values[0])} → ${shownNumber(values.at(-1))}`;
  const label = `Drift of the ${name} over ${values.length} parts: ${values.map(shownNumber).join(", ")}`;
  const picture = drawn(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label },
    drawn("polyline", { points: points.join(" ") }),
    ...points.map((point) => drawn("circle", { cx: point.split(",")[0], cy: point.split(",")[1], r: 2 })),
  );
  return element("figure", { className: "curve" }, picture, element("figcaption", {}, `${name} ${text}`));
}

"""Contact sheets of the demo for docs/shapes.md: `make demo-all`, then `python -m docs.sheets`."""

import json
from pathlib import Path

import numpy as np

from stages.media.read import frames
from stages.media.sheet import contact_sheet
from stages.media.write import write_png

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "results", ROOT / "docs" / "images"
CLIPS, SIDE = 4, 80
Rows = list[tuple[str, np.ndarray]]


def pixels(video: Path) -> np.ndarray:
    return np.stack([frame.rgb for frame in frames(video)])


def planned(run: str) -> list[dict]:
    lines = (RESULTS / run / "clips.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][:CLIPS]


def prompt(clip: Path) -> str:
    return json.loads(clip.read_text())["fields"]["prompt"]


def continuations() -> Rows:
    """Each source, and what was made from its last frame and the captioner's description of it."""
    rows = []
    for clip in planned("v2v"):
        source, made = ROOT / clip["video"], RESULTS / "v2v" / "steps" / clip["id"] / "clip.json"
        caption = (source.parents[1] / "captions" / f"{source.stem}.txt").read_text().strip()
        rows.append((f"real: {caption}", pixels(source)))
        rows.append((f"made, told: {prompt(made)}", pixels(made.with_suffix(".mkv"))))
    return rows


def links() -> Rows:
    """A source and the links of its chain."""
    clip = planned("chain")[0]
    made = sorted((RESULTS / "chain" / clip["id"]).glob("video_*.json"))
    rows = [(f"link {number}: {prompt(link)}", pixels(link.with_suffix(".mkv"))) for number, link in enumerate(made, 1)]
    return [("real", pixels(ROOT / clip["video"])), *rows]


def turned() -> Rows:
    """Films that go on from a source, and turn as their second prompt says."""
    rows = []
    for clip in planned("longlive"):
        title = f"{clip['prompt1']}; then: {clip['prompt2']}"
        rows.append((title, pixels(RESULTS / "longlive" / clip["id"] / f"{clip['id']}.mp4")))
    return rows


def imagined(run: str) -> Rows:
    """What was made of words alone."""
    return [(clip["prompts"][0], pixels(RESULTS / run / f"{clip['id']}.mp4")) for clip in planned(run)]


def translated() -> Rows:
    """Each source, and the film of it in the other look."""
    rows = []
    for clip in planned("look"):
        rows.append(("drawn", pixels(ROOT / clip["video"])))
        rows.append(("made to look filmed", pixels(RESULTS / "look" / f"{clip['id']}.mp4")))
    return rows


def moved() -> Rows:
    """Each picture, and the clip that is made of it."""
    rows = []
    for clip in planned("picture"):
        text = (ROOT / clip["image"]).with_suffix(".txt").read_text().strip()
        rows.append((text, pixels(RESULTS / "picture" / f"{clip['id']}.mp4")))
    return rows


if __name__ == "__main__":
    sheets = {"v2v": continuations(), "chain": links(), "longlive": turned(), "look": translated(), "picture": moved()}
    sheets |= {run: imagined(run) for run in ("text2video", "unet")}
    for name, rows in sheets.items():
        titles, clips = zip(*rows)
        write_png(IMAGES / f"{name}.png", contact_sheet(clips, titles, columns=8, side=SIDE))

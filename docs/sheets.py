"""Contact sheets of the demo, for README.md and docs/shapes.md: `make demo-all`, then `python -m docs.sheets`.

`python -m docs.sheets NAME...` makes only those.
"""

import json
import sys
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


def clips_of(run: str) -> list[dict]:
    lines = (RESULTS / run / "clips.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][:CLIPS]


def prompt(clip: Path) -> str:
    return json.loads(clip.read_text())["fields"]["prompt"]


def continuations() -> Rows:
    """Each source, and the clip generated from its last frame and its caption."""
    rows = []
    for clip in clips_of("v2v"):
        source, continuation = ROOT / clip["video"], RESULTS / "v2v" / "steps" / clip["id"] / "clip.json"
        caption = (source.parents[1] / "captions" / f"{source.stem}.txt").read_text().strip()
        rows.append((f"real: {caption}", pixels(source)))
        rows.append((f"generated from: {prompt(continuation)}", pixels(continuation.with_suffix(".mkv"))))
    return rows


def links() -> Rows:
    """A source and the links of its chain."""
    clip = clips_of("chain")[0]
    paths = sorted((RESULTS / "chain" / clip["id"]).glob("video_*.json"))
    rows = [(f"link {number}: {prompt(link)}", pixels(link.with_suffix(".mkv"))) for number, link in enumerate(paths, 1)]
    return [("real", pixels(ROOT / clip["video"])), *rows]


def turns() -> Rows:
    """Films that continue a source and turn at their second prompt."""
    rows = []
    for clip in clips_of("longlive"):
        title = f"{clip['prompt1']}; then: {clip['prompt2']}"
        rows.append((title, pixels(RESULTS / "longlive" / clip["id"] / f"{clip['id']}.mp4")))
    return rows


def clips_from_prompts(run: str) -> Rows:
    """Clips generated from a prompt alone."""
    return [(clip["prompts"][0], pixels(RESULTS / run / f"{clip['id']}.mp4")) for clip in clips_of(run)]


def translations() -> Rows:
    """Each source, and its translation to the other look."""
    rows = []
    for clip in clips_of("look"):
        rows.append(("drawn", pixels(ROOT / clip["video"])))
        rows.append(("translated to filmed", pixels(RESULTS / "look" / f"{clip['id']}.mp4")))
    return rows


def animations() -> Rows:
    """The clip generated from each image."""
    rows = []
    for clip in clips_of("picture"):
        text = (ROOT / clip["image"]).with_suffix(".txt").read_text().strip()
        rows.append((text, pixels(RESULTS / "picture" / f"{clip['id']}.mp4")))
    return rows


def results() -> Rows:
    """A film of each recipe, and the sources of `v2v` and `fresco`."""
    (_, source), (_, continuation) = continuations()[:2]
    chain_film = np.concatenate([frames for _, frames in links()[1:]])
    (_, drawn), (_, filmed) = translations()[4:6]
    text, animated = animations()[0]
    prompt, from_text = clips_from_prompts("text2video")[3]
    return [
        ("a video", source),
        ("v2v: continued from its last frame", continuation),
        ("chain: continued several times, joined into one film", chain_film),
        (f"longlive: continued, then: {clips_of('longlive')[1]['prompt2']}", turns()[1][1]),
        ("another video", drawn),
        ("fresco: the same video in a new look", filmed),
        (f"dynamicrafter: an image and: {text}", animated),
        (f"text2video: {prompt}", from_text),
    ]


SHEETS = {
    "results": results,
    "v2v": continuations,
    "chain": links,
    "longlive": turns,
    "look": translations,
    "picture": animations,
    "text2video": lambda: clips_from_prompts("text2video"),
    "unet": lambda: clips_from_prompts("unet"),
}

if __name__ == "__main__":
    for name in sys.argv[1:] or SHEETS:
        titles, clips = zip(*SHEETS[name]())
        write_png(IMAGES / f"{name}.png", contact_sheet(clips, titles, columns=8, side=SIDE))

"""Contact sheets: a row per clip, a few of its frames side by side."""

from collections.abc import Sequence

import cv2
import numpy as np

BAR, INK, PAPER = 16, (230, 230, 230), (30, 30, 30)


def contact_sheet(
    clips: Sequence[Sequence[np.ndarray] | np.ndarray],
    titles: Sequence[str] | None = None,
    columns: int = 6,
    side: int = 128,
) -> np.ndarray:
    """An image of up to `columns` frames of each clip, RGB, uint8 [H, W, 3].

    `clips` are uint8 [T, H, W, 3], as lists or arrays. The longer side of a frame is scaled to `side`
    pixels. `titles`, one per clip, are written above the rows; other than Latin letters are shown as "?".
    """
    rows = []
    for number, clip in enumerate(clips):
        chosen = [clip[i] for i in np.linspace(0, len(clip) - 1, min(columns, len(clip))).round().astype(int)]
        scale = side / max(chosen[0].shape[:2])
        size = round(chosen[0].shape[1] * scale), round(chosen[0].shape[0] * scale)
        mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
        cells = [np.pad(cv2.resize(frame, size, interpolation=mode), ((1, 1), (1, 1), (0, 0))) for frame in chosen]
        row = np.concatenate(cells, axis=1)
        if titles is not None:
            bar = np.full((BAR, row.shape[1], 3), PAPER, np.uint8)
            cv2.putText(bar, titles[number], (3, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, INK, 1, cv2.LINE_AA)
            row = np.concatenate([bar, row])
        rows.append(row)
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])

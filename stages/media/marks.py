"""Marks in a video: what made it, and that it is made by a model, for programs that read metadata.

An mp4 has them twice: as the tags `description` (a sentence) and `comment` (JSON), which ffprobe shows, and as XMP with the
terms of the IPTC (iptc.org/std/photometadata), which exiftool shows. They hold nothing of time and place: the same work
gives the same bytes.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from stages.runtime.artifacts import Artifact

MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # ISO 16684-1: the uuid of the box with XMP
MOST_TEXT = 20_000  # characters of all prompts: a tag is an argument of the ffmpeg program
LARGEST_XMP = 2**20  # bytes that are read
SOFTWARE = "Kinemake"
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
<xmp:CreatorTool>{tool}</xmp:CreatorTool>
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{sentence}</rdf:li></rdf:Alt></dc:description>
<Iptc4xmpExt:DigitalSourceType>{kind}</Iptc4xmpExt:DigitalSourceType>
{more}</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


@dataclass(frozen=True)
class Marks:
    """What a video says of itself.

    `model` is the family and the variant, and `weights` the digest of what `generate` loaded: unlike the name of a model
    in a config, they are the same wherever the video is made. `seed` and `prompt` have one entry per clip or part, without
    repetitions; `prompt` is empty for a private video. `source` is IPTC's term for where the pixels come from: MADE, or
    COMPOSITE for a video that has frames of a source too.
    """

    software: str
    version: str
    model: tuple[str, ...]
    weights: tuple[str, ...]
    seed: tuple[int, ...]
    prompt: tuple[str, ...]
    source: str

    def fit_their_types(self) -> bool:
        """Whether values that were read are of the types that are declared."""
        lists = (self.model, self.weights, self.seed, self.prompt)
        if not self.source or not all(isinstance(one, tuple) for one in lists):
            return False
        texts = (self.software, self.version, self.source, *self.model, *self.weights, *self.prompt)
        return all(isinstance(one, str) for one in texts) and all(type(one) is int for one in self.seed)

    @property
    def tool(self) -> str:
        return f"{self.software} {self.version}"

    @property
    def sentence(self) -> str:
        with_source = " from a video" if self.source == COMPOSITE else ""
        name = f" ({', '.join(self.model)})" if self.model else ""
        return f"Made{with_source} by a generative model{name} with {self.tool}."

    def tags(self) -> dict[str, str]:
        """The tags of the container, by name."""
        return {"description": self.sentence, "comment": json.dumps(asdict(self), ensure_ascii=False)}

    def box(self) -> bytes:
        """The box of an mp4 with the XMP, for the end of the file."""
        known = {"AISystemUsed": ", ".join(self.model), "AISystemVersionUsed": ", ".join(self.weights)}
        known["AIPromptInformation"] = NOT_IN_XML.sub("", "\n".join(self.prompt))
        more = "".join(f"<Iptc4xmpExt:{name}>{escape(text)}</Iptc4xmpExt:{name}>\n" for name, text in known.items() if text)
        packet = XMP.format(tool=escape(self.tool), sentence=escape(self.sentence), kind=self.source, more=more).encode()
        return struct.pack(">I4s16s", 24 + len(packet), b"uuid", XMP_BOX) + packet


def bare_marks() -> Marks:
    """The marks of a video of which no more is known than that a model made it."""
    return Marks(SOFTWARE, metadata.version("kinemake"), (), (), (), (), MADE)


def marks_of(works: Sequence[Artifact], private: bool, composite: bool = False) -> Marks:
    """The marks of a video of these artifacts: latents, clips, or propagated frames, which are composite."""
    found = [_facts(work) for work in works]

    def distinct(name: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(value for facts in found for value in facts[name]))

    prompts, room = [], MOST_TEXT
    for prompt in () if private else distinct("prompt"):
        if not room:
            break
        prompts.append(prompt[:room])
        room -= len(prompts[-1])
    composite = composite or any(work.kind == "propagated" for work in works)
    return Marks(
        software=SOFTWARE,
        version=metadata.version("kinemake"),
        model=distinct("model"),
        weights=distinct("weights"),
        seed=distinct("seed"),
        prompt=tuple(prompts),
        source=COMPOSITE if composite else MADE,
    )


def _facts(work: Artifact) -> dict[str, list[Any]]:
    """Model, weights, seed and prompts of an artifact; of propagated frames by their provenance."""
    fields: Mapping[str, Any] = work.fields
    made = next((record for record in work.provenance if record["stage"] == "generate"), None)
    weights = made["weights"] if made else fields.get("weights", "")
    if work.kind != "propagated":
        model = f"{fields['family']} {fields['variant']}".strip()
        return {
            "model": [model],
            "weights": [weights] if weights else [],
            "seed": [fields["seed"]],
            "prompt": fields.get("part_prompts") or [fields["prompt"]],
        }
    texts = [record["options"].get("prompt") for record in work.provenance if record["stage"] in ("caption_vlm", "encode")]
    return {
        "model": [made["family"]] if made else [],
        "weights": [weights] if weights else [],
        "seed": [made["options"]["seed"]] if made and "seed" in made["options"] else [],
        "prompt": [text for text in texts if text],
    }


def read_marks(video: Path) -> Marks | None:
    """The marks of an mp4, from its tag `comment`; None for a video without marks of Kinemake."""
    import av

    try:
        with av.open(str(video)) as container:
            said = json.loads(container.metadata.get("comment", ""))
        values: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in said.items()}
        marks = Marks(**values)
    except (av.FFmpegError, OSError, ValueError, TypeError, AttributeError):
        return None
    return marks if marks.software == SOFTWARE and marks.fit_their_types() else None


def read_xmp(video: Path) -> str:
    """The XMP packet of an mp4, "" without one."""
    with open(video, "rb") as file:
        for kind, start, end in boxes(video):
            file.seek(start)
            if kind == b"uuid" and file.read(16) == XMP_BOX:
                return file.read(min(end - start - 16, LARGEST_XMP)).decode("utf-8", "replace")
    return ""


def boxes(video: Path) -> Iterator[tuple[bytes, int, int]]:
    """The type, the start of the content and the end of each box at the top of an mp4 (ISO 14496-12)."""
    size, position = video.stat().st_size, 0
    with open(video, "rb") as file:
        while position + 8 <= size:
            file.seek(position)
            length, kind = struct.unpack(">I4s", file.read(8))
            start = position + 8
            if length == 1:  # 64 bits follow
                length, start = int.from_bytes(file.read(8), "big"), position + 16
            end = position + length if length else size
            if end < start:
                return
            yield kind, start, end
            position = end

"""The texts of what a captioner is asked, in English and in Chinese. docs/captions.md shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PARTS = {  # of a structured caption: what each one is to say
    "subject": {"en": "who or what is seen, and what it looks like", "zh": "画面中的人或物及其外观"},
    "action": {"en": "what moves, how, and in what order", "zh": "什么在动、怎样动、先后顺序"},
    "camera": {"en": "the size of the shot, its angle, and how the camera moves", "zh": "景别、拍摄角度和镜头运动"},
    "setting": {"en": "the place, the light, the colours and the style", "zh": "地点、光线、色彩和风格"},
}
STRUCTURED = {
    "en": "Answer with one JSON object and nothing else. Its values are one or two sentences, under these keys: {keys}.",
    "zh": "只回答一个 JSON 对象，不要其他文字。每个值是一到两句话，键为：{keys}。",
}
ANSWER_IN = {"": "", "en": " Answer in English.", "zh": " 请用中文回答。"}
NONE = {"en": "none", "zh": "无"}
NEXT = {
    "en": """\
These are the last frames of a video, the oldest first. Write the prompt from which the next seconds of the same shot will \
be generated.
What the video shows so far: {caption}
The prompt that its last part was generated from: {previous}
Begin with exactly what the last frame shows. Keep every subject, its looks and the place, and name them in the same words \
as above. Tell in the order of time what moves and how: carry on the motion that the frames show, in its direction and at \
its speed, and let one thing follow from it. Then say what the camera does, and describe light and style in a few words. Do \
not retell what is over, do not bring in what could not come into view, and do not cut to another scene. Write one \
paragraph of 80 to 120 words in the present tense, in English. Answer with the prompt alone.""",
    "zh": """\
这是一段视频的最后几帧，按时间先后排列。请写出一段提示词，用来生成同一个镜头接下来的几秒。
视频到目前为止的内容：{caption}
生成上一段时所用的提示词：{previous}
从最后一帧的画面开始写。保持所有主体、它们的外观和地点不变，并沿用上文的称呼。按时间顺序写清什么在动、怎样动：\
延续这几帧中的运动，方向和速度不变，再由此引出一个新的变化。然后写镜头如何运动，并用几个词说明光线和风格。不要重复已经结束的内容，\
不要加入不可能进入画面的人或物，不要切换场景。写成一段，80 到 120 字，使用中文。只回答提示词本身。""",
}


def language_of(language: str) -> str:
    """The language of the texts for an option `language`: English unless it is Chinese."""
    return language or "en"


def instruction_of(instruction: str, structure: Sequence[str], language: str) -> str:
    """What the model is asked about a video: the instruction, as JSON with the parts of `structure`, in a language."""
    if structure:
        own = language_of(language)
        keys = ", ".join(f'"{name}" ({about[own]})' for name, about in PARTS.items())
        instruction = f"{instruction} {STRUCTURED[own].format(keys=keys)}"
    return instruction + ANSWER_IN[language]


def default_request(variant: str, values: Mapping[str, Any]) -> str:
    """The request for the prompt of what comes next, if there is one."""
    return NEXT[language_of(values["language"])] if values["rewrite"] == "next" else ""


def fill(request: str, caption: str, previous: str, language: str) -> str:
    """A request with the caption, and the prompt of the clip that is continued, in place of {caption} and {previous}."""
    previous = previous or NONE[language_of(language)]
    return request.replace("{previous}", previous).replace("{caption}", caption)

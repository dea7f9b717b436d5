"""`chain`: continue a video again and again. Each link goes on from the end of the one before; all become one film."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.media.options import OTHER_ENDINGS, SCORES, VIDEO_ENDINGS
from stages.media.scores.figures import parse_pick, pick_fault
from stages.plan.links import TEXT, LinkValues, link_fault, link_length_fault, link_number_fault, link_seed_fault
from stages.plan.names import template_fault
from stages.plan.picks import is_picks_file, picks_by_clip
from stages.plan.recipes import v2v
from stages.plan.takes import MOST_TAKES, id_of_take
from stages.runtime.errors import UsageError, did_you_mean, shown
from stages.runtime.options import BEFORE, FIRST, HANDOVERS, NO_IMAGE, Handover, option

if TYPE_CHECKING:
    from stages.plan.resolve import Clip
    from stages.runtime.items import Item


class ChainOptions(v2v.SourceFirst):
    links: int = option(12, "Number of links", aliases=("num_videos",), unit="clips", minimum=1, maximum=99)
    prompt_mode: str = option(
        "each", "Caption the source of each link, or use the first caption for all links", choices=("each", "first")
    )
    handover: str = option(
        "frame",
        "What a link goes on from: frame, the last frame of the link before, or as many last frames as the model reads; "
        "latents, its latents, without decoding and encoding them",
        choices=HANDOVERS,
    )
    link_name: str = option("video_{link:02d}_{clip}.mp4", "Template of the file names of links", check=template_fault)
    link_names: list[str] = option(
        [], "Names of single links in prompts_log.txt and in the index of the film, each as LINK: NAME", check=link_fault
    )
    link_prompts: list[str] = option(
        [], "Prompts of single links, each as LINK: PROMPT, such as 3: a red ball", check=link_fault
    )
    link_seeds: list[str] = option(
        [],
        "Seeds of single links, each as LINK: SEED, or LINK: +NUMBER for the seed + NUMBER; without one, link N has the "
        "seed + N - 1",
        check=link_seed_fault,
    )
    link_frames: list[str] = option(
        [],
        "Lengths of single links, each as LINK: FRAMES or LINK: SECONDSs, such as 3: 2.5s, which is rounded up to a length "
        "that the model knows",
        check=link_length_fault,
    )
    link_sources: list[str] = option(
        [],
        "What single links start from instead of the link before, each as LINK: PATH of a video or image, or LINK: text",
        check=link_fault,
    )
    link_takes: list[str] = option([], "Numbers of takes of single links, each as LINK: TAKES", check=link_number_fault)
    takes: int = option(
        1,
        "Number of takes of each link, of which the chain goes on from one; take K has the seed of the link + 100 * (K - 1)",
        unit="clips",
        minimum=1,
        maximum=MOST_TAKES,
    )
    pick: list[str] = option(
        [],
        "What picks the take that the chain goes on from: a figure of the scores, of which the better value wins, or "
        "highest FIGURE, lowest FIGURE; and files of picks (.jsonl), which overrule it; empty: the first take",
        check=lambda text: None if is_picks_file(text) else pick_fault(text),
    )
    picks: list[str] = option([], "Takes of single links, each as LINK: TAKE; they overrule pick", check=link_number_fault)


FAMILIES = v2v.FAMILIES
NEEDS = ()
DEFAULTS = {**v2v.DEFAULTS, "prefix": "continue video"}
OPTIONS = ChainOptions
FUSE = True
OF_FILMS = ("seams", "drift", "reference")  # groups of scores that a single clip does not have
BETWEEN_TAKES = 100  # more than a chain has links: no two takes of a chain have the same noise


@dataclass(frozen=True)
class Link:
    """A link of a chain.

    Attributes:
        number: counted from 1.
        name: in the log and the index of the film; "" for the name of its file.
        source: a video or image that it starts from, or TEXT; "" for a link that goes on from the one before.
        prompt: "" for a link to be captioned.
        has_own_caption: whether its caption or prompt is not the one that other links share.
        num_frames: its length; None for that of the clip.
        takes, take: the number of takes, and the one that is picked whatever the scores say, or 0.
    """

    number: int
    name: str
    source: str
    prompt: str
    has_own_caption: bool
    seed: int
    num_frames: int | None
    takes: int
    take: int

    @property
    def label(self) -> str:
        return f"link{self.number:02d}"


def items(clip: Clip) -> dict[str, list[Item]]:
    """The items of a clip, by step: one step per stage and link."""
    recipe, seed = ChainOptions.of(clip.values["recipe"]), clip.generating["seed"]
    links = links_of(clip, recipe)
    handover = handover_of(clip, recipe)
    v2v.check_seam(clip, recipe.source_first or len(links) > 1)
    jobs: dict[str, list[Item]] = {}
    pixels: list[str] = []
    captions: dict[int, str] = {}  # by the link that alone has it; 0 for the one that the other links share
    anchor = ""  # the image that the links since the last cut started from
    for link in links:
        if link.source and link.source != TEXT:
            anchor = clip.step("frames.json" if link.number == 1 else f"{link.label}/frames.json")
            label = "" if link.number == 1 else link.label
            step = "extract_frames" if link.number == 1 else f"extract_frames.{link.label}"
            jobs[step] = [v2v.first_frame(clip, anchor, link.source, label)]
        is_edited = clip.has_edited_caption(link.number) and 0 in captions  # an edit of the first to share it is one for all
        owner = link.number if link.has_own_caption or is_edited else 0
        if owner not in captions and link.source != TEXT:
            captions[owner] = clip.step(f"{link.label}/caption.json")
            given = {"video": link.source or pixels[-1], "prompt": clip.prompt_to_caption(link.prompt, link.number)}
            jobs[f"caption_vlm.{link.label}"] = [clip.item("caption_vlm", captions[owner], label=link.label, **given)]
        encoded = clip.step(f"{link.label}/encoded.safetensors")
        start = start_of(clip, links, link, handover, anchor, pixels)
        hands_latents = handover.from_latents and link.number < len(links) and not links[link.number].source
        text = {"prompt": link.prompt} if link.source == TEXT else {"caption": captions[owner]}
        jobs[f"encode.{link.label}"] = [clip.item("encode", encoded, label=link.label, **start, **text)]
        name = clip.result(f"{clip.id}/{recipe.link_name}", link=link.number, seed=link.seed)
        pixels.append(name.removesuffix(".mp4") + ".json")
        if link.source == TEXT:
            anchor = pixels[-1]
        if link.takes == 1:
            jobs |= new_clip(clip, link, encoded, pixels[-1])
        else:
            jobs |= picked_clip(clip, link, encoded, pixels[-1], hands_latents)
    front = {"source": links[0].source} if recipe.source_first else {}
    files = [path.rpartition("/")[2].replace(".json", ".mp4") for path in pixels]
    names = [links[0].source.rpartition("/")[2], *(link.name or file for link, file in zip(links, files))]
    film = clip.result(clip.run.film, seed=seed)
    cuts = [f"{link.number}: {link.source.rpartition('/')[2]}" for link in links[1:] if link.source]
    jobs["concat"] = [clip.item("concat", film, clips=pixels, prompts_log=True, names=names, cuts=cuts, **front)]
    return jobs


def links_of(clip: Clip, recipe: ChainOptions) -> list[Link]:
    """The links of a clip. Raises UsageError for values of links that it does not have, or that do not go together."""
    values = LinkValues(clip, recipe.links)
    names, own_prompts = values.texts("link_names"), values.texts("link_prompts")
    seeds, frames, takes = values.seeds("link_seeds"), values.lengths("link_frames"), values.numbers("link_takes")
    sources, picks = values.texts("link_sources"), picks_of(clip, recipe, values)
    prompts = prompts_of(clip, recipe.links)
    captioned_each = len(clip.prompts) > 1 or (recipe.prompt_mode == "each" and not clip.prompts)
    first = sources.get(1) or clip.video
    if not first:
        raise UsageError(f"clip {clip.id} of run {clip.run.name} has no video", "recipe chain needs one")
    found = []
    for number in range(1, recipe.links + 1):
        link = Link(
            number=number,
            name=names.get(number, ""),
            source=first if number == 1 else sources.get(number, ""),
            prompt=own_prompts.get(number, prompts[number - 1]),
            has_own_caption=captioned_each or number in own_prompts,
            seed=seeds.get(number, clip.generating["seed"] + number - 1),
            num_frames=frames.get(number),
            takes=takes.get(number, recipe.takes),
            take=picks.get(number, 0),
        )
        check_link(clip, link, recipe)
        found.append(link)
    return found


def check_link(clip: Clip, link: Link, recipe: ChainOptions) -> None:
    """Raise UsageError for a link that its model or its source does not allow."""
    of_clip, model = f"link {link.number} of clip {clip.id} of run {clip.run.name}", clip.run.generator
    if not 1 <= link.takes <= MOST_TAKES:
        raise UsageError(f"{of_clip} has {link.takes} takes", f"give 1 to {MOST_TAKES}")
    if not 0 <= link.take <= link.takes:
        raise UsageError(
            f"picks of clip {clip.id} of run {clip.run.name} names take {link.take} of link {link.number}",
            f"takes are numbered from 1, and there are {link.takes}",
        )
    if link.source == TEXT and not link.prompt:
        raise UsageError(f"{of_clip} starts from text and has no prompt", "give it a prompt, or a video or image")
    if link.number == 1 and recipe.source_first and not link.source.lower().endswith((*VIDEO_ENDINGS, *OTHER_ENDINGS)):
        raise UsageError(f"{of_clip} starts from {link.source}, which is no video", "leave source_first out")
    if link.source == TEXT and model.variant not in clip.generator.from_text:
        raise UsageError(f"{of_clip} starts from text", f"model {model.name} needs a first frame: name a video or image")
    if link.num_frames:
        values = {**clip.generating, "num_frames": link.num_frames}
        clip.generator.check(model.variant, values, model.sizes)


def start_of(
    clip: Clip, links: Sequence[Link], link: Link, handover: Handover, anchor: str, pixels: list[str]
) -> dict[str, Any]:
    """The inputs and options of encode by which a link starts: from its source, or from the link before.

    `anchor` is the image that the links since the last cut started from, or the clip that started from text.
    """
    start: dict[str, Any] = {"num_frames": link.num_frames} if link.num_frames else {}
    start |= handover.options
    if link.source == TEXT:
        return start
    if link.source:
        return start | {"image": anchor}
    start["image"] = {BEFORE: pixels[-1], FIRST: anchor, NO_IMAGE: ""}[handover.image]
    if handover.from_latents:
        start["past"] = past_of(clip, links[link.number - 2])
    return start


def handover_of(clip: Clip, recipe: ChainOptions) -> Handover:
    """How the links go on. Raises UsageError for a way that the model does not know."""
    model, run = clip.run.generator, f"clip {clip.id} of run {clip.run.name}"
    able = clip.generator.handovers(model.variant)
    if recipe.handover not in able:
        raise UsageError(f"handover of {run} is {recipe.handover}", f"model {model.name} goes on from: {', '.join(able)}")
    handover = able[recipe.handover]
    if fault := handover.fault(clip.generating):
        raise UsageError(f"{run}: {fault[0]}", fault[1])
    return handover


def latents_of(clip: Clip, link: Link) -> list[str]:
    """The paths of the latents of each take of a link."""
    names = ["latents", *(id_of_take("latents", take) for take in range(2, link.takes + 1))]
    return [clip.step(f"{link.label}/{name}.safetensors") for name in names]


def past_of(clip: Clip, link: Link) -> str:
    """The path of the latents that the next link goes on from: of several takes, those of the picked one."""
    return latents_of(clip, link)[0] if link.takes == 1 else clip.step(f"{link.label}/picked.safetensors")


def new_clip(clip: Clip, link: Link, encoded: str, pixels: str) -> dict[str, list[Item]]:
    """The items that make the clip of a link."""
    label, (latents,) = link.label, latents_of(clip, link)
    return {
        f"generate.{label}": [clip.item("generate", latents, label=label, encoded=encoded, seed=link.seed)],
        f"decode.{label}": [clip.item("decode", pixels, label=label, latents=latents, lossless=True)],
    }


def picked_clip(clip: Clip, link: Link, encoded: str, pixels: str, hands_latents: bool) -> dict[str, list[Item]]:
    """The items that make the takes of a link, and pick the one with the best figure, or that of the link, as its clip.

    With `hands_latents` also those that pick its latents.
    """
    by, label, every = figure_of(clip), link.label, latents_of(clip, link)
    jobs: dict[str, list[Item]] = {f"{stage}.{label}": [] for stage in ("generate", "decode", *(["score"] if by else []))}
    takes, scores = [], []
    for number, latents in enumerate(every, 1):
        called = id_of_take(label, number)
        seed = link.seed + BETWEEN_TAKES * (number - 1)
        takes.append(f"{id_of_take(pixels.removesuffix('.json'), number)}.json")
        jobs[f"generate.{label}"].append(clip.item("generate", latents, label=called, encoded=encoded, seed=seed))
        jobs[f"decode.{label}"].append(clip.item("decode", takes[-1], label=called, latents=latents, lossless=True))
        if by:
            scores.append(clip.step(f"{label}/take{number}.scores.json"))
            jobs[f"score.{label}"].append(score_of_take(clip, by, takes[-1], scores[-1], called))
    given = {"clips": takes, "scores": scores, "by": by, "take": link.take}
    jobs[f"pick.{label}"] = [clip.item("pick", pixels, label=label, **given)]
    if hands_latents:
        past = clip.item("pick", past_of(clip, link), label=f"{label}.latents", latents=every, **given)
        jobs[f"pick.{label}"].append(past)
    return jobs


def figure_of(clip: Clip) -> str:
    """The figure that picks among takes; "" if none does. Raises UsageError for two."""
    figures = [text for text in clip.values["recipe"]["pick"] if text and not is_picks_file(text)]
    if len(figures) > 1:
        raise UsageError(f"pick of clip {clip.id} of run {clip.run.name} names {' and '.join(figures)}", "name one figure")
    return next(iter(figures), "")


def score_of_take(clip: Clip, by: str, film: str, output: str, label: str) -> Item:
    """The item that measures the figure by which takes are picked. Raises UsageError if the run has nothing that does."""
    figure, _ = parse_pick(by)
    group = figure.partition(".")[0]
    if group in OF_FILMS:
        raise UsageError(
            f"pick of clip {clip.id} of run {clip.run.name} is {shown(by)}, which only a film has",
            f"name a figure of {', '.join(name for name in SCORES if name not in OF_FILMS)}",
        )
    if group in SCORES:
        return clip.item("score", output, label=label, film=film, source=clip.video, scores=[group], aligned=False)
    scorers = {model.name: model for model in clip.run.scorers}
    if group in scorers:
        return clip.item_of_scorer(scorers[group], output, label=label, film=film, source=clip.video)
    known = [*SCORES, *scorers]
    remedy = f"{did_you_mean(group, known)} known are figures of {', '.join(known)}, docs/scores.md lists them".strip()
    raise UsageError(f"pick of clip {clip.id} of run {clip.run.name} is {shown(by)}, which nothing measures", remedy)


def picks_of(clip: Clip, recipe: ChainOptions, values: LinkValues) -> dict[int, int]:
    """The takes of single links that are picked, in a file or by name."""
    in_files = [text for file in recipe.pick if is_picks_file(file) for text in picks_by_clip(file).get(clip.id, [])]
    return values.numbers("picks", in_files)


def prompts_of(clip: Clip, links: int) -> Sequence[str]:
    """The given prompt of each link; "" for a link to be captioned.

    A single prompt is used for all links. Raises UsageError.
    """
    if not clip.prompts:
        return [""] * links
    if len(clip.prompts) == 1:
        return list(clip.prompts) * links
    if len(clip.prompts) != links:
        raise UsageError(
            f"clip {clip.id} of run {clip.run.name} has {len(clip.prompts)} prompts for {links} links",
            "give one for all, or one for each",
        )
    return list(clip.prompts)

"""The model card of a run, README.md for the Hub: its data, budget, figures, samples and limits.

What was not measured is named, with the command that measures it; figures of weights other than the current ones are
left out. Nothing private of the machine is in the card: of an absolute path only the last name is kept.
"""

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from smalti.common import markdown
from smalti.common.bundled import bundled_name
from smalti.common.folder import inside, read_json
from smalti.common.history import START, sentences, steps_by_batch
from smalti.common.hub import source_repository
from smalti.common.markdown import plain
from smalti.common.record import commit, private, release
from smalti.common.tensors import opened_tensors
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.output import GRID, in_turn
from smalti.pipeline.reporting.comparisons import comparisons
from smalti.pipeline.reporting.markup import number
from smalti.pipeline.reporting.meanings import figures_with_meanings
from smalti.pipeline.reporting.page_head import COLOURS, headline, lead, nats, psnr
from smalti.pipeline.reporting.provenance_sections import evaluation_commands, stage_commands
from smalti.pipeline.reporting.run_contents import RunContents, decoder_alone, finite, of_other_weights, other_sampling
from smalti.prior.base import Prior
from smalti.prior.config import ArchitectureConfig
from smalti.prior.sampling_config import SamplingConfig
from smalti.tokenizer.base import ImageTokenizer

What = Literal["pipeline", "tokenizer", "prior"]
TITLES = {"pipeline": "images from {}", "tokenizer": "an image tokenizer", "prior": "a prior over {} of images"}
TAGS = {
    "pipeline": ["image-generation"],
    "tokenizer": ["image-tokenizer"],
    "prior": ["image-generation"],
}
STAGES = {"pipeline": ("tokenizer", "prior", "pipeline"), "tokenizer": ("tokenizer",), "prior": ("prior", "pipeline")}
MEASURED = {"tokenizer": "Reconstructions", "prior": "The prior on held-out {}", "pipeline": "Both stages together"}
UNSAID = "path/to/this/folder"


def model_card(contents: RunContents, what: What, *, place: str = UNSAID, license: str | None = None) -> str:
    """Return the README.md of a run's pipeline, tokenizer or prior. The files of `pictures` belong beside it.

    Args:
        place: where it will be found, `owner/name` on the Hub.
        license: as the Hub names it; the head names none where none is given.
    """
    others = of_other_weights(contents)
    current = {stage: each for stage, each in contents.evaluations.items() if stage not in dict(others)}
    contents = contents._replace(evaluations=current)
    origin = source_repository(_source(contents))
    head = markdown.yaml_head(
        license=license,
        library_name=markdown.LIBRARY,
        pipeline_tag="unconditional-image-generation" if what == "pipeline" else None,
        tags=[markdown.LIBRARY, *TAGS[what], *([] if contents.model is None else [contents.model.name()])],
        datasets=[origin] if origin else None,
        base_model=base_models(contents, what),
    )
    sections = {
        "Use": use(contents, what, place),
        "Data": data(contents),
        "Budget": budget(contents, what),
        "Figures": figures(contents, what, dict(others)),
        "Limits": limits(contents, what),
        "How it was made": made(contents, what),
    }
    above = "\n\n".join(
        (
            f"# {plain(contents.name)}: {TITLES[what].format(contents.latents)}",
            plain("".join(lead(contents))),
            *shown_pictures(contents, what),
        )
    )
    return f"{head}{above}\n\n" + "\n".join(f"## {name}\n\n" + "\n".join(parts) for name, parts in sections.items())


def base_models(contents: RunContents, what: What) -> list[str]:
    """Return the Hub's repositories whose weights the trainings began from. What comes with the package is in none."""
    stages = ("tokenizer", "prior") if what == "pipeline" else (what,)
    given = [change.after for stage in stages for change in contents.history(stage) if change.setting == START]
    names = (source_repository({"source": each}) for each in given if bundled_name(str(each)) is None)
    return list(dict.fromkeys(name for name in names if name is not None))


# ------------------------------------------------------------------------------------------------------------- pictures


def pictures(contents: RunContents, what: What) -> dict[str, Path]:
    """Return the pictures of the run's current weights, by their names beside the card."""
    there = {}
    if what != "tokenizer" and contents.samples_request():
        there["samples.png"] = contents.path / "samples/grid.png"
    if what != "prior":
        there["reconstructions.png"] = contents.path / "tokenizer/reconstructions.png"
    return {name: path for name, path in there.items() if path.exists()}


def shown_pictures(contents: RunContents, what: What) -> Iterator[str]:
    """Yield the pictures and their captions."""
    there = pictures(contents, what)
    if "samples.png" in there:
        asked = contents.samples_request()
        usual = SamplingConfig().model_dump(mode="json")
        told = [f"{name} {asked[name]}" for name, value in usual.items() if name in asked and asked[name] != value]
        classes = in_turn(asked["labels"])
        alone = round(min(GRID, len(asked["labels"])) ** 0.5 / classes) <= 1  # else a class has several columns
        columns = "a column for each class, " if classes > 1 and alone else ""
        yield "![samples](samples.png)"
        how = plain(", ".join(told) or "default sampling settings")
        yield f"*The first drawn images, {columns}none picked by hand; {how}.*"
    elif what != "tokenizer":
        yield f"No samples of these weights were drawn: {_not_measured(contents.command('pipeline/generate.py'))}"
    if "reconstructions.png" in there:
        yield "![held-out images above their reconstructions](reconstructions.png)"
        yield "*Held-out images above their reconstructions.*"


# ------------------------------------------------------------------------------------------------------------------ use


def use(contents: RunContents, what: What, place: str) -> Iterator[str]:
    """Yield the section on use: how to load it from Python."""
    yield f"With {release()} or newer installed (the package `smalti`; the `smalti` of PyPI is another):\n"
    yield markdown.fenced(snippet(contents, what, place), "python")
    if what == "pipeline":
        parts = f'`load_prior("{place}", subfolder="prior")`'
        yield f'Either part alone: {parts}, and the tokenizer\'s class with `subfolder="tokenizer"`.\n'
    if what == "prior":
        tokenizer = contents.prior["tokenizer"] if contents.prior else {}
        yield (
            f"It draws {contents.latents} of the tokenizer {plain(tokenizer.get('name'))}, SHA-256 "
            f"`{tokenizer.get('sha256')}`, and of others with its encoder and codebook.\n"
        )


def snippet(contents: RunContents, what: What, place: str) -> str:
    """Return lines of Python that load it and use it."""
    if what == "pipeline":
        names = (
            ", ".join(json.dumps(name, ensure_ascii=False) for name in contents.classes[:2])
            if contents.condition.get("names")
            else None
        )
        told = f", labels=[{names}]" if contents.model is not None and contents.model.conditional else ""
        asked = f"labels=[{names}], seed=0" if names else "num_images=4, seed=0"
        images = f"images = pipeline({asked}).images  # PIL images\nsame_again = pipeline.reconstruct(images{told})"
        return f"{markdown.loading(ImagePipeline, place)}\n{images}  # through the {contents.latents} and back"
    if what == "tokenizer":
        c = contents.model
        assert c is not None
        told = ", labels" if c.conditional else ""
        shape = f"(B, {c.image_channels}, {c.image_size[0]}, {c.image_size[1]})"
        return (
            f"import torch\n\n{markdown.loading(ImageTokenizer, place)}\n"
            f"images = torch.zeros(2, {c.image_channels}, {c.image_size[0]}, {c.image_size[1]})  # {shape} in [-1, 1]\n"
            + ("labels = torch.tensor([0, 1])  # (B,), numbers of classes\n" if c.conditional else "")
            + f"latents = tokenizer.encode(images{told})  # (B, {c.layout.length}): {c.layout}\n"
            f"images = tokenizer.decode(latents{told})"
        )
    return (
        f"import torch\n\nfrom smalti.prior.sampling_config import SamplingConfig\n{markdown.loading(Prior, place)}\n"
        "draw = prior.sampler(SamplingConfig())\n"
        "latents = draw(condition=torch.tensor([0]), seeds=[0])  # (1, T), raster order"
        + ("\nnats = prior.log_prob(latents, torch.tensor([0]))" if can_score(contents) else "")
    )


def can_score(contents: RunContents) -> bool:
    """Return whether the run's prior says how likely latents are."""
    kind = (contents.prior or {}).get("architecture", {}).get("kind", ArchitectureConfig.usual)
    return kind in ArchitectureConfig.kinds and hasattr(ArchitectureConfig.kinds[kind].builds, "log_prob")


# ----------------------------------------------------------------------------------------------------------------- data


def _source(contents: RunContents) -> Mapping[str, Any]:
    images = contents.settings.get("tokenizer", {}).get("images")
    return contents.codes[0].source if contents.codes else images if isinstance(images, Mapping) else {}


def data(contents: RunContents) -> Iterator[str]:
    """Yield the section on data: the source, and the number of images in each split."""
    path = contents.path / "tokenizer/images.json"
    ours = path.exists() and "tokenizer" not in contents.others and not contents.copied
    counts = read_json(path).get("splits", {}) if ours else {}
    coded = contents.codes[1] if contents.codes else {}
    rows = []
    for name in coded or counts:
        images, codes = counts.get(name, {}), coded.get(name, {})
        left = images.get("left_out", codes.get("skipped"))
        seen = images.get("images", codes.get("images"))
        rows.append((plain(name), *map(_count, (seen, codes.get("rows"), left))))
    if rows:
        yield markdown.markdown_table(("split", "images", f"rows of {contents.latents}", "left out"), rows)
    else:
        yield f"How many images there are was not counted: {_not_measured(contents.command('tokenizer/encode.py'))}\n"
    if _source(contents):
        yield "The source, its fingerprint, and how images were read:\n"
        yield markdown.fenced(_yaml(_source(contents)), "yaml")
    if contents.copied:
        yield "The tokenizer was trained last on other images than its codes are of, and its figures are of these:\n"
        yield markdown.fenced(_yaml(contents.settings["tokenizer"].get("images", {})), "yaml")
    if contents.classes:
        yield markdown.collapsible(f"{len(contents.classes):,} classes", ", ".join(map(plain, contents.classes)) + "\n")


# --------------------------------------------------------------------------------------------------------------- budget


def budget(contents: RunContents, what: What) -> Iterator[str]:
    """Yield the section on the budget: weights, steps and time of each training."""
    path = contents.path / ".seconds.json"
    seconds = read_json(path) if path.exists() else {}
    rows = []
    for stage in ("tokenizer", "prior"):
        given = contents.settings.get(stage)
        if given is None or what not in ("pipeline", stage):
            continue
        steps, batch = given.get("steps"), given.get("batch_size")
        seen = None
        if isinstance(steps, int) and isinstance(batch, int):
            seen = sum(taken * size for taken, size in steps_by_batch(contents.history(stage), steps, batch))
        length = (
            f"{_count(steps)} of {_count(batch)}"
            if steps
            else f"{_count(given.get('iterations'))} of EM, over all images"
        )
        spent = finite(seconds.get(stage))
        row = (_weights(contents.path / stage / "model"), length, _count(seen), str(given.get("precision", "–")))
        rows.append((stage, *map(plain, row), "–" if spent is None else f"{spent:,.0f}"))
    names = ("stage", "weights", "steps of batch", "rows seen", "precision", "seconds")
    yield markdown.markdown_table(names, rows)
    for stage in (row[0] for row in rows):
        if told := [*sentences(contents.history(stage)), *decoder_alone(contents, stage)]:
            yield f"The {stage}'s training: {plain(' '.join(told))}\n"
    if kept := finite(contents.prior_figures().get("best_step")) if what != "tokenizer" else None:
        yield f"The prior keeps the weights of step {int(kept):,}, the best on validation.\n"  # a float in its file
    if any(row[-1] == "–" for row in rows):
        yield "Only `pipeline/run.py` records seconds; these trainings were started otherwise.\n"
    else:
        yield "Seconds are wall-clock time of the whole command, including reading images and evaluating.\n"


def _weights(model: Path) -> str:
    """Return the number of weights in a model folder, from the head of its file."""
    path = inside(model, "model.safetensors")
    if not path.exists():
        return "–"
    with opened_tensors(path) as file:
        return f"{sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys()):,}"  # noqa: SIM118 - no mapping


# -------------------------------------------------------------------------------------------------------------- figures


def figures(contents: RunContents, what: What, others: Mapping[str, str]) -> Iterator[str]:
    """Yield the section on figures: the headline first, then each stage's figures with their protocol."""
    if what == "pipeline" and (first := list(headline(contents))):
        yield markdown.markdown_table(
            ("", "", "of"), [(plain(each.title), f"**{plain(each.value)}**", plain(each.meaning)) for each in first]
        )
    for stage in STAGES[what]:
        yield f"### {MEASURED[stage].format(contents.latents)}\n"
        if stage in contents.evaluations:
            yield from measured(contents, stage)
            continue
        why = f"it was, with another {others[stage]} than this; " if stage in others else ""
        why = f"it is of another tokenizer, {plain(contents.others[stage])}; " if stage in contents.others else why
        yield f"Not measured: {why}{_not_measured(contents.command(f'{stage}/evaluate.py'))}\n"
        yield from in_training(contents, stage)


def in_training(contents: RunContents, stage: str) -> Iterator[str]:
    """Yield what training and encoding measured, for a stage that was not evaluated."""
    if stage == "tokenizer" and (seen := psnr(contents)):
        yield f"By the way, reconstructions have a PSNR of {seen[0]:.2f} dB ({plain(seen[1])}).\n"
    if stage == "prior" and (cost := nats(contents)):
        yield f"By the way, a {contents.unit} costs {number(cost[0])} nats ({plain(cost[2])}).\n"


def measured(contents: RunContents, stage: str) -> Iterator[str]:
    """Yield all figures of an evaluation, and its protocol."""
    evaluation = contents.evaluations[stage]
    rows = [
        (plain(each.title), plain(each.value), plain(each.meaning)) for each in figures_with_meanings(contents, stage)
    ]
    yield markdown.markdown_table(("figure", "value", "meaning"), rows)
    protocol = {key: value for key, value in evaluation.items() if key not in ("kind", "format", "figures")}
    what = contents.of(stage, "number" if "number" in evaluation["protocol"] else "priced")
    drawn = evaluation["protocol"].get("drawn")
    also = f", and {drawn:,} drawn ones" if isinstance(drawn, int) else ""
    yield f"On the {plain(what)}{also}.\n"
    if isinstance(why := evaluation["protocol"].get("no_bits"), str):
        yield f"An image has no cost in bits here: {plain(why)}.\n"
    if stage == "pipeline" and (remark := other_sampling(contents)):
        yield f"{plain(remark)}\n"
    if stage != "prior" and (told := contents.losses()) is not None:
        yield f"{plain(told)}\n"
    if stage == "tokenizer":
        for each in comparisons(contents):
            yield f"{plain(each.caption)}.\n"
            yield markdown.markdown_table(each.head, [tuple(map(plain, row)) for row in each.rows])
    yield markdown.collapsible("The whole protocol", markdown.fenced(_yaml(protocol), "yaml"))


# --------------------------------------------------------------------------------------------------------------- limits


def limits(contents: RunContents, what: What) -> Iterator[str]:
    """Yield the section on limits: what not to expect, as far as the run tells."""
    lines = [*limits_of_codes(contents, what), *(limits_of_draws(contents) if what != "tokenizer" else ())]
    if "fd_classifier" in contents.evaluations.get("pipeline", {}).get("figures", {}):
        lines.append("Fréchet distances use features of a classifier of these very images: do not compare them to FID.")
    lines.append("Images unlike the source's were not measured. What is lopsided in the source is so here.")
    yield "".join(f"- {line}\n" for line in lines)


def limits_of_codes(contents: RunContents, what: What) -> Iterator[str]:
    """Yield the size of images, and what their codes lose."""
    c = contents.model
    if c is not None and what != "prior":
        size = f"{c.image_size[0]}×{c.image_size[1]} {COLOURS[c.image_channels]}"
        yield f"Images are {size}; others are resized to that, and lose detail."
    if "tokenizer" in contents.evaluations and (seen := psnr(contents)):
        lost = f"What {contents.latents} do not keep is lost"
        yield f"{lost}: reconstructions have a PSNR of {seen[0]:.2f} dB ({plain(seen[1])})."


def limits_of_draws(contents: RunContents) -> Iterator[str]:
    """Yield what the prior can draw, whether it copies, and what a draw depends on."""
    prior = contents.prior or {}
    classes = contents.condition.get("names")
    yield "It draws its classes and nothing else." if classes else "It draws without being asked for a class."
    kind = ArchitectureConfig.kinds.get(prior.get("architecture", {}).get("kind", ArchitectureConfig.usual))
    if prior.get("any_order"):
        yield "It was trained in every order of the places, and completes any part of an image from any other."
    elif kind is not None and kind.builds.heeds_all:
        yield "It completes any part of an image from any other."
    elif kind is not None and kind.builds.unheeded:
        yield f"It {kind.builds.unheeded}."
    if (share := contents.value("pipeline", "memorised_codes")) is not None:
        near = "as near to a training image, in codes, as 1% of held-out ones are"
        yield f"Memorising: {share:.1%} of drawn images are {near}."
    else:
        yield "Whether drawn images are copies of training images was not measured."
    yield (
        "An image is a function of weights, label and seed. Another batch size, precision or machine rounds sums "
        "differently, and now and then this changes a draw."
    )


# ------------------------------------------------------------------------------------------------------ how it was made


def made(contents: RunContents, what: What) -> Iterator[str]:
    """Yield the section on how it was made: the settings of the trainings, and the commands that repeat them."""
    stages = [
        stage for stage in ("tokenizer", "prior") if stage in contents.settings and what in ("pipeline", "prior", stage)
    ]
    name, dirty, _ = (commit() or "").partition("-dirty")
    yield f"By {release()}{f', card at commit {name[:10]}{dirty}' if name else ''}. The settings of the trainings:\n"
    for stage in stages:
        settings = markdown.fenced(_yaml(contents.settings[stage]), "yaml")
        yield markdown.collapsible(f"<code>{stage}.yaml</code>", settings)
    lines = [*stage_commands(contents), *evaluation_commands(contents)]
    if what == "tokenizer":
        lines = [line for line in lines if "tokenizer/" in line.split('"')[0]]
    yield "Saved under those names, they let these commands repeat the run; dots stand for absolute paths:\n"
    again = shlex.quote(f"runs/{contents.name}")
    text = "\n".join(lines).replace('"$again"', again)
    for stage in stages:
        text = text.replace(f'"$run/{stage}/config.yaml"', f"{stage}.yaml")
    yield markdown.fenced(text, "sh")


# --------------------------------------------------------------------------------------------------------------- pieces


def _not_measured(command: str) -> str:
    return f"run `{command}`, then publish again."


def _count(value: Any) -> str:
    return number(value) if isinstance(value, int) else "–"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(private(value), sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)

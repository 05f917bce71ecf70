"""The model card of a run: README.md for the Hub, written from what is there of data, budget, figures, samples and
limits.

What was not measured is said to be so, with the command that measures it; figures of other weights than the run has now
are left out. Nothing of the machine that is nobody's business is in it: of absolute paths there is the last name only.
"""

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from smalti.common import markdown
from smalti.common.folder import inside, read_json, sha256
from smalti.common.history import START, sentences, steps_by_batch
from smalti.common.hub import source_repository
from smalti.common.markdown import plain
from smalti.common.record import commit, private, release
from smalti.common.tensors import opened_tensors
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.reporting.found import Found, finite, of_other_weights, other_sampling
from smalti.pipeline.reporting.head import headline, lead, nats, psnr
from smalti.pipeline.reporting.meanings import told_figures
from smalti.pipeline.reporting.page import number
from smalti.pipeline.reporting.provenance import evaluation_commands, stage_commands
from smalti.prior.base import Prior
from smalti.prior.config import ArchitectureConfig
from smalti.prior.draw import SamplingConfig
from smalti.tokenizer.base import ImageTokenizer

What = Literal["pipeline", "tokenizer", "prior"]
TITLES = {"pipeline": "images from codes", "tokenizer": "an image tokenizer", "prior": "a prior over image codes"}
TAGS = {
    "pipeline": ["image-generation"],
    "tokenizer": ["image-tokenizer"],
    "prior": ["image-generation"],
}
STAGES = {"pipeline": ("tokenizer", "prior", "pipeline"), "tokenizer": ("tokenizer",), "prior": ("prior", "pipeline")}
MEASURED = {"tokenizer": "Reconstructions", "prior": "The prior on held-out codes", "pipeline": "Both stages together"}
UNSAID = "path/to/this/folder"


def model_card(found: Found, what: What, *, place: str = UNSAID, license: str | None = None) -> str:
    """The README.md of a run's pipeline, tokenizer or prior, beside which the files of `pictures` stand.

    Args:
        place: where it will be found, `owner/name` on the Hub.
        license: as the Hub names it; the head says none where none is given.
    """
    others = of_other_weights(found)
    current = {stage: each for stage, each in found.evaluations.items() if stage not in dict(others)}
    found = found._replace(evaluations=current)
    origin = source_repository(_source(found))
    head = markdown.yaml_head(
        license=license,
        library_name=markdown.LIBRARY,
        pipeline_tag="unconditional-image-generation" if what == "pipeline" else None,
        tags=[markdown.LIBRARY, *TAGS[what], *([] if found.model is None else [found.model.name()])],
        datasets=[origin] if origin else None,
        base_model=begun_from(found, what),
    )
    sections = {
        "Use": use(found, what, place),
        "Data": data(found),
        "Budget": budget(found, what),
        "Figures": figures(found, what, dict(others)),
        "Limits": limits(found, what),
        "How it was made": made(found, what),
    }
    above = "\n\n".join((f"# {plain(found.name)}: {TITLES[what]}", plain("".join(lead(found))), *shown(found, what)))
    return f"{head}{above}\n\n" + "\n".join(f"## {name}\n\n" + "\n".join(parts) for name, parts in sections.items())


def begun_from(found: Found, what: What) -> list[str]:
    """Return the Hub's repositories whose weights the trainings began from."""
    stages = ("tokenizer", "prior") if what == "pipeline" else (what,)
    given = [change.after for stage in stages for change in found.history(stage) if change.setting == START]
    names = (source_repository({"source": each}) for each in given)
    return list(dict.fromkeys(name for name in names if name is not None))


# ------------------------------------------------------------------------------------------------------------- pictures


def pictures(found: Found, what: What) -> dict[str, Path]:
    """The pictures of the weights that the run has now, by the names they have beside the card."""
    there = {}
    if what != "tokenizer" and _samples_request(found):
        there["samples.png"] = found.path / "samples/grid.png"
    if what != "prior":
        there["reconstructions.png"] = found.path / "tokenizer/reconstructions.png"
    return {name: path for name, path in there.items() if path.exists()}


def _samples_request(found: Found) -> Mapping[str, Any]:
    """What RUN/samples was asked for, where it was drawn with the weights that the run has now; else nothing."""
    path = found.path / "samples/.request.json"
    asked = read_json(path) if path.exists() else {}
    files = {stage: found.path / stage / "model/model.safetensors" for stage in ("tokenizer", "prior")}
    same = all(path.exists() and asked.get(stage) == sha256(path) for stage, path in files.items())
    return asked if same else {}


def shown(found: Found, what: What) -> Iterator[str]:
    there = pictures(found, what)
    if "samples.png" in there:
        asked = _samples_request(found)
        usual = SamplingConfig().model_dump(mode="json")
        told = [f"{name} {asked[name]}" for name, value in usual.items() if name in asked and asked[name] != value]
        columns = "a column for each class, " if 1 < len(set(asked["labels"])) <= 20 else ""
        yield "![samples](samples.png)"
        how = plain(", ".join(told) or "default sampling settings")
        yield f"*The first that were drawn, {columns}none picked out; {how}.*"
    elif what != "tokenizer":
        yield f"No samples of these weights were drawn: {_not_measured(found.command('pipeline/generate.py'))}"
    if "reconstructions.png" in there:
        yield "![held-out images above their reconstructions](reconstructions.png)"
        yield "*Held-out images above what their codes decode to.*"


# ------------------------------------------------------------------------------------------------------------------ use


def use(found: Found, what: What, place: str) -> Iterator[str]:
    yield f"With {release()} or newer installed (the package `smalti`; the `smalti` of PyPI is another):\n"
    yield markdown.fenced(snippet(found, what, place), "python")
    if what == "pipeline":
        parts = f'`load_prior("{place}", subfolder="prior")`'
        yield f'Either part alone: {parts}, and the tokenizer\'s class with `subfolder="tokenizer"`.\n'
    if what == "prior":
        tokenizer = found.prior["tokenizer"] if found.prior else {}
        yield (
            f"What it draws are codes of the tokenizer {plain(tokenizer.get('name'))}, SHA-256 of its weights "
            f"`{tokenizer.get('sha256')}`, and of no other.\n"
        )


def snippet(found: Found, what: What, place: str) -> str:
    """Lines of Python that load it and use it."""
    if what == "pipeline":
        names = (
            ", ".join(json.dumps(name, ensure_ascii=False) for name in found.classes[:2])
            if found.condition.get("names")
            else None
        )
        asked = f"labels=[{names}], seed=0" if names else "num_images=4, seed=0"
        images = f"images = pipeline({asked}).images  # PIL images\nsame_again = pipeline.reconstruct(images)"
        return f"{markdown.loading(ImagePipeline, place)}\n{images}  # through the codes and back"
    if what == "tokenizer":
        c = found.model
        assert c is not None
        shape = f"(B, {c.image_channels}, {c.image_size[0]}, {c.image_size[1]})"
        return (
            f"import torch\n\n{markdown.loading(ImageTokenizer, place)}\n"
            f"images = torch.zeros(2, {c.image_channels}, {c.image_size[0]}, {c.image_size[1]})  # {shape} in [-1, 1]\n"
            f"latents = tokenizer.encode(images)  # (B, {c.layout.length}): {c.layout}\n"
            "images = tokenizer.decode(latents)"
        )
    return (
        "import torch\n\nfrom smalti.prior.draw import SamplingConfig\n"
        f"{markdown.loading(Prior, place)}\n"
        "draw = prior.sampler(SamplingConfig())\n"
        "latents = draw(condition=torch.tensor([0]), seeds=[0])  # (1, T), raster order"
        + ("\nnats = prior.log_prob(latents, torch.tensor([0]))" if scores(found) else "")
    )


def scores(found: Found) -> bool:
    """Return whether the run's prior says how likely latents are."""
    kind = (found.prior or {}).get("architecture", {}).get("kind", ArchitectureConfig.usual)
    return kind in ArchitectureConfig.kinds and hasattr(ArchitectureConfig.kinds[kind].builds, "log_prob")


# ----------------------------------------------------------------------------------------------------------------- data


def _source(found: Found) -> Mapping[str, Any]:
    images = found.settings.get("tokenizer", {}).get("images")
    return found.codes[0].source if found.codes else images if isinstance(images, Mapping) else {}


def data(found: Found) -> Iterator[str]:
    """Where the images are from, and how many there are of each split."""
    path = found.path / "tokenizer/images.json"
    counts = read_json(path).get("splits", {}) if path.exists() else {}
    coded = found.codes[1] if found.codes else {}
    rows = []
    for name in coded or counts:
        images, codes = counts.get(name, {}), coded.get(name, {})
        left = images.get("left_out", codes.get("skipped"))
        seen = images.get("images", codes.get("images"))
        rows.append((plain(name), *map(_count, (seen, codes.get("rows"), left))))
    if rows:
        yield markdown.markdown_table(("split", "images", "rows of codes", "left out"), rows)
    else:
        yield f"How many images there are was not counted: {_not_measured(found.command('tokenizer/encode.py'))}\n"
    if _source(found):
        yield "The source, its fingerprint, and how images were read:\n"
        yield markdown.fenced(_yaml(_source(found)), "yaml")
    if found.classes:
        yield markdown.collapsible(f"{len(found.classes):,} classes", ", ".join(map(plain, found.classes)) + "\n")


# --------------------------------------------------------------------------------------------------------------- budget


def budget(found: Found, what: What) -> Iterator[str]:
    """Weights, steps and time of each training."""
    path = found.path / ".seconds.json"
    seconds = read_json(path) if path.exists() else {}
    rows = []
    for stage in ("tokenizer", "prior"):
        given = found.settings.get(stage)
        if given is None or what not in ("pipeline", stage):
            continue
        steps, batch = given.get("steps"), given.get("batch_size")
        seen = None
        if isinstance(steps, int) and isinstance(batch, int):
            seen = sum(taken * size for taken, size in steps_by_batch(found.history(stage), steps, batch))
        length = (
            f"{_count(steps)} of {_count(batch)}"
            if steps
            else f"{_count(given.get('iterations'))} of EM, over all images"
        )
        spent = finite(seconds.get(stage))
        row = (_weights(found.path / stage / "model"), length, _count(seen), str(given.get("precision", "–")))
        rows.append((stage, *map(plain, row), "–" if spent is None else f"{spent:,.0f}"))
    names = ("stage", "weights", "steps of batch", "rows seen", "precision", "seconds")
    yield markdown.markdown_table(names, rows)
    for stage in (row[0] for row in rows):
        if told := list(sentences(found.history(stage))):
            yield f"Of the {stage}'s training: {plain(' '.join(told))}\n"
    if kept := found.prior_figures().get("best_step") if what != "tokenizer" else None:
        yield f"Of the prior the weights of step {_count(kept)} are kept, the best on validation.\n"
    if any(row[-1] == "–" for row in rows):
        yield "Seconds are kept by `pipeline/run.py`; these trainings were started otherwise.\n"
    else:
        yield "Seconds are of the whole command by the clock, reading the images and evaluating included.\n"


def _weights(model: Path) -> str:
    """How many numbers a model folder holds, by the head of its file."""
    path = inside(model, "model.safetensors")
    if not path.exists():
        return "–"
    with opened_tensors(path) as file:
        return f"{sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys()):,}"  # noqa: SIM118 - no mapping


# -------------------------------------------------------------------------------------------------------------- figures


def figures(found: Found, what: What, others: Mapping[str, str]) -> Iterator[str]:
    """First those one looks for, then all, each stage's with its protocol."""
    if what == "pipeline" and (first := list(headline(found))):
        yield markdown.markdown_table(
            ("", "", "of"), [(plain(each.title), f"**{plain(each.value)}**", plain(each.meaning)) for each in first]
        )
    for stage in STAGES[what]:
        yield f"### {MEASURED[stage]}\n"
        if stage in found.evaluations:
            yield from measured(found, stage)
            continue
        why = f"it was, with another {others[stage]} than this; " if stage in others else ""
        yield f"Not measured: {why}{_not_measured(found.command(f'{stage}/evaluate.py'))}\n"
        yield from in_training(found, stage)


def in_training(found: Found, stage: str) -> Iterator[str]:
    """What training and encoding measured by the way, where nothing else did."""
    if stage == "tokenizer" and (seen := psnr(found)):
        yield f"By the way, reconstructions have a PSNR of {seen[0]:.2f} dB ({plain(seen[1])}).\n"
    if stage == "prior" and (cost := nats(found)):
        yield f"By the way, a code costs {number(cost[0])} nats ({plain(cost[2])}).\n"


def measured(found: Found, stage: str) -> Iterator[str]:
    """All figures of an evaluation, and how they came about."""
    evaluation = found.evaluations[stage]
    rows = [(plain(each.title), plain(each.value), plain(each.meaning)) for each in told_figures(found, stage)]
    yield markdown.markdown_table(("figure", "value", "meaning"), rows)
    protocol = {key: value for key, value in evaluation.items() if key not in ("kind", "format", "figures")}
    what = found.of(stage, "number" if "number" in evaluation["protocol"] else "priced")
    drawn = evaluation["protocol"].get("drawn")
    also = f", and {drawn:,} drawn ones" if isinstance(drawn, int) else ""
    yield f"On the {plain(what)}{also}.\n"
    if stage == "pipeline" and (remark := other_sampling(found)):
        yield f"{plain(remark)}\n"
    yield markdown.collapsible("The whole protocol", markdown.fenced(_yaml(protocol), "yaml"))


# --------------------------------------------------------------------------------------------------------------- limits


def limits(found: Found, what: What) -> Iterator[str]:
    """What not to expect, from what is known of the run."""
    c = found.model
    told = []
    if c is not None and what != "prior":
        colours = {1: "grey", 3: "RGB", 4: "RGBA"}[c.image_channels]
        told.append(
            f"Images are {c.image_size[0]}×{c.image_size[1]} {colours}; others are brought to that, and lose by it."
        )
    if "tokenizer" in found.evaluations and (seen := psnr(found)):
        told.append(
            f"What codes do not keep is lost: reconstructions have a PSNR of {seen[0]:.2f} dB ({plain(seen[1])})."
        )
    if what != "tokenizer":
        labels = found.condition.get("names")
        told.append("It draws its classes and nothing else." if labels else "It draws without being asked for a class.")
        if (found.prior or {}).get("any_order"):
            told.append(
                "It was trained in every order of the places, and completes any part of an image from any other."
            )
        else:
            told.append(
                "It was trained in raster order: what is kept below or right of what it completes is not heeded."
            )
        if (share := found.value("pipeline", "memorised_codes")) is not None:
            near = "as near to a training image, in codes, as 1% of held-out ones are"
            told.append(f"Memorising: {share:.1%} of drawn images are {near}.")
        else:
            told.append("Whether drawn images are copies of training images was not measured.")
        told.append(
            "An image is a function of weights, label and seed. Another batch size, precision or machine rounds sums "
            "differently, and now and then a draw with them."
        )
    if "fd_classifier" in found.evaluations.get("pipeline", {}).get("figures", {}):
        told.append(
            "Fréchet distances are on features of a classifier of these very images, and not to be held against FID."
        )
    told.append(
        "Other images than such as the source has were not measured. What is lopsided in the source is so here."
    )
    yield "".join(f"- {line}\n" for line in told)


# ------------------------------------------------------------------------------------------------------ how it was made


def made(found: Found, what: What) -> Iterator[str]:
    """The settings of the trainings, and the commands that repeat them."""
    stages = [
        stage for stage in ("tokenizer", "prior") if stage in found.settings and what in ("pipeline", "prior", stage)
    ]
    name, dirty, _ = (commit() or "").partition("-dirty")
    yield f"By {release()}{f', card at commit {name[:10]}{dirty}' if name else ''}. The settings of the trainings:\n"
    for stage in stages:
        yield markdown.collapsible(f"<code>{stage}.yaml</code>", markdown.fenced(_yaml(found.settings[stage]), "yaml"))
    lines = [*stage_commands(found), *evaluation_commands(found)]
    if what == "tokenizer":
        lines = [line for line in lines if "tokenizer/" in line.split('"')[0]]
    yield "With them saved under those names, these commands repeat it; absolute paths are shortened to dots:\n"
    again = shlex.quote(f"runs/{found.name}")
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

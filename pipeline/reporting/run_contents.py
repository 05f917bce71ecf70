"""The contents of a run folder: settings, evaluations, codes, models and samples, read and checked.

No file is trusted: a damaged one raises a `UserError` that names it, and an absent one is None.
"""

import math
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import PIL.Image

from smalti.common import codes, config
from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.commands import quoted
from smalti.common.data.run_images import recorded
from smalti.common.errors import UserError
from smalti.common.evaluation_file import read_evaluations
from smalti.common.folder import check_format, inside, kind_of, read_json, read_settings, settings_in, sha256
from smalti.common.history import Change, read_history
from smalti.common.raster import whole_picture
from smalti.common.record import private
from smalti.common.run_folder import read_lines, read_metrics
from smalti.pipeline.generation_config import GenerationConfig
from smalti.prior.base import Prior
from smalti.prior.config import ArchitectureConfig
from smalti.tokenizer.config import ImageTokenizerConfig
from smalti.tokenizer.criterion.criteria import remark_on_losses
from smalti.tokenizer.model import identity_of, settings_class

# -------------------------------------------------------------------------------------------------------- single values


def finite(value: Any) -> float | None:
    """Return the value if it is a finite number, else None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


# --------------------------------------------------------------------------------------------------------- single files


def read_model(path: Path) -> ImageTokenizerConfig:
    """Return the settings in a tokenizer's config.json; its weights are not read."""
    cls = settings_class(path)
    written = read_json(path)
    check_format(written, kind_of(cls.builds), path)
    return read_settings(cls, written, path)


def read_prior(path: Path) -> dict[str, Any]:
    """Return the settings in a prior's config.json, of any architecture."""
    written = read_json(path)
    check_format(written, Prior.kind, path)
    return settings_in(written, path)


def read_run_picture(path: Path) -> PIL.Image.Image:
    """Return a picture of the run, decoded. Raises `UserError` for a damaged file, and for a link out of the folder."""
    return whole_picture(inside(path.parent, path.name), "remove it, or run what wrote it again")


# -------------------------------------------------------------------------------------------------------------- the run


class RunContents(NamedTuple):
    """The contents of a run folder that are of one tokenizer; what is of another is None, and named in `others`."""

    path: Path
    split: str | None
    settings: dict[str, dict[str, Any]]  # config.yaml of each stage that has begun
    all_evaluations: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]  # the shown evaluation of each stage
    codes: tuple[CodesInfo, dict[str, dict[str, Any]]] | None
    model: ImageTokenizerConfig | None
    prior: dict[str, Any] | None  # config.json of the prior's model
    sampling: GenerationConfig | None
    others: Mapping[str, str] = MappingProxyType({})  # stages and codes of another tokenizer, and which that is

    @property
    def place(self) -> Path:
        """The run's path for the page: relative, or its last name alone, to hide the folders of this machine."""
        if not self.path.is_absolute():
            return self.path
        return (
            self.path.relative_to(Path.cwd()) if self.path.is_relative_to(Path.cwd()) else Path("...") / self.path.name
        )

    @property
    def shown(self) -> str:
        """The same path, quoted for a command line."""
        return quoted(self.place)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def pixels(self) -> bool:
        """Images so small that each pixel should be visible."""
        return self.model is not None and max(self.model.image_size) < 64

    @property
    def vectors(self) -> bool:
        """Return whether the tokenizer's latents are vectors; codes where there is no tokenizer yet."""
        return self.model is not None and not self.model.layout.discrete

    @property
    def latents(self) -> str:
        """Return what the tokenizer's latents are, in a word."""
        return "vectors" if self.vectors else "codes"

    @property
    def unit(self) -> str:
        """Return what the prior's nats are counted by, in words."""
        return "number" if self.vectors else "code"

    @property
    def condition(self) -> dict[str, Any]:
        """Return what an image is told of, as the tokenizer's config says, or the prior's."""
        if self.model is not None and self.model.conditional:
            return dict(self.model.model_dump(mode="json")["condition"])
        said = (self.prior or {}).get("condition")
        return said if isinstance(said, dict) else {}

    @property
    def classes(self) -> tuple[str, ...]:
        names = self.codes[0].condition.class_names if self.codes else self.condition.get("names")
        return tuple(map(str, names)) if isinstance(names, list | tuple) else ()

    @property
    def tokenizer_script(self) -> str:
        """The script that makes the tokenizer: train, cluster or convert."""
        settings = self.settings.get("tokenizer", {})
        script = "cluster" if "iterations" in settings else "convert" if "checkpoint" in settings else "train"
        return f"tokenizer/{script}.py"

    @property
    def tokenizer_command(self) -> str:
        """The command that fits the tokenizer."""
        return f"python {self.tokenizer_script} CONFIG --run {self.shown}"

    @property
    def prior_script(self) -> str:
        """The script that makes the prior: train or fit."""
        return "prior/fit.py" if "iterations" in self.settings.get("prior", {}) else "prior/train.py"

    @property
    def prior_command(self) -> str:
        """The command that makes the prior, after the one that encodes if there are no codes yet."""
        encode = "" if self.codes else f"python tokenizer/encode.py {self.shown} && "
        return f"{encode}python {self.prior_script} CONFIG --run {self.shown}"

    def command(self, script: str) -> str:
        """Return the command line of a script on this run, with the split for an evaluation."""
        if self.split is None or not script.endswith(("evaluate.py", "compare.py", "amortization.py")):
            return f"python {script} {self.shown}"
        return f"python {script} {self.shown} --split {shlex.quote(self.split)}"

    def value(self, stage: str, name: str) -> float | None:
        """Return a figure of a stage's evaluation; None where it is absent or no finite number."""
        return finite(self.evaluations.get(stage, {}).get("figures", {}).get(name))

    def numbers(self, stage: str, name: str) -> dict[str, float]:
        """Return a figure that holds a number for each of several names."""
        values = self.evaluations.get(stage, {}).get("figures", {}).get(name)
        found = {key: finite(value) for key, value in values.items()} if isinstance(values, Mapping) else {}
        return {key: value for key, value in found.items() if value is not None}

    def of(self, stage: str, count: str) -> str:
        """Describe the split and number of images of a stage's evaluation."""
        evaluation = self.evaluations[stage]
        images = evaluation["protocol"].get(count)
        return f"{evaluation['split']} split" + (f", {images:,} images" if isinstance(images, int) else "")

    def bound(self, stage: str) -> str:
        """Return ", a bound" where the learned prior's nats in a stage's evaluation are one, else nothing."""
        protocol = self.evaluations.get(stage, {}).get("protocol", {})
        return ", a bound" if "bound" in (protocol.get("learned_rate"), protocol.get("kind")) else ""

    def of_present_weights(self, stage: str) -> list[dict[str, Any]]:
        """Return all evaluations of a stage that are of the weights that the tokenizer has now."""
        path = self.path / "tokenizer/model/model.safetensors"
        now = sha256(path) if path.exists() else None
        found = [each for each in self.all_evaluations if each["stage"] == stage]
        return [each for each in found if each["protocol"].get("tokenizer") == now]

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """Return the lines that a stage's training logged."""
        return [line for line in read_metrics(self.path / stage / "metrics.jsonl") if finite(line["step"]) is not None]

    def history(self, stage: str) -> list[Change]:
        """Return what a stage's training began from and with which settings it went on."""
        return read_history(self.path / stage)

    @property
    def copied(self) -> bool:
        """Return whether the codes are of other images than the tokenizer was trained on last, as copied ones are of
        the run that it began from."""
        known = recorded(self.path / "tokenizer").fingerprint if "tokenizer" in self.settings else None
        of_codes = self.codes[0].source.get("fingerprint") if self.codes else None
        return known is not None and of_codes is not None and known != of_codes

    def losses(self) -> str | None:
        """Return a remark on bits and distances where the tokenizer was trained with losses beside its likelihood."""
        told = None if self.settings.get("tokenizer") is None else remark_on_losses(self.path / "tokenizer")
        return None if told is None else f"The tokenizer was {told}."

    def prior_figures(self) -> dict[str, Any]:
        """Return the figures that the prior's training measured at its end; none of a prior of another tokenizer."""
        path = self.path / "prior/figures.json"
        return read_json(path) if path.exists() and "prior" not in self.others else {}

    def samples(self) -> list[dict[str, Any]]:
        """Return the lines of samples/metadata.jsonl, one for each drawn image."""
        return read_lines(self.path / "samples/metadata.jsonl")

    def samples_request(self) -> Mapping[str, Any]:
        """Return the request that drew RUN/samples if the run's present weights drew them, else nothing."""
        path = self.path / "samples/.request.json"
        asked = read_json(path) if path.exists() else {}
        files = {stage: self.path / stage / "model/model.safetensors" for stage in ("tokenizer", "prior")}
        same = all(path.exists() and asked.get(stage) == sha256(path) for stage, path in files.items())
        return asked if same else {}


# ------------------------------------------------------------------------------------------------------------ gathering


def checked(evaluation: dict[str, Any], run: Path) -> dict[str, Any]:
    """Return the evaluation. Raises `UserError` where it lacks what every page shows."""
    kinds = {"stage": str, "split": str, "figures": dict, "protocol": dict}
    for name, kind in kinds.items():
        if not isinstance(evaluation.get(name), kind):
            raise UserError(
                f"a file in {run / 'evaluation'} has no {name} of type {kind.__name__}, got {evaluation.get(name)!r}; "
                "run the evaluate.py that wrote it again"
            )
    return evaluation


def chosen(evaluations: Sequence[dict[str, Any]], split: str | None) -> dict[str, dict[str, Any]]:
    """Return the evaluation to show for each stage. Raises `UserError` for a split that none has."""
    splits = {evaluation["split"] for evaluation in evaluations}
    if split is not None and splits and split not in splits:
        raise UserError(f"there is no evaluation of split {split!r}; there are some of {', '.join(sorted(splits))}")
    liked = {"test": 0, "validation": 1} if split is None else {split: 0}
    wanted = [each for each in evaluations if split in (None, each["split"])]
    wanted.sort(key=lambda each: liked.get(each["split"], 2), reverse=True)
    return {each["stage"]: each for each in wanted}


def gather(run: Path, split: str | None = None, *, about: Literal["tokenizer", "prior"] = "tokenizer") -> RunContents:
    """Read a run folder, without what goes with another tokenizer.

    Args:
        about: whose tokenizer it is read for: the run's own, or the one whose codes the prior was trained on.
    Raises:
        UserError: it is no run; or a file is damaged.
    """
    stages = stages_of(run)
    evaluations = [checked(value, run) for value in read_evaluations(run)]
    tokenizer, prior = run / "tokenizer/model/config.json", run / "prior/model/config.json"
    found = RunContents(
        path=run,
        split=split,
        settings={stage: config.read_yaml(run / stage / "config.yaml") for stage in stages},
        all_evaluations=evaluations,
        evaluations=chosen(evaluations, split),
        codes=codes.read_info(run / "codes") if codes.is_whole(run / "codes") else None,
        model=read_model(tokenizer) if tokenizer.exists() else None,
        prior=read_prior(prior) if prior.exists() else None,
        sampling=GenerationConfig.of_run(run),
    )
    return of_one_tokenizer(found, about)


def stages_of(run: Path) -> list[str]:
    """Return the stages that a run has begun. Raises `UserError` where it is no run."""
    if not run.is_dir():
        raise UserError(
            f"there is no run folder {run}; pipeline/run.py makes one, or tokenizer/train.py with --run {quoted(run)}"
        )
    stages = [stage for stage in ("tokenizer", "prior") if (run / stage / "config.yaml").exists()]
    if not stages:
        raise UserError(
            f"{run} must be a run folder, with tokenizer/config.yaml or prior/config.yaml in it, and has neither; "
            "give the folder that the trainings were given as --run"
        )
    return stages


def of_one_tokenizer(contents: RunContents, about: Literal["tokenizer", "prior"]) -> RunContents:
    """Return the contents without those of another tokenizer: codes, a prior, or (about a prior) the tokenizer."""
    identities = tokenizer_identities(contents)
    order = ("tokenizer", "codes", "prior") if about == "tokenizer" else ("prior", "tokenizer", "codes")
    ours = next((identities[name] for name in order if name in identities), None)
    others = {name: str(private(str(each))) for name, each in identities.items() if ours and not each.same_codes(ours)}
    left = {stage: each for stage, each in contents.evaluations.items() if stage not in others}
    contents = contents._replace(evaluations=left, others=others)
    if "codes" in others:
        contents = contents._replace(codes=None)
    if "prior" in others:
        contents = contents._replace(prior=None)
    if "tokenizer" in others:
        settings = {stage: each for stage, each in contents.settings.items() if stage != "tokenizer"}
        contents = contents._replace(model=None, settings=settings)
    return contents


def tokenizer_identities(contents: RunContents) -> dict[str, TokenizerIdentity]:
    """Return the tokenizer that each of tokenizer, codes and prior is of, as far as they are there and say it."""
    found = {}
    if (model := contents.path / "tokenizer/model").joinpath("model.safetensors").exists():
        found["tokenizer"] = identity_of(model, f"{contents.name}/tokenizer")
    if contents.codes is not None:
        found["codes"] = contents.codes[0].tokenizer
    if contents.prior is not None:
        path = contents.path / "prior/model/config.json"
        found["prior"] = config.build(TokenizerIdentity, contents.prior.get("tokenizer") or {}, path)
    return found


def decoder_alone(contents: RunContents, stage: str) -> tuple[str, ...]:
    """Return a sentence that says so where a stage's training moved the tokenizer's decoder alone."""
    alone = stage == "tokenizer" and contents.settings.get(stage, {}).get("train") == "decoder"
    return ("Its decoder alone was trained: codes are those of the weights it began from.",) if alone else ()


def measured_by(stage: str) -> str:
    """Return the script that writes the evaluation of a stage."""
    return f"tokenizer/{stage}.py" if stage in ("amortization", "compare") else f"{stage}/evaluate.py"


def of_other_weights(contents: RunContents) -> list[tuple[str, str]]:
    """Return pairs of an evaluated stage and the stage whose weights have changed since."""
    files = {stage: contents.path / stage / "model/model.safetensors" for stage in ("tokenizer", "prior")}
    now = {stage: sha256(path) for stage, path in files.items() if path.exists()}
    return [
        (name, stage)
        for name, evaluation in contents.evaluations.items()
        for stage, digest in now.items()
        if isinstance(evaluation["protocol"].get(stage), str) and evaluation["protocol"][stage] != digest
    ]


def other_sampling(contents: RunContents) -> str | None:
    """Return a remark if drawn images were measured with other sampling settings than are kept now, as after tuning."""
    measured = contents.evaluations.get("pipeline", {}).get("protocol", {}).get("sampling")
    kept = None if contents.sampling is None else contents.sampling.sampling.model_dump(mode="json")
    if kept is None or not isinstance(measured, Mapping) or measured == as_measured(contents, kept, measured):
        return None
    anew = contents.command("pipeline/evaluate.py")
    return (
        f"The drawn images that were measured had other sampling settings than are kept now; {anew} measures them anew."
    )


def as_measured(contents: RunContents, kept: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the kept sampling settings of these names as `Prior.heeded` writes them, the prior's own for nulls."""
    kind = (contents.prior or {}).get("architecture", {}).get("kind", ArchitectureConfig.usual)
    usual = ArchitectureConfig.kinds[kind].builds.usual if kind in ArchitectureConfig.kinds else {}
    return {name: usual.get(name) if kept.get(name) is None else kept[name] for name in names}


def of_another_tokenizer(contents: RunContents) -> Iterator[str]:
    """Yield a remark on the codes, and on the prior, that are not of the run's tokenizer, with what makes new ones."""
    commands = {"codes": contents.command("tokenizer/encode.py"), "prior": contents.prior_command}
    for name, whose in contents.others.items():
        if name in commands:
            place = quoted(contents.place / name)
            curves = " but for the curves of its training" if name == "prior" else ""
            yield (
                f"The {name} of this run {'is' if name == 'prior' else 'are'} of another tokenizer, {whose}, and left "
                f"out{curves}; remove {place}, and {commands[name]} makes one for this tokenizer."
            )


def outdated(contents: RunContents) -> Iterator[str]:
    """Yield a remark for what is of another tokenizer, and for each evaluation of other weights or sampling settings
    than the run has now."""
    yield from of_another_tokenizer(contents)
    if contents.copied:
        last = contents.settings["tokenizer"].get("images")
        source = last.get("source") if isinstance(last, Mapping) else None
        yield (
            f"The tokenizer was trained last on the images of {private(source)}, of which its figures are: the codes, "
            "and a prior over them, are of other images, those that this page begins with."
        )
    if remark := other_sampling(contents):
        yield remark
    for name, stage in of_other_weights(contents):
        yield (
            f"The {name}'s figures on the {contents.evaluations[name]['split']} split were measured with another "
            f"{stage} than the run has now; {contents.command(measured_by(name))} measures them anew."
        )

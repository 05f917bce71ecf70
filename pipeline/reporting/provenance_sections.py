"""The sections on where a run comes from: settings of its stages, protocols of its figures, commands that repeat it."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from smalti.common.record import private
from smalti.pipeline.reporting import markup
from smalti.pipeline.reporting.markup import Html, Section
from smalti.pipeline.reporting.run_contents import RunContents
from smalti.prior.sampling_config import SamplingConfig

# ----------------------------------------------------------------------------------------------- settings and protocols


def as_yaml(value: Any) -> Html:
    """Return a listing of the value as YAML, without this machine's folders."""
    return markup.listing(
        yaml.safe_dump(private(value), sort_keys=False, default_flow_style=None, allow_unicode=True, width=100).rstrip()
    )


def protocol_row(evaluation: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the part of a protocol that readers look for first."""
    protocol, machine = evaluation["protocol"], evaluation.get("machine")
    machine = machine if isinstance(machine, Mapping) else {}
    priced, drawn = protocol.get("number", protocol.get("priced")), protocol.get("drawn")
    images = " + ".join(f"{n:,}{what}" for n, what in ((priced, ""), (drawn, " drawn")) if isinstance(n, int))
    accelerators = machine.get("accelerators")
    device = (
        ", ".join(map(str, accelerators))
        if isinstance(accelerators, list) and accelerators
        else machine.get("cpu", "–")
    )
    cores = f", {machine['cores']} cores" if "cores" in machine else ""
    commit, dirty, _ = str(evaluation.get("commit") or "–").partition("-dirty")
    return (
        evaluation["stage"],
        evaluation["split"],
        images,
        str(protocol.get("seed", "–")),
        evaluation.get("date", "–"),
        markup.code_tag(commit[:10] + dirty),
        f"{device}{cores}",
    )


def protocol_details(evaluation: Mapping[str, Any]) -> Html:
    """Return the whole protocol of an evaluation, folded."""
    file = markup.code_tag(f"evaluation/{evaluation['stage']}-{evaluation['split']}.json")
    rest = {key: value for key, value in evaluation.items() if key not in ("kind", "format", "figures")}
    return markup.details_tag(markup.join("all of ", file, " but its figures"), as_yaml(rest))


def settings_section(contents: RunContents) -> Section:
    """Return the section on the settings of each stage and the protocol of each figure."""
    files = {f"{stage}/config.yaml": value for stage, value in contents.settings.items()}
    if contents.codes:
        files["codes/codes.json"] = contents.codes[0].model_dump(mode="json")
    if contents.sampling:
        files["pipeline/generation_config.json"] = contents.sampling.model_dump(mode="json")
    parts = [markup.details_tag(markup.code_tag(name), as_yaml(value)) for name, value in files.items()]
    parts.append(markup.tag("h3", "Protocols"))
    if contents.all_evaluations:
        names = ("evaluation", "split", "images", "seed", "date", "commit", "machine")
        parts.append(markup.table_tag(names, map(protocol_row, contents.all_evaluations), words=(0, 1, 4, 5, 6)))
        parts += map(protocol_details, contents.all_evaluations)
    else:
        parts.append(markup.missing("Nothing was evaluated yet", contents.command("pipeline/evaluate.py")))
    return Section("settings", "Settings and protocols", markup.join(*parts))


# ------------------------------------------------------------------------------------------------------------- commands


def drawing_options(contents: RunContents) -> str:
    """Return the options that drew RUN/samples, if the run's present weights drew them, other than the defaults; else
    the sampling settings that are kept."""
    asked, options = contents.samples_request(), []
    kept = contents.sampling.sampling.model_dump(mode="json") if contents.sampling else {}
    if asked:
        names = contents.classes
        labels = [names[label] for label in dict.fromkeys(asked["labels"]) if label < len(names)]
        options += ["--num-images", str(len(asked["labels"])), "--seed", str(asked.get("seed", 0))]
        options += ["--labels", *labels] if labels and tuple(labels) != names else []
        options += ["--keep-share", str(asked["keep_share"])] if "keep_share" in asked else []
    usual, sampling = SamplingConfig().model_dump(mode="json"), asked or kept
    told = {name: sampling[name] for name, value in usual.items() if sampling.get(name, value) != value}
    options += [word for name, value in told.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return "".join(f" {shlex.quote(option)}" for option in options)


def stage_commands(contents: RunContents) -> Iterator[str]:
    """Yield the commands that train, encode and draw."""
    if "tokenizer" in contents.settings:
        how = "--config " if contents.tokenizer_script.endswith("convert.py") else ""  # whose word is the checkpoint
        if contents.settings["tokenizer"].get("drawn_codes"):
            yield "# drawn_codes of the config: prior/redraw.py writes them, of the run that start_from names"
        yield f'python {contents.tokenizer_script} {how}"$run/tokenizer/config.yaml" --run "$again"'
    if contents.copied:
        both = '"$run/codes" "$run/prior"' if "prior" in contents.settings else '"$run/codes"'
        yield f'cp -r {both} "$again/"  # of other images: they were copied from the run that wrote them'
    elif "tokenizer" in contents.settings:
        views = f" --views {contents.codes[0].views}" if contents.codes else ""
        vectors = contents.codes is not None and not contents.codes[0].layout.discrete and not contents.vectors
        yield f'python tokenizer/encode.py "$again"{views}{" --vectors true" if vectors else ""}'
    if "prior" in contents.settings:
        if not contents.copied:
            yield f'python {contents.prior_script} "$run/prior/config.yaml" --run "$again"'
        yield 'python pipeline/generate.py "$again"' + drawing_options(contents)


def elsewhere(contents: RunContents, command: str) -> str:
    """Return a recorded command with its run replaced, or put at its end where it was left to the default."""
    begun = contents.settings.get("tokenizer", contents.settings.get("prior", {})).get("run")
    names = {contents.name, Path(begun).name if isinstance(begun, str) else contents.name}
    try:
        words = shlex.split(command)
    except ValueError:  # of an earlier version, which did not quote
        words = command.split()
    script = next((i for i, word in enumerate(words) if word.endswith(".py")), 0)
    named = [i + 1 for i, word in enumerate(words[:-1]) if word == "--run"]
    first = [i for i in (script + 1,) if i < len(words) and not words[i].startswith("-")]
    runs = [i for i, word in enumerate(words) if Path(word).name in names and not word.startswith("-")]
    place = next(iter(named or first or runs), len(words))
    quoted = [*map(shlex.quote, words)]
    return " ".join([*quoted[:place], '"$again"', *quoted[place + 1 :]])


def evaluation_commands(contents: RunContents) -> Iterator[str]:
    """Yield the evaluations as they were recorded, or with their defaults."""
    for stage in ("tokenizer", "prior", "pipeline") if "prior" in contents.settings else ("tokenizer",):
        given = contents.evaluations.get(stage, {}).get("command")
        yield elsewhere(contents, given) if isinstance(given, str) else f'python {stage}/evaluate.py "$again"'
    for stage in ("amortization", "compare"):
        if isinstance(given := contents.evaluations.get(stage, {}).get("command"), str):
            yield elsewhere(contents, given)


def commands_section(contents: RunContents) -> Section:
    """Return the section on the commands that repeat the run in a folder beside it."""
    lines = [
        f"run={contents.shown}",
        f"again={shlex.quote(f'{contents.place}-again')}",
        *stage_commands(contents),
        *evaluation_commands(contents),
        'python pipeline/report.py "$again"',
    ]
    how = (
        "Run them in order, from the folder of the code. The trainings take the settings that this run kept, including "
        "those of its command line; evaluations are as they were recorded, or with their defaults where none was. "
        "Names that begin with three dots were absolute paths: put your own there. On several devices, "
    )
    launch = markup.paragraph(
        how, markup.code_tag("accelerate launch -q SCRIPT"), " stands for ", markup.code_tag("python SCRIPT"), "."
    )
    return Section("commands", "Commands that repeat it", markup.join(launch, markup.listing("\n".join(lines))))

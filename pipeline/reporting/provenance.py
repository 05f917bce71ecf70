"""Where a run comes from: the settings of its stages, the protocols of its figures, and the commands that repeat it."""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from smalti.common.record import private
from smalti.pipeline.reporting import page
from smalti.pipeline.reporting.found import Found
from smalti.pipeline.reporting.page import Html, Section

# ----------------------------------------------------------------------------------------------- settings and protocols


def as_yaml(value: Any) -> Html:
    return page.listing(
        yaml.safe_dump(private(value), sort_keys=False, default_flow_style=None, allow_unicode=True, width=100).rstrip()
    )


def protocol_row(evaluation: Mapping[str, Any]) -> tuple[Any, ...]:
    """The part of a protocol that one looks for first."""
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
        page.code(commit[:10] + dirty),
        f"{device}{cores}",
    )


def protocol_details(evaluation: Mapping[str, Any]) -> Html:
    """All that an evaluation says of how it was made."""
    file = page.code(f"evaluation/{evaluation['stage']}-{evaluation['split']}.json")
    rest = {key: value for key, value in evaluation.items() if key not in ("kind", "format", "figures")}
    return page.details(page.join("all of ", file, " but its figures"), as_yaml(rest))


def settings(found: Found) -> Section:
    """What each stage was given, and by which protocol each figure was measured."""
    files = {f"{stage}/config.yaml": value for stage, value in found.settings.items()}
    if found.codes:
        files["codes/codes.json"] = found.codes[0].model_dump(mode="json")
    if found.sampling:
        files["pipeline/generation_config.json"] = found.sampling.model_dump(mode="json")
    parts = [page.details(page.code(name), as_yaml(value)) for name, value in files.items()]
    parts.append(page.tag("h3", "Protocols"))
    if found.all_evaluations:
        names = ("evaluation", "split", "images", "seed", "date", "commit", "machine")
        parts.append(page.table(names, map(protocol_row, found.all_evaluations), words=(0, 1, 4, 5, 6)))
        parts += map(protocol_details, found.all_evaluations)
    else:
        parts.append(page.missing("Nothing was evaluated yet", found.command("pipeline/evaluate.py")))
    return Section("settings", "Settings and protocols", page.join(*parts))


# ------------------------------------------------------------------------------------------------------------- commands


def drawing_options(found: Found) -> str:
    """Number, seed, labels and sampling settings of what was drawn, those that differ from the defaults."""
    lines, options = found.samples(), []
    if lines:
        labels = list(dict.fromkeys(str(line["label"]) for line in lines if "label" in line))
        options += ["--num-images", str(len(lines)), "--seed", str(lines[0].get("seed", 0))]
        options += ["--labels", *labels] if labels and tuple(labels) != found.classes else []
    kept = found.sampling.sampling.model_dump(mode="json", exclude_defaults=True) if found.sampling else {}
    options += [word for name, value in kept.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return "".join(f" {shlex.quote(option)}" for option in options)


def stage_commands(found: Found) -> Iterator[str]:
    """Training, encoding and drawing."""
    if "tokenizer" in found.settings:
        yield f'python {found.tokenizer_script} "$run/tokenizer/config.yaml" --run "$again"'
        yield 'python tokenizer/encode.py "$again"' + (f" --views {found.codes[0].views}" if found.codes else "")
    if "prior" in found.settings:
        yield 'python prior/train.py "$run/prior/config.yaml" --run "$again"'
        yield 'python pipeline/generate.py "$again"' + drawing_options(found)


def elsewhere(found: Found, command: str) -> str:
    """A recorded command with its run replaced."""
    begun = found.settings.get("tokenizer", found.settings.get("prior", {})).get("run")
    names = {found.name, Path(begun).name if isinstance(begun, str) else found.name}
    words = re.split(r"(\s+)", command)
    runs = [i for i, word in enumerate(words) if Path(word).name in names and not word.startswith("-")]
    if runs:
        words[runs[0]] = '"$again"'
    return "".join(words)


def evaluation_commands(found: Found) -> Iterator[str]:
    """Evaluations as they were recorded, or with their defaults."""
    for stage in ("tokenizer", "prior", "pipeline") if "prior" in found.settings else ("tokenizer",):
        given = found.evaluations.get(stage, {}).get("command")
        yield elsewhere(found, given) if isinstance(given, str) else f'python {stage}/evaluate.py "$again"'


def commands(found: Found) -> Section:
    """What repeats the run in a folder beside it."""
    lines = [
        f"run={found.shown}",
        f"again={shlex.quote(f'{found.place}-again')}",
        *stage_commands(found),
        *evaluation_commands(found),
        'python pipeline/report.py "$again"',
    ]
    how = (
        "In order, from the folder of the code. The trainings take the settings that this run kept, whatever was given "
        "on the command line included; evaluations are as they were recorded, or with their defaults where there was "
        "none. Names that begin with three dots were absolute paths: put your own there. On several devices, "
    )
    launch = page.paragraph(
        how, page.code("accelerate launch -q SCRIPT"), " stands for ", page.code("python SCRIPT"), "."
    )
    return Section("commands", "Commands that repeat it", page.join(launch, page.listing("\n".join(lines))))

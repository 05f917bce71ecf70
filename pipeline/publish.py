"""Publish a run: lay it out as a Hub repository, with a card of data, budget, figures and samples, and push it.

    python pipeline/publish.py runs/digits                                      # lay out the pipeline, to look at
    python pipeline/publish.py runs/digits --repo me/digits                     # and push it
    python pipeline/publish.py runs/digits --what codes --repo me/digits-codes
    python pipeline/publish.py runs/digits --what space --repo me/digits-page   # a Space: the page of pipeline/app.py

Reads RUN/pipeline, or the model of one stage, or RUN/codes, and for the card everything else in the run. Writes a
folder, RUN/hub/WHAT (or --to), and with --repo pushes it as one commit. Log in before with `hf auth login`, or set
HF_TOKEN.
"""

import os
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.common.config import Settings as BaseSettings


class Settings(BaseSettings):
    """Publish a run, or a part of it."""

    run: str = "runs/digits"
    """folder of the experiment"""
    what: Literal["pipeline", "tokenizer", "prior", "codes", "space"] = "pipeline"
    """what of it; a space serves the page of pipeline/app.py"""
    to: str | None = None
    """the folder to lay out; hub/WHAT in the run when null"""
    repo: str | None = None
    """the repository to push to, `owner/name`, which is made where there is none; nothing is pushed when null"""
    private: bool | None = None
    """whether a repository that is made is private; as its owner's settings say when null"""
    license: str | None = None
    """for the head of the card, as the Hub names it: apache-2.0, cc-by-4.0, ...; yours to say, and none is said when
    null"""
    place: str | None = None
    """what the card tells its readers to load; the repository when null"""
    revision: str | None = None
    """branch to push to, made where there is none; the main one when null"""
    create_pr: bool = False
    """open a pull request instead of writing into the main branch"""
    message: str | None = None
    """of the commit"""


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

from smalti.common import codes
from smalti.common.commands import as_typed, quoted
from smalti.common.errors import Refused, UserError
from smalti.common.folder import inside, is_empty, link, remove, rewriting, sha256, write_json
from smalti.common.hub import README, Kind, Pretrained, push
from smalti.common.launch import check_alone, make_accelerator, run_command
from smalti.common.record import private
from smalti.common.session import session
from smalti.common.written import NAME, is_as_written, note, noted, tell_kept
from smalti.pipeline.image_pipeline import ImagePipeline, is_of_run
from smalti.pipeline.reporting.model_card import UNSAID, model_card, pictures
from smalti.pipeline.reporting.run_contents import gather
from smalti.pipeline.space import lay_out_space
from smalti.prior.model import load_prior
from smalti.tokenizer.model import load_tokenizer, trained

MARK = ".published.json"  # in a folder that this command laid out; hidden files are not pushed


def laid(c: Settings) -> Path:
    """Return the folder to lay out. Raises `Refused` for one that this command did not write."""
    path = Path(c.to or Path(c.run) / "hub" / c.what)
    if path.is_symlink():
        raise Refused(f"{path} is a link to {os.path.realpath(path)}; give that folder itself")
    if path.exists() and not (path.is_dir() and (is_empty(path) or (path / MARK).is_file())):
        raise Refused(f"{path} holds something that this command did not write; give another --to")
    return path


def lay_out(c: Settings) -> Path:
    """Write the folder in place of an earlier one, and return it. Files that a user added or edited stay.

    Raises:
        Refused: the folder holds something else, or a file of the model was changed.
    """
    path = laid(c)
    run, before = gather(Path(c.run)).path, noted(path)
    ours = {MARK, NAME, *before}
    with rewriting(path, ours) as aside:
        if c.what == "codes":
            lay_out_codes(c, run / "codes", aside)
        elif c.what == "space":
            lay_out_space(pipeline_of(run), run.name, aside, c.license)
        else:
            lay_out_model(c, run, aside)
        new = {file.relative_to(aside).as_posix(): sha256(file) for file in aside.rglob("*") if file.is_file()}
        edited = edited_in(path, {*before, *new}, before)
        for name in edited:
            tell_kept(path / name)
            remove(aside / name)
        ours.update(new)  # only now it is known which old files stay
        ours.difference_update(edited)
        write_json(aside / MARK, {"what": c.what})
        note(aside, {name: digest for name, digest in new.items() if name not in edited})
    return path


def edited_in(path: Path, names: Collection[str], before: Mapping[str, list[str]]) -> set[str]:
    """Return those of these files, in a folder laid out before, that people read and somebody has edited.

    Raises:
        Refused: another file was changed; it would not fit new weights.
    """
    edited = {name for name in names if not is_as_written(path, name, before)}
    shown = {name for name in edited if name.endswith((".md", ".png"))}
    if before and edited != shown:  # earlier versions kept no digests
        raise Refused(
            f"{path / min(edited - shown)} is not as this command wrote it; move it away, or give another --to"
        )
    return shown


def lay_out_model(c: Settings, run: Path, path: Path) -> None:
    """Write the files of the model, the pictures and the card."""
    assert c.what != "codes" and c.what != "space"
    load_to_publish(c.what, run).save_pretrained(path)
    contents = gather(run, about="prior" if c.what == "prior" else "tokenizer")
    for name, picture in pictures(contents, c.what).items():
        shutil.copyfile(inside(picture.parent, picture.name), path / name)
    card = model_card(contents, c.what, place=c.place or c.repo or UNSAID, license=c.license)
    (path / README).write_text(card, encoding="utf-8", errors="replace")


def load_to_publish(what: Literal["pipeline", "tokenizer", "prior"], run: Path) -> Pretrained:
    """Load what is to be published, which checks it.

    Raises:
        UserError: something is missing; the message names the command that makes it.
    """
    if what == "tokenizer":
        return load_tokenizer(trained(run / "tokenizer"))
    if what == "prior":
        if not (run / "prior/model/config.json").exists():
            raise UserError(
                f"there is no trained prior in {run / 'prior/model'}; prior/train.py with --run {quoted(run)} makes one"
            )
        return load_prior(run / "prior/model")
    return pipeline_of(run)


def pipeline_of(run: Path) -> ImagePipeline:
    """Load the pipeline of a run's current weights. Raises as `load_to_publish`."""
    ImagePipeline.check_trained(run)
    path = run / "pipeline"
    if not is_of_run(path, run):
        state = "holds other weights than the run has now" if path.exists() else "is not there"
        raise UserError(f"{path} {state}; python pipeline/generate.py {quoted(run)} writes it")
    return ImagePipeline.from_folder(path)


def lay_out_codes(c: Settings, folder: Path, path: Path) -> None:
    """Link or copy the shards, and write the card and `codes.json`, without the names of this machine's folders."""
    info, splits = codes.read_info(folder)
    codes.load_codes(folder)  # checks that they are whole and as codes.json says
    for shard in (shard for name in splits for shard in codes.shard_paths(folder, name)):
        link(inside(folder, shard.name).resolve(), path / shard.name)
    shown = info.model_copy(update={"source": private(info.source)})
    write_json(path / "codes.json", codes.as_written(shown, splits))
    card = codes.dataset_card(path, shown, splits, place=c.place or c.repo or UNSAID, license=c.license)
    (path / README).write_text(card, encoding="utf-8", errors="replace")


def main(argv: Sequence[str]) -> None:
    check_alone()
    c = read_settings(argv)
    kind: Kind = "dataset" if c.what == "codes" else "space" if c.what == "space" else "model"
    with session(laid(c), make_accelerator()):
        path = lay_out(c)
        print(f"{path} is laid out; its card is {path / README}")
        if c.repo is None:
            if c.what == "space":
                print(f"to start it here: python {quoted(path / 'app.py')}")
            print(f"next: {as_typed('pipeline/publish.py', *argv, '--repo', 'OWNER/NAME')}")
            return
        url = push(
            path,
            c.repo,
            kind=kind,
            private=c.private,
            revision=c.revision,
            create_pr=c.create_pr,
            commit_message=c.message or f"Upload {c.what}",
            replace=codes.is_shard if c.what == "codes" else None,
        )
    print(f"pushed: {url}")


if __name__ == "__main__":
    run_command(main)

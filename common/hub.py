"""The Hugging Face Hub: reading our folders from it, and writing them to it.

    owner/name  ->  locate  ->  a folder in the Hub's cache
    a folder    ->  push    ->  one commit on a repository, of a model or of a dataset

`Pretrained` gives a class the methods that users of the Hub know: `from_pretrained`, `save_pretrained`, `push_to_hub`.
Only the files that a class reads are downloaded, and the Hub's errors become messages that say what to do.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch

from smalti.common import markdown
from smalti.common.bundled import bundled, bundled_name
from smalti.common.errors import UserError
from smalti.common.folder import inside

if TYPE_CHECKING:  # a second, and what is local does without
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
README = "README.md"
Kind = Literal["model", "dataset", "space"]  # of a repository
PATIENCE = 5.0  # seconds for a connection to the Hub, and for its first answer


class NoSuchFile(UserError):
    """A repository of the Hub has no file of that name."""


class Pretrained:
    """A class whose objects live in folders, here or on the Hub."""

    face: ClassVar[str]  # what `smalti` calls it: the class itself, or the function that loads one of its kind
    files: ClassVar[tuple[str, ...]]  # that `from_folder` reads, the one that says what it is first

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        subfolder: str = "",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **others: Any,
    ) -> Self:
        """Read what `save_pretrained` wrote, from a folder or from the Hub.

        Args:
            path: a folder, a pipeline that comes with the package (`smalti/digits`), or a repository `owner/name`.
            subfolder: of either, where it does not lie at the top: `tokenizer` and `prior` of a pipeline's.
            revision: branch, tag or commit of the repository.
            token: for private and gated repositories; the one of `hf auth login` when not given.
            cache_dir: where downloads are kept; the Hub's own cache when not given.
            local_files_only: ask nothing of the network.
            others: of other libraries' `from_pretrained`, where they change nothing here (`use_safetensors=True`).
        Raises:
            UserError: an option that cannot be had here, with what does it instead; no such folder or repository,
                another kind of object, or files that do not fit together.
        """
        check_options(others)
        found = locate(
            path,
            cls.files,
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return cls.from_folder(found)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        raise NotImplementedError

    def save_pretrained(self, path: str | Path) -> None:
        raise NotImplementedError

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Write it into a repository of the Hub, which is made where there is none, as one commit.

        A repository that has a model card keeps it; another gets a short one. `pipeline/publish.py` pushes a run with a
        card of its data, budget and figures.

        Args:
            private: of a repository that is made; as its owner's settings say when not given.
            token: one that may write; the one of `hf auth login` when not given.
            revision: branch to write into, made where there is none; the main one when not given.
            create_pr: open a pull request instead of writing into the main branch.
        Returns:
            The address of the commit, or of the pull request.
        Raises:
            UserError: the Hub cannot be reached, or does not let this token write there.
        """
        with TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            self.save_pretrained(folder)
            (folder / README).write_text(markdown.brief(type(self), repo_id), encoding="utf-8")
            return push(
                folder,
                repo_id,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                keep=(README,),
                commit_message=commit_message or f"Upload {type(self).__name__}",
            )


# ------------------------------------------------------------------------------------------- options of other libraries


def check_dtype(dtype: Any) -> None:
    """Raise `UserError` for another dtype of weights than float32, by whichever name."""
    if dtype not in (None, "auto", "float32", "fp32", torch.float32):
        raise UserError(
            f"weights are kept in float32, got {str(dtype).removeprefix('torch.')}: what is saved must be what was "
            "trained. To compute in less, give the precision to what computes: pipeline(..., precision='bf16'), or "
            "torch.autocast around a tokenizer"
        )


INSTEAD = {
    "device_map": 'load it, then .to("cuda")',
    "variant": "there is one set of weights, so leave it away",
    "force_download": "remove the folder from the Hub's cache",
    "trust_remote_code": "no code of a repository is run, so leave it away",
    "quantization_config": "pipeline(..., precision='int8') draws so on a CPU",
    "low_cpu_mem_usage": "weights are read once, so leave it away",
}


def check_options(others: Mapping[str, Any]) -> None:
    """Raise `UserError` for an option of other libraries' `from_pretrained` that would not be heeded here."""
    for name, value in others.items():
        if name in ("torch_dtype", "dtype"):
            check_dtype(value)
        elif (name == "use_safetensors" and value in (None, True)) or (name in INSTEAD and value in (None, False)):
            continue
        else:
            only = "weights are safetensors and nothing else" if name == "use_safetensors" else "look at its help"
            raise UserError(f"from_pretrained does not take {name}={value!r}; {INSTEAD.get(name, only)}")


# --------------------------------------------------------------------------------------------------------- from the Hub


def locate(
    path: str | Path,
    files: Sequence[str],
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the folder itself, one that comes with the package, or the local copy of these files of the Hub's
    repository `owner/name`.

    A name whose first part is a folder here is not looked up on the Hub: `runs/nothere` is a run that is not there.

    Raises:
        UserError: none of them is there, or the repository has no file of the first name: it is something else.
    """
    shipped = bundled(path)
    if shipped is not None and not Path(path).is_dir():
        if revision is not None:
            raise UserError(f"{path} comes with the package and has no revisions: leave revision {revision!r} away")
        return inside(shipped, subfolder)
    if _is_folder(path):
        return inside(Path(path), subfolder)
    from huggingface_hub import snapshot_download

    wanted = [f"{subfolder.strip('/')}/{name}".lstrip("/") for name in files]
    with answering(str(path), f"there is no folder {path} here, and "):
        local_files_only = local_files_only or not _is_reached(str(path), revision, token)
        snapshot = snapshot_download(
            str(path),
            allow_patterns=wanted,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    if not (Path(snapshot) / wanted[0]).exists():
        raise NoSuchFile(
            f"the Hub's repository {path} has no {wanted[0]}: what it holds is nothing that can be read here"
        )
    return inside(Path(snapshot), subfolder)


def _is_folder(path: str | Path) -> bool:
    """Return whether a folder is there. Raises `UserError` where there is none and the Hub has no such name either."""
    try:
        here, there = Path(path).is_dir(), Path(path).exists()
    except OSError as error:  # a name longer than any disk has
        raise UserError(f"there is no folder {str(path)[:80]}...: {error.strerror}") from None
    if there and not here:
        raise UserError(f"{path} is a file; give the folder that it lies in")
    owner, _, name = str(path).partition("/")
    if not here and (not name or "/" in name or str(path).startswith((".", "/", "~")) or Path(owner).is_dir()):
        ours = bundled_name(str(path))
        hint = f"; did you mean {ours}, which comes with the package?" if ours else _beside(Path(path))
        raise UserError(f"there is no folder {path}{hint}")
    return here


def _beside(path: Path) -> str:
    """Return the part of a message on the folders beside one that is not there."""
    parent = path.parent
    if not parent.is_dir():
        return ""
    folders = [each.name for each in parent.iterdir() if each.is_dir() and not each.name.startswith(".")]
    if near := difflib.get_close_matches(path.name, folders, 1, 0.5):
        return f"; did you mean {parent / near[0]}?"
    if parent == Path() or not folders:
        return ""
    return f"; {parent} has {', '.join(sorted(folders)[:5])}{', ...' if len(folders) > 5 else ''}"


def _is_reached(repo_id: str, revision: str | None, token: str | bool | None) -> bool:
    """Return whether the Hub answers soon, even with an error; `snapshot_download` would wait without end."""
    from huggingface_hub import HfApi, errors
    from huggingface_hub.utils import OfflineModeIsEnabled

    try:
        HfApi(token=token).repo_info(repo_id, revision=revision, timeout=PATIENCE)
    except errors.HfHubHTTPError:
        return True
    except (errors.HTTPError, OfflineModeIsEnabled):
        return False
    return True


def source_repository(source: Mapping[str, Any]) -> str | None:
    """Return the Hub's name of the dataset that images were read from; None if they lay in a folder."""
    name = source.get("source")
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or Path(name).exists():
        return None
    return name


# ----------------------------------------------------------------------------------------------------------- to the Hub


def push(
    folder: Path,
    repo_id: str,
    *,
    kind: Kind = "model",
    commit_message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    keep: Sequence[str] = (),
    replace: Callable[[str], bool] | None = None,
) -> str:
    """Write the files of a folder, but hidden ones, into a repository as one commit, and return its address.

    Files that go from the repository are printed.

    Args:
        keep: files that stay as they are where the repository has them.
        replace: whether a file of the repository that the folder has not goes from it: a shard of an earlier dataset.
    Raises:
        UserError: as `Pretrained.push_to_hub`.
    """
    from huggingface_hub import HfApi

    _check_can_push(repo_id, revision, create_pr)
    paths, api = _shown_files(folder), HfApi(token=token)
    with answering(repo_id):
        sdk = "gradio" if kind == "space" else None
        api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True, space_sdk=sdk)
        if revision is not None:
            api.create_branch(repo_id, repo_type=kind, branch=revision, exist_ok=True)
        there = set(api.list_repo_files(repo_id, repo_type=kind, revision=revision))
        gone = sorted(filter(replace, there - paths.keys())) if replace else []
        commit = api.create_commit(
            repo_id,
            _operations(paths, there.intersection(keep), gone),
            commit_message=commit_message,
            repo_type=kind,
            revision=revision,
            create_pr=create_pr,
        )
    if gone:
        where = f"the pull request removes from {repo_id}" if create_pr else f"removed from {repo_id}"
        print(f"{where}, as shards of earlier codes: {', '.join(gone)}")
    return commit.pr_url or commit.commit_url


def _check_can_push(repo_id: str, revision: str | None, create_pr: bool) -> None:
    """Raise `UserError` where pushing is switched off, or is asked for in two ways."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"HF_HUB_OFFLINE is set, so nothing is pushed to {repo_id}: unset it, and run the same command again"
        )
    if create_pr and revision is not None:
        raise UserError(
            f"a pull request is opened against the main branch; leave revision {revision!r} away, or create_pr"
        )


def _operations(
    paths: Mapping[str, Path], kept: set[str], gone: Sequence[str]
) -> list["CommitOperationAdd | CommitOperationDelete"]:
    """Return the operations of a commit that adds files, but those that are kept as they are, and removes others."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    added = [CommitOperationAdd(name, str(path)) for name, path in paths.items() if name not in kept]
    return [*map(CommitOperationDelete, gone), *added]


def _shown_files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by their paths in it, without what is hidden and what Python compiled."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    left = {name for name in paths if any(part.startswith(".") or part == "__pycache__" for part in name.parts)}
    return {name.as_posix(): path for name, path in paths.items() if name not in left}


# ----------------------------------------------------------------------------------------------------------- its errors


@contextmanager
def answering(repo_id: str, before: str = "") -> Iterator[None]:
    """Raise the Hub's errors in this context as a `UserError` that says what to do; let errors of the disk pass."""
    from huggingface_hub import errors
    from huggingface_hub.utils import OfflineModeIsEnabled

    try:
        yield
    except errors.GatedRepoError:
        told = f"the Hub's repository {repo_id} is gated: ask for access on its page, then {LOG_IN}"
    except errors.RepositoryNotFoundError:
        told = f"the Hub has no repository {repo_id} that you may see: look at the name, and if it is private, {LOG_IN}"
    except errors.RevisionNotFoundError:
        told = f"the Hub's repository {repo_id} has no such revision; its page lists branches, tags and commits"
    except errors.LocalTokenNotFoundError:
        told = f"there is no token for the Hub: {LOG_IN}"
    except errors.HFValidationError:
        told = f"{repo_id!r} is no name of a repository on the Hub; expected owner/name, of letters, digits, - and ."
    except (errors.LocalEntryNotFoundError, OfflineModeIsEnabled):
        told = (
            f"{repo_id} is not whole in the Hub's cache, and the Hub was not reached: connect, leave local_files_only "
            f"and HF_HUB_OFFLINE away, or run `hf download {repo_id}` where there is a network"
        )
    except errors.HfHubHTTPError as error:
        told = _refused(repo_id, error.response.status_code, str(error.server_message or error))
    except errors.HTTPError as error:  # of the connection
        told = f"the Hub cannot be reached ({type(error).__name__}): connect, and try again"
    else:
        return
    raise UserError(before + told) from None


def _refused(repo_id: str, status: int, message: str) -> str:
    if status == 401:
        return f"the Hub does not know who asks for {repo_id}: {LOG_IN}"
    if status == 403:
        return f"this token may not write into the Hub's repository {repo_id}: make one that may, then {LOG_IN}"
    return f"the Hub answered {status} for {repo_id}: {' '.join(message.split())[:300]}; try again later"

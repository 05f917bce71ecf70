"""The identity of a tokenizer's folder: what decides its codes, and the whole file.

    RUN/tokenizer/model/config.json          {"kind": ..., "decodes_only": ["decoder", "likelihood"], ...}
    RUN/tokenizer/model/model.safetensors    encoder.*, quantizer.*, decoder.*, likelihood.*

Codes stay what they are when the decoder alone is trained further, so a codes dataset and a prior are held against the
SHA-256 of the tensors that decide them: all but those of the modules in `decodes_only`, which the tokenizer's class
declares and `config.json` repeats for those who do not know the class. Of each tensor, in the order of their names,
enter the JSON list [name, type, shape] in UTF-8 and its numbers, row after row, little-endian; numbers of floating
point as fp32, so that weights of another precision that load as the same ones have the same identity.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from torch import Tensor

from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.ends import pass_on
from smalti.common.errors import UserError
from smalti.common.folder import DECODES_ONLY, MODEL_FILES, inside, read_json, sha256
from smalti.common.history import read_history
from smalti.common.tensors import read_tensors


def only_decodes(name: str, modules: Collection[str]) -> bool:
    """Return whether a tensor is of one of the modules that only decode."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def codes_sha256(tensors: Mapping[str, Tensor], decodes_only: Collection[str]) -> str:
    """Return the SHA-256 of the tensors that decide codes."""
    found = hashlib.sha256()
    for name in sorted(name for name in tensors if not only_decodes(name, decodes_only)):
        tensor = tensors[name].detach().cpu()
        numbers = (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy()
        found.update(json.dumps([name, numbers.dtype.name, list(numbers.shape)]).encode())
        found.update(np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<")).data)
    return found.hexdigest()


def identity_of(folder: Path, name: str, declared: Collection[str] = ()) -> TokenizerIdentity:
    """Return the identity of the tokenizer in a folder.

    Args:
        name: what to call it.
        declared: the modules that only decode, as the tokenizer's class declares them; read where `config.json`, which
            an earlier version wrote, does not say. Without either, every tensor decides codes.
    Raises:
        UserError: its files are damaged, or not there.
    """
    said = read_json(inside(folder, MODEL_FILES[0])).get(DECODES_ONLY, list(declared))
    if not isinstance(said, list) or not all(isinstance(module, str) for module in said):
        raise UserError(f"{folder / MODEL_FILES[0]}: {DECODES_ONLY} must be a list of modules, got {str(said)[:100]}")
    weights = inside(folder, MODEL_FILES[1])
    try:
        codes, file = codes_sha256(read_tensors(weights), said), sha256(weights)
        return TokenizerIdentity(name=name, sha256=codes, files=(file, *_earlier_files(folder, codes)))
    except (SafetensorError, OSError, ValueError) as error:
        pass_on(error)
        raise UserError(f"{weights} is damaged: {' '.join(str(error).split())}; get or make it again") from None


def identity_in_memory(tensors: Mapping[str, Tensor], decodes_only: Collection[str]) -> TokenizerIdentity:
    """Return the identity of a tokenizer that lies in no folder, by its tensors."""
    return TokenizerIdentity(name="in memory", sha256=codes_sha256(tensors, decodes_only))


def _earlier_files(folder: Path, codes: str) -> tuple[str, ...]:
    """Return the files that the model of a run began from, with the same codes."""
    began = next((change.identity for change in read_history(folder.parent) if change.identity is not None), None)
    return began.files if began is not None and began.sha256 == codes else ()


def check_tokenizer_of(run: Path, info: CodesInfo) -> None:
    """Raise `UserError`, which names both, where a run's tokenizer makes other codes than these."""
    model = run / "tokenizer/model"
    if not (model / MODEL_FILES[1]).exists():
        return
    if not (found := identity_of(model, str(model))).same_codes(info.tokenizer):
        raise UserError(
            f"the codes were written by the tokenizer {info.tokenizer}, not by the one of this run, {found}: remove "
            "their folder and encode again, or give another --run"
        )

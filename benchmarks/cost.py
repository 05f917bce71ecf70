"""Count the cost of a preset without running it: operations, memory and disk of both stages, from its YAML files.

    python -m benchmarks.cost configs/imagenet256 --images 1281167 --classes 1000

The networks are made without memory (torch's meta device), and torch counts the operations of their products and
convolutions, forward and backward, for one image; 2 for a multiplication and its addition. All else in a step is a
small share of that on hardware that is bound by products. Totals are those times the steps and batch sizes of the
files. With them the rates that this repository has measured, on two CPU cores (benchmarks/results/prior_training.json),
and at these the time. Writes benchmarks/results/cost_NAME.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from smalti.common import config
from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.condition import condition_of
from smalti.common.data.views import default_views
from smalti.common.folder import read_json
from smalti.common.record import record
from smalti.prior.code_head import nll_each
from smalti.prior.config import PriorConfig
from smalti.prior.config import TrainConfig as PriorTraining
from smalti.prior.transformer.model import TransformerPrior
from smalti.tokenizer.config import TrainConfig as TokenizerTraining
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae.model import VQVAE

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
YEAR = 365 * 24 * 3600


def weights(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def counted(counter: FlopCounterMode) -> int:
    return counter.get_total_flops()


class Kept:
    """The bytes that a forward pass keeps for the backward, in fp32 and beside the weights; under bf16 about half."""

    def __init__(self, model: nn.Module):
        self.weights = {_storage(each) for each in model.parameters()}
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        self.storages[_storage(tensor)] = tensor.untyped_storage()  # held, so that none takes another's place
        return tensor

    @property
    def mib(self) -> float:
        return sum(kept.nbytes() for key, kept in self.storages.items() if key not in self.weights) / 2**20


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def cost_of_tokenizer(c: TokenizerTraining, images: int) -> dict[str, Any]:
    """Return the operations of an image in training and in encoding, and those of all images in both."""
    assert isinstance(c.model, VQVAEConfig)  # whose operations are known
    with torch.device("meta"):
        tokenizer = VQVAE(c.model)
        pixels = torch.empty(1, c.model.image_channels, *c.model.image_size)
    quantizer, places = c.model.quantizer, c.model.grid[0] * c.model.grid[1]
    search = 2 * places * quantizer.size * quantizer.dim  # z_e times the codebook, for the nearest
    with FlopCounterMode(display=False) as encoding:
        z_e = tokenizer.encoder(pixels)
    kept = Kept(tokenizer)
    with FlopCounterMode(display=False) as training:
        with kept.hooks:
            decoded = tokenizer.decoder(tokenizer.encoder(pixels))
        decoded.sum().backward()
    step, encode = counted(training) + search, counted(encoding) + search
    assert z_e.shape[2:] == c.model.grid
    return {
        "weights": weights(tokenizer),
        "mib_kept_an_image": kept.mib,
        "operations_an_image": step,
        "images_trained_on": c.steps * c.batch_size,
        "operations": step * c.steps * c.batch_size,
        "epochs": c.steps * c.batch_size / images,
        "encode_operations": encode * images * views_of(c, images),
        # fp32: weights, gradient, two moments of AdamW, and the averaged weights
        "state_gib": 5 * 4 * weights(tokenizer) / 2**30,
    }


def views_of(c: TokenizerTraining, images: int) -> int:
    """Return the rows of codes that each image gets."""
    return c.encode.views or default_views(images, c.images)


def cost_of_prior(c: PriorTraining, info: CodesInfo, images: int) -> dict[str, Any]:
    with torch.device("meta"):
        prior = TransformerPrior(PriorConfig.over(info, c.model)).train()
        labels, codes = torch.zeros(1, dtype=torch.int64), torch.zeros(1, info.layout.length, dtype=torch.int64)
    kept = Kept(prior)
    with FlopCounterMode(display=False) as training:
        with kept.hooks:
            nll = nll_each(prior(labels, codes), codes, prior.vocabularies).mean()
        nll.backward()
    step = counted(training)
    return {
        "weights": weights(prior),
        "mib_kept_an_image": kept.mib,
        "operations_an_image": step,
        "operations_a_code": step / info.layout.length,
        "images_trained_on": c.steps * c.batch_size,
        "operations": step * c.steps * c.batch_size,
        "epochs": c.steps * c.batch_size / images,
        "state_gib": 5 * 4 * weights(prior) / 2**30,
    }


def cpu_rate() -> float:
    """Return operations a second of training the 38m prior on two cores, bf16: codes a second times operations a code.

    A code counts 6 for each weight that multiplies, as is usual. Attention is left out, so this is a little too low.
    """
    (point,) = (each for each in read_json(RESULTS / "prior_training.json")["points"] if each["shape"] == "38m")
    return 6 * point["parameters"]["ours"] * point["tokens_a_second"]["ours"]


def cost(folder: Path, images: int, classes: int) -> dict[str, Any]:
    one = config.parse(TokenizerTraining, "", [str(folder / "tokenizer.yaml")])
    two = config.parse(PriorTraining, "", [str(folder / "prior.yaml")])
    info = CodesInfo(
        layout=one.model.layout,
        views=views_of(one, images),
        condition=condition_of(tuple(map(str, range(classes))) or None),
        source={},
        shard_size=1,
        tokenizer=TokenizerIdentity(name=folder.name, sha256="0" * 64),
    )
    tokenizer, prior, rate = cost_of_tokenizer(one, images), cost_of_prior(two, info, images), cpu_rate()
    total = tokenizer["operations"] + tokenizer["encode_operations"] + prior["operations"]
    return {
        "tokenizer": tokenizer,
        "prior": prior,
        "operations": total,
        "codes_gib": images * info.views * info.layout.length * info.dtype.itemsize / 2**30,
        "measured_cpu_operations_a_second": rate,
        "years_at_that_rate": total / rate / YEAR,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, help="folder with tokenizer.yaml and prior.yaml")
    parser.add_argument("--images", type=int, required=True, help="training images of the set")
    parser.add_argument("--classes", type=int, default=0)
    arguments = parser.parse_args()
    found = cost(arguments.configs, arguments.images, arguments.classes)
    result = {**record("benchmarks.cost"), "protocol": __doc__, "images": arguments.images, **found}
    (RESULTS / f"cost_{arguments.configs.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

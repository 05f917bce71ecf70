"""Measure how long drawing codes takes: our sampler beside transformers' Llama and x-transformers, interleaved.

All have the same depth, width, heads, hidden width, codes and length, random weights, and draw from the whole
distribution, no image having a class and none an end. Theirs read one more token, which opens the sequence:
`LlamaForCausalLM.generate` with its own (dynamic) cache; the same Llama with a static cache in a loop whose step is
compiled, as gpt-fast does it (`llama-compiled`); `AutoregressiveWrapper.generate` with `cache_kv`, rotary positions,
RMSNorm, SwiGLU and `attn_flash`; each in fp32 and as `model.bfloat16()`. After a warm-up all are timed in turn, round
after round; of each the fastest round counts, and all are kept. On one thread of a CPU seconds are the processor's. A
step is one code of each image of the batch; the peer of a ratio is the fastest of them. What one image takes from a
warm pipeline is in benchmarks/starting.py.

    python -m benchmarks.sampling [--shapes 5m 38m] [--batches 1 16 64] [--repeats 3] [--output JSON]
    python -m benchmarks.sampling --batches 1 --precisions fp32 --times    # without the exactness
    python -m benchmarks.sampling --device cuda    # bf16 alone; and the shape of LlamaGen-B under guidance, ours alone

Of ours in bf16 also the share of the bandwidth floor: the time to read each weight and the written part of the cache
once, at the rate of a large copy, over the time a step takes (beyond 1 where a CPU's caches hold them). Exactness:
logits of 16 drawn images as the sampler computes them, less those of one fp32 forward pass; and 64 images drawn in
fp32, the same seeds in batches of three sizes: the share of codes that differ, and of images that do, where after the
first other code all may be others.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache
from x_transformers import AutoregressiveWrapper, TransformerWrapper

from benchmarks.claim import Claim, verdict
from benchmarks.shapes import MIDDLE, SMALL, Shape, make_prior, make_x_transformer, parameters
from benchmarks.timing import interleaved
from smalti.common.record import record
from smalti.prior.base import Prior
from smalti.prior.layers import hidden_width
from smalti.prior.sampling_config import Precision, SamplingConfig
from smalti.prior.transformer.fast.cached import CachedTransformer, NumberedStep
from smalti.prior.transformer.model import TransformerPrior

ROOT = Path(__file__).parents[1]
Figures = dict[str, Any]
Draw = Callable[[], Tensor]  # (B, T) codes

SHAPES = {
    "5m": SMALL,
    "38m": MIDDLE,
    "111m": Shape(preset="111m", codebook_size=16_384, side=24, classes=1000),
}
MORE_ROUNDS = 4  # times as many for single images, which other work on the machine disturbs most
GUIDANCE = 2.0  # where there are classes
RUNS = {"cpu": (["5m", "38m"], [1, 16, 64]), "cuda": ([*SHAPES], [1, 8, 16, 64, 256, 512])}  # shapes, batches
PRECISIONS: dict[str, tuple[Precision, ...]] = {"cpu": ("fp32", "bf16", "int8"), "cuda": ("bf16",)}
FASTER = {
    "5m": {"fp32": 1.4, "bf16": 2.0, "int8": 3.0},
    "38m": {"fp32": 1.2, "bf16": 1.8, "int8": 3.0},
}  # than fp32 peers
PUBLISHED = {  # of LlamaGen-B: 8 images in bf16 under guidance, top-k 2000, drawn once in 7.80 s and in 2.39 s
    "shape": "111m",
    "batch": 8,
    "device": "A100",
    "images_a_second": {"eager": 8 / 7.80, "vLLM 0.4.1": 8 / 2.39},
    "source": "https://github.com/FoundationVision/LlamaGen/blob/main/autoregressive/serve/README.md",
}
DRAWN, DRAWN_BATCHES, DECODED = 64, (1, 16, 64), 16  # images of which the draws are compared, and of which the logits


def make_stirred(shape: Shape) -> TransformerPrior:
    """Return ours with weights that make every block matter, and logits of deviation 2, so that rounding shows."""
    torch.manual_seed(0)
    prior = make_prior(shape).eval()
    for weight in prior.blocks.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    nn.init.normal_(prior.target_embedding, std=0.2)
    nn.init.normal_(prior.head.weight, std=2 * prior.head.weight.shape[1] ** -0.5)
    return prior


def make_llama(shape: Shape) -> LlamaForCausalLM:
    a = shape.architecture
    config = LlamaConfig(
        vocab_size=shape.codebook_size + 1,
        hidden_size=a.dim,
        intermediate_size=hidden_width(a.dim),
        num_hidden_layers=a.depth,
        num_attention_heads=a.heads,
        max_position_embeddings=shape.length + 1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def draw_llama(model: LlamaForCausalLM, prompt: Tensor, length: int) -> Tensor:
    return model.generate(prompt, do_sample=True, top_k=0, max_new_tokens=length, use_cache=True)[:, 1:]


def draw_x_transformer(model: TransformerWrapper, prompt: Tensor, length: int) -> Tensor:
    return AutoregressiveWrapper(model).generate(prompt, length, filter_logits_fn=lambda logits: logits, cache_kv=True)


class CompiledLlama(nn.Module):
    """Llama with a static cache. Its step, the draw included, is compiled once for each batch size."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.llama, self.length = make_llama(shape), shape.length
        self.step = torch.compile(self._step, fullgraph=True, dynamic=False)
        self.caches: dict[int, StaticCache] = {}

    def _step(self, token: Tensor, n: Tensor, cache: StaticCache) -> Tensor:
        """Return the next token (B, 1), drawn by an exponential race, which needs no sum over the codes."""
        found = self.llama(input_ids=token, past_key_values=cache, cache_position=n, position_ids=n[None])
        probabilities = found.logits[:, -1].float().softmax(-1)
        return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1, keepdim=True)

    @torch.inference_mode()
    def draw(self, prompt: Tensor) -> Tensor:
        B = len(prompt)
        cache = self.caches.setdefault(B, StaticCache(config=self.llama.config, max_cache_len=self.length + 1))
        cache.reset()
        tokens = [prompt]
        for n in range(self.length):
            tokens.append(self.step(tokens[-1], torch.tensor([n], device=prompt.device), cache))
        return torch.cat(tokens[1:], 1)


def draw_compiled(model: CompiledLlama, prompt: Tensor, length: int) -> Tensor:
    return model.draw(prompt)


PEERS = {
    "transformers": (make_llama, draw_llama),
    "llama-compiled": (CompiledLlama, draw_compiled),
    "x-transformers": (make_x_transformer, draw_x_transformer),
}


def make_peers(shape: Shape, precisions: Sequence[Precision], device: str) -> dict[str, nn.Module]:
    """Return the peers by name and precision; none where there are classes, since they draw without guidance."""
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    wanted = [(name, each) for name in PEERS for each in types if each in precisions and not shape.classes]
    return {f"{name} {each}": PEERS[name][0](shape).eval().to(device, types[each]) for name, each in wanted}


def contestants(
    prior: Prior, peers: dict[str, nn.Module], shape: Shape, batch: int, precisions: Sequence[Precision], device: str
) -> dict[str, Draw]:
    """Return the samplers of a batch by name and precision. Ours in int8 is for single images."""
    labels, prompt = torch.zeros(batch, dtype=torch.int64), torch.full((batch, 1), shape.codebook_size, device=device)
    found: dict[str, Draw] = {}
    for precision in precisions:
        if precision == "int8" and batch > 1:
            continue
        config = SamplingConfig(precision=precision, guidance=GUIDANCE if shape.classes else 1)
        found[f"ours {precision}"] = partial(prior.sampler(config, batch), labels, range(batch))
    for name, model in peers.items():
        found[name] = partial(PEERS[name.split()[0]][1], model, prompt, shape.length)
    return found


def clock_of(device: str) -> Callable[[], float]:
    """Return the clock: on one thread of a CPU the processor's, which others at work on the core do not move."""
    return time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def copy_rate(device: str) -> float:
    """Return bytes a second, read and written, of the fastest of ten copies of half a GiB."""
    source = torch.ones(2**27, device=device)
    target = torch.zeros_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, 10, device)
    return 2 * source.nbytes / min(times["copy"])


def floor_seconds(prior: TransformerPrior, rows: int, rate: float) -> float:
    """Return the seconds to read, once and in bf16, the weights of blocks and head and the mean written cache."""
    a, weights = prior.architecture, (*prior.blocks.parameters(), *prior.head.parameters())
    cache = rows * 2 * a.depth * a.key_heads * a.head_dim * (prior.config.layout.length + 1) / 2
    return 2 * (sum(weight.numel() for weight in weights) + cache) / rate


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """Return how many times as fast as the fastest peer ours is, by the precisions of both."""
    found = {}
    for mine, theirs in (("fp32", "fp32"), ("bf16", "fp32"), ("int8", "fp32"), ("bf16", "bf16")):
        peers = [seconds[f"{peer} {theirs}"] for peer in PEERS if f"{peer} {theirs}" in seconds]
        if peers and f"ours {mine}" in seconds:
            found[f"{mine} to {theirs}"] = min(peers) / seconds[f"ours {mine}"]
    return found


def measure(
    shape: Shape, batches: Sequence[int], precisions: Sequence[Precision], repeats: int, rate: float, device: str
) -> Iterator[Figures]:
    """Yield the figures of each batch size."""
    prior, peers = make_stirred(shape).to(device), make_peers(shape, precisions, device)
    models = {"ours": prior, **{name.split()[0]: model for name, model in peers.items()}}
    sizes = {name: parameters(model) for name, model in models.items()}
    for batch in batches:
        gc.collect()  # captured graphs and what they read refer to each other
        rounds = repeats * max(1, MORE_ROUNDS // batch)
        drawing = contestants(prior, peers, shape, batch, precisions, device)
        runs = interleaved(drawing, rounds, device, clock_of(device))
        best = {name: min(times) for name, times in runs.items()}
        floor = floor_seconds(prior, batch * (1 + bool(shape.classes)), rate)
        share = {"share_of_floor": floor * shape.length / best["ours bf16"]} if "ours bf16" in best else {}
        yield share | {
            "shape": shape.preset,
            "batch": batch,
            "parameters": sizes,
            "ms_a_step": {name: 1e3 * each / shape.length for name, each in best.items()},
            "images_a_second": {name: batch / each for name, each in best.items()},
            "seconds": runs,
            "ratios": ratios(best),
        }


def decoded(prior: TransformerPrior, labels: Tensor, codes: Tensor, precision: Precision) -> Tensor:
    """(B, T, K): the logits that the sampler computes, step by step, where it has drawn these codes."""
    decoder, x = CachedTransformer(prior, len(codes), precision), prior.inputs(labels, codes[:, :-1], None)
    logits = []
    for n in range(prior.config.layout.length):
        own = torch.full((len(codes),), n, device=codes.device)  # in raster order, and the next is the target
        hidden = decoder.step(x[:, n].clone(), decoder.turns(own + 1, own), NumberedStep(n))
        logits.append(decoder.logits(hidden, 0, []))
    return torch.stack(logits, dim=1)


@torch.inference_mode()
def exactness(shape: Shape, device: str) -> Figures:
    """Return each precision's logit error against the fp32 forward pass, and how far draws depend on the batch size."""
    prior, labels = make_stirred(shape).to(device), torch.zeros(DRAWN, dtype=torch.int64)
    fp32 = SamplingConfig(precision="fp32")
    drawn = {batch: prior.sampler(fp32, batch)(labels, range(DRAWN)) for batch in DRAWN_BATCHES}
    some, codes = labels[:DECODED].to(device), drawn[DECODED][:DECODED]
    exact = prior(some, codes)
    figures: Figures = {"shape": shape.preset, "logits_std": exact.std().item(), "logits": {}, "draws_that_differ": {}}
    for precision in PRECISIONS[device]:
        error = decoded(prior, some, codes, precision) - exact
        size = {"max": error.abs().amax().item(), "rms": error.square().mean().sqrt().item()}
        relative = {f"{name}_of_std": value / figures["logits_std"] for name, value in size.items()}
        figures["logits"][precision] = size | relative
    for one, other in combinations(DRAWN_BATCHES, 2):
        differ = drawn[one] != drawn[other]
        shares = {"codes": differ.float().mean().item(), "images": differ.any(1).float().mean().item()}
        figures["draws_that_differ"][f"batches of {one} and {other}"] = shares
    return figures


def judge(shape: str, precision: str, points: Sequence[Figures]) -> Figures | None:
    """Judge the ratio at every batch size; the worst of them counts."""
    points = [point for point in points if point["shape"] == shape and f"{precision} to fp32" in point["ratios"]]
    if not points:
        return None
    claim = Claim(
        text=f"{shape}: ours in {precision}, times as fast as the fastest peer in fp32",
        relation="at least",
        threshold=FASTER[shape][precision],
        value=lambda point: point["ratios"][f"{precision} to fp32"],
    )
    judged = claim.judge([(point,) for point in points])
    return judged | {"per_batch": dict(zip([point["batch"] for point in points], judged.pop("per_seed"), strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=RUNS, default="cpu")
    parser.add_argument("--shapes", choices=SHAPES, nargs="+", help="5m and 38m on a CPU, else all")
    parser.add_argument("--batches", type=int, nargs="+", help="1 16 64 on a CPU, else 1 8 16 64 256 512")
    parser.add_argument("--precisions", choices=PRECISIONS["cpu"], nargs="+", help="all of them, on CUDA bf16 alone")
    parser.add_argument("--times", action="store_true", help="without the exactness")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, four times as many for single images")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    shapes, batches = args.shapes or RUNS[args.device][0], args.batches or RUNS[args.device][1]
    precisions = args.precisions or PRECISIONS[args.device]
    rate, points, exact = copy_rate(args.device), [], []
    for shape in (SHAPES[name] for name in shapes):
        for point in measure(shape, batches, precisions, args.repeats, rate, args.device):
            points.append(point)
            print(json.dumps(point), flush=True)
        if not shape.classes and not args.times:
            exact.append(exactness(shape, args.device))
            print(json.dumps(exact[-1]), flush=True)
    judged = [found for shape in FASTER for each in FASTER[shape] if (found := judge(shape, each, points))]
    result = record("benchmarks.sampling", ["transformers", "x-transformers"]) | {
        "protocol": __doc__,
        "device": args.device,
        "claims": judged,
        "points": points,
        "exactness": exact,
        "copy_gb_a_second": rate / 1e9,
        "published": PUBLISHED,
    }
    output = args.output or ROOT / f"benchmarks/results/sampling{'_cuda' * (args.device == 'cuda')}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(*map(verdict, judged), sep="\n")


if __name__ == "__main__":
    main()

"""The upkeep of a codebook: moving averages and dead-code restarts, the same on every process."""

import pytest
import torch

from smalti.common.ema import EMA
from smalti.tokenizer.bottleneck.base import build_quantizer
from smalti.tokenizer.bottleneck.config import EMAVQConfig, GumbelConfig, SimVQConfig, VQConfig
from smalti.tokenizer.codebooks.upkeep import REVIVE_EVERY, TableUpkeep, forget

SIZES = {"codebook_size": 8, "code_dim": 4}
CONFIGS = {
    "vq": VQConfig(**SIZES),
    "vq_ema": EMAVQConfig(**SIZES, decay=0.9),
    "simvq": SimVQConfig(**SIZES),
    "gumbel": GumbelConfig(**SIZES),
}


def with_a_dead_code(kind: str):
    """Return a quantizer whose last code lies far from the data, its upkeep, and the data."""
    torch.manual_seed(0)
    quantizer = build_quantizer(CONFIGS[kind])
    z_e = torch.randn(16, 4, 16).abs()  # in one orthant
    quantizer.place(torch.arange(8), torch.randn(8, 4).abs())
    quantizer.place(torch.tensor([7]), -torch.ones(1, 4))
    return quantizer, TableUpkeep(quantizer, revive_below=0.05), z_e


def run_steps(quantizer, upkeep, z_e, accelerator, steps, revive=True):
    revived = []
    for step in range(steps):
        upkeep.observe(quantizer(z_e))
        revived += upkeep.step(accelerator, step, revive=revive).tolist()
    return revived


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_dead_code_is_revived_and_lives_on(kind, accelerator):
    """In a peer library a stale moving average overwrote the restarted vector one step later."""
    quantizer, upkeep, z_e = with_a_dead_code(kind)
    steps = 0
    while 7 not in run_steps(quantizer, upkeep, z_e, accelerator, REVIVE_EVERY):
        steps += REVIVE_EVERY
        assert steps < 50 * REVIVE_EVERY, "never revived"
    placed = quantizer.vectors[7].clone()
    assert (quantizer(z_e).indices == 7).any()
    upkeep.observe(quantizer(z_e))
    upkeep.step(accelerator, 0, revive=True)
    assert (quantizer(z_e).indices == 7).any()
    assert torch.dot(quantizer.vectors[7], placed) > 0.9, "it moved away in the next step"


def test_a_gumbel_code_that_is_only_drawn_is_revived(accelerator):
    """Use counts the nearest codes, as evaluation does: draws reach every code, so no code was dead by them, and 5%
    were never nearest."""
    torch.manual_seed(0)
    quantizer = build_quantizer(GumbelConfig(**SIZES))
    quantizer.log_sharpness.data.fill_(-10.0)  # all codes are equally likely
    z_e = torch.randn(16, 4, 16).abs()
    quantizer.place(torch.arange(8), torch.randn(8, 4).abs())
    quantizer.place(torch.tensor([7]), -torch.ones(1, 4))
    upkeep = TableUpkeep(quantizer, revive_below=0.05)
    assert (quantizer(z_e).indices == 7).any()
    assert 7 in run_steps(quantizer, upkeep, z_e, accelerator, 20 * REVIVE_EVERY)


@pytest.mark.parametrize("revive_below", [0.01, 0.05, 0.3])
def test_a_code_that_was_never_chosen_is_revived_after_five_windows(revive_below, accelerator):
    """A code began as one in full use: it took 14 windows, of a short training most, to call it dead."""
    quantizer, _, z_e = with_a_dead_code("vq")
    upkeep = TableUpkeep(quantizer, revive_below=revive_below)
    assert 7 not in run_steps(quantizer, upkeep, z_e, accelerator, 4 * REVIVE_EVERY)
    assert 7 in run_steps(quantizer, upkeep, z_e, accelerator, REVIVE_EVERY)


def test_codes_in_use_are_left_alone(accelerator):
    quantizer, upkeep, z_e = with_a_dead_code("vq")
    before = quantizer.codebook.detach().clone()
    revived = run_steps(quantizer, upkeep, z_e, accelerator, 40 * REVIVE_EVERY)
    others = [i for i in range(8) if i not in revived]
    assert 7 in revived and others
    assert torch.equal(quantizer.codebook[others], before[others])


def test_a_revived_row_has_no_optimizer_history():
    parameter = torch.nn.Parameter(torch.randn(4, 3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.square().sum().backward()
    optimizer.step()
    forget(optimizer, parameter, torch.tensor([2]))
    moment = optimizer.state[parameter]["exp_avg"]
    assert moment[2].eq(0).all() and moment[[0, 1, 3]].ne(0).all()


def test_an_ema_codebook_moves_to_the_mean_of_what_it_was_given(accelerator):
    """Appendix A.1: after many equal steps each used vector is the (normalised) mean of its vectors."""
    quantizer, upkeep, z_e = with_a_dead_code("vq_ema")
    run_steps(quantizer, upkeep, z_e, accelerator, 200, revive=False)
    quantized = quantizer(z_e)
    flat, indices = quantized.z_e.permute(0, 2, 1).reshape(-1, 4), quantized.indices.flatten()
    for code in indices.unique():
        mean = torch.nn.functional.normalize(flat[indices == code].mean(0), dim=0)
        torch.testing.assert_close(quantizer.vectors[code], mean, atol=1e-3, rtol=0)  # 0.9^200 of the start remains


def test_micro_batches_are_one_batch(accelerator):
    """Gradient accumulation must not move the codebook more than once a step."""
    whole, upkeep_whole, z_e = with_a_dead_code("vq_ema")
    parts, upkeep_parts, _ = with_a_dead_code("vq_ema")
    upkeep_whole.observe(whole(z_e))
    for part in z_e.chunk(4):
        upkeep_parts.observe(parts(part))
    upkeep_whole.step(accelerator, 0, revive=True)
    upkeep_parts.step(accelerator, 0, revive=True)
    torch.testing.assert_close(whole.codebook, parts.codebook)


def test_averaged_weights_start_close_and_buffers_are_copied():
    torch.manual_seed(0)
    model = torch.nn.BatchNorm1d(3)
    ema = EMA(model, decay=0.999)
    model.weight.data += 1
    model.running_mean += 5
    ema.update(model, step=0)  # the average soon forgets the initial weights: its first decay is 1 / 10
    torch.testing.assert_close(ema.model.weight, torch.full((3,), 1.9))
    assert torch.equal(ema.model.running_mean, model.running_mean)

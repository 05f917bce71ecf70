"""The upkeep of a codebook: moving averages and dead-code restarts, the same on every process."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from smalti.common import folder
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import open_images
from smalti.common.data.pixels import to_float
from smalti.common.ema import EMA
from smalti.tokenizer.bottleneck.base import build_quantizer
from smalti.tokenizer.bottleneck.config import EMAVQConfig, GumbelConfig, SimVQConfig, VQConfig
from smalti.tokenizer.codebooks.health import advice, codebook_of, unused
from smalti.tokenizer.codebooks.initialization import STARVED, refit_table
from smalti.tokenizer.codebooks.upkeep import REVIVE_EVERY, TableUpkeep, forget
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.model import build_tokenizer
from smalti.tokenizer.multiscale.config import MultiscaleConfig
from smalti.tokenizer.train import REVIVE_UNTIL, train
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae2.config import VQVAE2Config
from tests.conftest import tokenizer_training
from tests.test_training import same_files

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


def test_codes_of_one_table_for_all_scales_are_used_where_any_scale_uses_them():
    """Each of three scales uses a third of 48 codes: none is dead, and no smaller codebook is advised."""
    quantizer = VQConfig(codebook_size=48, code_dim=4)
    model = MultiscaleConfig(image_size=(8, 8), channels=(8, 16), quantizer=quantizer, scales=(1, 2, 4))
    counts = torch.zeros(3, 48, dtype=torch.int64)
    for scale in range(3):
        counts[scale, 16 * scale : 16 * scale + 16] = 100
    for shared, dead in ((True, False), (False, True)):
        book = codebook_of(build_tokenizer(model.model_copy(update={"shared": shared})))
        assert bool(unused(book, "validation", counts)) == dead
        assert any("dead codes" in line for line in advice(book, {"validation": counts})) == dead


# ------------------------------------------------------------------------------------------------------ the second fit

MODELS = {"vqvae": (VQVAEConfig, 64), "vqvae2": (VQVAE2Config, 32), "multiscale": (MultiscaleConfig, 32)}


@pytest.mark.parametrize("name", MODELS)
def test_tables_that_a_batch_gives_too_few_vectors_are_fitted_once_more(name, accelerator):
    """A batch of 8 gives 8, 32 and 128 vectors to grids of 1, 2 x 2 and 4 x 4 places. Where that is fewer than four a
    code, nearly all codes are in use after it, though most lay side by side; other tables stay as they are."""
    config, K = MODELS[name]
    torch.manual_seed(0)
    model = config(image_size=(8, 8), channels=(8, 16), quantizer=VQConfig(codebook_size=K, code_dim=4))
    tokenizer, c = build_tokenizer(model), TrainConfig(batch_size=8)
    split = open_images(ImagesConfig(), (8, 8), 1).splits["train"]
    tokenizer.begin(split, c, accelerator)
    side_by_side = torch.arange(8, K)
    for table in tokenizer.tables():
        table.place(side_by_side, table.vectors[side_by_side % 8] + 0.01 * torch.randn(K - 8, 4))
    before = [table.vectors.clone() for table in tokenizer.tables()]
    again = tokenizer.refit(split, c, accelerator)
    codes = tokenizer.encode(to_float(split.read(torch.arange(len(split))).images))
    parts, grids = model.layout.split(codes), model.layout.grids
    for part, grid, table, was in zip(parts, grids, tokenizer.tables(), before, strict=True):
        few = 8 * grid.places < STARVED * K
        assert few == any(table is each for each in again) and few != torch.equal(table.vectors, was)
        assert not few or part.unique().numel() > 0.9 * K


def test_training_does_so_once_and_goes_on_from_before_it_bit_for_bit(tmp_path, accelerator):
    """It is at the fifth of six steps. Averages of use begin afresh for those tables alone."""
    codes = VQConfig(codebook_size=16, code_dim=4)
    model = MultiscaleConfig(image_size=(8, 8), channels=(8, 16), quantizer=codes)
    run, killed = tmp_path / "run", tmp_path / "killed"
    train(tokenizer_training(run, model=model), accelerator)
    shutil.copytree(run, killed)
    folder.remove(killed / "tokenizer/state/step_00000006")
    folder.remove(killed / "tokenizer/config.yaml")  # names the other folder
    assert int(REVIVE_UNTIL * 6) == 4
    train(tokenizer_training(killed, model=model), accelerator)
    last = "state/step_00000006"
    names = [f"{last}/{name}.safetensors" for name in ("model", "ema", "upkeep", "optimizer")]
    assert same_files(run / "tokenizer", killed / "tokenizer", "model/model.safetensors", *names)
    earlier, later = (load_file(run / f"tokenizer/state/step_0000000{n}/upkeep.safetensors") for n in (3, 6))
    assert [torch.equal(earlier[f"{i}.sums"], later[f"{i}.sums"]) for i in range(3)] == [False, True, True]


def test_a_skipped_step_puts_the_second_fit_off_to_the_next_that_is_taken(tmp_path, accelerator, monkeypatch):
    """The gradient of the fifth of six steps is not finite."""
    total, seen = torch.nn.utils.get_total_norm, []

    def norm(gradients):
        seen.append(len(seen))
        return total(gradients) * (torch.inf if seen[-1] == 4 else 1)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", norm)
    codes = VQConfig(codebook_size=16, code_dim=4)
    model = MultiscaleConfig(image_size=(8, 8), channels=(8, 16), quantizer=codes)
    train(tokenizer_training(tmp_path / "run", model=model), accelerator)
    states = [tmp_path / f"run/tokenizer/state/step_0000000{n}/upkeep.safetensors" for n in (3, 6)]
    earlier, later = map(load_file, states)
    assert [torch.equal(earlier[f"{i}.sums"], later[f"{i}.sums"]) for i in range(3)] == [False, True, True]


def test_outputs_that_are_not_finite_move_no_code():
    torch.manual_seed(0)
    table = build_quantizer(VQConfig(**SIZES))
    before = table.vectors.clone()
    refit_table(table, torch.full((20, 4), torch.nan))
    assert torch.equal(table.vectors, before)

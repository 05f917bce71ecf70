"""Random numbers that belong to a seed, of which there are 2**64.

torch's generator on the CPU reads the lowest 32 bits of a seed alone: 0 and 2**32 are one seed to it. Seeds below that
keep the numbers they always had.
"""

import numpy as np
import torch
from torch import Tensor

WORD = 2**32
OF_NORMALS = 0x6E6F726D616C7321  # between the streams of `normals_of_rows` and all others of rows


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator of all bits of a seed. Two large seeds share one on the CPU with a chance of 2**-32."""
    found = torch.Generator(device)
    if seed >= WORD and found.device.type == "cpu":
        seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return found.manual_seed(seed)


def uniforms(seed: int, *shape: int) -> Tensor:
    """Return numbers in [0, 1), float32 on the CPU, that belong to this seed alone."""
    if seed < WORD:
        return torch.rand(shape, generator=generator(seed))
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


def normals(seed: int, *shape: int) -> Tensor:
    """Return standard normal numbers, float64 on the CPU, that belong to this seed alone."""
    if seed < WORD:
        return torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def mixed(x: np.ndarray) -> np.ndarray:
    """Return each uint64 hashed by splitmix64 (Steele et al. 2014), where every bit depends on all."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def seed_for(seed: int, purpose: int) -> int:
    """Return the seed of another stream that belongs to a seed, below 2**64: one for each purpose."""
    return int(mixed(mixed(np.array([seed], dtype=np.uint64)) ^ np.uint64(purpose))[0])


def uniforms_of_rows(seed: int, epochs: np.ndarray, rows: np.ndarray, count: int) -> Tensor:
    """Return numbers (count, B) in [0, 1), float64 on the CPU, that belong to seed, epoch and row alone."""
    state = mixed(np.full(rows.shape, seed % 2**64, dtype=np.uint64))
    state = mixed(mixed(state ^ epochs.astype(np.uint64)) ^ rows.astype(np.uint64))
    drawn = np.stack([mixed(state + np.uint64(i)) >> np.uint64(11) for i in range(count)])
    return torch.from_numpy(drawn.astype(np.float64) * 2.0**-53)


def normals_of_rows(seed: int, rows: np.ndarray, epochs: np.ndarray, count: int) -> Tensor:
    """Return standard normal numbers (B, count), float32 on the CPU, that belong to seed, row and epoch alone.

    They are independent of the pixels that `binarized` draws of the same row and epoch.
    """
    state = mixed(np.full(rows.shape, seed % 2**64 ^ OF_NORMALS, dtype=np.uint64))
    state = mixed(mixed(state ^ epochs.astype(np.uint64)) ^ rows.astype(np.uint64))
    bits = mixed(state[:, None] + np.arange(count, dtype=np.uint64)) >> np.uint64(11)
    return torch.special.ndtri(torch.from_numpy((bits.astype(np.float64) + 0.5) * 2.0**-53)).float()

"""Tokens drawn per second with a cache of keys and values, and without.

    python -m experiments.benchmark_decoding

A Transformer decoder of random parameters, the same keys for both ways, which must give
the same tokens; compiled before, in turns, in one process.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.benchmark import machine
from vi_jax import decoding, networks, runs, sequences


def main(
    length: int = 64,
    vocabulary: int = 2000,
    width: int = 128,
    layers: int = 2,
    num: int = 50,
    repeats: int = 7,
    out: Path = Path("runs/benchmark_decoding"),
) -> None:
    """Time both ways; writes benchmark_decoding.json.

    Args:
        length: Tokens per sequence.
        vocabulary: Different tokens.
        width: Width of the decoder.
        layers: Layers of the decoder.
        num: Sequences drawn at once.
        repeats: Times that each way is timed.
        out: Folder of benchmark_decoding.json.
    """
    out.mkdir(parents=True, exist_ok=True)
    network = networks.transformer_decoder(
        vocabulary, length, width=width, layers=layers
    )
    latents = jax.random.normal(jax.random.key(0), (num, 16))
    params = jax.jit(network.init)(jax.random.key(1), latents[0])
    ways = {"cached": network, "uncached": decoding.uncached(network, length)}
    keys = jax.random.split(jax.random.key(2), num)

    def drawn(way) -> jax.Array:
        # The end never comes, so that every sequence has the full length.
        endless = lambda key, log_p: decoding.sampled(
            key, log_p.at[sequences.END].set(-jnp.inf)
        )
        one = lambda z, key: decoding.decode(
            way, params, z, key, length=length, choose=endless
        )
        return jax.jit(jax.vmap(one)).lower(latents, keys).compile()

    compiled = {name: drawn(way) for name, way in ways.items()}
    results = [run(latents, keys) for run in compiled.values()]
    # The same draws, up to a near tie that rounding decides and what follows from it.
    agree = float(np.mean(np.all(results[0] == results[1], axis=1)))
    if agree < 0.9:
        raise ValueError(f"only {agree:.0%} of the sequences are the same both ways")
    rates = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(run(latents, keys))
            rates[name].append(num * length / (time.perf_counter() - start))
    ratios = np.divide(rates["cached"], rates["uncached"])
    for name, rate in rates.items():
        print(f"{name:10}{np.median(rate):10.0f} tokens/s")
    print(f"ratio {np.median(ratios):.1f} ({ratios.min():.1f}-{ratios.max():.1f})")
    about = {"length": length, "vocabulary": vocabulary, "width": width}
    about |= {"layers": layers, "num": num, "same_sequences": agree}
    record = {"machine": machine(), **about, **rates, "ratio": ratios.tolist()}
    runs.write_json(out / "benchmark_decoding.json", record)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmark_decoding", description=__doc__)

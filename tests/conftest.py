"""Settings under which every test runs."""

import os

# Before jax is imported: sharding can then be tested on any laptop.
os.environ.setdefault("XLA_FLAGS", "")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

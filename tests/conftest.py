"""Settings under which every test runs."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# Several devices on any laptop.
jax.config.update("jax_num_cpu_devices", 2)

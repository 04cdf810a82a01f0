"""Images, sentences, interactions and tables as arrays, and minibatches of them."""

from pathlib import Path

from vi_jax.data.batches import no_data as no_data, shuffled as shuffled
from vi_jax.data.factors import load_factors as load_factors
from vi_jax.data.images import image_data as image_data
from vi_jax.data.interactions import (
    Interactions as Interactions,
    interaction_batches as interaction_batches,
    strong_split as strong_split,
)
from vi_jax.data.labels import (
    MISSING as MISSING,
    keep_balanced as keep_balanced,
    mixed as mixed,
)
from vi_jax.data.ratings import load_interactions as load_interactions
from vi_jax.data.sources import from_arrays as from_arrays, load as load
from vi_jax.data.sprites import sprite_data as sprite_data
from vi_jax.data.streams import streamed as streamed
from vi_jax.data.tables import (
    fit_schema as fit_schema,
    read_table as read_table,
)
from vi_jax.data.text import load_sentences as load_sentences

MOSES = Path(__file__).parent / "moses" / "test.csv.gz"
"""176,074 drug-like molecules, a SMILES a line: MOSES' test set (arXiv:1811.12823)."""

"""Which user chose which item: sparse, in splits and in batches."""

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np

from vi_jax.data import batches
from vi_jax.types import Array, Batch

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class Interactions(NamedTuple):
    """Each user's items: those of user u are items[offsets[u] : offsets[u + 1]].

    The memory is that of the interactions, not of users x items.
    """

    offsets: np.ndarray  # int32 [users + 1]
    items: np.ndarray  # int32 [interactions], rising within a user
    user_names: np.ndarray  # unicode [users]
    item_names: np.ndarray  # unicode [items]

    @property
    def num_users(self) -> int:
        return len(self.user_names)

    @property
    def num_items(self) -> int:
        return len(self.item_names)

    def matrix(self) -> "csr_matrix":
        """1 where a user chose an item, float32 [users, items] in CSR form."""
        from scipy import sparse  # a quarter of a second of `import vi_jax`

        ones = np.ones(len(self.items), np.float32)
        shape = (self.num_users, self.num_items)
        return sparse.csr_matrix((ones, self.items, self.offsets), shape)

    def of_users(self, users: np.ndarray) -> "Interactions":
        """Those of some users, in the order given; the items stay what they are."""
        lengths = np.diff(self.offsets)[users]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        items = self.items[np.repeat(self.offsets[:-1][users], lengths) + within]
        return self._replace(
            offsets=offsets.astype(np.int32),
            items=items,
            user_names=self.user_names[users],
        )


def from_pairs(
    user: np.ndarray, item: np.ndarray, user_names: np.ndarray, item_names: np.ndarray
) -> Interactions:
    """Interactions of user [m] and item [m], places in the names; a pair counts once.

    Raises ValueError where a place is outside its names, a user has no interactions
    (the user is named), or there are 2^31 interactions or more.
    """
    user_names, item_names = np.asarray(user_names, str), np.asarray(item_names, str)
    user, item = np.asarray(user, np.int64), np.asarray(item, np.int64)
    if user.ndim != 1 or user.shape != item.shape:
        raise ValueError(f"user and item must be [m], got {user.shape}, {item.shape}")
    for name, place, n in (
        ("user", user, len(user_names)),
        ("item", item, len(item_names)),
    ):
        outside = (place < 0) | (place >= n)
        if outside.any():
            i = int(outside.argmax())
            raise ValueError(f"{name}[{i}] is {place[i]}: it must lie in [0, {n})")
    key = np.unique(user * len(item_names) + item)
    if len(key) >= 2**31:
        raise ValueError(f"{len(key)} interactions: there must be fewer than 2^31")
    owner, items = np.divmod(key, max(len(item_names), 1))
    counts = np.bincount(owner, minlength=len(user_names))
    if not counts.all():
        raise ValueError(
            f"user {str(user_names[counts.argmin()])!r} has no interactions: leave out "
            "users without any"
        )
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return Interactions(offsets, items.astype(np.int32), user_names, item_names)


class HeldOut(NamedTuple):
    """Users who took no part in training: what a model sees of them, and the rest."""

    seen: Interactions
    held: Interactions


class Split(NamedTuple):
    """Strong generalisation: other users in each part, the items of the training."""

    train: Interactions
    valid: HeldOut
    test: HeldOut
    num_unseen: int  # interactions dropped: nobody in training chose the item
    num_too_short: int  # held-out users dropped: fewer than 2 known items


def strong_split(
    data: Interactions,
    *,
    num_valid: int,
    num_test: int,
    seed: int,
    held_share: float = 0.2,
) -> Split:
    """Training users, and held-out ones whose items are split into seen and held.

    num_valid and num_test users are drawn by `seed`; the items are those that a
    training user chose, in the old order. Of a held-out user, items unknown in training
    are dropped, and counted; of the n that are left, max(1, floor(held_share n)) drawn
    ones are held and the others seen. A user with fewer than 2 is dropped, and counted.
    Raises ValueError where the numbers leave no training user, held_share is outside
    (0, 1), or nobody is left to be held out.
    Ref: Marlin 2004; Liang et al. 2018, arXiv:1802.05814.
    """
    if min(num_valid, num_test) < 1 or num_valid + num_test >= data.num_users:
        raise ValueError(
            f"num_valid is {num_valid} and num_test {num_test}: both must be at least "
            f"1, and some of the {data.num_users} users be left for training"
        )
    if not 0 < held_share < 1:
        raise ValueError(f"held_share must be in (0, 1), got {held_share}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(data.num_users)
    num_train = data.num_users - num_valid - num_test
    train = data.of_users(np.sort(order[:num_train]))
    known = np.unique(train.items)
    place = np.full(data.num_items, -1, np.int32)
    place[known] = np.arange(len(known))
    names = data.item_names[known]
    train = train._replace(items=place[train.items], item_names=names)
    parts, unseen, short = [], 0, 0
    for users in np.split(order[num_train:], [num_valid]):
        part = data.of_users(np.sort(users))
        items = place[part.items]
        unseen += int(np.sum(items < 0))
        held_out = _fold_in(part, items, names, held_share, rng)
        short += len(users) - held_out.seen.num_users
        parts.append(held_out)
    return Split(train, *parts, num_unseen=unseen, num_too_short=short)


def _fold_in(
    part: Interactions, items: np.ndarray, names: np.ndarray, share: float, rng
) -> HeldOut:
    """items [interactions] of `part`, below 0 where unknown, as seen and held ones."""
    owner = np.repeat(np.arange(part.num_users), np.diff(part.offsets))
    owner, items = owner[items >= 0], items[items >= 0]
    count = np.bincount(owner, minlength=part.num_users)
    users = np.flatnonzero(count >= 2)
    if not users.size:
        raise ValueError(
            "no held-out user has two items that are known in training: hold out more "
            "users, or fewer for more to train on"
        )
    # Each user's items in a random order: the first ones are held.
    order = np.lexsort([rng.random(len(items)), owner])
    start = np.cumsum(count) - count
    rank = np.empty(len(items), int)
    rank[order] = np.arange(len(items)) - start[owner[order]]
    held = rank < np.maximum(1, (share * count).astype(int))[owner]
    kept = (count >= 2)[owner]
    new = np.cumsum(count >= 2) - 1
    make = lambda which: from_pairs(
        new[owner[which]], items[which], part.user_names[users], names
    )
    return HeldOut(make(kept & ~held), make(kept & held))


def interaction_batches(
    data: Interactions, *, batch_size: int, seed: int
) -> batches.Batches:
    """Rows of `data` in the order of `batches.shuffled`, dense in their batch only.

    A batch is {"counts": float32 [b, items] of 0 and 1, "step": int32 []}. On the
    device lie the offsets and the items, 4 bytes each; a batch is made inside jit, by a
    scatter of as many entries as b rows can have.
    Raises ValueError as `batches.shuffled` does.
    """
    users = np.arange(data.num_users, dtype=np.int32)
    order = batches.shuffled({"user": users}, batch_size=batch_size, seed=seed)
    # A batch on the border of two epochs may have a user twice.
    twice = np.repeat(np.diff(data.offsets), 2)
    longest = np.sort(twice)[-batch_size:].sum()

    def gather(resident: dict[str, Array], travelling: dict[str, Array]) -> Batch:
        rows = dense_rows(
            resident["offsets"],
            resident["items"],
            travelling["index"],
            num_items=data.num_items,
            capacity=int(longest),
        )
        return {"counts": rows, "step": travelling["step"]}

    resident = {"offsets": data.offsets, "items": data.items}
    return batches.Batches(resident, order.at, gather)


def dense_rows(
    offsets: Array, items: Array, users: Array, *, num_items: int, capacity: int
) -> Array:
    """Rows `users` [b] of a sparse 0-1 matrix, float32 [b, num_items].

    `capacity` is at least the number of entries of these rows: others are left out.
    """
    lengths = offsets[users + 1] - offsets[users]
    end = jnp.cumsum(lengths)
    row = jnp.repeat(jnp.arange(users.size), lengths, total_repeat_length=capacity)
    place = jnp.arange(capacity)
    entry = offsets[users][row] + place - (end - lengths)[row]
    item = items.at[entry].get(mode="clip")
    # Past the last entry: outside of the columns, where a scatter drops it.
    item = jnp.where(place < end[-1], item, num_items)
    return jnp.zeros((users.size, num_items)).at[row, item].set(1.0, mode="drop")
